"""How many groups will be flat: estimated from n rollouts of each prompt under each token, before any training.

A prompt that is solved with chance q gives a flat group of G with ``q^G + (1-q)^G``. Putting the measured rate
``s/n`` for q is biased upwards: with n = G = 8 and q = 0.5 it gives 0.06 where 0.008 is right. Two ways without it:

- **Subsets**, where n is large enough. The chance that G of the n rollouts, drawn without replacement, are all alike
  is ``[C(s, G) + C(n-s, G)] / C(n, G)`` (hypergeometric). This is the U-statistic of the event, hence unbiased
  (Hoeffding, 1948). For a mixed group with h high and G - h low tokens it is the product of both tokens' subsets per
  prompt: rollouts are independent given the prompt, and what high and low have in common is kept.
- **A Beta distribution of q over prompts**, where G > n. Its likelihood is the beta-binomial's. It extrapolates: the
  interval over prompts does not cover a wrong shape.

Shape suffixes: K prompts, C counts of successes (0 to n), so arrays of C have n + 1 entries.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.special import betaln, comb, expit
from scipy.stats import binom, hypergeom

from rcgrpo.algorithm.gating import flat_rest_probability


class Flatness(NamedTuple):
    """Chances of three kinds of group, estimated per prompt. Each float64 of shape (K,)."""

    all_zero: np.ndarray
    all_one: np.ndarray
    token_only: np.ndarray
    """Not flat, but flat within each token: such a group teaches "high beats low" and nothing else."""

    @property
    def flat(self) -> np.ndarray:
        return self.all_zero + self.all_one


def subsets_alike(successes_K: np.ndarray, n: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Chance that ``size`` of n rollouts, drawn without replacement, are all failures; that all are successes.

    Of no rollouts both are true. Raises ValueError for ``size > n``.
    """
    if size > n:
        raise ValueError(f"{size} of {n} rollouts cannot be drawn without replacement")
    ways = comb(n, size)
    return np.asarray(comb(n - successes_K, size) / ways), np.asarray(comb(successes_K, size) / ways)


def fixed_groups(successes_K: np.ndarray, n: int, group_size: int) -> Flatness:
    """Groups of one token (or none)."""
    zero_K, one_K = subsets_alike(successes_K, n, group_size)
    return Flatness(zero_K, one_K, np.zeros_like(zero_K))


def mixed_groups(high_K: np.ndarray, low_K: np.ndarray, n: int, high: int, low: int) -> Flatness:
    """Groups with so many rollouts under each token; ``high_K``, ``low_K``: successes of n rollouts under each."""
    (high_zero_K, high_one_K), (low_zero_K, low_one_K) = subsets_alike(high_K, n, high), subsets_alike(low_K, n, low)
    decided_K = high_zero_K * low_one_K + high_one_K * low_zero_K
    return Flatness(
        high_zero_K * low_zero_K, high_one_K * low_one_K, decided_K if min(high, low) else np.zeros_like(decided_K)
    )


def high_count(group_size: int, p: float) -> int:
    """High tokens in a stratified group: ``TokenSampler``'s rounding."""
    return int(p * group_size + 0.5)


def stratified_groups(high_K: np.ndarray, low_K: np.ndarray, n: int, group_size: int, p: float) -> Flatness:
    """Groups with ``round(p * G)`` high tokens, the rest low."""
    high = high_count(group_size, p)
    return mixed_groups(high_K, low_K, n, high, group_size - high)


def iid_groups(high_K: np.ndarray, low_K: np.ndarray, n: int, group_size: int, p: float) -> Flatness:
    """Groups whose tokens are drawn one by one: the mean over the binomial number of high tokens."""
    parts = [mixed_groups(high_K, low_K, n, h, group_size - h) for h in range(group_size + 1)]
    weights = binom.pmf(np.arange(group_size + 1), group_size, p)
    return Flatness(*(np.tensordot(weights, np.stack(part), axes=1) for part in zip(*parts, strict=True)))


class Gate(NamedTuple):
    """What a gated sampler comes to do, once it has measured the policy: mix after solved probes, after failed ones."""

    after_solved: bool
    after_failed: bool


def settled_gate(high_K: np.ndarray, low_K: np.ndarray, n: int, group_size: int, p: float, probes: int) -> Gate:
    """The decisions of :class:`~rcgrpo.algorithm.gating.TokenGate` at the success rates of these prompts.

    It compares how often a rollout under each token earns what its group's probes did; here these are ratios of
    subsets, pooled over prompts. An outcome of the probes that was never seen mixes nothing.
    """
    high = high_count(group_size, p) - probes
    low = group_size - probes - high
    decisions = []
    for outcome in (1, 0):
        agreed_K = subsets_alike(high_K, n, probes)[outcome]
        if not agreed_K.sum():
            decisions.append(False)
            continue
        agree_high = subsets_alike(high_K, n, probes + 1)[outcome].sum() / agreed_K.sum()
        agree_low = (agreed_K * subsets_alike(low_K, n, 1)[outcome]).sum() / agreed_K.sum()
        mixed = flat_rest_probability(agree_high, agree_low, high, low)
        decisions.append(bool(mixed <= flat_rest_probability(agree_high, agree_low, high + low, 0)))
    return Gate(*decisions)


def gated_groups(high_K: np.ndarray, low_K: np.ndarray, n: int, group_size: int, p: float, gate: Gate) -> Flatness:
    """Groups that begin with probes under high and go on as stratified where the gate says so, else under high.

    How many probes there are decides only what the gate has seen: probes that differ leave no flat group.
    """
    mixed, plain = stratified_groups(high_K, low_K, n, group_size, p), fixed_groups(high_K, n, group_size)
    high = high_count(group_size, p)
    (high_zero_K, high_one_K), (low_zero_K, low_one_K) = (
        subsets_alike(high_K, n, high), subsets_alike(low_K, n, group_size - high)
    )  # fmt: skip
    return Flatness(
        (mixed if gate.after_failed else plain).all_zero,
        (mixed if gate.after_solved else plain).all_one,
        gate.after_failed * high_zero_K * low_one_K + gate.after_solved * high_one_K * low_zero_K,
    )


def token_variances(high_K: np.ndarray, low_K: np.ndarray, n: int, p: float) -> tuple[np.ndarray, np.ndarray]:
    """A mixed group's reward variance between and within tokens, unbiased per prompt; each of shape (K,).

    ``p (1-p) (q_high - q_low)^2`` and ``p q_high (1-q_high) + (1-p) q_low (1-q_low)``. A group's own
    :func:`~rcgrpo.algorithm.diagnostics.variance_split` counts chance differences of few rollouts as between; here
    they are subtracted, so that one prompt's estimate may be below 0.
    """
    rates = high_K / n, low_K / n
    spread_high_K, spread_low_K = (n / (n - 1) * q * (1 - q) for q in rates)
    squared_K = (rates[0] - rates[1]) ** 2 - (spread_high_K + spread_low_K) / n
    return p * (1 - p) * squared_K, p * spread_high_K + (1 - p) * spread_low_K


def fixed_counts(successes_K: np.ndarray, n: int) -> np.ndarray:
    """Each prompt's number of successes as a distribution, shape (K, C)."""
    return (successes_K[:, None] == np.arange(n + 1)).astype(float)


def iid_counts(high_K: np.ndarray, low_K: np.ndarray, n: int, p: float) -> np.ndarray:
    """Distribution of the successes among n rollouts whose tokens are drawn one by one, shape (K, C).

    Subsets of h high and n - h low rollouts, averaged over h: what the Beta model of a mixed group is fitted to.
    """
    counts_C = np.arange(n + 1)
    counts_KC = np.zeros((len(high_K), n + 1))
    for h, weight in enumerate(binom.pmf(counts_C, n, p)):
        for a in range(h + 1):
            chance_K = hypergeom.pmf(a, n, high_K, h)
            counts_KC += weight * chance_K[:, None] * hypergeom.pmf(counts_C - a, n, low_K[:, None], n - h)
    return counts_KC


class Beta(NamedTuple):
    """A Beta distribution of success rates over prompts; or several, then with arrays."""

    alpha: np.ndarray
    beta: np.ndarray

    def alike(self, group_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Chance that all of a group fail; that all succeed."""
        whole = betaln(self.alpha, self.beta)
        zero = np.exp(betaln(self.alpha, self.beta + group_size) - whole)
        one = np.exp(betaln(self.alpha + group_size, self.beta) - whole)
        return zero, one


def log_likelihoods(n: int, logit_mean: np.ndarray, log_concentration: np.ndarray) -> tuple[np.ndarray, Beta]:
    """Beta-binomial log-likelihood of each count, shape (C, ...), without the binomial coefficient, and the Betas.

    ``alpha = mean * concentration``, ``beta = (1 - mean) * concentration``; both arguments of one shape.
    """
    mean, concentration = expit(logit_mean), np.exp(log_concentration)
    found = Beta(mean * concentration, (1 - mean) * concentration)
    counts = np.arange(n + 1).reshape(-1, *[1] * np.ndim(mean))
    return betaln(counts + found.alpha, n - counts + found.beta) - betaln(*found), found


def fit_beta(weights_C: np.ndarray) -> Beta:
    """Maximum likelihood of the beta-binomial. ``weights_C``: prompts (or shares of them) by number of successes.

    The mean is kept between 0.0003 and 0.9997 and alpha + beta between 0.002 and 22,000.
    """
    n = len(weights_C) - 1
    weights_C = weights_C / weights_C.sum()
    mean = np.clip(weights_C @ np.arange(n + 1) / n, 0.02, 0.98)
    start = np.array([np.log(mean / (1 - mean)), 0.0])
    found = minimize(
        lambda x: -(weights_C @ log_likelihoods(n, *x)[0]), start, method="L-BFGS-B", bounds=[(-8, 8), (-6, 10)]
    )
    return log_likelihoods(n, *found.x)[1]


def fit_betas(weights_RC: np.ndarray) -> Beta:
    """:func:`fit_beta` for each of R rows at once, on a grid and then finer ones: what intervals need.

    Steps of the finest: 0.017 in the logit of the mean and in the logarithm of alpha + beta.
    """
    n = weights_RC.shape[1] - 1
    grid = [axis.ravel() for axis in np.meshgrid(np.linspace(-8, 8, 61), np.linspace(-6, 10, 61), indexing="ij")]
    best_R = (weights_RC @ log_likelihoods(n, *grid)[0]).argmax(1)
    at = [axis[best_R] for axis in grid]
    near = [axis.ravel() for axis in np.meshgrid(*[np.linspace(-1, 1, 9)] * 2, indexing="ij")]
    for width in (16 / 60, 4 / 60):
        grid = [axis_R[:, None] + width * step for axis_R, step in zip(at, near, strict=True)]
        best_R = np.einsum("rc,crj->rj", weights_RC, log_likelihoods(n, *grid)[0]).argmax(1)
        at = [axis_RJ[np.arange(len(best_R)), best_R] for axis_RJ in grid]
    return log_likelihoods(n, *at)[1]
