"""Attention that reads a prefix shared by several rows once, not once per row.

A decode step is bound by reading keys and values, and so is adding a short tool result to every row. Rows of one
group hold the same prompt, so the queries of all its members meet that prompt in one matrix product (or one call of
the flash kernel, where each row has several), and each row reads alone only what comes after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from rcgrpo.policy.architecture import additive_mask
from rcgrpo.policy.branching import flash
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
    bands: list[int]
    """Which band each cluster belongs to, ascending: prefixes of about one length, which are read in one product."""


class Seat(NamedTuple):
    """One row of a forward, as its plan sees it."""

    row: int
    """Its place in the forward's T rows."""
    cluster: int
    end: int
    """Positions that its last token sees."""


@dataclass(frozen=True)
class Cascade:
    """Some rows of a forward: which prefixes they read together, and what each reads alone."""

    prefixes: list[Tensor]
    """Per layer [2, C, kv_heads, P, head_dim]."""
    rows: slice | Tensor
    """T rows of the forward: neighbours, or indices, whose own keys have to be copied."""
    own: slice
    """Of the keys that attention is handed: what the rows read alone, S positions."""
    members_K: Tensor | None
    """C x M of the T rows, flat: the members of each cluster, padded. None: the rows as they are, T = C x M."""
    home_T: Tensor
    """Where in ``members_K`` each row stands (0 for passengers)."""
    mask_T11LS: Tensor
    """Additive, over the S own positions, for L new tokens a row; by products over P prefix positions before them."""
    lengths: list[int] | None
    """Prefix length of each cluster where the flash kernel reads it; None: products do."""

    def gather(self, x_THQE: Tensor) -> Tensor:
        """What the rows have for Q queries per key head, as [C, H, N, E] for the N = M x Q queries of each cluster."""
        x_KHQE = x_THQE if self.members_K is None else x_THQE[self.members_K]
        x_CMHQE = x_KHQE.unflatten(0, (self.prefixes[0].shape[1], -1))
        return x_CMHQE.transpose(1, 2).flatten(2, 3)

    def scatter(self, x_CHNE: Tensor, queries: int) -> Tensor:
        """The inverse of :meth:`gather`: [T, H, Q, E] for Q = ``queries``."""
        x_CMHQE = x_CHNE.unflatten(2, (-1, queries)).transpose(1, 2)
        if self.members_K is not None:
            return x_CMHQE.flatten(0, 1)[self.home_T]
        return x_CMHQE.flatten(0, 1) if len(x_CMHQE) > 1 else x_CMHQE[0]  # a view, if one cluster is all there is

    def mask(self, scores_THQS: Tensor) -> Tensor:
        """Add the mask to scores whose Q are heads and, in each, L tokens. In place."""
        scores_THQS.unflatten(2, (-1, self.mask_T11LS.shape[3])).add_(self.mask_T11LS)
        return scores_THQS


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
    clusters: Clusters, seats: list[Seat], seen_TLS: Tensor, dtype: torch.dtype
) -> tuple[int, list[Cascade]] | None:
    """The plan of one forward over T rows; None where reading every row in full is about as good.

    ``seats``: the rows that count, ascending; the others are passengers, whose output nobody reads. ``seen_TLS``: the
    positions each new token may see. Gives where the keys to hand to attention start, and cascades for all the seats.
    """
    top, _, reach = seen_TLS.shape
    parts: dict[int, list[Seat]] = {}
    for seat in seats:
        parts.setdefault(clusters.bands[seat.cluster], []).append(seat)
    in_bands = list(parts.values())
    neighbours = all(a[-1].row < b[0].row for a, b in pairwise(in_bands))
    edges = [0, *(band[0].row for band in in_bands[1:]), top]
    first = min(clusters.lengths[seat.cluster] for seat in seats)
    cost, cascades = 0, []
    for band, span in zip(in_bands, pairwise(edges), strict=True):
        rows = list(range(*span)) if neighbours else [seat.row for seat in band]
        cascade = _cascade(clusters, band, rows, seen_TLS, first, dtype)
        if cascade is None:
            return None
        _, count, _, length, _ = cascade.prefixes[0].shape
        own = len(rows) * (cascade.own.stop - cascade.own.start)
        cost += count * length + (own if isinstance(cascade.rows, slice) else 2 * own)
        if cost > 0.7 * top * reach:
            return None
        cascades.append(cascade)
    return first, cascades


def bands(lengths: Sequence[int]) -> list[int]:
    """A band for each of these lengths: a new one where it gets longer by a tenth and by 256 positions.

    Rows that are read together are read as far as the longest needs; rows that are read apart cost further operators.
    """
    found, shortest, band = [0] * len(lengths), None, -1
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if shortest is None or lengths[i] > max(1.1 * shortest, shortest + 256):
            shortest, band = lengths[i], band + 1
        found[i] = band
    return found


def _cascade(
    clusters: Clusters, seats: list[Seat], rows: list[int], seen_TLS: Tensor, first: int, dtype: torch.dtype
) -> Cascade | None:
    """How the rows in ``seats`` read; ``rows`` may hold passengers too. ``first``: where the keys start.

    None where one large cluster is among many small ones, so that most of a product would be padding.
    """
    device = seen_TLS.device
    present = [seat.cluster for seat in seats]
    chosen = slice(min(present), max(present) + 1)
    lengths = clusters.lengths[chosen]
    place = {row: i for i, row in enumerate(rows)}
    members: list[list[int]] = [[] for _ in lengths]
    for seat in seats:
        members[seat.cluster - chosen.start].append(place[seat.row])
    chairs = max(map(len, members))
    if len(members) * chairs > 4 * len(rows):
        return None
    home, prefix = [0] * len(rows), [1] * len(rows)  # passengers see one position
    for c, taken in enumerate(members):
        for chair, i in enumerate(taken):
            home[i], prefix[i] = c * chairs + chair, lengths[c]
    flat = [i for taken in members for i in taken + [0] * (chairs - len(taken))]
    read = [clusters.lengths[c] for c in present]  # a cluster between them that has no row left is not read
    start, end, longest = min(read), max(seat.end for seat in seats), max(read)
    whole = rows[-1] + 1 - rows[0] == len(rows)
    where = slice(rows[0], rows[-1] + 1) if whole else torch.tensor(rows, device=device)
    prefix_T1 = torch.tensor(prefix, device=device)[:, None]
    own_TS = torch.arange(start, end, device=device) >= prefix_T1
    visible_TLS = seen_TLS[where, :, start:end] & own_TS[:, None]
    by_flash = seen_TLS.shape[1] > 1 and device.type == "cpu"  # one query a row leaves the kernel little to do
    if not by_flash:
        shared_T1P = (torch.arange(longest, device=device) < prefix_T1)[:, None]
        visible_TLS = torch.cat([shared_T1P.expand(-1, seen_TLS.shape[1], -1), visible_TLS], dim=2)
    return Cascade(
        prefixes=[layer[:, chosen, :, :longest] for layer in clusters.prefixes],
        rows=where,
        own=slice(start - first, end - first),
        members_K=None if flat == list(range(len(rows))) else torch.tensor(flat, device=device),
        home_T=torch.tensor(home, device=device),
        mask_T11LS=additive_mask(visible_TLS[:, None, None], dtype),
        lengths=lengths if by_flash else None,
    )


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    cascades: Sequence[Cascade] = (),
    **kwargs,
) -> tuple[Tensor, None]:
    """An attention function of transformers: query [T, heads, L, D], key and value [T, kv_heads, own positions, D].

    Without ``cascades`` it is ordinary sdpa attention; where every row has one query only, by plain products, which
    need no copy of the keys for each of the heads that share them.
    """
    if not cascades and query.shape[2] == 1:
        return _one_query(query, key, value, attention_mask, scaling), None
    if not cascades:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    slots, heads, length, width = query.shape
    query_THQD = query.reshape(slots, key.shape[1], -1, width)
    out_THQD = query_THQD.new_zeros(query_THQD.shape)  # of passengers it is read by nobody
    for c in cascades:
        prefix = c.prefixes[module.layer_idx]  # type: ignore[index]
        read = _by_products if c.lengths is None else _by_flash
        keys, values = key[c.rows, :, c.own], value[c.rows, :, c.own]
        out_THQD[c.rows] = read(c, prefix, query_THQD[c.rows], keys, values, scale)
    return out_THQD.reshape(slots, heads, length, width).transpose(1, 2), None


def _by_products(c: Cascade, prefix: Tensor, query_THQD: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """[T, H, Q, D]. Shape suffixes: H kv_heads, Q the queries of a row that share a key head."""
    prefix_keys, prefix_values = prefix
    queries, reach = query_THQD.shape[2], prefix.shape[3]
    query_THQD = query_THQD * scale
    shared_THQP = c.scatter(c.gather(query_THQD) @ prefix_keys.transpose(-1, -2), queries)
    scores_THQS = c.mask(torch.cat([shared_THQP, query_THQD @ key.transpose(-1, -2)], dim=-1))
    weights_THQS = scores_THQS.softmax(-1, dtype=_wide(query_THQD.dtype)).to(query_THQD.dtype)
    shared_THQD = c.scatter(c.gather(weights_THQS[..., :reach]) @ prefix_values, queries)
    return shared_THQD + weights_THQS[..., reach:] @ value


def _by_flash(c: Cascade, prefix: Tensor, query_THQD: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """The same, without a score ever stored: the two parts are merged by their log-sum-exp."""
    query_CHND = c.gather(query_THQD)
    met = []
    for i, length in enumerate(c.lengths or []):
        keys, values = prefix[:, i : i + 1, :, :length]
        met.append(flash(query_CHND[i : i + 1], keys, values, False, scale)[:2])
    shared_CHND, lse_CHN = map(torch.cat, zip(*met, strict=True))
    shared_THQD, lse_THQ1 = (c.scatter(x, query_THQD.shape[2]) for x in (shared_CHND, lse_CHN[..., None]))
    heads = query_THQD.shape[2] // c.mask_T11LS.shape[3]
    mask_T1QS = c.mask_T11LS.expand(-1, -1, heads, -1, -1).flatten(2, 3)
    own_THQD, own_lse_THQ = flash(query_THQD, key, value, False, scale, mask_T1QS)[:2]
    share_THQ1 = (lse_THQ1 - own_lse_THQ[..., None]).sigmoid().to(value.dtype)  # of the weight that the prefix has
    return torch.lerp(own_THQD, shared_THQD, share_THQ1)


def _one_query(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    slots, heads, _, width = query.shape
    query_THRD = query.reshape(slots, key.shape[1], -1, width) * (width**-0.5 if scaling is None else scaling)
    scores_THRS = query_THRD @ key.transpose(-1, -2)
    if mask is not None:
        scores_THRS += mask
    weights_THRS = scores_THRS.softmax(-1, dtype=_wide(query.dtype)).to(query.dtype)
    return (weights_THRS @ value).reshape(slots, 1, heads, width)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


AttentionInterface.register(ATTENTION, attend)
