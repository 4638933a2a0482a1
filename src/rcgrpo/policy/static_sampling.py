"""Drawing tokens in static shapes, without asking the host: what a captured decode step can contain.

Draws what ``sampling.draw`` draws from the same logits and numbers, except that the running sums are taken in blocks,
so that a token may differ where a number falls within float64 rounding of the border between two.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from rcgrpo.policy.architecture import at_least_float32
from rcgrpo.policy.sampling import _nucleus

_BLOCK = 512
"""Vocabulary entries per partial sum: one running sum over 150,000 entries is slow on a GPU."""


def draw_static(
    logits_NV: Tensor, temperature_N: Tensor, top_p_N: Tensor, uniform_N: Tensor, *, nucleus: bool
) -> tuple[Tensor, Tensor]:
    """One token for each of N rows: (tokens [N] int64, log-probs [N] in nats, float32 or wider).

    ``temperature_N`` (0 is greedy), ``top_p_N``, ``uniform_N`` are float64. ``nucleus``: whether any top-p is
    below 1; False leaves the sort out. Log-probs as ``sampling.draw`` gives them; NaN logits give a NaN log-prob.
    """
    logits_NV = at_least_float32(logits_NV)
    greedy_N = temperature_N == 0
    divisor_N = torch.where(greedy_N, 1.0, temperature_N).to(logits_NV.dtype)
    logprobs_NV = (logits_NV / divisor_N[:, None]).log_softmax(-1)
    probs_NV = logprobs_NV.exp()
    tokens_N = invert_in_blocks(probs_NV, uniform_N)
    if nucleus:
        tokens_N = torch.where(top_p_N < 1, _nucleus(probs_NV, top_p_N, uniform_N), tokens_N)
    tokens_N = torch.where(greedy_N, logprobs_NV.argmax(-1), tokens_N)
    return tokens_N, logprobs_NV.gather(-1, tokens_N[:, None])[:, 0]


def invert_in_blocks(weights_NV: Tensor, uniform_N: Tensor) -> Tensor:
    """Inverse CDF, first over the sums of blocks, then inside one. Zero weights are never drawn."""
    count, width = weights_NV.shape
    blocks_NKE = functional.pad(weights_NV, (0, -width % _BLOCK)).view(count, -1, _BLOCK)
    cdf_NK = blocks_NKE.sum(-1, dtype=torch.float64).cumsum(-1)
    aim_N = _below(uniform_N * cdf_NK[:, -1], cdf_NK[:, -1])
    block_N = torch.searchsorted(cdf_NK, aim_N[:, None], right=True)[:, 0].clamp(max=cdf_NK.shape[1] - 1)
    before_N = functional.pad(cdf_NK, (1, 0)).gather(-1, block_N[:, None])[:, 0]
    inner_NE = blocks_NKE.gather(1, block_N[:, None, None].expand(-1, 1, _BLOCK))[:, 0].cumsum(-1, dtype=torch.float64)
    inside_N = _below(aim_N - before_N, inner_NE[:, -1])
    entry_N = torch.searchsorted(inner_NE, inside_N[:, None], right=True)[:, 0]
    return (block_N * _BLOCK + entry_N).clamp(max=width - 1)  # only NaN gets here; the caller finds it


def _below(values_N: Tensor, limits_N: Tensor) -> Tensor:
    return torch.minimum(values_N, torch.nextafter(limits_N, torch.zeros_like(limits_N)))
