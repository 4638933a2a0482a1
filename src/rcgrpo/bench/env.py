"""BFCL's calls and verdicts: our world against the official executor and checker, which run in their own process."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rcgrpo.bench.measure import rounded
from rcgrpo.environments.bfcl.data import CATEGORIES, SCENARIOS, entries
from rcgrpo.environments.bfcl.suite import BfclConfig, BfclSuite
from rcgrpo.environments.bfcl.validate import OfficialChecker, validate_bfcl
from rcgrpo.episodes.types import Task

PARTS = ("whole", "calls", "verdicts")
REPEATS = 5


@dataclass(frozen=True)
class Cost:
    """Processor seconds of some episodes: a call is too short for the clock of a machine that others use."""

    whole: float
    """Making the worlds, the calls and the verdicts."""
    calls: float
    """The calls alone."""
    verdicts: float
    """Verdicts and rewards alone; officially the checker, which plays answer and gold again in worlds it makes."""


async def _whole(suite: BfclSuite, tasks: list[Task]) -> float:
    """Play gold as a rollout does."""
    began = time.thread_time()
    for task in tasks:
        environment = suite.environment(task)
        for turn in task.turns:
            environment.open_turn()
            for call in turn.gold:
                await environment.call(call)
            environment.close_turn()
        environment.rewards()
    return time.thread_time() - began


async def _parts(suite: BfclSuite, tasks: list[Task], *, known: bool) -> tuple[float, float]:
    """The same; only (calls, verdicts) count. Worlds are made before the clock starts, where they are needed."""
    calls = verdicts = 0.0
    for task in tasks:
        environment = suite.environment(task)
        if not known:
            environment.states()
        started = time.thread_time()
        for turn in task.turns:
            environment.open_turn()
            for call in turn.gold:
                await environment.call(call)
        calls += time.thread_time() - started
    for task in tasks:
        environment = suite.environment(task)
        for turn in task.turns:
            environment.open_turn()
            for call in turn.gold:
                await environment.call(call)
            started = time.thread_time()
            environment.close_turn()
            verdicts += time.thread_time() - started
        started = time.thread_time()
        environment.rewards()
        verdicts += time.thread_time() - started
    return calls, verdicts


def _ours(suite: BfclSuite, tasks: list[Task], *, known: bool) -> Cost:
    """``known``: calls and verdicts were made before, by other rollouts of the task or by gold's trace.

    What is known takes milliseconds, so it is played ``REPEATS`` times.
    """
    repeats = REPEATS if known else 1
    if not known:
        suite.forget()
    gc.collect()  # of what came before
    whole = sum(asyncio.run(_whole(suite, tasks)) for _ in range(repeats))
    if not known:
        suite.forget()
    gc.collect()
    parts = [asyncio.run(_parts(suite, tasks, known=known)) for _ in range(repeats)]
    return Cost(whole / repeats, *(sum(values) / repeats for values in zip(*parts, strict=True)))


def _official(official: OfficialChecker, tasks: list[Task]) -> Cost:
    """One step per call, as in the official handler; then the checker."""
    worlds = calls = verdicts = 0.0
    for task in tasks:
        gold = entries(task.category)[task.id]["ground_truth"]  # pyright: ignore[reportArgumentType]
        executed = official.ask(task, {"calls": [call for turn in gold for call in turn]})
        worlds += executed["world_seconds"]
        calls += executed["seconds"]
        steps = [[[call] for call in turn] for turn in gold]
        verdicts += official.ask(task, {"gold": gold, "answer": steps})["seconds"]
    return Cost(worlds + calls + verdicts, calls, verdicts)


def _chosen(every: int) -> Iterator[str]:
    for category in CATEGORIES:
        for number in range(0, SCENARIOS, every):
            yield f"multi_turn_{category}_{number}"


def _count(tasks: list[Task]) -> int:
    return sum(len(turn.gold) for task in tasks for turn in task.turns)


def _sum(costs: dict[str, Cost]) -> Cost:
    return Cost(*(sum(getattr(cost, part) for cost in costs.values()) for part in PARTS))


def bench_env(pairs: int, *, every: int, mutants: int) -> dict[str, Any]:
    """Gold answers of every ``every``-th scenario; verdicts compared on all gold and ``mutants`` mutated answers.

    ``ratio`` is of all that an episode pays its world: making it, the calls, the verdicts. ``call_ratio`` and
    ``verdict_ratio`` are of these alone. All three are for what a task's rollouts made before, as gold's trace did, and
    is remembered; ``cold_*`` are for calls and verdicts that nobody made before. ``*_us`` are microseconds per call.
    """
    suite = BfclSuite(BfclConfig(withheld_callable=True))
    tasks = [suite.task(task_id) for task_id in _chosen(every)]
    pools = {category: [task for task in tasks if task.category == category] for category in CATEGORIES}
    sides: dict[str, list[dict[str, Cost]]] = {"cold": [], "known": [], "official": []}
    asyncio.run(_whole(suite, tasks))  # traces gold, loads the official data
    with OfficialChecker() as official:
        for _ in range(pairs):
            sides["cold"].append({name: _ours(suite, pool, known=False) for name, pool in pools.items()})
            sides["known"].append({name: _ours(suite, pool, known=True) for name, pool in pools.items()})
            sides["official"].append({name: _official(official, pool) for name, pool in pools.items()})
    report = validate_bfcl(count=mutants)
    differences = [difference.reason for difference in report.differences]

    def ratios(side: str, part: str, category: str | None = None) -> list[float]:
        costs = [
            [getattr(_sum(c) if category is None else c[category], part) for c in sides[s]] for s in ("official", side)
        ]
        return [theirs / ours for theirs, ours in zip(*costs, strict=True)]

    def per_call(side: str) -> dict[str, float]:
        return {
            part: rounded(1e6 * statistics.median(getattr(_sum(costs), part) for costs in sides[side]) / _count(tasks))
            for part in PARTS
        }

    result: dict[str, Any] = {}
    for prefix, side in (("", "known"), ("cold_", "cold")):
        for name, part in (("ratio", "whole"), ("call_ratio", "calls"), ("verdict_ratio", "verdicts")):
            result[prefix + name] = rounded(statistics.median(ratios(side, part)))
            result[f"{prefix}{name}_by_category"] = {
                category: rounded(statistics.median(ratios(side, part, category))) for category in pools
            }
    known, theirs = per_call("known"), per_call("official")
    return {
        "ratio": result.pop("ratio"),
        "ratios": [rounded(r) for r in ratios("known", "whole")],
        "ours_s": rounded(known["whole"] / 1e6),
        "peer_s": rounded(theirs["whole"] / 1e6),
        "agreed": report.agreed + report.gold_agreed,
        "total": report.mutants + report.gold_total,
        "differences": {reason: differences.count(reason) for reason in differences},
        **result,
        "ours_us": known,
        "ours_cold_us": per_call("cold"),
        "peer_us": theirs,
        "shape": {"name": "env", "episodes": len(tasks), "calls": _count(tasks)},
    }
