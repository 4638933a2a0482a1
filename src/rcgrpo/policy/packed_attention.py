"""Attention over packed groups on a GPU: a prefix, then the completions that branch off it, in one row of tokens.

Two ways beside the padded one of ``Scorer``, chosen by name: ``flex`` compiles the pattern into one kernel; ``flash``
calls the flash kernel for each part and merges by log-sum-exp, as ``branching`` does on a CPU. On a CPU both run too,
``flex`` as a mask and ``flash`` on the CPU's kernel, for tests.

Shape suffixes: as in ``branching``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, create_mask, flex_attention
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface

from rcgrpo.errors import UserError
from rcgrpo.policy import branching
from rcgrpo.policy.architecture import architecture
from rcgrpo.policy.branching import Group, _fold, _parts, _repeat, _wide
from rcgrpo.policy.packing import ScoringBatch
from rcgrpo.policy.scoring import Scorer, _attending

Packing = Literal["flex", "flash"]
"""The kernel that packed groups are scored by."""

NAMES = {"flex": "rcgrpo_packed_flex", "flash": "rcgrpo_packed_flash"}
"""The attention functions' names in transformers."""

MULTIPLE = 1024
"""Packed rows are padded to it for ``flex``: each new length is compiled anew."""


class PackedScorer(Scorer):
    """A :class:`Scorer` of packed groups by the named kernel. The model must have sdpa attention."""

    def __init__(self, model: nn.Module, *, attention: Packing, **options: Any) -> None:
        super().__init__(model, shared_prefix=True, packed=True, **options)
        if attention not in NAMES:
            raise UserError(f"attention={attention!r}: choose one of {', '.join(NAMES)}")
        self.attention: Packing = attention

    def _packed(self, batch: ScoringBatch, wanted_BL: Tensor) -> Tensor:
        arch = architecture(self.model)
        groups, columns_BL, ids_T, positions_T = batch.in_one_row()
        pattern: Any = groups
        if self.attention == "flex":
            extra = -len(ids_T) % MULTIPLE
            ids_T, positions_T = pad(ids_T, (0, extra)), pad(positions_T, (0, extra))
            pattern = pattern_of(groups, len(ids_T), ids_T.device)
        with _attending(arch.config, NAMES[self.attention]), self._layers_checkpointed(arch):
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


def _forward(query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float | None) -> tuple[Tensor, ...]:
    """Output, log-sum-exp, and what the backward kernel wants to have back (nothing on a CPU)."""
    if query.device.type != "cuda":
        return branching._forward(query, key, value, 0.0, causal, scale=scale)
    op = torch.ops.aten._scaled_dot_product_flash_attention
    out, lse, _, _, _, _, seed, offset, _ = op(query, key, value, 0.0, causal, False, scale=scale)
    return out, lse, seed, offset


def _backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    scale: Any,
    rng: Any,
) -> tuple[Tensor, ...]:
    if query.device.type != "cuda":
        return branching._backward(grad, query, key, value, out, lse, 0.0, causal, scale=scale)
    op, lengths = torch.ops.aten._scaled_dot_product_flash_attention_backward, (query.shape[2], key.shape[2])
    lse = lse.contiguous()
    return op(grad, query, key, value, out, lse, None, None, *lengths, 0.0, causal, *rng, scale=scale)


class _Flash(torch.autograd.Function):
    """As ``branching`` computes it, with the kernel of the tensors' device."""

    @staticmethod
    def forward(ctx, query_1HTD, key_1KTD, value_1KTD, scale, groups):
        _, heads, tokens, width = query_1HTD.shape
        kv_heads = key_1KTD.shape[1]
        out_1HTD = query_1HTD.new_empty(1, tokens, heads, width).transpose(1, 2)
        lse_1HT = query_1HTD.new_empty(1, tokens, heads, dtype=_wide(query_1HTD.dtype)).transpose(1, 2)
        rng: list[Tensor] = []
        for part in _parts(groups):
            query, key, value = query_1HTD[:, :, part.queries], key_1KTD[:, :, part.keys], value_1KTD[:, :, part.keys]
            out, lse = out_1HTD[:, :, part.queries], lse_1HT[:, :, part.queries]
            if part.causal:
                share = heads // kv_heads
                new, total, *rng = _forward(query, _repeat(key, share), _repeat(value, share), True, scale)
                out.copy_(new)
                lse.copy_(total)
                continue
            new, total, *rng = _forward(_fold(query, kv_heads), key, value, False, scale)
            new, total = new.reshape(out.shape), total.reshape(lse.shape)
            merged = torch.logaddexp(lse, total)
            out.mul_((lse - merged).exp_()[..., None]).addcmul_(new, (total - merged).exp_()[..., None].to(new.dtype))
            lse.copy_(merged)
        ctx.save_for_backward(query_1HTD, key_1KTD, value_1KTD, out_1HTD, lse_1HT, *rng)
        ctx.scale, ctx.groups = scale, groups
        return out_1HTD

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads):  # pyright: ignore[reportIncompatibleMethodOverride]
        query_1HTD, key_1KTD, value_1KTD, out_1HTD, lse_1HT, *rng = ctx.saved_tensors
        heads, kv_heads = query_1HTD.shape[1], key_1KTD.shape[1]
        d_query, d_key, d_value = torch.zeros_like(query_1HTD), torch.zeros_like(key_1KTD), torch.zeros_like(value_1KTD)
        for part in _parts(ctx.groups):
            rows = [x[:, :, part.queries] for x in (grads[0], query_1HTD, out_1HTD, lse_1HT)]
            key, value = key_1KTD[:, :, part.keys], value_1KTD[:, :, part.keys]
            if part.causal:
                share = heads // kv_heads
                key, value = _repeat(key, share), _repeat(value, share)
            else:
                rows = [_fold(x, kv_heads) for x in rows]
            grad, query, out, lse = rows
            dq, dk, dv = _backward(grad, query, key, value, out, lse, part.causal, ctx.scale, rng)
            d_query[:, :, part.queries] += dq.reshape(d_query[:, :, part.queries].shape)
            for whole, new in ((d_key, dk), (d_value, dv)):
                whole[:, :, part.keys] += new.reshape(1, kv_heads, -1, *new.shape[2:]).sum(2)
        return d_query, d_key, d_value, None, None


def attend_flash(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    pattern: Sequence[Group] = (),
    **kwargs: object,
) -> tuple[Tensor, None]:
    """The same by parts."""
    out_1HTD: Any = _Flash.apply(query, key, value, scaling, pattern)
    return out_1HTD.transpose(1, 2), None


AttentionInterface.register(NAMES["flex"], attend_flex)
AttentionInterface.register(NAMES["flash"], attend_flash)
