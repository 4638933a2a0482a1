"""BFCL's calls and verdicts: our world against the official executor and checker, which run in their own process."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator
from typing import Any

from rcgrpo.bench.measure import rounded
from rcgrpo.environments.bfcl.data import CATEGORIES, SCENARIOS, entries
from rcgrpo.environments.bfcl.suite import BfclConfig, BfclSuite
from rcgrpo.environments.bfcl.validate import OfficialChecker, validate_bfcl
from rcgrpo.episodes.types import Task


async def _ours(suite: BfclSuite, tasks: list[Task]) -> tuple[float, float]:
    """Play gold as a rollout does; processor seconds (in calls, in whole episodes with world and verdicts)."""
    calls = 0.0
    began = time.thread_time()
    for task in tasks:
        environment = suite.environment(task)
        for turn in task.turns:
            environment.open_turn()
            started = time.thread_time()
            for call in turn.gold:
                await environment.call(call)
            calls += time.thread_time() - started
            environment.close_turn()
        environment.rewards()
    return calls, time.thread_time() - began


def _official(official: OfficialChecker, tasks: list[Task]) -> tuple[float, float]:
    """The same officially: one step per call, worlds made before the clock starts; then the checker.

    Processor seconds (in calls, in calls and checker). The checker plays answer and gold again, in worlds it makes.
    """
    executing = judging = 0.0
    for task in tasks:
        gold = entries(task.category)[task.id]["ground_truth"]  # pyright: ignore[reportArgumentType]
        executing += official.ask(task, {"calls": [call for turn in gold for call in turn]})["seconds"]
        steps = [[[call] for call in turn] for turn in gold]
        judging += official.ask(task, {"gold": gold, "answer": steps})["seconds"]
    return executing, executing + judging


def _chosen(every: int) -> Iterator[str]:
    for category in CATEGORIES:
        for number in range(0, SCENARIOS, every):
            yield f"multi_turn_{category}_{number}"


def bench_env(pairs: int, *, every: int, mutants: int) -> dict[str, Any]:
    """Gold answers of every ``every``-th scenario; verdicts compared on all gold and ``mutants`` mutated answers.

    All is processor time: a call is too short for the clock of a machine that others use. ``ratio`` is of one call.
    ``episode_ratio`` is of the whole: officially a call is executed, and then graded by
    executing answer and gold again; ours is judged by the world it ran in, gold being traced once per task.
    """
    suite = BfclSuite(BfclConfig(withheld_callable=True))
    tasks = [suite.task(task_id) for task_id in _chosen(every)]
    count = sum(len(turn.gold) for task in tasks for turn in task.turns)
    asyncio.run(_ours(suite, tasks))  # traces gold
    pools = {category: [task for task in tasks if task.category == category] for category in CATEGORIES}
    mine: list[tuple[float, float]] = []
    theirs: list[tuple[float, float]] = []
    by_category: dict[str, list[float]] = {category: [] for category in CATEGORIES}
    with OfficialChecker() as official:
        for _ in range(pairs):
            ours = {category: asyncio.run(_ours(suite, pool)) for category, pool in pools.items()}
            peer = {category: _official(official, pool) for category, pool in pools.items()}
            for category, ratios in by_category.items():
                ratios.append(peer[category][0] / ours[category][0])
            mine.append((sum(calls for calls, _ in ours.values()), sum(whole for _, whole in ours.values())))
            theirs.append((sum(calls for calls, _ in peer.values()), sum(whole for _, whole in peer.values())))
    report = validate_bfcl(count=mutants)
    ratios, whole = ([p[k] / o[k] for o, p in zip(mine, theirs, strict=True)] for k in (0, 1))
    differences = [difference.reason for difference in report.differences]
    return {
        "ratio": rounded(statistics.median(ratios)),
        "ratios": [rounded(r) for r in ratios],
        "ratio_by_category": {name: rounded(statistics.median(values)) for name, values in by_category.items()},
        "episode_ratio": rounded(statistics.median(whole)),
        "episode_ratios": [rounded(r) for r in whole],
        "ours_s": rounded(statistics.median(o[0] for o in mine) / count),
        "peer_s": rounded(statistics.median(p[0] for p in theirs) / count),
        "agreed": report.agreed + report.gold_agreed,
        "total": report.mutants + report.gold_total,
        "differences": {reason: differences.count(reason) for reason in differences},
        "shape": {"name": "env", "episodes": len(tasks), "calls": count},
    }
