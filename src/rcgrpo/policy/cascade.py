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
    """Some neighbouring rows of a forward: which prefixes they read together, and what each reads alone."""

    prefixes: list[Tensor]
    """Per layer [2, C, kv_heads, P, head_dim]."""
    rows: slice
    """T rows of the forward."""
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
    positions each new token may see. Gives where the keys to hand to attention start, and cascades that cover all rows.
    """
    top, _, reach = seen_TLS.shape
    bands = _by_band(clusters, seats)
    first = min(clusters.lengths[seat.cluster] for seat in seats)
    edges = [0, *(band[0].row for band in bands[1:]), top]
    cost, cascades = 0, []
    for band, (low, high) in zip(bands, pairwise(edges), strict=True):
        present = sorted({seat.cluster for seat in band})
        chosen = slice(present[0], present[-1] + 1)
        lengths = clusters.lengths[chosen]
        start, end = min(lengths), max(seat.end for seat in band)
        members: list[list[Seat]] = [[] for _ in lengths]
        for seat in band:
            members[seat.cluster - present[0]].append(seat)
        chairs = max(map(len, members))
        if len(members) * chairs > 4 * (high - low):  # one large cluster among many small ones: mostly padding
            return None
        cost += len(lengths) * max(lengths) + (high - low) * (end - start)
        if cost > 0.7 * top * reach:
            return None
        seen = seen_TLS[low:high, :, start:end]
        cascades.append(_cascade(clusters, chosen, members, chairs, slice(low, high), start - first, seen, dtype))
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


def _by_band(clusters: Clusters, seats: list[Seat]) -> list[list[Seat]]:
    """The rows of each band; all together where those of one are not neighbours, for a cascade is a slice of rows."""
    parts: dict[int, list[Seat]] = {}
    for seat in seats:
        parts.setdefault(clusters.bands[seat.cluster], []).append(seat)
    apart = all(a[-1].row < b[0].row for a, b in pairwise(parts.values()))
    return list(parts.values()) if apart else [seats]


def _cascade(
    clusters: Clusters,
    chosen: slice,
    members: list[list[Seat]],
    chairs: int,
    rows: slice,
    offset: int,
    seen_TLS: Tensor,
    dtype: torch.dtype,
) -> Cascade:
    """``members``: the rows of each ``chosen`` cluster; ``seen_TLS``: of the own positions, which are handed to
    attention from ``offset`` on."""
    device, lengths = seen_TLS.device, clusters.lengths[chosen]
    count, start, longest = rows.stop - rows.start, min(lengths), max(lengths)
    home, prefix = [0] * count, [1] * count  # passengers see one position
    for c, seats in enumerate(members):
        for chair, seat in enumerate(seats):
            home[seat.row - rows.start], prefix[seat.row - rows.start] = c * chairs + chair, lengths[c]
    flat = [row for seats in members for row in [s.row - rows.start for s in seats] + [0] * (chairs - len(seats))]
    prefix_T1 = torch.tensor(prefix, device=device)[:, None]
    own_TS = torch.arange(start, start + seen_TLS.shape[2], device=device) >= prefix_T1
    visible_TLS = seen_TLS & own_TS[:, None]
    by_flash = seen_TLS.shape[1] > 1 and device.type == "cpu"  # one query a row leaves the kernel little to do
    if not by_flash:
        shared_T1P = (torch.arange(longest, device=device) < prefix_T1)[:, None]
        visible_TLS = torch.cat([shared_T1P.expand(-1, seen_TLS.shape[1], -1), visible_TLS], dim=2)
    return Cascade(
        prefixes=[layer[:, chosen, :, :longest] for layer in clusters.prefixes],
        rows=rows,
        own=slice(offset, offset + seen_TLS.shape[2]),
        members_K=None if flat == list(range(count)) else torch.tensor(flat, device=device),
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
    parts = [
        _attend(c, *c.prefixes[module.layer_idx], query[c.rows], key[c.rows, :, c.own], value[c.rows, :, c.own], scale)  # type: ignore[index]
        for c in cascades
    ]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)), None


def _attend(
    cascade: Cascade,
    prefix_keys: Tensor,
    prefix_values: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
) -> Tensor:
    """[T, L, heads, D]. Suffixes: H kv_heads, Q the queries of a row that share a key head, N those of a cluster."""
    rows, heads, length, width = query.shape
    count, kv_heads, reach, _ = prefix_keys.shape
    chairs = (rows if cascade.members_K is None else len(cascade.members_K)) // count
    query_THQD = query.reshape(rows, kv_heads, -1, width)
    queries = query_THQD.shape[2]
    wide = torch.promote_types(query.dtype, torch.float32)

    def gather(x_THQE: Tensor) -> Tensor:
        x_KHQE = x_THQE if cascade.members_K is None else x_THQE[cascade.members_K]
        return x_KHQE.unflatten(0, (count, chairs)).transpose(1, 2).flatten(2, 3)

    def scatter(x_CHNE: Tensor) -> Tensor:
        x_CMHQE = x_CHNE.unflatten(2, (chairs, queries)).transpose(1, 2)
        if cascade.members_K is None:
            return x_CMHQE.flatten(0, 1) if count > 1 else x_CMHQE[0]  # a view, where one cluster is all there is
        return x_CMHQE.flatten(0, 1)[cascade.home_T]

    def masked(scores_THQS: Tensor) -> Tensor:
        scores_THQS.unflatten(2, (-1, length)).add_(cascade.mask_T11LS)
        return scores_THQS

    own_THQS = (query_THQD * scale) @ key.transpose(-1, -2)
    if cascade.lengths is None:
        shared_THQP = scatter(gather(query_THQD * scale) @ prefix_keys.transpose(-1, -2))
        scores_THQS = masked(torch.cat([shared_THQP, own_THQS], dim=-1))
        weights_THQS = scores_THQS.softmax(-1, dtype=wide).to(query.dtype)
        out_THQD = scatter(gather(weights_THQS[..., :reach]) @ prefix_values) + weights_THQS[..., reach:] @ value
    else:
        query_CHND = gather(query_THQD)
        met = [
            flash(query_CHND[c : c + 1], prefix_keys[c : c + 1, :, :p], prefix_values[c : c + 1, :, :p], False, scale)[
                :2
            ]
            for c, p in enumerate(cascade.lengths)
        ]
        shared_THQD, lse_THQ1 = (
            scatter(torch.cat(x)) for x in ([out for out, _ in met], [lse[..., None] for _, lse in met])
        )
        scores_THQS = masked(own_THQS).to(wide)
        total_THQ1 = torch.logaddexp(lse_THQ1, scores_THQS.logsumexp(-1, keepdim=True))
        out_THQD = (scores_THQS - total_THQ1).exp_().to(query.dtype) @ value
        out_THQD += shared_THQD * (lse_THQ1 - total_THQ1).exp().to(query.dtype)
    return out_THQD.reshape(rows, heads, length, width).transpose(1, 2)


def _one_query(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    slots, heads, _, width = query.shape
    query_THRD = query.reshape(slots, key.shape[1], -1, width) * (width**-0.5 if scaling is None else scaling)
    scores_THRS = query_THRD @ key.transpose(-1, -2)
    if mask is not None:
        scores_THRS += mask
    weights_THRS = scores_THRS.softmax(-1, dtype=torch.promote_types(query.dtype, torch.float32)).to(query.dtype)
    return (weights_THRS @ value).reshape(slots, 1, heads, width)


AttentionInterface.register(ATTENTION, attend)
