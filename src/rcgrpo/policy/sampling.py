"""Drawing tokens: a row's token depends on its own logits, its seed and how many it drew before; on nothing else."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rcgrpo.episodes.types import Sampling
from rcgrpo.policy.architecture import at_least_float32

_BLOCK = 256


class Dice:
    """The uniform numbers of one episode, drawn in blocks from its own seed."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed & 0xFFFF_FFFF_FFFF_FFFF)
        self._block: list[float] = []

    def roll(self) -> float:
        """The next number in [0, 1)."""
        if not self._block:
            self._block = self._generator.random(_BLOCK)[::-1].tolist()
        return self._block.pop()

    def ahead(self, count: int) -> list[float]:
        """The next ``count`` numbers; ``roll`` still gives them, one by one."""
        while len(self._block) < count:
            self._block = self._generator.random(_BLOCK)[::-1].tolist() + self._block
        return self._block[: -count - 1 : -1]


def _invert(weights_NV: Tensor, uniforms_N: Tensor) -> Tensor:
    """Inverse CDF: the first index whose running sum exceeds u times the total. Zero weights are never drawn."""
    cdf_NV = weights_NV.cumsum(-1, dtype=torch.float64)
    total_N = cdf_NV[:, -1]
    aim_N = torch.minimum(uniforms_N * total_N, torch.nextafter(total_N, torch.zeros_like(total_N)))
    index_N = torch.searchsorted(cdf_NV, aim_N[:, None], right=True)[:, 0]
    return index_N.clamp(max=weights_NV.shape[-1] - 1)  # only NaN gets here; the caller finds it in the log-prob


def _nucleus(probs_NV: Tensor, top_p_N: Tensor, uniforms_N: Tensor) -> Tensor:
    """Draw from the smallest set of likeliest tokens whose probability reaches top-p (at least one token)."""
    sorted_NV, order_NV = probs_NV.sort(dim=-1, descending=True, stable=True)
    before_NV = sorted_NV.cumsum(-1, dtype=torch.float64) - sorted_NV
    kept_NV = sorted_NV.where(before_NV < top_p_N[:, None], 0.0)
    kept_NV[:, 0] = sorted_NV[:, 0]
    return order_NV.gather(-1, _invert(kept_NV, uniforms_N)[:, None])[:, 0]


def draw(logits_NV: Tensor, sampling: list[Sampling], dice: list[Dice]) -> tuple[Tensor, Tensor]:
    """Draw one token for each of N rows.

    Returns (tokens [N] int64, log-probs [N] in nats, float32 or wider). The log-prob is that of the whole
    vocabulary at the row's temperature, before top-p; at temperature 1 for greedy rows (temperature 0).
    NaN logits give a NaN log-prob.
    """
    device = logits_NV.device
    greedy = [s.temperature == 0 for s in sampling]
    logits_NV = at_least_float32(logits_NV)
    if any(s.temperature not in (0, 1) for s in sampling):
        temperatures = [s.temperature or 1.0 for s in sampling]
        logits_NV = logits_NV / torch.tensor(temperatures, dtype=logits_NV.dtype, device=device)[:, None]
    logprobs_NV = logits_NV.log_softmax(-1)
    if all(greedy):
        tokens_N = logprobs_NV.argmax(-1)
        return tokens_N, logprobs_NV.gather(-1, tokens_N[:, None])[:, 0]
    uniforms_N = torch.tensor([d.roll() for d in dice], dtype=torch.float64, device=device)
    probs_NV = logprobs_NV.exp()
    tokens_N = _invert(probs_NV, uniforms_N)
    cut = [i for i, s in enumerate(sampling) if s.top_p < 1 and not greedy[i]]
    if cut:
        top_p = torch.tensor([sampling[i].top_p for i in cut], dtype=torch.float64, device=device)
        tokens_N[cut] = _nucleus(probs_NV[cut], top_p, uniforms_N[cut])
    if any(greedy):
        tokens_N = torch.where(torch.tensor(greedy, device=device), logprobs_NV.argmax(-1), tokens_N)
    return tokens_N, logprobs_NV.gather(-1, tokens_N[:, None])[:, 0]
