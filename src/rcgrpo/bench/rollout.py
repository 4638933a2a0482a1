"""Rollouts of more and more turns: time should grow as the tokens do."""

from __future__ import annotations

import statistics
from typing import Any

from rcgrpo.bench.measure import Timed, rounded, timed
from rcgrpo.bench.script import scripted_engine
from rcgrpo.bench.workloads import Script, workload
from rcgrpo.config import RolloutTable
from rcgrpo.episodes.types import Call, Message, Turn
from rcgrpo.stages.rollout import Player

TOKENS = 48
"""Generated per turn."""
REPEATS = 4
"""Few turns take about a second: they are played up to so many times, so that one slow moment decides less."""


def bench_rollout(turns: list[int], pairs: int, *, groups: int = 2) -> dict[str, Any]:
    """Play the same tasks with their request repeated in so many user turns; 48 tokens are generated in each.

    Few turns are played several times in a pair, and their mean counts: the times compared are then of like length.
    ``ratio``: the largest growth of time over the growth of tokens (generated and given in mid-episode), both from
    the fewest turns to more.
    """
    load = workload("small")
    request = Turn(messages=[Message(role="user", content="And now look again, please, at what is left to do.")])
    limits = RolloutTable(steps_per_turn=1, step_tokens=TOKENS, episode_tokens=4096, slots=64)
    player = Player(load.suite, load.codec, limits, "success")
    script = Script((TOKENS,) * max(turns), (False,) * max(turns), Call(name="none"))

    def play(count: int, seed: int) -> Timed:
        tasks = [task.model_copy(update={"turns": [request] * count}) for task in load.tasks[:groups]]
        jobs = load.jobs(tasks, seed)

        def run() -> float:
            with scripted_engine(script, load.codec):
                episodes = player.policy(load.policy, jobs)
            return sum(len(e.token_ids) - e.loss_mask.index(1) for e in episodes)

        plays = [timed(run) for _ in range(min(REPEATS, max(turns) // count))]
        return Timed(*(statistics.fmean(getattr(p, field) for p in plays) for field in ("wall", "cpu", "work")))

    play(turns[0], 0)
    times: dict[int, list[Timed]] = {count: [] for count in turns}
    for pair in range(pairs):
        for count in turns:
            times[count].append(play(count, pair))
    first = times[turns[0]]
    more = turns[1:] or turns
    growths = []
    for pair in range(pairs):
        start = first[pair].wall / first[pair].work
        growths.append(max(times[count][pair].wall / times[count][pair].work / start for count in more))
    cpu = [max(times[c][p].cpu / times[c][p].work / (first[p].cpu / first[p].work) for c in more) for p in range(pairs)]
    return {
        "ratio": rounded(statistics.median(growths)),
        "ratios": [rounded(g) for g in growths],
        "cpu_ratio": rounded(statistics.median(cpu)),
        "ours_s": rounded(statistics.median(t.wall for t in times[turns[-1]])),
        "peer_s": rounded(statistics.median(t.wall for t in first)),
        "turns": [
            {
                "turns": count,
                "seconds": rounded(statistics.median(t.wall for t in runs)),
                "cpu_seconds": rounded(statistics.median(t.cpu for t in runs)),
                "tokens": round(runs[0].work),
            }
            for count, runs in times.items()
        ],
        "shape": {"name": "rollout", "rows": groups * load.group, "generated_per_turn": TOKENS},
    }
