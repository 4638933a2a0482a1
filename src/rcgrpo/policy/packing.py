"""Episodes as padded tensors: what a group shares stored once, groups kept together under a token budget."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields
from heapq import heapify, heapreplace

import numpy as np
import torch
from torch import Tensor

from rcgrpo.errors import UserError
from rcgrpo.policy.branching import Group


@dataclass(frozen=True)
class ScoringBatch:
    """B sequences in N groups: a prefix per group (length up to P) and a completion per sequence (up to L).

    A completion starts with at least one given token, whose hidden state predicts the first trained one.
    Padding is on the right, with id 0.
    """

    prefix_NP: Tensor
    """int64 ids. P may be 0."""
    prefix_length_N: Tensor
    group_B: Tensor
    """Row of ``prefix_NP`` that each sequence starts with."""
    ids_BL: Tensor
    """int64 ids of the completions."""
    mask_BL: Tensor
    """bool: the tokens to score."""
    length_B: Tensor
    """Length of each completion, int64."""

    @classmethod
    def pack(
        cls, sequences: Sequence[Sequence[int]], masks: Sequence[Sequence[int]], groups: Sequence[Hashable]
    ) -> ScoringBatch:
        """Pack whole episodes (``token_ids``, ``loss_mask``, ``group_id`` of each); the order of rows is kept."""
        _check(sequences, masks, groups)
        members = _members(groups)
        arrays = [np.asarray(ids, dtype=np.int64) for ids in sequences]
        prefixes = [_shared_length([arrays[i] for i in rows], [masks[i] for i in rows]) for rows in members]
        group = [0] * len(arrays)
        for n, rows in enumerate(members):
            for i in rows:
                group[i] = n
        completions = [ids[prefixes[g] :] for ids, g in zip(arrays, group, strict=True)]
        trained = [np.asarray(mask)[prefixes[g] :] for mask, g in zip(masks, group, strict=True)]
        return cls(
            prefix_NP=_pad([arrays[rows[0]][:length] for rows, length in zip(members, prefixes, strict=True)]),
            prefix_length_N=torch.tensor(prefixes),
            group_B=torch.tensor(group),
            ids_BL=_pad(completions),
            mask_BL=_pad(trained).bool(),
            length_B=torch.tensor([len(ids) for ids in completions]),
        )

    def to(self, device: torch.device | str) -> ScoringBatch:
        """The batch on another device."""
        return ScoringBatch(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def align(self, values: Sequence[Sequence[float]]) -> Tensor:
        """Lay out one value per trained token, in order (as ``Episode.logprobs``): float32 [B, L], zeros elsewhere."""
        counts = self.mask_BL.sum(1).tolist()
        for i, (row, count) in enumerate(zip(values, counts, strict=True)):
            if len(row) != count:
                raise UserError(
                    f"sequence {i}: {len(row)} values for {count} trained tokens; give one per mask entry 1"
                )
        flat = torch.tensor([v for row in values for v in row], dtype=torch.float32, device=self.mask_BL.device)
        return torch.zeros(self.mask_BL.shape, device=flat.device).masked_scatter(self.mask_BL, flat)

    def in_one_row(self) -> tuple[list[Group], Tensor, Tensor, Tensor]:
        """The groups one after the other: each one's prefix, then its completions; nothing is padded.

        Returns the lengths of each group's parts, the column of every place of ``ids_BL`` in the row [B, L] (beyond a
        completion's end: of no meaning), and ids and positions of the row.
        """
        prefixes, lengths = self.prefix_length_N.tolist(), self.length_B.tolist()
        members: list[list[int]] = [[] for _ in prefixes]
        for i, n in enumerate(self.group_B.tolist()):
            members[n].append(i)
        groups, ids, positions, starts, end = [], [], [], [0] * len(lengths), 0
        for n, rows in enumerate(members):
            prefix = prefixes[n]
            groups.append(Group(prefix, [lengths[i] for i in rows]))
            ids.append(self.prefix_NP[n, :prefix])
            positions.append(torch.arange(prefix))
            end += prefix
            for i in rows:
                starts[i] = end
                ids.append(self.ids_BL[i, : lengths[i]])
                positions.append(torch.arange(prefix, prefix + lengths[i]))
                end += lengths[i]
        columns_BL = torch.tensor(starts)[:, None] + torch.arange(self.ids_BL.shape[1])
        device = self.ids_BL.device
        return groups, columns_BL.to(device), torch.cat(ids), torch.cat(positions).to(device)

    def whole(self) -> tuple[Tensor, Tensor]:
        """The sequences in full: (ids [B, S] padded on the right, start of each completion [B])."""
        start_B = self.prefix_length_N[self.group_B]
        rows = zip(self.group_B.tolist(), start_B.tolist(), self.length_B.tolist(), strict=True)
        parts = [
            torch.cat([self.prefix_NP[group, :start], self.ids_BL[i, :length]])
            for i, (group, start, length) in enumerate(rows)
        ]
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True), start_B


def microbatches(
    sequences: Sequence[Sequence[int]],
    masks: Sequence[Sequence[int]],
    groups: Sequence[Hashable],
    token_budget: int,
) -> list[list[int]]:
    """Split episodes into micro-batches (lists of their indices) of about equal token counts, groups kept together.

    The tokens of a group are its shared prefix once plus its completions. A group larger than ``token_budget`` gets
    a micro-batch of its own: it cannot be split without computing its prefix again.
    """
    _check(sequences, masks, groups)
    if token_budget < 1:
        raise UserError(f"token_budget={token_budget}: must be at least 1")
    members = _members(groups)
    costs = []
    for rows in members:
        shared = _shared_length([np.asarray(sequences[i]) for i in rows], [masks[i] for i in rows])
        costs.append(shared + sum(len(sequences[i]) - shared for i in rows))
    count = min(len(members), max(1, -(-sum(costs) // token_budget)))
    while True:
        bins = _balance(costs, count)
        if count == len(members) or all(sum(costs[n] for n in b) <= token_budget or len(b) == 1 for b in bins):
            return [sorted(i for n in b for i in members[n]) for b in bins]
        count += 1


def _balance(costs: list[int], count: int) -> list[list[int]]:
    """Longest first, each to the emptiest of ``count`` bins."""
    heap: list[tuple[int, int]] = [(0, b) for b in range(count)]
    heapify(heap)
    bins: list[list[int]] = [[] for _ in range(count)]
    for n in sorted(range(len(costs)), key=lambda n: -costs[n]):
        load, b = heap[0]
        bins[b].append(n)
        heapreplace(heap, (load + costs[n], b))
    return bins


def _members(groups: Sequence[Hashable]) -> list[list[int]]:
    rows: dict[Hashable, list[int]] = {}
    for i, group in enumerate(groups):
        rows.setdefault(group, []).append(i)
    return list(rows.values())


def _shared_length(arrays: list[np.ndarray], masks: list[Sequence[int]]) -> int:
    """Common prefix of a group, ending at least one token before any trained token or sequence end."""
    if len(arrays) == 1:
        return 0  # nothing to share: one pass does
    limit = min(len(ids) for ids in arrays) - 1
    for mask in masks:
        trained = np.flatnonzero(np.asarray(mask))
        if len(trained):
            limit = min(limit, int(trained[0]) - 1)
    stacked = np.stack([ids[:limit] for ids in arrays])
    same = (stacked == stacked[0]).all(axis=0)
    return limit if same.all() else int(same.argmin())


def _pad(arrays: list[np.ndarray]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.as_tensor(a) for a in arrays], batch_first=True)


def _check(sequences: Sequence[Sequence[int]], masks: Sequence[Sequence[int]], groups: Sequence[Hashable]) -> None:
    if not len(sequences) == len(masks) == len(groups) or not sequences:
        raise UserError(f"{len(sequences)} sequences, {len(masks)} masks, {len(groups)} groups: need the same, above 0")
    for i, (ids, mask) in enumerate(zip(sequences, masks, strict=True)):
        if len(ids) != len(mask) or not len(ids):
            raise UserError(f"sequence {i}: {len(ids)} ids but {len(mask)} mask entries; need the same, above 0")
        if mask[0]:
            raise UserError(f"sequence {i}: the first token is marked as trained, but nothing predicts it; mask it")
