"""Decode attention that reads a prefix shared by several rows once, not once per row.

A decode step is bound by reading keys and values. Rows of one group hold the same prompt, so the queries of all its
members meet that prompt in one matrix product, and each row reads alone only what comes after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from rcgrpo.policy.architecture import additive_mask
from rcgrpo.policy.prefixes import common_length

ATTENTION = "rcgrpo_cascade"
"""Name of the attention under which a model runs inside an engine session."""


@dataclass(frozen=True)
class Clusters:
    """C sets of rows, each with a common prefix whose keys and values are kept once more, stacked."""

    prefixes: list[Tensor]
    """Per layer [2, C, kv_heads, P, head_dim]; beyond its own length a cluster's part is never read."""
    lengths: list[int]
    """Length of each cluster's prefix."""

    @property
    def size(self) -> int:
        """Positions that one pass over all the prefixes reads."""
        return len(self.lengths) * max(self.lengths)


@dataclass(frozen=True)
class Cascade:
    """One decode step over T slots: which cluster each belongs to, and what each may see."""

    clusters: Clusters
    members_K: Tensor | None
    """C x M slots, flat: the members of each cluster, padded. None: the slots as they are, T = C x M."""
    home_T: Tensor
    """Where in ``members_K`` each slot stands (0 for passengers)."""
    start: int
    """The slots' own positions are read from here on: the length of the shortest prefix."""
    mask_T11S: Tensor
    """Additive, over P prefix positions and then the slots' own positions from ``start`` on."""


def cluster(prompts: Sequence[np.ndarray]) -> list[tuple[list[int], int]]:
    """Group prompts by common prefix: (indices, length of their common prefix), every prompt in one group.

    A group of n with a prefix of length p saves (n - 1) p reads; of all ways to cut the sorted prompts into groups
    this takes one that saves most (dynamic programming over the last cut).
    """
    order = sorted(range(len(prompts)), key=lambda i: prompts[i].tolist())
    shared = [common_length(prompts[a], prompts[b]) for a, b in pairwise(order)]
    best, cuts = [0], [(0, 0)]
    for end in range(1, len(order) + 1):
        length = len(prompts[order[end - 1]])
        saved, cut = best[end - 1], (end - 1, length)
        for start in range(end - 2, -1, -1):
            length = min(length, shared[start])
            if best[start] + (end - start - 1) * length > saved:
                saved, cut = best[start] + (end - start - 1) * length, (start, length)
        best.append(saved)
        cuts.append(cut)
    groups, end = [], len(order)
    while end:
        start, length = cuts[end]
        groups.append((order[start:end], length))
        end = start
    return groups[::-1]


def plan_cascade(
    clusters: Clusters, rows: list[tuple[int, int]], top: int, seen_TS: Tensor, dtype: torch.dtype
) -> Cascade | None:
    """The plan of one decode step over T = ``top`` slots; None where reading every row in full is about as good.

    ``rows``: (slot, cluster) of each decoding row, slots ascending. ``seen_TS``: the positions each slot may see.
    """
    device, reach = seen_TS.device, seen_TS.shape[1]
    start = min(clusters.lengths[c] for _, c in rows)
    if clusters.size + top * (reach - start) > 0.7 * top * reach:
        return None
    members: list[list[int]] = [[] for _ in clusters.lengths]
    for slot, c in rows:
        members[c].append(slot)
    seats = max(map(len, members))
    if len(members) * seats > 4 * top:  # one large cluster among many small ones: mostly padding
        return None
    home, prefix = [0] * top, [1] * top  # passengers see one position, and nobody reads what they get
    for c, slots in enumerate(members):
        for seat, slot in enumerate(slots):
            home[slot], prefix[slot] = c * seats + seat, clusters.lengths[c]
    flat = [slot for slots in members for slot in slots + [0] * (seats - len(slots))]
    prefix_T1 = torch.tensor(prefix, device=device)[:, None]
    columns_S = torch.arange(reach, device=device)
    columns_P = torch.arange(max(clusters.lengths), device=device)
    own_TS = seen_TS[:, start:] & (columns_S[start:] >= prefix_T1)
    visible_TS = torch.cat([columns_P < prefix_T1, own_TS], dim=1)
    return Cascade(
        clusters=clusters,
        members_K=None if flat == list(range(top)) else torch.tensor(flat, device=device),
        home_T=torch.tensor(home, device=device),
        start=start,
        mask_T11S=additive_mask(visible_TS[:, None, None], dtype),
    )


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    cascade: Cascade | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """An attention function of transformers: query [T, heads, 1, D], key and value [T, kv_heads, own positions, D].

    Without a ``cascade`` it is ordinary sdpa attention; where every row has one query only, by plain products, which
    need no copy of the keys for each of the heads that share them.
    """
    if cascade is None and query.shape[2] == 1:
        return _one_query(query, key, value, attention_mask, scaling), None
    if cascade is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    slots, heads, _, width = query.shape
    prefix_keys, prefix_values = cascade.clusters.prefixes[module.layer_idx]  # type: ignore[index]
    count, kv_heads, reach, _ = prefix_keys.shape
    share = heads // kv_heads
    seats = (slots if cascade.members_K is None else len(cascade.members_K)) // count
    query_THRD = query.view(slots, kv_heads, share, width) * (width**-0.5 if scaling is None else scaling)

    def gather(x_THRE: Tensor) -> Tensor:
        x_KHRE = x_THRE if cascade.members_K is None else x_THRE[cascade.members_K]
        x_CMHRE = x_KHRE.reshape(count, seats, kv_heads, share, -1)
        return x_CMHRE.transpose(1, 2).reshape(count, kv_heads, seats * share, -1)

    def scatter(x_CHQE: Tensor) -> Tensor:
        x_CMHRE = x_CHQE.view(count, kv_heads, seats, share, -1).transpose(1, 2)
        x_KHRE = x_CMHRE.reshape(count * seats, kv_heads, share, -1)
        return x_KHRE if cascade.members_K is None else x_KHRE[cascade.home_T]

    shared_THRP = scatter(gather(query_THRD) @ prefix_keys.transpose(-1, -2))
    own_THRS = query_THRD @ key.transpose(-1, -2)
    scores_THRS = torch.cat([shared_THRP, own_THRS], dim=-1).add_(cascade.mask_T11S)
    weights_THRS = scores_THRS.softmax(-1, dtype=torch.promote_types(query.dtype, torch.float32)).to(query.dtype)
    out_THRD = scatter(gather(weights_THRS[..., :reach]) @ prefix_values) + weights_THRS[..., reach:] @ value
    return out_THRD.reshape(slots, 1, heads, width), None


def _one_query(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    slots, heads, _, width = query.shape
    query_THRD = query.reshape(slots, key.shape[1], -1, width) * (width**-0.5 if scaling is None else scaling)
    scores_THRS = query_THRD @ key.transpose(-1, -2)
    if mask is not None:
        scores_THRS += mask
    weights_THRS = scores_THRS.softmax(-1, dtype=torch.promote_types(query.dtype, torch.float32)).to(query.dtype)
    return (weights_THRS @ value).reshape(slots, 1, heads, width)


AttentionInterface.register(ATTENTION, attend)
