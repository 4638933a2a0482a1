"""Evaluate rows of the results table: success with intervals, and a probe of groups; re-score saved episodes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rcgrpo.algorithm.diagnostics import group_diagnostics
from rcgrpo.algorithm.resampling import PromptBootstrap
from rcgrpo.algorithm.statistics import wilson
from rcgrpo.conditioning import TokenSampler
from rcgrpo.config import EvaluateTable, Recipe, RowTable
from rcgrpo.environments.protocol import Suite, tasks_of
from rcgrpo.episodes.store import read_episodes, write_episodes
from rcgrpo.episodes.types import Call, Episode, RewardToken, Sampling, StopReason, Task, Verdict
from rcgrpo.errors import UserError
from rcgrpo.stages.directory import RunDirectory, read_json, write_json
from rcgrpo.stages.rollout import Job
from rcgrpo.stages.setup import load_for_play, player_for, seed_of

Progress = Callable[[], None]


def evaluation_jobs(tasks: Sequence[Task], table: EvaluateTable, token: RewardToken | None, seed: int) -> list[Job]:
    """One job per task and seed. Seeds do not depend on the row, so rows are compared on the same draws."""
    return [
        Job(
            task,
            group_id=task.id,
            index=i,
            token=token,
            sampling=Sampling(
                temperature=table.temperature, top_p=table.top_p, seed=seed_of(seed, "evaluate", task.id, i)
            ),
        )
        for task in tasks
        for i in range(table.seeds)
    ]


def summarise(episodes: Sequence[Episode]) -> dict[str, Any]:
    """Success with its 95% interval, overall and per category. ``success`` is the official 0/1.

    Wilson's where each task was played once. Episodes of one task are no independent draws: where there are several,
    the interval is a bootstrap over tasks, and of a single task it says nothing.
    """

    def share(chosen: Sequence[Episode]) -> dict[str, Any]:
        outcomes: dict[str, list[bool]] = {}
        for episode in chosen:
            outcomes.setdefault(episode.task_id, []).append(episode.success)
        solved = sum(e.success for e in chosen)
        if len(outcomes) == len(chosen):
            low, high = wilson(solved, len(chosen))
        elif len(outcomes) == 1:
            low, high = 0.0, 1.0
        else:
            rates_K = np.array([np.mean(of) for of in outcomes.values()])
            _, low, high = PromptBootstrap(len(rates_K)).mean(rates_K)
        return {"success": solved / len(chosen), "low": low, "high": high, "n": len(chosen)}

    categories = sorted({e.category for e in episodes})
    return {
        **share(episodes),
        "reward": sum(e.reward for e in episodes) / len(episodes),
        "by_category": {c: share([e for e in episodes if e.category == c]) for c in categories},
        "errors": sum(e.error is not None for e in episodes),
        "truncated": sum(e.stop_reason is StopReason.LENGTH for e in episodes),
    }


def probe_jobs(tasks: Sequence[Task], sampler: TokenSampler, size: int, seed: int) -> list[Job]:
    """Groups of ``size`` rollouts at temperature 1, a token each from ``sampler``."""
    return [
        Job(
            task,
            group_id=task.id,
            index=i,
            token=token,
            sampling=Sampling(temperature=1.0, seed=seed_of(seed, "probe", task.id, i)),
        )
        for task in tasks
        for i, token in enumerate(sampler.sample(size, f"{seed}/probe/{task.id}"))
    ]


def probed(episodes: Sequence[Episode]) -> dict[str, float | None]:
    """Flat groups of a probe, reward under each token, and the variance split."""
    rewards = torch.tensor([e.reward for e in episodes])
    return group_diagnostics(rewards, [e.group_id for e in episodes], [e.reward_token for e in episodes])


def group_means(episodes: Sequence[Episode]) -> list[float]:
    """Mean reward of each probed group, in the order of the tasks."""
    groups: dict[str, list[float]] = {}
    for episode in episodes:
        groups.setdefault(episode.group_id, []).append(episode.reward)
    return [round(sum(rewards) / len(rewards), 4) for rewards in groups.values()]


def evaluate_row(run: RunDirectory, recipe: Recipe, row: RowTable, done: Progress = lambda: None) -> dict[str, Any]:
    """Measure one row, save its episodes and result, return the result.

    ``outcomes`` has a 0 or 1 per episode, in the order of the tasks (and of the seeds of each); ``rewards`` has the
    recipe's reward term of each; ``probe_means`` has the mean reward of each probed group.
    """
    started = time.monotonic()
    table = recipe.evaluate
    policy = load_for_play(run, recipe, row.policy)
    player = player_for(recipe, policy)
    split = run.split()
    tasks = tasks_of(recipe.suite, split, table.pool, table.limit)
    jobs = evaluation_jobs(tasks, table, row.token, recipe.seed)
    probes = probe_jobs(tasks[: table.probe_tasks], row.probe, table.probe_group, recipe.seed)
    played = player.policy(policy, [*jobs, *probes], done)  # side by side: neither waits for the other's last ones
    episodes, groups = played[: len(jobs)], played[len(jobs) :]
    if not any(any(e.loss_mask) or e.error for e in episodes):
        raise UserError(
            f"row {row.row!r}: no episode has a generated token, for every prompt is longer than "
            f"rollout.episode_tokens = {recipe.rollout.episode_tokens}: raise it, or choose chat.schemas = 'compact'"
        )
    probe = probed(groups) if groups else {}
    result = {
        "row": row.row,
        "policy": row.policy,
        "token": row.token,
        "temperature": table.temperature,
        **summarise(episodes),
        "zero_variance_share": probe.get("zero_variance_share"),
        "separation": probe.get("separation"),
        "probe": probe,
        "probe_means": group_means(groups),
        "outcomes": "".join("1" if e.success else "0" for e in episodes),
        "rewards": [round(e.reward, 4) for e in episodes],
        "split_sha256": split.sha256,
        "seconds": round(time.monotonic() - started, 2),
    }
    folder = run.evaluation(row.row)
    write_episodes(folder / "episodes.jsonl.gz", episodes)
    write_json(folder / "result.json", {**result, "digest": row_digest(recipe, row)})
    return result


def evaluation_size(run: RunDirectory, recipe: Recipe) -> int:
    """Episodes that one row plays."""
    table = recipe.evaluate
    tasks = min(len(run.split().pools.get(table.pool, [])), table.limit or 10**9)
    return tasks * table.seeds + min(tasks, table.probe_tasks) * table.probe_group


def row_digest(recipe: Recipe, row: RowTable) -> str:
    """What decides a row's result, so that a changed evaluation is not taken for done."""
    if row.policy in recipe.stages:
        policy = recipe.digest(row.policy)
    else:
        worlds = {"toolworld", "bfcl", "custom"}
        policy = recipe.model.model_dump_json() + recipe.model_dump_json(include=worlds, exclude_defaults=True)
    settings = recipe.evaluate.model_dump_json(exclude={"rows"})
    limits = recipe.rollout.model_dump_json(exclude={"vllm"}) + recipe.chat.model_dump_json() + recipe.reward
    limits += recipe.tasks_sha256 or ""
    return f"{policy}/{seed_of(row.model_dump_json(), settings, limits, recipe.seed):x}"


def finished_row(run: RunDirectory, recipe: Recipe, row: RowTable) -> dict[str, Any] | None:
    """The saved result of a row if it was measured under the present settings."""
    path = run.evaluation(row.row) / "result.json"
    if not path.is_file():
        return None
    result = read_json(path)
    if recipe.reward != "success" and "rewards" not in result:
        return None  # measured before rewards were kept
    return result if result.pop("digest", None) == row_digest(recipe, row) else None


async def _replay(suite: Suite, episode: Episode, reward: str) -> Episode:
    environment = suite.environment(suite.task(episode.task_id))
    turns = len(environment.task.turns)
    played = max((step.turn for step in episode.steps), default=-1) + 1
    if played > turns:
        raise UserError(f"episode of {episode.task_id}: a step of turn {played}, but the task has {turns}")
    for turn in range(played):
        environment.open_turn()
        for step in episode.steps:
            if step.turn == turn:
                for executed in step.calls:
                    await environment.call(Call(name=executed.call.name, arguments=executed.call.arguments))
        environment.close_turn()
    unreached = [Verdict(valid=False, reason="unreached")] * (turns - played)
    rewards = environment.rewards()
    if reward not in rewards:
        raise UserError(f"reward = {reward!r}: this world has the terms {', '.join(rewards)}")
    again = {"verdicts": [*environment.verdicts, *unreached], "rewards": rewards, "reward": rewards[reward]}
    return episode.model_copy(update=again)


async def replay(suite: Suite, path: Path, reward: str = "success") -> tuple[list[Episode], list[Episode]]:
    """Re-run the saved calls of a file in fresh worlds, without a model; ``reward`` is the recipe's reward term.

    Returns the episodes with new verdicts and rewards, and those of them where these differ from what was saved.
    Episodes that ended in a failure of the world are kept as they are: they have no verdict to check.
    """
    rescored, changed = [], []
    for episode in read_episodes(path):
        again = episode if episode.error else await _replay(suite, episode, reward)
        rescored.append(again)
        if _judgement(again) != _judgement(episode):
            changed.append(again)
    return rescored, changed


def _judgement(episode: Episode) -> tuple[list[bool], dict[str, float], float]:
    return [v.valid for v in episode.verdicts], episode.rewards, episode.reward
