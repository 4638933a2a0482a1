"""Attention of a decode step in static shapes: every size is a bucket, every length lies in a tensor.

Three ways, chosen by name and never silently: ``rows`` reads every row in full, ``matmul`` and ``flash`` read shared
prefixes once, by matrix products (any device and dtype) or by the flash kernel (CUDA, half precision).

Shape suffixes: B slots, C clusters, M seats of a cluster, P prefix positions, S the slots' own positions,
H key/value heads, R query heads per key/value head, D head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from rcgrpo.policy import cascade
from rcgrpo.policy.architecture import additive_mask
from rcgrpo.policy.cascade import Cascade

ATTENTION = "rcgrpo_static"
"""Name of the attention under which a model runs inside a session of the static engine."""

Prefixes = Literal["matmul", "flash"]
"""How shared prefixes are read."""

CHUNK = 1024
"""Positions of a prefix that one flash call reads: enough independent pieces to occupy a GPU."""


class Shared(NamedTuple):
    """Prefixes that the flash kernel reads."""

    banks: list[Tensor]
    """Per layer [2, C, H, P, D]; P is a multiple of ``CHUNK``."""
    length_C: Tensor
    members_K: Tensor
    """C x M slots, flat: who sits where; unused seats name slot 0."""
    home_B: Tensor
    """Each slot's seat."""


@dataclass(frozen=True)
class Step:
    """What the attention of one decode step needs. All tensors are computed on the device."""

    mask_BS: Tensor
    """bool: which of its own positions each slot sees."""
    shared: Shared | Cascade | None = None
    """The prefixes to read once, by the flash kernel or by products. None: there are none."""


def shared_prefixes(
    how: Prefixes, banks: list[Tensor], length_C: Tensor, members_K: Tensor, home_B: Tensor, mask_BS: Tensor
) -> Shared | Cascade:
    """What a step needs to read the prefixes in ``banks`` this way. ``mask_BS`` as in :class:`Step`."""
    if how == "flash":
        return Shared(banks, length_C, members_K, home_B)
    count, reach = banks[0].shape[1], banks[0].shape[3]
    length_B = length_C[home_B // (len(members_K) // count)]
    prefix_BP = torch.arange(reach, device=mask_BS.device) < length_B[:, None]
    visible_BS = torch.cat([prefix_BP, mask_BS], dim=1)
    mask_B111S = additive_mask(visible_BS[:, None, None, None], banks[0].dtype)
    return Cascade(banks, slice(None), slice(None), members_K, home_B, mask_B111S, None)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    static: Step | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """An attention function of transformers: query [B, heads, 1, D], key and value [B, H, S, D].

    Without ``static`` it is ordinary sdpa attention.
    """
    if static is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if static.shared is None:
        return _rows(query, key, value, static.mask_BS, scale), None
    if isinstance(static.shared, Shared):
        return _flash(query, key, value, static.shared.banks[module.layer_idx], static, scale), None  # type: ignore[index]
    return cascade.attend(module, query, key, value, None, scale, [static.shared])


def _rows(query: Tensor, key: Tensor, value: Tensor, mask_BS: Tensor, scale: float) -> Tensor:
    """Query heads that share keys meet them in one product: nothing is expanded."""
    slots, heads, _, width = query.shape
    query_BHRD = query.view(slots, key.shape[1], -1, width) * scale
    scores_BHRS = (query_BHRD @ key.transpose(-1, -2)).to(_wide(query.dtype))
    scores_BHRS = scores_BHRS.masked_fill(~mask_BS[:, None, None], float("-inf"))
    return (scores_BHRS.softmax(-1).to(query.dtype) @ value).reshape(slots, 1, heads, width)


def _flash(query: Tensor, key: Tensor, value: Tensor, bank: Tensor, step: Step, scale: float) -> Tensor:
    """Prefixes in chunks by the kernel, own positions by products, merged by their log-sum-exp."""
    assert isinstance(step.shared, Shared)
    _, length_C, members_K, home_B = step.shared
    slots, heads, _, width = query.shape
    _, count, kv_heads, reach, _ = bank.shape
    pieces, seats = reach // CHUNK, len(members_K) // count
    query_BHRD = query.view(slots, kv_heads, -1, width)
    share = query_BHRD.shape[2]
    query_CHQD = query_BHRD[members_K].view(count, seats, kv_heads, share, width).transpose(1, 2).flatten(2, 3)
    query_NQD = query_CHQD[:, :, None].expand(-1, -1, pieces, -1, -1).reshape(-1, seats * share, width)
    first_J = torch.arange(pieces, device=query.device) * CHUNK
    used_CJ = (length_C[:, None] - first_J).clamp(0, CHUNK)
    used_N = used_CJ[:, None].expand(-1, kv_heads, -1).flatten()
    key_NSD, value_NSD = bank.view(2, -1, CHUNK, width)
    out_NQD, lse_NQ = partial(query_NQD, key_NSD, value_NSD, used_N, scale)
    lse_NQ = lse_NQ.masked_fill(used_N[:, None] == 0, float("-inf"))

    def scattered(x_N: Tensor) -> Tensor:  # [N, Q, ...] -> [slots, H, J, R, ...]
        x = x_N.view(count, kv_heads, pieces, seats, share, *x_N.shape[2:]).movedim(3, 1)
        return x.flatten(0, 1)[home_B]

    lse_BHJR = scattered(lse_NQ)
    scores_BHRS = ((query_BHRD * scale) @ key.transpose(-1, -2)).to(lse_NQ.dtype)
    scores_BHRS = scores_BHRS.masked_fill(~step.mask_BS[:, None, None], float("-inf"))
    total_BHR = torch.logaddexp(lse_BHJR.logsumexp(2), scores_BHRS.logsumexp(-1))
    own_BHRD = (scores_BHRS - total_BHR[..., None]).exp().to(query.dtype) @ value
    weight_BHJR = (lse_BHJR - total_BHR[:, :, None]).exp()
    shared_BHRD = (scattered(out_NQD) * weight_BHJR[..., None]).sum(2)
    return (shared_BHRD + own_BHRD).to(query.dtype).reshape(slots, 1, heads, width)


def partial(
    query_NQD: Tensor, key_NSD: Tensor, value_NSD: Tensor, used_N: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention of N sets of queries to the first ``used_N`` of their keys: output [N, Q, D], log-sum-exp [N, Q].

    On CUDA the flash kernel for ragged lengths; on a CPU the same by matrix products, for tests. Where nothing is used
    the log-sum-exp has no meaning and the output is finite.
    """
    count, queries, width = query_NQD.shape
    keys = key_NSD.shape[1]
    if query_NQD.device.type != "cuda":
        scores_NQS = (query_NQD @ key_NSD.transpose(-1, -2) * scale).to(_wide(query_NQD.dtype))
        seen_NS = torch.arange(keys, device=used_N.device) < used_N[:, None].clamp(min=1)
        scores_NQS = scores_NQS.masked_fill(~seen_NS[:, None], float("-inf"))
        return (scores_NQS.softmax(-1).to(query_NQD.dtype) @ value_NSD), scores_NQS.logsumexp(-1)
    starts = torch.arange(count + 1, device=query_NQD.device, dtype=torch.int32)
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        query_NQD.reshape(-1, 1, width),
        key_NSD.reshape(-1, 1, width),
        value_NSD.reshape(-1, 1, width),
        starts * queries,
        starts * keys,
        queries,
        keys,
        0.0,
        False,
        False,
        scale=scale,
        seqused_k=used_N.clamp(min=1).to(torch.int32),
    )
    # one row of all queries, or padded per set, depending on the version of torch
    lse_NQ = lse.view(count, queries) if lse.numel() == count * queries else lse[:, 0, :queries]
    return out.view(count, queries, width), lse_NQ


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


AttentionInterface.register(ATTENTION, attend)
