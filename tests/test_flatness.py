"""Predictions of flat groups: against enumeration, exact expectations, simulation, and known policies."""

import re
from itertools import combinations, product

import numpy as np
import pytest
import torch
from scipy.stats import betabinom, binom

from rcgrpo.algorithm.diagnostics import flat_group_probability, variance_split
from rcgrpo.algorithm.flatness import (
    Beta,
    Flatness,
    Gate,
    fit_beta,
    fit_betas,
    fixed_counts,
    fixed_groups,
    gated_groups,
    iid_counts,
    iid_groups,
    mixed_groups,
    settled_gate,
    stratified_groups,
    subsets_alike,
    token_variances,
)
from rcgrpo.algorithm.gating import TokenGate
from rcgrpo.algorithm.resampling import PromptBootstrap
from rcgrpo.conditioning import TokenSampler
from rcgrpo.experiments.advice import advise, plain_token
from rcgrpo.experiments.predictions import Counts, read

RATES = [(0.9, 0.1), (0.5, 0.5), (0.97, 0.4), (0.3, 0.0), (0.2, 0.6)]
N, G = 8, 4


def expected(estimate, high: float, low: float, n: int = N) -> np.ndarray:
    """The estimator's exact expectation for a prompt with these success rates, over all counts."""
    counts = np.arange(n + 1)
    h, low_counts = (a.ravel() for a in np.meshgrid(counts, counts, indexing="ij"))
    chance = np.outer(binom.pmf(counts, n, high), binom.pmf(counts, n, low)).ravel()
    return np.array([chance @ part for part in estimate(h, low_counts)])


@pytest.mark.parametrize("size", [1, 2, 5])
def test_subsets_are_those_that_enumeration_finds(size):
    for successes in range(7):
        rewards = [1] * successes + [0] * (6 - successes)
        drawn = [sum(subset) for subset in combinations(rewards, size)]
        zero, one = subsets_alike(np.array([successes]), 6, size)
        assert zero == pytest.approx(drawn.count(0) / len(drawn))
        assert one == pytest.approx(drawn.count(size) / len(drawn))
    with pytest.raises(ValueError, match="7 of 6"):
        subsets_alike(np.array([1]), 6, 7)


def test_mixed_groups_are_those_that_enumeration_finds():
    high, low = [1, 1, 1, 0], [1, 0, 0, 0]
    groups = [(a, b) for a in combinations(high, 2) for b in combinations(low, 1)]
    found = mixed_groups(np.array([3]), np.array([1]), 4, 2, 1)
    assert found.all_one == pytest.approx(sum({*a, *b} == {1} for a, b in groups) / len(groups))
    assert found.all_zero == pytest.approx(sum({*a, *b} == {0} for a, b in groups) / len(groups))
    assert found.token_only == pytest.approx(sum(len({*a}) == 1 and {*a} != {*b} for a, b in groups) / len(groups))


@pytest.mark.parametrize(("high", "low"), RATES)
@pytest.mark.parametrize("p", [0.5, 0.25])
def test_every_scheme_is_estimated_without_bias(high, low, p):
    schemes = {
        "stratified": lambda h, low_K: [stratified_groups(h, low_K, N, G, p).flat],
        "iid": lambda h, low_K: [iid_groups(h, low_K, N, G, p).flat],
    }
    for kind, estimate in schemes.items():
        assert expected(estimate, high, low) == pytest.approx(flat_group_probability(high, low, p, G, kind))
    plain = expected(lambda h, low_K: [fixed_groups(h, N, G).flat], high, low)
    assert plain == pytest.approx(high**G + (1 - high) ** G)


def test_the_plug_in_rate_would_be_biased():
    plugged = expected(lambda h, low_K: [(h / N) ** N + (1 - h / N) ** N], 0.5, 0.5)
    assert plugged == pytest.approx(0.0637, abs=1e-4)  # the module's docstring
    assert pytest.approx(0.0078, abs=1e-4) == 0.5**N * 2


@pytest.mark.parametrize(("high", "low"), RATES)
def test_the_three_kinds_of_mixed_group_have_their_chances(high, low):
    """Enumerated over all outcomes of a group of two high and two low."""
    chance = {"zero": 0.0, "one": 0.0, "token": 0.0}
    for outcome in product((0, 1), repeat=4):
        weight = np.prod([q if o else 1 - q for q, o in zip((high, high, low, low), outcome, strict=True)])
        a, b = set(outcome[:2]), set(outcome[2:])
        kind = "mixed" if len(a) > 1 or len(b) > 1 else "token" if a != b else "one" if a == {1} else "zero"
        if kind != "mixed":
            chance[kind] += weight
    assert expected(lambda h, low_K: stratified_groups(h, low_K, N, 4, 0.5), high, low) == pytest.approx(
        [*chance.values()]
    )


@pytest.mark.parametrize(("high", "low"), RATES)
@pytest.mark.parametrize("gate", [Gate(True, False), Gate(False, True), Gate(True, True), Gate(False, False)])
def test_gated_groups_mix_after_the_probes_that_the_gate_names(high, low, gate):
    """Enumerated over all outcomes of two probes, then two more: both low where the gate mixes, else both high."""
    chance = np.zeros(3)
    for outcome in product((0, 1), repeat=4):
        probes, rest = outcome[:2], outcome[2:]
        mixes = len(set(probes)) == 1 and (gate.after_solved if probes[0] else gate.after_failed)
        rates = (high, high, low, low) if mixes else (high,) * 4
        weight = np.prod([q if o else 1 - q for q, o in zip(rates, outcome, strict=True)])
        if len(set(outcome)) == 1:
            chance[outcome[0]] += weight
        elif mixes and len(set(rest)) == 1:
            chance[2] += weight
    found = expected(lambda h, low_K: gated_groups(h, low_K, N, 4, 0.5, gate), high, low)
    assert found == pytest.approx(chance)


def test_the_gate_settles_as_the_sampler_s_own_does():
    """The training's gate, fed with many simulated batches, against what is read off the rollouts."""
    rng = np.random.default_rng(5)
    for high, low, spread in ((0.9, 0.3, 0.1), (0.6, 0.55, 0.35), (0.1, 0.02, 0.08), (0.5, 0.9, 0.1)):
        counts, high_K, low_K = simulated(high, low, prompts=64, spread=spread)
        gate = TokenGate()
        for _ in range(40):
            groups = []
            for q_high, q_low in zip(high_K, low_K, strict=True):
                probes = (rng.random(2) < q_high).astype(float).tolist()
                rest = [(t, float(rng.random() < q)) for t, q in (("high", q_high), ("low", q_low)) for _ in range(3)]
                groups.append((probes, rest))
            gate.observe(groups)
        found = settled_gate(counts.high, counts.low, counts.n, 8, 0.5, 2)
        assert found == (gate.mixes([1.0, 1.0], high=2, low=4), gate.mixes([0.0, 0.0], high=2, low=4)), (high, low)


@pytest.mark.parametrize(("high", "low"), RATES)
def test_the_variance_split_is_unbiased_and_agrees_with_that_of_large_groups(high, low):
    found = expected(lambda h, low_K: token_variances(h, low_K, N, 0.25), high, low)
    truth = [0.1875 * (high - low) ** 2, 0.25 * high * (1 - high) + 0.75 * low * (1 - low)]
    assert found == pytest.approx(truth)
    n = 4000
    h, k = round(high * n), round(low * n)
    rewards = torch.tensor([1.0] * h + [0.0] * (n - h) + [1.0] * k + [0.0] * (n - k))
    split = variance_split(rewards, ["group"] * 2 * n, ["high"] * n + ["low"] * n)
    ours = token_variances(np.array([h]), np.array([k]), n, 0.5)
    assert [float(split.between), float(split.within)] == pytest.approx(np.concatenate(ours), abs=1e-3)


@pytest.mark.parametrize(("high", "low"), RATES)
def test_the_counts_of_mixed_rollouts_are_binomial_in_the_mixed_rate(high, low):
    found = expected(lambda h, low_K: iid_counts(h, low_K, N, 0.25).T, high, low)
    assert found == pytest.approx(binom.pmf(np.arange(N + 1), N, 0.25 * high + 0.75 * low))


def test_the_beta_distribution_is_the_likeliest_and_predicts_beta_binomial_groups():
    weights = betabinom.pmf(np.arange(17), 16, 0.6, 1.4)
    assert fit_beta(weights) == pytest.approx((0.6, 1.4), rel=1e-3)
    assert fit_betas(np.stack([weights, weights])).alike(32)[0] == pytest.approx(
        [fit_beta(weights).alike(32)[0]] * 2, rel=0.03
    )
    zero, one = Beta(np.array(0.6), np.array(1.4)).alike(32)
    assert (zero, one) == pytest.approx((betabinom.pmf(0, 32, 0.6, 1.4), betabinom.pmf(32, 32, 0.6, 1.4)))
    for always in (0, 16):  # no spread at all: still a prediction
        assert sum(fit_beta(np.eye(17)[always]).alike(32)) > 0.95


def test_intervals_cover_the_truth_as_often_as_they_say():
    """200 diagnoses of 32 prompts from a population with known shares; 95% nominal."""
    rng = np.random.default_rng(1)
    base = rng.beta(0.7, 0.5, 200_000)
    low_base = base * rng.beta(1, 3, 200_000)
    truths = {
        "high": (base**G + (1 - base) ** G).mean(),
        "stratified": (base**2 * low_base**2 + (1 - base) ** 2 * (1 - low_base) ** 2).mean(),
        "separation": (base - low_base).mean(),
        "explains": 0.25 * ((base - low_base) ** 2).mean(),
    }
    mixed = (base + low_base) / 2
    truths["explains"] /= (mixed * (1 - mixed)).mean()
    covered = dict.fromkeys(truths, 0)
    for repeat in range(200):
        picked = rng.integers(0, len(base), 32)
        high_K, low_K = rng.binomial(N, base[picked]), rng.binomial(N, low_base[picked])
        bootstrap = PromptBootstrap(32, repeat)
        between_K, within_K = token_variances(high_K, low_K, N, 0.5)
        found = {
            "high": bootstrap.mean(fixed_groups(high_K, N, G).flat),
            "stratified": bootstrap.mean(stratified_groups(high_K, low_K, N, G, 0.5).flat),
            "separation": bootstrap.mean((high_K - low_K) / N, least=-1),
            "explains": bootstrap.ratio(between_K, between_K + within_K),
        }
        for name, estimate in found.items():
            covered[name] += estimate.low <= truths[name] <= estimate.high
    assert all(180 <= count <= 199 for count in covered.values()), covered


def test_prompts_that_all_agree_still_have_an_interval():
    estimate = PromptBootstrap(32).mean(np.ones(32))
    assert estimate.value == estimate.high == 1
    assert 0.85 < estimate.low < 0.95
    level = PromptBootstrap(32).mean(np.zeros(32), least=-1.0)  # a difference that no prompt shows
    unseen = 1 - estimate.low  # Wilson's bound on prompts that do
    assert level == (0, pytest.approx(-unseen), pytest.approx(unseen))
    assert PromptBootstrap(32).mean(np.full(32, 0.5)).low == pytest.approx(0.5 * (1 - unseen))
    with pytest.raises(ValueError, match="at least 2"):
        PromptBootstrap(1)


# -- whole readings of simulated policies


def simulated(high, low, *, prompts: int = 64, n: int = 16, seed: int = 0, spread: float = 0.0):
    """Counts of a policy with these success rates (each prompt's shifted by up to ``spread``), and the rates."""
    rng = np.random.default_rng(seed)
    shift_K = rng.uniform(-spread, spread, prompts)
    high_K, low_K = (np.clip(q + shift_K, 0.0, 1.0) for q in (high, low))
    return Counts(n, *(rng.binomial(n, q_K) for q_K in (high_K, high_K, low_K))), high_K, low_K


def reading(counts: Counts, group_size: int = 8):
    return read(counts, 1.0, group_size, 0.5, PromptBootstrap(len(counts.high)))


def measured_flat(sampler: TokenSampler, group_size: int, high_K, low_K, groups: int = 60) -> float:
    """The share of flat groups that the real sampler draws from these rates."""
    rng = np.random.default_rng(7)
    flat = []
    for k, (high, low) in enumerate(zip(high_K, low_K, strict=True)):
        for g in range(groups):
            tokens = sampler.sample(group_size, f"{k}/{g}")
            rewards = [rng.random() < (low if token == "low" else high) for token in tokens]
            flat.append(len(set(rewards)) == 1)
    return float(np.mean(flat))


SAMPLERS = {
    "high": TokenSampler.fixed("high"),
    "low": TokenSampler.fixed("low"),
    "iid": TokenSampler.iid(0.5),
    "stratified": TokenSampler.stratified(0.5),
}


@pytest.fixture(scope="module")
def known():
    counts, high_K, low_K = simulated(0.75, 0.3, spread=0.3)
    return reading(counts), high_K, low_K


@pytest.mark.parametrize("scheme", SAMPLERS)
@pytest.mark.parametrize("size", [8, 16, 32])
def test_what_is_predicted_of_a_known_policy_happens(known, scheme, size):
    found, high_K, low_K = known
    prediction = found.find(scheme, size)
    assert prediction.basis == ("subsets" if size <= 16 or scheme == "stratified" else "beta")
    happened = measured_flat(SAMPLERS[scheme], size, high_K, low_K)
    assert prediction.flat.low - 0.005 <= happened <= prediction.flat.high + 0.005  # rare: few groups happen at all
    assert prediction.flat.value == pytest.approx(prediction.all_zero.value + prediction.all_one.value)


def test_the_predictions_of_another_policy_do_not_happen(known):
    """Negative control: the same success under high, but low is no different."""
    found, high_K, _ = known
    happened = measured_flat(SAMPLERS["stratified"], 8, high_K, high_K)
    assert happened > found.find("stratified", 8).flat.high


def test_too_few_rollouts_predict_less_and_never_guess():
    counts, _, _ = simulated(0.8, 0.2, n=8)
    found = reading(counts)
    assert found.gate is not None and found.find("gated", 16) is None
    assert found.find("stratified", 16).basis == "subsets"
    assert found.find("stratified", 32) is None
    assert found.find("high", 16).basis == "beta"


# -- rules


def actions(high, low, **options) -> list[str]:
    counts, _, _ = simulated(high, low, **options)
    bootstrap = PromptBootstrap(len(counts.high))
    return [advice.action for advice in advise([reading(counts)], 8, bootstrap)]


RULES = {
    "tokens separate and plain groups are flat": ((0.95, 0.1), ["mix", "harder tasks", "more rollouts"]),
    "no separation": ((0.97, 0.97), ["train stage 1", "do not mix", "harder tasks", "more rollouts"]),
    "a weak policy": ((0.12, 0.0), ["do not mix", "easier tasks", "more rollouts"]),
    "GRPO has its signal": ((0.6, 0.2), ["do not mix"]),
    "always solved": ((1.0, 1.0), ["train stage 1", "do not mix", "harder tasks"]),
    "never solved": ((0.0, 0.0), ["train stage 1", "do not mix", "easier tasks"]),
}


@pytest.mark.parametrize("name", RULES)
def test_advice_follows_the_rules(name):
    rates, wanted = RULES[name]
    assert actions(*rates) == wanted


def test_tokens_that_cut_both_ways_are_not_said_to_leave_groups_flat():
    """High solves one half of the prompts, low the other: no separation, and yet every mixed group differs."""
    n, always, never = 16, np.full(16, 16), np.zeros(16, dtype=int)
    counts = Counts(n, np.r_[always, never], np.r_[always, never], np.r_[never, always])
    found, bootstrap = reading(counts), PromptBootstrap(32)
    assert found.separation.value == 0 and found.find("stratified", 8).flat.value == 0
    advised = {advice.action: advice.why for advice in advise([found], 8, bootstrap)}
    assert re.search(r"100 \(.*points fewer are flat, but high is not shown to be better", advised["do not mix"])
    same = reading(Counts(n, counts.none, counts.high, counts.high))
    [why] = [a.why for a in advise([same], 8, bootstrap) if a.action == "do not mix"]
    assert "nothing for mixing to use" in why


def test_plain_groups_have_no_token_only_where_high_is_shown_to_be_worse():
    counts, _, _ = simulated(0.12, 0.0)
    bootstrap = PromptBootstrap(len(counts.high))
    assert counts.none.mean() > counts.high.mean() and plain_token(reading(counts)) == "high"  # by chance
    [first, *_] = advise([reading(counts)], 8, bootstrap)
    assert "mixing makes more groups flat" in first.why
    assert plain_token(reading(Counts(16, counts.none + 8, counts.high, counts.low))) == "none"


def test_a_higher_temperature_is_advised_where_it_was_measured_to_help():
    (cold, _, _), (hot, _, _) = simulated(0.96, 0.9), simulated(0.8, 0.6)
    readings = [read(c, t, 8, 0.5, PromptBootstrap(64)) for c, t in ((cold, 1.0), (hot, 1.4))]
    advised = {a.action: a.why for a in advise(readings, 8, PromptBootstrap(64))}
    assert "at 1.4" in advised["temperature"] and "success goes from 9" in advised["temperature"]
    assert "temperature" not in [a.action for a in advise([readings[1], readings[0]], 8, PromptBootstrap(64))]


def test_fixed_counts_pool_into_a_histogram():
    assert fixed_counts(np.array([0, 2, 2]), 2).sum(0).tolist() == [1, 0, 2]
    assert Flatness(np.array([0.1]), np.array([0.2]), np.array([0.3])).flat == pytest.approx([0.3])
