"""Intervals and tests over seeds and tasks against hand calculations, scipy, statsmodels and simulations."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, binomtest, bootstrap, fisher_exact, ttest_1samp, ttest_ind
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.contingency_tables import mcnemar as mcnemar_table

from rcgrpo.experiments import statistics
from rcgrpo.experiments.statistics import (
    by_scenario,
    compare,
    difference,
    holm,
    layout_variance,
    mcnemar,
    mean_interval,
    unpaired,
)


def grid(
    seeds: int, tasks: int, rng: np.random.Generator, *, seed_sd: float, hardness: np.ndarray | None = None
) -> np.ndarray:
    """0/1 outcomes of an arm: log-odds by task (the same for all arms that share ``hardness``) and by seed."""
    by_task = rng.normal(0.3, 1.5, tasks) if hardness is None else hardness
    log_odds = by_task + rng.normal(0, seed_sd, (seeds, 1))
    return (rng.random((seeds, tasks)) < 1 / (1 + np.exp(-log_odds))).astype(np.int8)


def test_mcnemar_by_hand_and_as_statsmodels():
    a = np.array([1] * 9 + [0] * 1 + [1] * 5 + [0] * 5)
    b = np.array([0] * 9 + [1] * 1 + [1] * 5 + [0] * 5)
    # 9 to 1 among 10 discordant pairs: 2 * (C(10,0) + C(10,1)) / 2^10
    assert mcnemar(a, b) == (9, 1, pytest.approx(22 / 1024))
    table = [[5, 9], [1, 5]]
    assert mcnemar(a, b).p == pytest.approx(mcnemar_table(table, exact=True).pvalue)
    assert mcnemar(a, a) == (0, 0, 1.0)


def test_holm_by_hand_with_one_not_yet_measured():
    # sorted: .01 * 4, .02 * 3, .04 * 2, then the unmeasured one as 1
    assert holm([0.04, None, 0.01, 0.02]) == [pytest.approx(0.08), None, pytest.approx(0.04), pytest.approx(0.06)]
    assert holm([]) == []


def test_with_one_seed_the_interval_is_scipys_bootstrap_over_tasks():
    outcomes = (np.arange(60) % 3 == 0).astype(np.int8)
    ours = mean_interval(outcomes[None])
    theirs = bootstrap(
        (outcomes,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert ours.value == pytest.approx(1 / 3)
    assert ours.low == pytest.approx(theirs.low, abs=0.01) and ours.high == pytest.approx(theirs.high, abs=0.01)


def two_way_model(values: np.ndarray) -> tuple[float, float, float]:
    """Mean squares of seeds, tasks and residual from statsmodels' analysis of variance."""
    seeds, tasks = np.indices(values.shape)
    frame = pd.DataFrame({"y": values.ravel(), "seed": seeds.ravel(), "task": tasks.ravel()})
    table = anova_lm(ols("y ~ C(seed) + C(task)", frame).fit())
    return tuple(table["mean_sq"][name] for name in ("C(seed)", "C(task)", "Residual"))


def test_a_first_success_does_not_narrow_the_interval_of_none():
    """Clopper-Pearson where few tasks show anything, and its mirror image where few do not."""
    for solved in range(6):
        one = (np.arange(120) < solved).astype(np.int8)[None]
        exact = binomtest(solved, 120).proportion_ci(0.95, method="exact")
        found, mirrored = mean_interval(one), mean_interval(1 - one)
        assert found.low <= exact.low + 1e-12 and found.high >= exact.high - 1e-12
        assert (mirrored.low, mirrored.high) == pytest.approx((1 - found.high, 1 - found.low))
        assert mean_interval(np.repeat(one, 3, axis=0)).high >= exact.high - 1e-12
    three = (np.arange(120) < 3).astype(np.int8)[None]  # of one scenario of 40
    assert mean_interval(three, [f"{i // 3:02}" for i in range(120)]).high == pytest.approx(
        binomtest(1, 40).proportion_ci(0.95, method="exact").high
    )


def rare_coverage(monkeypatch, few: int) -> float:
    """How often 120 tasks, each solved with probability 0.03, give an interval that covers 0.03; exactly."""
    monkeypatch.setattr(statistics, "FEW", few)
    found = [mean_interval((np.arange(120) < solved).astype(np.int8)[None]) for solved in range(15)]
    chances = binom.pmf(range(15), 120, 0.03)
    return float(sum(p for p, interval in zip(chances, found, strict=True) if interval.low <= 0.03 <= interval.high))


def test_rare_successes_are_covered(monkeypatch):
    assert rare_coverage(monkeypatch, statistics.FEW) > 0.95
    assert rare_coverage(monkeypatch, 0) < 0.9  # the negative control: the bootstrap alone


@pytest.mark.parametrize("seed_sd", [0.0, 0.5, 3.0])
def test_the_variance_is_that_of_an_analysis_of_variance(seed_sd):
    values = grid(4, 30, np.random.default_rng(5), seed_sd=seed_sd).astype(float)
    of_seeds, of_tasks, residual = two_way_model(values)
    components = [max(of_seeds - residual, 0) / 30, max(of_tasks - residual, 0) / 4, residual]
    expected = components[0] / 4 + components[1] / 30 + components[2] / 120
    variance, df = layout_variance(values)
    assert variance == pytest.approx(expected)
    assert min(3, 29) <= df <= 120


def test_the_variance_of_seeds_or_tasks_alone_is_the_textbooks():
    only_seeds = np.repeat([[0.2], [0.4], [0.9]], 10, axis=1)
    assert layout_variance(only_seeds) == (pytest.approx(np.var([0.2, 0.4, 0.9], ddof=1) / 3), pytest.approx(2))
    only_tasks = np.repeat([np.arange(10) % 2], 3, axis=0)
    assert layout_variance(only_tasks) == (pytest.approx(np.var(only_tasks[0], ddof=1) / 10), pytest.approx(9))
    assert layout_variance(only_tasks[:1]) == layout_variance(only_tasks)
    assert layout_variance(np.ones((3, 4))) == (0.0, np.inf)


def test_where_seeds_alone_differ_the_interval_is_the_t_tests():
    by_seed = np.array([0.42, 0.46, 0.43, 0.48, 0.41])
    ours = mean_interval(np.repeat(by_seed[:, None], 50, axis=1))
    theirs = ttest_1samp(by_seed, 0).confidence_interval()
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.004)


def test_tasks_are_resampled_for_all_seeds_at_once():
    """Five seeds that agree on every task are no more than one: tasks resampled apart would shrink the interval."""
    one = (np.arange(40) % 2)[None]
    five = np.repeat(one, 5, axis=0)
    width = lambda values: mean_interval(values).high - mean_interval(values).low  # noqa: E731
    assert width(five) == pytest.approx(width(one), rel=0.1)
    apart = np.stack([np.random.default_rng(i).permutation(one[0]) for i in range(5)])
    assert width(apart) < 0.8 * width(one)


def test_a_comparison_by_hand():
    a = np.array([[1, 1, 1, 0], [1, 1, 0, 0]], dtype=np.int8)
    b = np.array([[1, 0, 0, 0], [0, 1, 0, 1]], dtype=np.int8)
    found = compare(a, b)
    assert found.diff == pytest.approx(5 / 8 - 3 / 8) and found.by_seed == [0.5, 0.0]
    assert found.odds_ratio == pytest.approx(3 / 1)
    assert found.effect_h == pytest.approx(2 * math.asin(math.sqrt(5 / 8)) - 2 * math.asin(math.sqrt(3 / 8)))
    assert [test[:2] for test in found.mcnemar] == [(2, 0), (1, 1)]
    assert found.low <= found.diff <= found.high
    mirrored = compare(b, a)
    assert (mirrored.diff, mirrored.low, mirrored.high) == pytest.approx((-found.diff, -found.high, -found.low))
    assert mirrored.p == pytest.approx(found.p)
    assert compare(a, a).p == 1.0 and compare(a, b) == found
    with pytest.raises(ValueError, match="same seeds and tasks"):
        compare(a, b[:1])


def test_graded_outcomes_are_compared_as_a_paired_t_test_would_where_many_tasks_differ():
    rng = np.random.default_rng(8)
    a, b = rng.beta(2, 3, (1, 300)), rng.beta(2, 4, (1, 300))
    found, theirs = difference(a, b), ttest_1samp((a - b)[0], 0)
    interval = theirs.confidence_interval()
    assert found.diff == pytest.approx((a - b).mean())
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=0.005)
    assert found.p < 0.01 and theirs.pvalue < 0.01


def test_where_only_seeds_vary_p_is_that_of_a_t_test_over_them_far_out_too():
    """A bootstrap of five seeds that all say the same never comes near 0, and would make p as small as it can."""
    gains = np.array([0.10, 0.12, 0.21, 0.25, 0.32])
    b = np.full((5, 100), 0.3)
    found, theirs = difference(b + gains[:, None], b), ttest_1samp(gains, 0)
    assert found.p == pytest.approx(theirs.pvalue, rel=0.05) and 0.005 < found.p < 0.02
    plain = statistics.resampled_means(np.tile(gains[:, None], (1, 100)))
    assert 2 * (plain <= 0).mean() < 0.001  # the negative control: the share alone
    interval = theirs.confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=0.01)


def test_without_pairs_the_interval_is_welchs():
    rng = np.random.default_rng(4)
    a, b = rng.beta(2, 3, (1, 200)), rng.beta(2, 4, (1, 200))
    found, theirs = unpaired(a, b), ttest_ind(a[0], b[0], equal_var=False).confidence_interval()
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.006)
    assert found.diff == pytest.approx(a.mean() - b.mean())
    same = unpaired(a, a)  # tasks of its own, though equal: no certainty, as equal resamples would give
    assert same.high - same.low > 0.06 and same.p > 0.9
    assert unpaired(a, np.zeros((3, 50))) == (pytest.approx(a.mean()), None, None, None)


@pytest.mark.parametrize(("seeds", "seed_sd"), [(1, 0.0), (3, 0.4)])
def test_without_pairs_intervals_cover_the_truth(monkeypatch, seeds, seed_sd):
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    rng = np.random.default_rng(12)
    found = [unpaired(*(grid(seeds, 60, rng, seed_sd=seed_sd) for _ in range(2))) for _ in range(300)]
    assert 0.92 <= np.mean([pair.low <= 0 <= pair.high for pair in found]) <= 0.99


def test_a_scenarios_value_is_the_mean_of_its_tasks_where_all_have_as_many():
    values = np.random.default_rng(1).random((2, 12))
    names = [f"s{i // 3}" for i in range(12)]
    assert by_scenario(values, names) == pytest.approx(values.reshape(2, 4, 3).mean(axis=2))
    assert by_scenario(values, [f"t{i:02}" for i in range(12)]) == pytest.approx(values)
    assert by_scenario(values, None) is not None and (by_scenario(values, None) == values).all()
    with pytest.raises(ValueError, match="11 for 12 tasks"):
        by_scenario(values, names[:11])


def test_scenarios_of_unequal_size_keep_the_mean_and_vary_as_a_ratio_estimate_does():
    """The linear part of sum(x) / sum(n): its variance by hand, as in a textbook of sampling."""
    values, names = np.array([[1.0, 1.0, 0.0, 0.0, 1.0, 0.0]]), ["a", "a", "a", "b", "c", "c"]
    found = by_scenario(values, names)
    assert found.mean() == pytest.approx(0.5)
    residuals = np.array([2 - 3 * 0.5, 0 - 1 * 0.5, 1 - 2 * 0.5]) * 3 / 6
    assert found[0] - 0.5 == pytest.approx(residuals)
    assert layout_variance(found)[0] == pytest.approx(np.var(residuals, ddof=1) / 3)


def covered(scenarios: bool, monkeypatch, runs: int = 300) -> float:
    """How often the interval of a difference covers 0 where 40 scenarios of 3 tasks each favour one side at random."""
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    rng = np.random.default_rng(2)
    names = [str(i // 3) for i in range(120)] if scenarios else None
    hits = 0
    for _ in range(runs):
        favour = np.repeat(rng.normal(0, 0.2, 40), 3)
        a, b = (np.clip(0.5 + sign * favour + rng.normal(0, 0.1, (1, 120)), 0, 1) for sign in (1, -1))
        pair = difference(a, b, names)
        hits += pair.low <= 0 <= pair.high
    return hits / runs


def test_a_few_tasks_that_differ_are_no_evidence_whatever_a_bootstrap_says():
    """Three tasks solved by one arm alone, in both seeds: the exact sign test has p = 2 / 2 ** 3."""
    b = np.zeros((2, 120), dtype=np.int8)
    a = b.copy()
    a[:, [3, 50, 51]] = 1
    assert compare(a, b).p == mcnemar(a[0], b[0]).p == 0.25
    assert compare(a, b, [str(i // 3) for i in range(120)]).p == 0.25
    assert compare(a, b, [str(i // 2) for i in range(120)]).p == 0.5  # 50 and 51 are of one scenario
    bound = 1 - 0.025 ** (1 / 120)  # what 120 tasks never show, as where none differs
    assert (compare(a, b).low, compare(a, b).high) == pytest.approx((3 / 120 - bound, 3 / 120 + bound), abs=0.01)
    assert compare(a, b).low < 0
    a[:, :30] = 1
    assert compare(a, b).p < 0.001 and compare(a, b).low > 0.1


def test_tasks_of_one_scenario_are_no_independent_draws(monkeypatch):
    assert 0.92 <= covered(True, monkeypatch) <= 0.98
    assert covered(False, monkeypatch) < 0.85  # the negative control


def test_pairing_sees_what_unpaired_rates_hide():
    rng = np.random.default_rng(3)
    worse = grid(3, 200, rng, seed_sd=0.0)
    better = worse.copy()
    better[:, :20] = 1  # the same outcomes but for what twenty tasks gain
    gained = int(better.sum() - worse.sum())
    paired = compare(better, worse)
    rates = [[int(x.sum()), x.size - int(x.sum())] for x in (better, worse)]
    assert gained > 0 and paired.p < 0.05 < fisher_exact(rates).pvalue


def simulated(*, seeds: int, seed_sd: float, shift: float = 0.0, runs: int = 400) -> tuple[float, float, float]:
    """(coverage of 0, share of p below 0.05, share of p below 0.5) over fresh tasks, seeds and outcomes."""
    rng = np.random.default_rng(11)
    found = []
    for _ in range(runs):
        hardness = rng.normal(0.3, 1.5, 60)
        a = grid(seeds, 60, rng, seed_sd=seed_sd, hardness=hardness + shift)
        found.append(compare(a, grid(seeds, 60, rng, seed_sd=seed_sd, hardness=hardness)))
    p = np.array([pair.p for pair in found])
    return (
        float(np.mean([pair.low <= 0 <= pair.high for pair in found])),
        float((p < 0.05).mean()),
        float((p < 0.5).mean()),
    )


@pytest.mark.parametrize(("seeds", "seed_sd"), [(5, 0.1), (5, 0.6), (3, 0.3)])
def test_intervals_cover_the_truth_and_p_is_near_uniform_where_nothing_is(monkeypatch, seeds, seed_sd):
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    covered, below_5, below_50 = simulated(seeds=seeds, seed_sd=seed_sd)
    assert 0.925 <= covered <= 0.99, covered
    assert 0.01 <= below_5 <= 0.075, below_5
    assert 0.35 <= below_50 <= 0.6, below_50


def test_two_seeds_that_vary_widely_are_covered_less(monkeypatch):
    """What docs/ablations.md warns of."""
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    covered, _, _ = simulated(seeds=2, seed_sd=0.4)
    assert 0.87 <= covered <= 0.945, covered


def test_a_real_difference_is_found(monkeypatch):
    """The negative control of the null simulation."""
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    covered, below_5, _ = simulated(seeds=5, seed_sd=0.1, shift=1.0, runs=60)
    assert covered < 0.2 and below_5 > 0.8


def test_intervals_stay_within_what_is_possible():
    two = np.array([[1, 1, 1, 1], [1, 0, 0, 1]], dtype=np.int8)
    assert mean_interval(two).high == 1.0 and compare(two, 1 - two).low >= -1.0


def test_equal_outcomes_are_no_certainty():
    """Clopper-Pearson in closed form: what n tasks never show may still have a share of 1 - 0.025 ** (1 / n)."""
    none, every = np.zeros((2, 120), dtype=np.int8), np.ones((2, 5), dtype=np.int8)
    assert mean_interval(none) == pytest.approx((0, 0, 1 - 0.025 ** (1 / 120)))
    assert mean_interval(every) == pytest.approx((1, 0.025 ** (1 / 5), 1))
    same = compare(none, none)
    bound = 1 - 0.025 ** (1 / 120)
    assert (same.diff, same.low, same.high, same.p) == pytest.approx((0, -bound, bound, 1))
