"""Intervals and tests for outcomes in [0, 1], mostly 0 or 1, over seeds and tasks.

Shape suffixes: S seeds, T tasks, C scenarios, R resamples.

Tasks of one scenario share their world and much of their gold, so they are no independent draws: where several of
them are tested, ``scenarios`` names the scenario of each task, and scenarios take the place of tasks in all that
follows.

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
    """Two-sided; it takes all tasks for independent."""


class Difference(NamedTuple):
    """The mean of a minus that of b on the same tasks and seeds; fields as in :class:`Comparison`."""

    diff: float
    low: float
    high: float
    p: float
    by_seed: list[float]


class Unpaired(NamedTuple):
    """The mean of a minus that of b, each on tasks of its own; fields as in :class:`Comparison`."""

    diff: float
    low: float | None
    high: float | None
    p: float | None
    """These are None where the outcomes of a side are all equal: a bootstrap cannot say how far they could be off."""


class Comparison(NamedTuple):
    """a against b on the same tasks and seeds, outcomes 0 or 1."""

    diff: float
    """Success of a minus success of b: the risk difference."""
    low: float
    high: float
    """95% percentile interval of the paired hierarchical bootstrap; where fewer than six tasks or scenarios differ it
    reaches as far as the exact bound on what was not seen."""
    p: float
    """Of the same bootstrap (:func:`two_sided_p`). At least 2^(1 - k) where only k tasks or scenarios differ: flipping
    their signs gives no less, and a bootstrap of so few is no evidence."""
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
    means_R = _plain_means(values_ST)
    return _stretched(means_R, float(values_ST.mean()), *layout_variance(values_ST))


def _plain_means(values_ST: np.ndarray) -> np.ndarray:
    weights_RS, weights_RT = _weights(*values_ST.shape, RESAMPLES)
    return ((weights_RS @ values_ST) * weights_RT).sum(axis=1)


def _stretched(means_R: np.ndarray, mean: float, variance: float, df: float) -> np.ndarray:
    if not variance:
        return means_R
    return mean + np.sqrt(variance) / means_R.std() * t.ppf(0.975, df) / norm.ppf(0.975) * (means_R - mean)


@lru_cache(maxsize=4)
def _weights(seeds: int, tasks: int, resamples: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each seed and each task is drawn in every resample, as shares: [R, S] and [R, T]."""
    rng = np.random.default_rng(RNG_SEED)
    drawn = (rng.multinomial(n, np.full(n, 1 / n), resamples) / n for n in (seeds, tasks))
    weights_RS, weights_RT = drawn
    return weights_RS, weights_RT


def by_scenario(values_ST: np.ndarray, scenarios: Sequence[str] | None) -> np.ndarray:
    """One value per scenario instead of one per task, float64 [S, C], each seed's mean unchanged.

    A scenario with ``n`` of the T tasks and a sum ``x`` of their values counts ``m + (x - m n) C / T``, ``m`` being the
    seed's mean: a ratio estimate's linear part, as for samples of clusters of unequal size. Of equal ones it is
    their mean.
    """
    if scenarios is None:
        return np.asarray(values_ST, dtype=float)
    names, which_T = np.unique(scenarios, return_inverse=True)
    if len(which_T) != values_ST.shape[1]:
        raise ValueError(f"a scenario for each task is needed: {len(which_T)} for {values_ST.shape[1]} tasks")
    member_TC = which_T[:, None] == np.arange(len(names))
    mean_S1 = values_ST.mean(axis=1, keepdims=True)
    return mean_S1 + (values_ST - mean_S1) @ member_TC * (len(names) / len(which_T))


def mean_interval(outcomes_ST: np.ndarray, scenarios: Sequence[str] | None = None) -> Interval:
    """The mean of outcomes in [0, 1] (of 0 and 1: the share of 1) and its 95% interval.

    Where fewer than :data:`FEW` tasks (or scenarios) hold anything above 0, or below 1, it reaches at least as far as
    the exact interval (Clopper-Pearson) of their number: a bootstrap of one success knows of no second.
    """
    values_SC = by_scenario(outcomes_ST, scenarios)
    found = _interval(values_SC, resampled_means(values_SC), 1.0)
    tasks = values_SC.shape[1]
    above, below = _showing(outcomes_ST > 0, scenarios), _showing(outcomes_ST < 1, scenarios)
    for few, successes in ((above, above), (below, tasks - below)):
        if few < FEW:
            exact = binomtest(successes, tasks).proportion_ci(0.95, method="exact")
            found = found._replace(low=min(found.low, exact.low), high=max(found.high, exact.high))
    return found._replace(low=max(found.low, 0.0))


FEW = 6
"""So many tasks have to differ for any evidence: of five, flipping their signs gives p = 0.06."""


def _showing(marks_ST: np.ndarray, scenarios: Sequence[str] | None) -> int:
    """Tasks, or scenarios, that some seed marks."""
    marked_T = marks_ST.any(axis=0)
    return int(marked_T.sum()) if scenarios is None else len(set(np.asarray(scenarios)[marked_T]))


def _interval(values_ST: np.ndarray, means_R: np.ndarray, reach: float, *, too_few: bool = False) -> Interval:
    """Of values from ``-reach`` to ``reach``.

    Where all values are equal a bootstrap has no spread and would claim certainty. What none of T tasks showed may
    still be as frequent among tasks as the exact binomial bound says (Clopper-Pearson; seeds play the same tasks), and
    ``reach`` off. Where ``too_few`` tasks differ for any evidence, the interval reaches at least as far."""
    value = float(values_ST.mean())
    equal = np.allclose(values_ST, value, rtol=0, atol=1e-12)
    low, high = (value, value) if equal else np.quantile(means_R, (0.025, 0.975))
    if equal or too_few:
        unseen = reach * binomtest(0, values_ST.shape[1]).proportion_ci(0.95, method="exact").high
        low, high = min(low, value - unseen), max(high, value + unseen)
    return Interval(value, float(np.clip(low, -reach, reach)), float(np.clip(high, -reach, reach)))


def difference(
    a_ST: np.ndarray, b_ST: np.ndarray, scenarios: Sequence[str] | None = None, *, reach: float = 1.0
) -> Difference:
    """a minus b, values of the same seeds and tasks that differ by ``reach`` at most (1: both lie in [0, 1]).

    Raises ValueError where the shapes differ.
    """
    if a_ST.shape != b_ST.shape:
        raise ValueError(f"pairs need the same seeds and tasks: {a_ST.shape} and {b_ST.shape}")
    difference_ST = a_ST.astype(float) - b_ST
    difference_SC = by_scenario(difference_ST, scenarios)
    means_R = resampled_means(difference_SC)
    which_T = np.arange(difference_ST.shape[1]) if scenarios is None else np.unique(scenarios, return_inverse=True)[1]
    differing = int((np.abs(np.bincount(which_T, difference_ST.sum(axis=0))) > 1e-9).sum())
    least_p = min(1.0, 2.0 ** (1 - differing))
    p = max(two_sided_p(means_R, *layout_variance(difference_SC)), least_p)
    by_seed = [float(d) for d in difference_SC.mean(axis=1)]
    return Difference(*_interval(difference_SC, means_R, reach, too_few=least_p > 0.05), p, by_seed)


def unpaired(a_ST: np.ndarray, b_ST: np.ndarray) -> Unpaired:
    """a minus b where each has tasks of its own (or scenarios, see :func:`by_scenario`): nothing pairs them."""
    diff = float(a_ST.mean() - b_ST.mean())
    (var_a, df_a), (var_b, df_b) = layout_variance(a_ST), layout_variance(b_ST)
    if not (var_a and var_b):
        return Unpaired(diff, None, None, None)
    # equal shapes are resampled by equal weights: one side is shuffled, or the two would move together
    means_R = _plain_means(a_ST) - np.random.default_rng(RNG_SEED).permutation(_plain_means(b_ST))
    df = (var_a + var_b) ** 2 / (var_a**2 / df_a + var_b**2 / df_b)  # Welch
    means_R = _stretched(means_R, diff, var_a + var_b, df)
    low, high = np.quantile(means_R, (0.025, 0.975))
    return Unpaired(diff, float(low), float(high), two_sided_p(means_R, var_a + var_b, df))


def compare(a_ST: np.ndarray, b_ST: np.ndarray, scenarios: Sequence[str] | None = None) -> Comparison:
    """a against b, 0/1 outcomes of the same seeds and tasks. Raises ValueError where the shapes differ."""
    from statsmodels.stats.proportion import proportion_effectsize

    found = difference(a_ST, b_ST, scenarios)
    tests = [mcnemar(a_T, b_T) for a_T, b_T in zip(a_ST, b_ST, strict=True)]
    a_only, b_only = sum(x.a_only for x in tests), sum(x.b_only for x in tests)
    return Comparison(
        **found._asdict(),
        effect_h=float(proportion_effectsize(a_ST.mean(), b_ST.mean())),
        odds_ratio=a_only / b_only if b_only else None,
        mcnemar=tests,
    )


def two_sided_p(means_R: np.ndarray, variance: float, df: float) -> float:
    """p-value of a bootstrap distribution against 0: twice the smaller share of the resamples on one side of it.

    At least what Student's t says of the same mean, variance and degrees of freedom: the stretch fits the distribution
    at its 95% bounds, and further out it has the thin tails of a bootstrap.
    """
    tail = min(int((means_R <= 1e-12).sum()), int((means_R >= -1e-12).sum()))  # sums of weights round
    student = 2 * float(t.sf(abs(means_R.mean()) / np.sqrt(variance), df)) if variance else 0.0
    return min(1.0, max(2 * (tail + 1) / (len(means_R) + 1), student))


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
