"""Attention over one packed row of tokens that holds whole groups: a prefix, then the completions that branch off it.

Nothing is padded and no keys are copied: all the completions of a group meet the prefix's keys and values in one
call, each meets its own in another, and the two are merged by their log-sum-exp. The backward pass of either part
is exact when it is given the merged output and log-sum-exp, for those decide each weight: P = exp(S - lse).
In the last layer only the queries whose hidden states are read meet anything, and the others give zeros.

The kernel is the flash attention of the tensors' device: a CPU, or CUDA (16 bits only; never run there yet).
Shape suffixes: T packed tokens, H heads, K key/value heads, D head dimension.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

ATTENTION = "rcgrpo_branching"
"""Name of the attention under which packed groups are scored."""

_aten = torch.ops.aten


def flash(
    query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float | None, mask: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Output, log-sum-exp, and what the backward kernel wants to have back (nothing on a CPU).

    ``mask``: additive, on a CPU only. A query that it lets see nothing gets zeros, and 0 for a log-sum-exp.
    """
    if query.device.type == "cpu":
        op = _aten._scaled_dot_product_flash_attention_for_cpu
        return op(query, key, value, 0.0, causal, attn_mask=mask, scale=scale)
    assert mask is None
    op = _aten._scaled_dot_product_flash_attention
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
    scale: float | None,
    rng: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    """Gradients of query, key and value; ``rng`` is what the forward kernel gave last."""
    if query.device.type == "cpu":
        op = _aten._scaled_dot_product_flash_attention_for_cpu_backward
        return op(grad, query, key, value, out, lse, 0.0, causal, scale=scale)
    op, lengths = _aten._scaled_dot_product_flash_attention_backward, (query.shape[2], key.shape[2])
    return op(grad, query, key, value, out, lse.contiguous(), None, None, *lengths, 0.0, causal, *rng, scale=scale)


class Group(NamedTuple):
    """Lengths of a prefix (may be 0) and of the completions that follow it, in the order of the packed tokens."""

    prefix: int
    completions: Sequence[int]


class _Part(NamedTuple):
    """Queries (a span, or distinct columns) that meet keys: of their own span, causally, or of one before them, all."""

    queries: slice | Tensor
    keys: slice

    @property
    def causal(self) -> bool:
        return self.queries is self.keys


def _parts(groups: Sequence[Group]) -> Iterator[_Part]:
    """The causal part of a span comes before its queries meet a prefix."""
    start = 0
    for group in groups:
        prefix = slice(start, start + group.prefix)
        if group.prefix:
            yield _Part(prefix, prefix)
        end = prefix.stop
        for length in group.completions:
            own = slice(end, end + length)
            yield _Part(own, own)
            end += length
        if group.prefix:
            yield _Part(slice(prefix.stop, end), prefix)
        start = end


def _needed(parts: Iterable[_Part], wanted_T: Tensor) -> Iterator[_Part]:
    """What is left of ``parts`` if only the wanted columns' queries need an output.

    A causal span shrinks to that from its first to its last wanted query; keys before it are met like a prefix.
    """
    for queries, keys in parts:
        assert isinstance(queries, slice)
        rows_T = wanted_T[(wanted_T >= queries.start) & (wanted_T < queries.stop)]
        if not len(rows_T):
            continue
        if queries is not keys:
            yield _Part(rows_T, keys)
            continue
        own = slice(int(rows_T.min()), int(rows_T.max()) + 1)
        yield _Part(own, own)
        if own.start > keys.start:
            yield _Part(rows_T, slice(keys.start, own.start))


def _fold(x_1HT_: Tensor, kv_heads: int) -> Tensor:
    """Heads that share keys, one after the other: [1, H, T, ...] to [1, K, H / K * T, ...]."""
    return x_1HT_.reshape(1, kv_heads, -1, *x_1HT_.shape[3:])


def _repeat(x_1KTD: Tensor, share: int) -> Tensor:
    return x_1KTD if share == 1 else x_1KTD.repeat_interleave(share, dim=1)


class _Branching(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query_1HTD, key_1KTD, value_1KTD, scale, parts):
        _, heads, tokens, width = query_1HTD.shape
        kv_heads = key_1KTD.shape[1]
        out_1HTD = query_1HTD.new_zeros(1, tokens, heads, width).transpose(1, 2)
        lse_1HT = query_1HTD.new_empty(1, tokens, heads, dtype=_wide(query_1HTD.dtype)).transpose(1, 2)
        rng: list[Tensor] = []
        for part in parts:
            query, key, value = query_1HTD[:, :, part.queries], key_1KTD[:, :, part.keys], value_1KTD[:, :, part.keys]
            if part.causal:
                share = heads // kv_heads
                new, total, *rng = flash(query, _repeat(key, share), _repeat(value, share), True, scale)
            else:
                out, lse = out_1HTD[:, :, part.queries], lse_1HT[:, :, part.queries]
                new, total, *rng = flash(_fold(query, kv_heads), key, value, False, scale)
                new, total = new.reshape(out.shape), total.reshape(lse.shape)
                merged = torch.logaddexp(lse, total)
                out.mul_((lse - merged).exp_()[..., None])
                new = out.addcmul_(new, (total - merged).exp_()[..., None].to(new.dtype))
                total = merged
            out_1HTD[:, :, part.queries] = new  # of a merged span: the same memory, so nothing is copied
            lse_1HT[:, :, part.queries] = total
        ctx.save_for_backward(query_1HTD, key_1KTD, value_1KTD, out_1HTD, lse_1HT, *rng)
        ctx.scale, ctx.parts = scale, parts
        return out_1HTD

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads):  # pyright: ignore[reportIncompatibleMethodOverride]
        query_1HTD, key_1KTD, value_1KTD, out_1HTD, lse_1HT, *rng = ctx.saved_tensors
        heads, kv_heads = query_1HTD.shape[1], key_1KTD.shape[1]
        d_query, d_key, d_value = torch.zeros_like(query_1HTD), torch.zeros_like(key_1KTD), torch.zeros_like(value_1KTD)
        for part in ctx.parts:
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


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    groups: Sequence[Group] = (),
    wanted: Tensor | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """An attention function of transformers: query [1, H, T, D], key and value [1, K, T, D]; gives [1, T, H, D].

    ``wanted``: the columns whose last hidden states will be read; no layer comes after the last to read the others.
    """
    parts = list(_parts(groups))
    if wanted is not None and module.layer_idx == module.config.num_hidden_layers - 1:  # pyright: ignore
        parts = list(_needed(parts, wanted))
    out_1HTD = _Branching.apply(query, key, value, scaling, parts)
    return out_1HTD.transpose(1, 2), None  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]


AttentionInterface.register(ATTENTION, attend)
