"""Intervals and tests for outcomes in [0, 1], mostly 0 or 1, over seeds and tasks.

Shape suffixes: S seeds, T tasks, R resamples.

Every seed plays the same tasks, so seeds and tasks are crossed and not nested: a task that is hard is hard under all
seeds. The hierarchical bootstrap therefore resamples seeds, and resamples tasks once for all of them (the pigeonhole
bootstrap: Owen, Annals of Applied Statistics 1(2), 2007). Resampling tasks afresh inside each seed would treat a
task's difficulty as noise that more seeds average out, and give intervals for these tasks only.

By itself that bootstrap counts the noise of a single cell three times, which makes intervals up to 1.7 times too wide
where noise dominates, and it takes the spread of 3 or 5 seeds for exact, which makes them too narrow where seeds
dominate. So the resampled means are stretched about their mean: to the unbiased variance of a two-way layout, and to
Student's t with Satterthwaite's degrees of freedom (:func:`layout_variance`). tests/test_experiment_statistics.py
measures the coverage that results.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest, norm, t

RESAMPLES = 10_000
RNG_SEED = 2602_03025
"""Fixed: the same outcomes give the same interval."""


class Interval(NamedTuple):
    """A mean over seeds and tasks with its 95% percentile interval; an exact bound where all values are equal."""

    value: float
    low: float
    high: float


class McNemar(NamedTuple):
    """The exact test of one seed's pairs."""

    a_only: int
    """Tasks that a solves and b does not."""
    b_only: int
    """Tasks that b solves and a does not."""
    p: float
    """Two-sided."""


class Difference(NamedTuple):
    """The mean of a minus that of b on the same tasks and seeds; fields as in :class:`Comparison`."""

    diff: float
    low: float
    high: float
    p: float
    by_seed: list[float]


class Comparison(NamedTuple):
    """a against b on the same tasks and seeds, outcomes 0 or 1."""

    diff: float
    """Success of a minus success of b: the risk difference."""
    low: float
    high: float
    """95% percentile interval of the paired hierarchical bootstrap; an exact bound where all pairs agree."""
    p: float
    """Two-sided, of the same bootstrap: twice the smaller share of resamples on one side of 0."""
    effect_h: float
    """Cohen's h: the difference of arcsine-transformed rates (0.2 small, 0.5 medium, 0.8 large)."""
    odds_ratio: float | None
    """Conditional odds ratio: pairs that only a solves over pairs that only b solves. None where b has none."""
    by_seed: list[float]
    """The difference of each seed."""
    mcnemar: list[McNemar]
    """The exact test of each seed: these tasks, this seed's two policies, and nothing beyond."""


def layout_variance(values_ST: np.ndarray) -> tuple[float, float]:
    """Variance of the mean over random seeds and random tasks, and its degrees of freedom (Satterthwaite).

    The layout is ``value = mean + seed + task + noise``. The mean squares of seeds and of tasks, each divided by S T,
    both hold the noise; it is counted once, and no component is less than 0 (Searle, Casella and McCulloch, "Variance
    components", 1992, chapter 4). With a single seed only tasks vary, and nothing is said about other seeds.
    """
    seeds, tasks = values_ST.shape
    by_seed = float(values_ST.mean(axis=1).var(ddof=1)) / seeds if seeds > 1 else 0.0
    by_task = float(values_ST.mean(axis=0).var(ddof=1)) / tasks if tasks > 1 else 0.0
    noise, noise_df = 0.0, max((seeds - 1) * (tasks - 1), 1)
    if min(seeds, tasks) > 1:
        rest_ST = values_ST - values_ST.mean(axis=1, keepdims=True) - values_ST.mean(axis=0) + values_ST.mean()
        noise = float((rest_ST**2).sum()) / noise_df / values_ST.size
    above = [(part, df) for part, df in ((by_seed, seeds - 1), (by_task, tasks - 1)) if part > noise]
    counted = 1 - len(above)  # how often the noise itself has to be added to the parts that stand above it
    variance = sum(part for part, _ in above) + counted * noise
    spread = sum(part**2 / df for part, df in above) + (counted * noise) ** 2 / noise_df
    return variance, variance**2 / spread if spread else np.inf


def resampled_means(values_ST: np.ndarray) -> np.ndarray:
    """Means of the hierarchical bootstrap's resamples, stretched as the module says, float64 [R]."""
    weights_RS, weights_RT = _weights(*values_ST.shape, RESAMPLES)
    means_R = ((weights_RS @ values_ST) * weights_RT).sum(axis=1)
    variance, df = layout_variance(values_ST)
    if not variance:
        return means_R
    stretch = np.sqrt(variance) / means_R.std() * t.ppf(0.975, df) / norm.ppf(0.975)
    return values_ST.mean() + stretch * (means_R - values_ST.mean())


@lru_cache(maxsize=4)
def _weights(seeds: int, tasks: int, resamples: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each seed and each task is drawn in every resample, as shares: [R, S] and [R, T]."""
    rng = np.random.default_rng(RNG_SEED)
    drawn = (rng.multinomial(n, np.full(n, 1 / n), resamples) / n for n in (seeds, tasks))
    weights_RS, weights_RT = drawn
    return weights_RS, weights_RT


def mean_interval(outcomes_ST: np.ndarray) -> Interval:
    """The mean of outcomes in [0, 1] (of 0 and 1: the share of 1) and its 95% interval."""
    return _interval(outcomes_ST, resampled_means(outcomes_ST), 0.0)


def _interval(values_ST: np.ndarray, means_R: np.ndarray, least: float) -> Interval:
    """Where all values are equal a bootstrap has no spread and would claim certainty. What none of T tasks showed may
    still be as frequent among tasks as the exact binomial bound says (Clopper-Pearson; seeds play the same tasks)."""
    value = float(values_ST.mean())
    if values_ST.min() == values_ST.max():
        unseen = binomtest(0, values_ST.shape[1]).proportion_ci(0.95, method="exact").high
        bounds = np.array((value - unseen, value + unseen))
    else:
        bounds = np.quantile(means_R, (0.025, 0.975))
    low, high = bounds.clip(least, 1.0)
    return Interval(value, float(low), float(high))


def difference(a_ST: np.ndarray, b_ST: np.ndarray) -> Difference:
    """a minus b, outcomes in [0, 1] of the same seeds and tasks. Raises ValueError where the shapes differ."""
    if a_ST.shape != b_ST.shape:
        raise ValueError(f"pairs need the same seeds and tasks: {a_ST.shape} and {b_ST.shape}")
    difference_ST = a_ST.astype(float) - b_ST
    means_R = resampled_means(difference_ST)
    by_seed = [float(d) for d in difference_ST.mean(axis=1)]
    return Difference(*_interval(difference_ST, means_R, -1.0), sign_p(means_R), by_seed)


def unpaired(a_ST: np.ndarray, b_ST: np.ndarray) -> Difference:
    """a minus b where each has tasks of its own, so that nothing pairs them but the number of a seed.

    Raises ValueError where the seeds differ in number.
    """
    if len(a_ST) != len(b_ST):
        raise ValueError(f"as many seeds are needed on both sides: {len(a_ST)} and {len(b_ST)}")
    # equal shapes are resampled by equal weights: one side is shuffled, or the two would move together
    ours_R, theirs_R = resampled_means(a_ST), np.random.default_rng(RNG_SEED).permutation(resampled_means(b_ST))
    means_R = ours_R - theirs_R
    low, high = np.quantile(means_R, (0.025, 0.975))
    by_seed = [float(d) for d in a_ST.mean(axis=1) - b_ST.mean(axis=1)]
    return Difference(float(a_ST.mean() - b_ST.mean()), float(low), float(high), sign_p(means_R), by_seed)


def compare(a_ST: np.ndarray, b_ST: np.ndarray) -> Comparison:
    """a against b, 0/1 outcomes of the same seeds and tasks. Raises ValueError where the shapes differ."""
    from statsmodels.stats.proportion import proportion_effectsize

    found = difference(a_ST, b_ST)
    tests = [mcnemar(a_T, b_T) for a_T, b_T in zip(a_ST, b_ST, strict=True)]
    a_only, b_only = sum(x.a_only for x in tests), sum(x.b_only for x in tests)
    return Comparison(
        **found._asdict(),
        effect_h=float(proportion_effectsize(a_ST.mean(), b_ST.mean())),
        odds_ratio=a_only / b_only if b_only else None,
        mcnemar=tests,
    )


def sign_p(means_R: np.ndarray) -> float:
    """Two-sided p-value of a bootstrap distribution against 0; at least 2 / (R + 1), at most 1."""
    tail = min(int((means_R <= 1e-12).sum()), int((means_R >= -1e-12).sum()))  # sums of weights round
    return min(1.0, 2 * (tail + 1) / (len(means_R) + 1))


def mcnemar(a_T: np.ndarray, b_T: np.ndarray) -> McNemar:
    """McNemar's exact test: discordant pairs fall on either side with probability 1/2."""
    a_only, b_only = int(((a_T == 1) & (b_T == 0)).sum()), int(((a_T == 0) & (b_T == 1)).sum())
    p = float(binomtest(a_only, a_only + b_only, 0.5).pvalue) if a_only + b_only else 1.0
    return McNemar(a_only, b_only, p)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's correction over all planned comparisons; one that is not measured yet counts as p = 1."""
    from statsmodels.stats.multitest import multipletests

    if not p_values:
        return []
    corrected = np.asarray(multipletests([1.0 if p is None else p for p in p_values], method="holm")[1])
    return [None if p is None else float(c) for p, c in zip(p_values, corrected, strict=True)]
