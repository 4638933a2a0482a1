"""Replay generated tasks without a model: gold must be valid, broken answers must not be."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter

from pydantic import Field

from rcgrpo.environments.toolworld.apis import READS
from rcgrpo.environments.toolworld.config import ToolWorldConfig
from rcgrpo.environments.toolworld.corrupt import corrupt
from rcgrpo.environments.toolworld.generator import scenario
from rcgrpo.environments.toolworld.suite import ToolWorldSuite
from rcgrpo.environments.toolworld.world import ToolWorld, World
from rcgrpo.episodes.types import Call, Record, Task

Answer = list[list[Call]]
"""The calls of each turn."""


class MutationRate(Record):
    """How often one way of breaking gold was judged a failure."""

    caught: int = 0
    total: int = 0


class ToolWorldReport(Record):
    """Outcome of :func:`validate_toolworld`."""

    gold_valid: int = 0
    """Gold answers with all of the environment's reward terms at 1."""
    gold_total: int = 0
    mutants: dict[str, MutationRate] = Field(default_factory=dict)
    """By mutation; all but ``corrupt`` (whose near misses may be harmless) should be caught every time."""
    calls: int = 0
    """Calls that gold made."""
    duplicates: float = 0.0
    """Share of the test scenarios whose user texts, in order, also occur among as many training scenarios."""
    seconds: float = 0.0


async def play(suite: ToolWorldSuite, task: Task, answer: Answer) -> ToolWorld:
    """Run an answer through the environment's own call path, turn by turn."""
    world = suite.environment(task)
    for calls in answer:
        world.open_turn()
        for call in calls:
            await world.call(call)
        world.close_turn()
    return world


def broken_answers(task: Task, rng: random.Random) -> dict[str, Answer]:
    """Answers that cannot be right, by mutation: what applies to ``task``."""
    gold: Answer = [list(turn.gold) for turn in task.turns]
    acting = [turn for turn, calls in enumerate(gold) if calls]
    at = rng.choice(acting)
    answers = {"no_calls": [*gold[:at], [], *gold[at + 1 :]]}
    needed = _needed_reads(task)
    ends = [turn for turn in acting if gold[turn][-1].name not in READS or (turn, len(gold[turn]) - 1) in needed]
    if ends:
        at = rng.choice(ends)
        answers["drop_last_call"] = [*gold[:at], gold[at][:-1], *gold[at + 1 :]]
    if needed:
        at, index = rng.choice(needed)
        answers["drop_read"] = [*gold[:at], gold[at][:index] + gold[at][index + 1 :], *gold[at + 1 :]]
    refusals = [i for i, calls in enumerate(gold) if not calls]
    if refusals and any(call.name not in READS for call in gold[refusals[0] + 1]):
        i = refusals[0]
        answers["act_instead_of_refusing"] = [*gold[:i], gold[i + 1], [], *gold[i + 2 :]]
        answers["act_early_and_again"] = [*gold[:i], gold[i + 1], *gold[i + 1 :]]
    if len(acting) > 1:
        answers["all_in_first_turn"] = [[c for calls in gold for c in calls], *([] for _ in gold[1:])]
    return answers


def _needed_reads(task: Task) -> list[tuple[int, int]]:
    """(turn, index) of gold's reads whose result no other gold call shows."""
    world = World(task.data["world"])
    results = [[world.run(call) for call in turn.gold] for turn in task.turns]
    shown = Counter(result for turn in results for result in turn)
    return [
        (t, i)
        for t, turn in enumerate(task.turns)
        for i, call in enumerate(turn.gold)
        if call.name in READS and not results[t][i][1] and shown[results[t][i]] == 1
    ]


async def _validate(n: int, config: ToolWorldConfig) -> ToolWorldReport:
    suite, report, started = ToolWorldSuite(config), ToolWorldReport(), time.perf_counter()
    for index in range(n):
        category = config.categories[index % len(config.categories)]
        task = suite.task(f"toolworld_{category}_{200_000 + index:06d}")
        rng = random.Random(f"validate/{config.seed}/{index}")
        world = await play(suite, task, [turn.gold for turn in task.turns])
        report.gold_total += 1
        report.gold_valid += all(value == 1.0 for value in world.rewards().values())
        report.calls += len(world.history)
        answers = broken_answers(task, rng)
        answers["corrupt"] = [
            calls if rng.random() < 0.35 else turn.gold
            for turn, calls in zip(task.turns, corrupt(task, rng), strict=True)
        ]
        if answers["corrupt"] == [turn.gold for turn in task.turns]:
            del answers["corrupt"]
        for name, answer in answers.items():
            rate = report.mutants.setdefault(name, MutationRate())
            rate.total += 1
            rate.caught += (await play(suite, task, answer)).rewards()["success"] == 0.0
    report.duplicates = duplicate_rate(config, n)
    report.seconds = time.perf_counter() - started
    return report


def duplicate_rate(config: ToolWorldConfig, n: int) -> float:
    """Share of the first test scenarios (at most 200) whose user texts occur among ``n`` training scenarios.

    Exactly 0 by the rule of the generator; measured all the same.
    """
    train = {scenario(config, 200_000 + index).texts for index in range(n)}
    test = [scenario(config, number).texts for number in range(min(n, 200))]
    return sum(texts in train for texts in test) / len(test)


def validate_toolworld(n: int = 2000, seed: int = 0, config: ToolWorldConfig | None = None) -> ToolWorldReport:
    """Generate ``n`` training tasks with the generator seed ``seed``; replay gold and broken answers."""
    config = (config or ToolWorldConfig()).model_copy(update={"seed": seed})
    return asyncio.run(_validate(n, config))
