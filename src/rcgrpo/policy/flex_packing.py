"""Attention over packed groups as one compiled kernel: the row of ``branching``, its pattern given to flex attention.

On a CPU, where flex attention has no backward, the same pattern is a mask, for tests. Never run on CUDA yet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, create_mask, flex_attention
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface

from rcgrpo.policy.architecture import architecture
from rcgrpo.policy.branching import Group
from rcgrpo.policy.packing import ScoringBatch
from rcgrpo.policy.scoring import Scorer, _attending

ATTENTION = "rcgrpo_packed_flex"
"""The attention function's name in transformers."""

MULTIPLE = 1024
"""Packed rows are padded to it: each new length is compiled anew."""


class FlexScorer(Scorer):
    """A :class:`Scorer` of packed groups by flex attention. The model must have sdpa attention."""

    def __init__(self, model: nn.Module, **options: Any) -> None:
        super().__init__(model, shared_prefix=True, packed=True, **options)

    def _packed(self, batch: ScoringBatch, wanted_BL: Tensor) -> Tensor:
        arch = architecture(self.model)
        groups, columns_BL, ids_T, positions_T = batch.in_one_row()
        extra = -len(ids_T) % MULTIPLE
        ids_T, positions_T = pad(ids_T, (0, extra)), pad(positions_T, (0, extra))
        pattern = pattern_of(groups, len(ids_T), ids_T.device)
        with _attending(arch.config, ATTENTION), self._layers_checkpointed(arch):
            hidden_1TD = arch.decoder(
                input_ids=ids_T[None], position_ids=positions_T[None], use_cache=False, pattern=pattern
            ).last_hidden_state
        return hidden_1TD[0, columns_BL[wanted_BL]]


def pattern_of(groups: Sequence[Group], tokens: int, device: torch.device) -> BlockMask:
    """Which of a row's tokens see which: those of their own span up to themselves, and the prefix of their group.

    What lies beyond the groups is padding, a span of its own.
    """
    spans, seen = [], []
    for group in groups:
        first = len(spans)
        spans += [group.prefix, *group.completions]
        seen += [-1] + [first] * len(group.completions)  # a prefix sees nothing but itself
    spans.append(tokens - sum(spans))
    seen.append(-1)
    lengths = torch.tensor(spans, device=device)
    span_T = torch.arange(len(spans), device=device).repeat_interleave(lengths, output_size=tokens)
    seen_T = torch.tensor(seen, device=device)[span_T]

    def visible(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = (span_T[query] == span_T[key]) & (query >= key)
        return own | (seen_T[query] == span_T[key])

    return create_block_mask(visible, None, None, tokens, tokens, device=device)


@cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=False)


def _flex(query: Tensor, key: Tensor, value: Tensor, pattern: BlockMask, scale: float | None) -> Tensor:
    """The compiled kernel; on a CPU, where it has no backward, the same pattern as a mask."""
    grouped = query.shape[1] != key.shape[1]
    if query.device.type == "cuda":
        return _compiled()(query, key, value, block_mask=pattern, scale=scale, enable_gqa=grouped)
    tokens = query.shape[2]
    mask_11TT = create_mask(pattern.mask_mod, 1, 1, tokens, tokens, device=str(query.device))
    return scaled_dot_product_attention(query, key, value, mask_11TT, scale=scale, enable_gqa=grouped)


def attend_flex(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    pattern: BlockMask | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """An attention function of transformers: query [1, H, T, D], key and value [1, K, T, D]; gives [1, T, H, D]."""
    assert pattern is not None
    out_1HTD = _flex(query, key, value, pattern, scaling)
    return out_1HTD.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, attend_flex)
