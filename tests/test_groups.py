"""Which rollouts make a batch: gated tokens, replaced groups, the budget of rollouts."""

import asyncio
import random
from collections import Counter

import pytest

from light_world import drawn_jobs, light_recipe, light_task
from rcgrpo.algorithm.diagnostics import flat_group_probability
from rcgrpo.algorithm.gating import MEMORY, TokenGate, flat_rest_probability
from rcgrpo.conditioning import TokenSampler
from rcgrpo.config import ReinforceTable
from rcgrpo.episodes.types import Episode, RewardToken, StopReason
from rcgrpo.errors import UserError
from rcgrpo.stages.groups import GroupSampler
from rcgrpo.stages.reinforce import describe, reinforce, replacements
from test_stages import prepared
from test_variants import STAGE, finished, same_run

HIGH, LOW = RewardToken.HIGH, RewardToken.LOW
GATED = {"kind": "gated", "p": 0.5}
TASKS = [light_task(f"room{i}", "on") for i in range(40)]


def table(folder, **options) -> ReinforceTable:
    stage = light_recipe(folder, stages={"x": {**STAGE, **options}}).stages["x"]
    assert isinstance(stage, ReinforceTable)
    return stage


class World:
    """Plays jobs without a model: each succeeds with the chance that ``success(job)`` names."""

    def __init__(self, success):
        self.success, self.jobs, self.calls = success, [], []

    async def __call__(self, jobs):
        self.jobs += jobs
        self.calls.append(len(jobs))
        return [self.episode(job) for job in jobs]

    def episode(self, job) -> Episode:
        reward = float(random.Random(job.sampling.seed).random() < self.success(job))
        return Episode(
            task_id=job.task.id, category="", scenario="", group_id=job.group_id, index=job.index, policy="x",
            reward_token=job.token, messages=[], token_ids=[1, 2], loss_mask=[0, 1], logprobs=[-0.1],
            stop_reason=StopReason.COMPLETED, reward=reward,
        )  # fmt: skip

    def batch(self, sampler: GroupSampler, step: int, rounds: int = 0, rank: int = 0, world: int = 1):
        async def run():
            return [await script(self) for script in sampler.scripts(step, rank, world, rounds)]

        return asyncio.run(run())


# -- the gate


def test_the_gates_estimates_by_hand():
    gate = TokenGate()
    assert gate.agreement(True, HIGH) == gate.agreement(False, LOW) == 0.5  # Beta(1, 1)
    assert gate.mixes([1.0, 1.0], high=2, low=4) and gate.mixes([0.0, 0.0], high=2, low=4)  # nothing seen: try low
    rest = [(HIGH, 1.0), (HIGH, 1.0), (HIGH, 0.0), (LOW, 0.0)]
    gate.observe([([1.0, 1.0], rest), ([1.0, 0.0], rest), ([0.0, 0.0], [(HIGH, 1.0), (LOW, 0.0), (LOW, 0.0)])])
    assert gate.counts == {"solved/high": [2, 3], "solved/low": [0, 1], "failed/high": [0, 1], "failed/low": [2, 2]}
    assert gate.agreement(True, HIGH) == 3 / 5 and gate.agreement(True, LOW) == 1 / 3
    assert gate.mixes([1.0, 1.0], high=2, low=4)  # low breaks the agreement more often
    assert not gate.mixes([0.0, 0.0], high=2, low=4)  # after failures low only fails again
    assert not gate.mixes([1.0, 0.0], high=2, low=4)  # mixed already
    gate.observe([])
    assert gate.counts["failed/low"] == [2 * MEMORY, 2 * MEMORY]


def test_what_is_left_of_a_group_makes_up_the_whole_groups_chance():
    """Probes and rest together give the closed form of a stratified group, here 2 + 2 high and 4 low."""
    high, low = 0.8, 0.3
    both = high**2 * flat_rest_probability(high, low, 2, 4) + 0.2**2 * flat_rest_probability(0.2, 0.7, 2, 4)
    assert both == pytest.approx(flat_group_probability(high, low, 0.5, 8, "stratified"))


def flat_share(folder, sampler: dict, chances: dict) -> tuple[float, float]:
    """Share of flat groups over the last 60 of 90 batches on tasks of two kinds, easy and hard; share of low."""
    settings = table(folder, sampler=sampler, groups=8, group_size=8, steps=90)
    gate = TokenGate() if sampler["kind"] == "gated" else None
    groups = GroupSampler(TASKS, settings, 0, gate)

    def success(job) -> float:
        easy = int(job.task.id.removeprefix("room").removesuffix("-on")) % 2
        return chances[job.token][easy]

    played = []
    for step in range(90):
        world = World(success)
        batch = world.batch(groups, step)
        groups.observe([e for place in batch for e in place.trained])
        played.append([place.trained for place in batch])
    last = [group for batch in played[30:] for group in batch]
    flat = sum(len({e.reward for e in group}) == 1 for group in last) / len(last)
    return flat, sum(e.reward_token is LOW for group in last for e in group) / (8 * len(last))


def test_the_gate_mixes_where_it_helps_and_nowhere_else(tmp_path):
    """Success under high and low on hard and easy tasks. All high, stratified, and gated on the same draws."""
    mix, high = {"kind": "stratified", "p": 0.5}, {"kind": "fixed", "token": "high"}
    peaked = {HIGH: (0.05, 0.97), LOW: (0.02, 0.3)}  # most groups are flat, the solved ones for want of failures
    all_high, stratified, gated = (flat_share(tmp_path, s, peaked) for s in (high, mix, GATED))
    assert gated[0] < all_high[0] - 0.2 and gated[0] < stratified[0] + 0.02
    assert gated[1] < stratified[1] - 0.15  # with far fewer rollouts under low
    weak = {HIGH: (0.35, 0.5), LOW: (0.01, 0.05)}  # groups are mixed anyway: low only adds failures
    all_high, stratified, gated = (flat_share(tmp_path, s, weak) for s in (high, mix, GATED))
    assert stratified[0] > all_high[0] + 0.04  # the control: mixing hurts here
    assert gated[0] < stratified[0] - 0.03
    assert gated[1] < 0.25


def test_a_gated_group_asks_its_probes_first(tmp_path):
    settings = table(tmp_path, sampler=GATED, groups=4, group_size=8)
    for chance, mixes in ((1.0, True), (0.0, False)):
        gate = TokenGate()
        gate.observe([([0.0, 0.0], [(LOW, 0.0)] * 9 + [(HIGH, 0.0), (HIGH, 1.0)])])
        world = World(lambda job, chance=chance: chance)
        batch = world.batch(GroupSampler(TASKS, settings, 0, gate), 0)
        assert world.calls == [2, 6] * 4
        for place in batch:
            assert [e.index for e in place.trained] == list(range(8))
            tokens = [e.reward_token for e in place.trained]
            assert tokens[:2] == [HIGH, HIGH] and tokens.count(LOW) == (4 if mixes else 0)
    # the seeds are those of every other sampler, so rows are compared on the same draws
    plain = drawn_jobs(TASKS, table(tmp_path, groups=4, group_size=8), 0, 0)
    key = lambda j: (j.task.id, j.group_id, j.index, j.sampling.seed)  # noqa: E731
    assert [key(j) for j in world.jobs] == [key(j) for j in plain]


def test_processes_share_out_gated_and_replaced_groups(tmp_path):
    settings = table(tmp_path, sampler=GATED, groups=4, group_size=8, resample=2)
    ran = []
    for world in (1, 2):
        gate, played = TokenGate(), []
        for step in range(4):
            places = []
            for rank in range(world):
                sampler = GroupSampler(TASKS, settings, 0, gate)
                places += World(lambda job: 0.9 if job.token is HIGH else 0.4).batch(sampler, step, 2, rank, world)
            sampler.observe([e for place in places for e in (*place.trained, *place.discarded)])
            played += [e for place in places for e in (*place.trained, *place.discarded)]
        ran.append((sorted((e.group_id, e.index, e.reward_token, e.reward) for e in played), gate.counts))
    assert ran[0] == ran[1]
    assert {token for _, _, token, _ in ran[0][0]} == {HIGH, LOW}


# -- replacing flat groups


def test_flat_groups_are_replaced_until_mixed_or_the_cap(tmp_path):
    """Tasks with an even number are hopeless. Every place keeps its first mixed group, or its last one."""
    settings = table(tmp_path, sampler={"kind": "fixed"}, groups=6, group_size=4, resample=3)
    world = World(lambda job: 0.5 if int(job.task.id.removeprefix("room").removesuffix("-on")) % 2 else 0.0)
    sampler = GroupSampler(TASKS, settings, 0)
    batch = world.batch(sampler, 2, rounds=3)
    flat = lambda group: len({e.reward for e in group}) == 1  # noqa: E731
    tries = []
    for place in batch:
        groups: dict[str, list[Episode]] = {}
        for episode in (*place.discarded, *place.trained):
            groups.setdefault(episode.group_id, []).append(episode)
        listed = list(groups.values())
        assert all(len(group) == 4 for group in listed) and listed[-1] == place.trained
        assert all(flat(group) for group in listed[:-1])
        assert not flat(place.trained) or len(listed) == 4
        tries.append(len(listed))
    assert 1 in tries and max(tries) > 1
    assert len(world.jobs) == 4 * sum(tries)
    # the first group of each place is what is played without replacement; each later one is of its own
    first = [j for j in world.jobs if "extra" not in j.group_id]
    assert [j.sampling.seed for j in first] == [j.sampling.seed for j in drawn_jobs(TASKS, settings, 2, 0)]
    assert len({j.sampling.seed for j in world.jobs}) == len(world.jobs)
    assert max(Counter(j.task.id for j in world.jobs if "extra" in j.group_id).values()) == 4  # fresh tasks
    assert all(not place.discarded for place in World(world.success).batch(sampler, 2))  # the control: no rounds

    trained = [e for place in batch for e in place.trained]
    discarded = [e for place in batch for e in place.discarded]
    figures = describe(trained, settings, discarded)
    assert figures["rollouts"] == len(world.jobs) and figures["discarded_rollouts"] == len(discarded)
    share = sum(e.reward for e in (*trained, *discarded)) / len(world.jobs)
    assert figures["reward_mean"] == pytest.approx(share)  # of all that was sampled, not of the chosen
    assert figures["zero_variance_share"] == sum(flat(place.trained) for place in batch) / 6
    assert figures["sampled_zero_variance_share"] > figures["zero_variance_share"]


def test_failures_with_an_advantage_are_not_replaced(tmp_path):
    for flat_advantage, tries in (("zero", 3), ("ngrpo", 1)):
        settings = table(tmp_path, groups=2, resample=2, flat_advantage=flat_advantage)
        world = World(lambda job: 0.0)
        world.batch(GroupSampler(TASKS, settings, 0), 0, rounds=2)
        assert len(world.jobs) == 2 * 4 * tries


def test_the_budget_bounds_replacement_by_hand(tmp_path):
    settings = table(tmp_path, groups=4, group_size=4, resample=3, rollout_budget=100)
    # a batch of 16 rollouts: 100 left allow 6, so all 3 replacements; 52 allow 3; 20 one; 15 none at all
    assert [replacements(settings, played) for played in (0, 48, 80, 84, 85)] == [3, 2, 0, 0, -1]
    assert replacements(table(tmp_path, resample=3), 10**6) == 3
    with pytest.raises(UserError, match="must allow a batch of 16"):
        table(tmp_path, rollout_budget=15)


# -- the stage


@pytest.mark.parametrize(
    "options", [{"sampler": GATED}, {"resample": 2, "rollout_budget": 110, "steps": 9}], ids=["gated", "resampled"]
)
def test_a_stopped_stage_goes_on_to_the_very_same_weights(lights, tmp_path, monkeypatch, options):
    recipe = light_recipe(lights, stages={"x": {**STAGE, **options}})
    whole = finished(tmp_path / "whole", recipe)
    assert same_run(whole, finished(tmp_path / "stopped", recipe, stop=monkeypatch))
    metrics = whole.stage("x").metrics()
    totals = [m["rollouts_total"] for m in metrics]
    assert totals == [sum(m["rollouts"] for m in metrics[: i + 1]) for i in range(len(metrics))]
    if "resample" in options:
        assert totals[-1] <= 110 < totals[-1] + 16 and 3 <= len(metrics) < 9
        assert any(m["discarded_rollouts"] for m in metrics)
    # the control: without what the resume point carries, it goes another way or counts from the start
    with monkeypatch.context() as patch:
        patch.setattr(
            "rcgrpo.stages.training.Trainer.carried",
            property(lambda self: {"rollouts": 0, "gate": GONE}, lambda self, value: None),
            raising=False,
        )
        assert not same_run(whole, finished(tmp_path / "forgetful", recipe, stop=monkeypatch))


GONE = {"solved/high": [0.0, 9.0], "solved/low": [9.0, 9.0], "failed/high": [0.0, 9.0], "failed/low": [9.0, 9.0]}
"""Counts of a gate that never mixes."""


def test_every_step_says_what_it_cost_and_what_it_saw(lights, tmp_path):
    run = prepared(tmp_path, light_recipe(lights, stages={"x": {**STAGE, "steps": 1, "resample": 1}}))
    reinforce(run, run.recipe(), "x")
    (metric,) = run.stage("x").metrics()
    wanted = {
        "reward_mean", "success_high", "success_low", "separation", "zero_variance_share", "all_zero_share",
        "all_one_share", "between_variance", "within_variance", "kl", "entropy", "rollouts", "rollouts_total",
        "generated_tokens", "seconds", "low_share", "sampled_zero_variance_share", "discarded_rollouts",
    }  # fmt: skip
    assert {name for name in wanted if metric.get(name) is not None} == wanted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": {**GATED, "probe": 3}}, "3 probes are among them"),
        ({"sampler": {"kind": "gated", "p": 1.0}}, "one rollout is left for low"),
        ({"sampler": {"kind": "iid", "probe": 2}}, "probe has no meaning"),
        ({"sampler": {**GATED, "token": "high"}}, "token has no meaning"),
        ({"flat_advantage": "zvp", "resample": 1}, "remove resample"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        table(tmp_path, **options)


def test_a_gate_is_for_training_alone(tmp_path):
    with pytest.raises(UserError, match="take 'stratified' here"):
        light_recipe(tmp_path, evaluate={"rows": [{"row": "x", "policy": "base", "probe": GATED}]})
    with pytest.raises(ValueError, match="depend on its probes"):
        TokenSampler(kind="gated").sample(8, 0)
