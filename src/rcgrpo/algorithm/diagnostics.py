"""What to watch while training: flat groups, separation, where the reward variance comes from, drift.

Shape suffixes: N episodes, K groups, B episodes, L token positions.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rcgrpo.algorithm.advantages import Labels, group_index, pair_index, segment_mean, zero_variance
from rcgrpo.algorithm.objective import kl_k3
from rcgrpo.episodes.types import RewardToken

Figures = dict[str, float | None]
"""Figures by name; None where one is not defined (the success under a token that nobody drew)."""


class VarianceSplit(NamedTuple):
    """Reward variance inside groups, averaged over groups: ``total = between + within``. Scalar tensors."""

    between: Tensor
    """Explained by the reward token: teaches "high beats low"."""
    within: Tensor
    """Left among episodes with the same token: teaches the task."""
    total: Tensor


def variance_split(rewards: Tensor, group_ids: Labels, tokens: Labels) -> VarianceSplit:
    """Split the reward variance inside groups by the law of total variance:

    ``Var(R) = Var_r(E[R|r]) + E_r[Var(R|r)]``, population variances, r the token, one law per group; then the
    mean over groups, each weighing the same.

    Args:
        rewards: shape (N,), finite.
        group_ids: N labels.
        tokens: N labels, one per episode; any labels do.
    """
    if len(rewards) == 0:
        raise ValueError("variance_split needs at least one episode")
    rewards_N = rewards.detach().to(torch.promote_types(rewards.dtype, torch.float32))
    index_N, size = group_index(group_ids, rewards_N)
    cell_N, cells = pair_index(index_N, size, tokens)
    group_mean_N = segment_mean(rewards_N, index_N, size)[index_N]
    cell_mean_N = segment_mean(rewards_N, cell_N, cells)[cell_N]

    def averaged(deviations_N: Tensor) -> Tensor:
        return segment_mean(deviations_N.square(), index_N, size).mean()

    return VarianceSplit(
        averaged(cell_mean_N - group_mean_N), averaged(rewards_N - cell_mean_N), averaged(rewards_N - group_mean_N)
    )


def group_diagnostics(
    rewards: Tensor,
    group_ids: Labels,
    tokens: Labels | None = None,
    *,
    successes: Tensor | None = None,
) -> Figures:
    """The figures of one step's groups.

    Args:
        rewards: shape (N,), what the run trains on.
        group_ids: N labels.
        tokens: N of ``RewardToken`` (or ``"high"``, ``"low"``, None), or a tensor with 1 for high and 0 for low;
            None where no episode is conditioned.
        successes: shape (N,), 0/1; the rewards if None.

    Returns:
        ``zero_variance_share``, ``all_zero_share``, ``all_one_share`` (shares of groups), ``success_high``,
        ``success_low``, ``separation`` (their difference), ``between_variance``, ``within_variance``,
        ``reward_mean``, ``reward_std`` (population, over all episodes).
    """
    rewards_N = rewards.detach().float()
    flat_N = zero_variance(rewards_N, group_ids)
    index_N, size = group_index(group_ids, rewards_N)

    def share(marked_N: Tensor) -> float:
        return float(segment_mean(marked_N.float(), index_N, size).mean())

    success_N = rewards_N if successes is None else successes.float()
    high, low = (_mean_where(success_N, tokens, token) for token in (RewardToken.HIGH, RewardToken.LOW))
    # without tokens nothing can be explained by them: all the variance is within
    split = variance_split(rewards_N, group_ids, tokens if tokens is not None else torch.zeros_like(index_N))
    return {
        "zero_variance_share": share(flat_N),
        "all_zero_share": share(flat_N & (rewards_N == 0)),
        "all_one_share": share(flat_N & (rewards_N == 1)),
        "success_high": high,
        "success_low": low,
        "separation": high - low if high is not None and low is not None else None,
        "between_variance": float(split.between),
        "within_variance": float(split.within),
        "reward_mean": float(rewards_N.mean()),
        "reward_std": float(rewards_N.std(correction=0)),
    }


def token_diagnostics(
    logprobs_BL: Tensor,
    mask_BL: Tensor,
    *,
    old_logprobs_BL: Tensor | None = None,
    ref_logprobs_BL: Tensor | None = None,
    sampler_logprobs_BL: Tensor | None = None,
    entropy_BL: Tensor | None = None,
    clipped_BL: Tensor | None = None,
) -> Figures:
    """The figures of a batch of scored tokens; means run over trained tokens. Nats.

    Returns ``response_length`` and ``response_length_max`` (trained tokens per episode), and for each argument
    that is given: ``ratio_max`` (old), ``kl`` (k3 to the reference), ``entropy``, ``clip_fraction``, and the
    mismatch between the log-probabilities that the sampler reported and those of the trainer for the same
    weights: ``mismatch_abs`` (mean of the absolute difference) and ``mismatch_k1``, ``mismatch_kl`` (k1 and k3
    estimates of ``KL(sampler || trainer)``).
    """
    trained_BL = mask_BL.bool()
    logprobs = logprobs_BL.detach()[trained_BL].float()

    def picked(values_BL: Tensor) -> Tensor:
        return values_BL.detach()[trained_BL].float()

    def mean(values: Tensor) -> float | None:
        return float(values.mean()) if len(values) else None

    lengths_B = trained_BL.sum(-1).float()
    figures: Figures = {"response_length": mean(lengths_B), "response_length_max": float(lengths_B.max())}
    if old_logprobs_BL is not None:
        ratio = torch.exp(logprobs - picked(old_logprobs_BL))
        figures["ratio_max"] = float(ratio.max()) if len(ratio) else None
    if ref_logprobs_BL is not None:
        figures["kl"] = mean(kl_k3(logprobs, picked(ref_logprobs_BL)))
    if entropy_BL is not None:
        figures["entropy"] = mean(picked(entropy_BL))
    if clipped_BL is not None:
        figures["clip_fraction"] = mean(picked(clipped_BL))
    if sampler_logprobs_BL is not None:
        sampler = picked(sampler_logprobs_BL)
        figures["mismatch_abs"] = mean((sampler - logprobs).abs())
        figures["mismatch_k1"] = mean(sampler - logprobs)
        figures["mismatch_kl"] = mean(kl_k3(sampler, logprobs))
    return figures


def mixed_variance_bound(group_size: int, p: float, separation: float) -> float:
    """Proposition 4.3: ``E[sigma_g^2] >= (G-1)/G * p * (1-p) * d^2`` if ``|E[R|high] - E[R|low]| >= d``."""
    return (group_size - 1) / group_size * p * (1 - p) * separation**2


def flat_group_probability(
    success_high: float,
    success_low: float,
    p: float,
    group_size: int,
    sampler: Literal["iid", "stratified"] = "iid",
) -> float:
    """The chance that all G episodes of a group get the same 0/1 reward.

    ``iid``: each episode succeeds with ``q = p * high + (1-p) * low``, so ``q^G + (1-q)^G``. ``stratified``: with
    ``h = round(p * G)`` high tokens, ``high^h low^(G-h) + (1-high)^h (1-low)^(G-h)``. Plain GRPO under the high
    token is ``p = 1``. Comparing it with the mixture says whether mixing helps before any training.
    """
    if sampler == "iid":
        q = p * success_high + (1 - p) * success_low
        return q**group_size + (1 - q) ** group_size
    h = int(p * group_size + 0.5)
    rest = group_size - h
    return success_high**h * success_low**rest + (1 - success_high) ** h * (1 - success_low) ** rest


def _mean_where(values_N: Tensor, tokens: Labels | None, token: RewardToken) -> float | None:
    """The mean of the values under ``token``; None where nobody has it."""
    if tokens is None:
        return None
    if isinstance(tokens, Tensor):
        chosen = [bool(value) == (token is RewardToken.HIGH) for value in tokens.tolist()]
    else:
        chosen = [value == token for value in tokens]
    return float(values_N[torch.tensor(chosen, device=values_N.device)].mean()) if any(chosen) else None
