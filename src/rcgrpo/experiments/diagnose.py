"""``rcgrpo diagnose``: roll out some tasks under each token, and say what groups of stage 2 would look like."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rcgrpo.algorithm.resampling import PromptBootstrap
from rcgrpo.config import BASE, Recipe, ReinforceTable
from rcgrpo.episodes.types import Episode, RewardToken, Sampling, Task
from rcgrpo.errors import UserError
from rcgrpo.experiments.advice import advise, plain_token
from rcgrpo.experiments.predictions import TOKENS, Counts, read
from rcgrpo.policy.load import load_policy
from rcgrpo.stages.directory import provenance
from rcgrpo.stages.rollout import Job
from rcgrpo.stages.setup import player_for, seed_of

HOTTER = 1.3
"""The second temperature is this much above the stage's, if none is asked for."""


@dataclass(frozen=True)
class Plan:
    """What is rolled out, and the groups that it is to tell about."""

    stage: str
    pool: str
    tasks: int
    rollouts: int
    """Of every task under each token."""
    group_size: int
    p: float
    """Share of high tokens in mixed groups."""
    probes: int
    """Rollouts under high that a gated group begins with."""
    sampler: str
    """The scheme of the stage itself."""
    temperatures: tuple[float, ...]
    """The stage's first."""
    top_p: float
    seed: int

    @property
    def episodes(self) -> int:
        return self.tasks * self.rollouts * len(TOKENS) * len(self.temperatures)


def plan_diagnosis(
    recipe: Recipe,
    *,
    stage: str | None = None,
    tasks: int = 32,
    rollouts: int | None = None,
    temperatures: Sequence[float] | None = None,
    pool: str | None = None,
    seed: int | None = None,
) -> Plan:
    """Settle the options from the recipe's stage 2; raises :class:`UserError` where they do not fit."""
    name, table = _stage2(recipe, stage)
    if recipe.reward not in ("success", "state_action"):
        raise UserError(f"reward = {recipe.reward!r}: diagnose counts 0/1 rewards; add --set 'reward=\"success\"'")
    group = rollouts or 2 * table.group_size
    if group < table.group_size:
        raise UserError(
            f"--group {group}: stages.{name}.group_size is {table.group_size}, and as many rollouts under each token "
            f"are needed; {2 * table.group_size} also tell about the gate and about larger groups"
        )
    pool = pool or table.pool
    available = len(_ids(recipe, pool))
    if available < tasks:
        raise UserError(f"--tasks {tasks}: pool {pool!r} has {available}")
    hotter = [round(HOTTER * table.temperature, 3)] if temperatures is None else list(temperatures)
    if min(hotter, default=1.0) <= 0:
        raise UserError(f"--temperatures {min(hotter)}: a temperature has to be above 0, or all rollouts are the same")
    sampler = table.sampler
    fixed = "none" if sampler.token is None else str(sampler.token)
    return Plan(
        stage=name,
        pool=pool,
        tasks=tasks,
        rollouts=group,
        group_size=table.group_size,
        p=0.5 if sampler.p is None else sampler.p,
        probes=sampler.probes,
        sampler=fixed if sampler.kind == "fixed" else sampler.kind,
        temperatures=tuple(dict.fromkeys([table.temperature, *hotter])),
        top_p=table.top_p,
        seed=recipe.seed if seed is None else seed,
    )


def _stage2(recipe: Recipe, name: str | None) -> tuple[str, ReinforceTable]:
    """The reinforce stage to diagnose for: the one named, or the one whose groups all others share too."""
    stages = {n: t for n, t in recipe.stages.items() if isinstance(t, ReinforceTable)}
    if name is not None:
        if name not in stages:
            raise UserError(f"--stage {name}: no reinforce stage of the recipe; it has {', '.join(stages) or 'none'}")
        return name, stages[name]
    if not stages:
        raise UserError("the recipe has no stage of kind 'reinforce', whose groups could be predicted")
    groups = {(t.group_size, t.temperature, t.top_p, t.pool) for t in stages.values()}
    mixing = {n: t for n, t in stages.items() if t.sampler.kind != "fixed"}
    if len(groups) > 1 or len({t.sampler.p for t in mixing.values()}) > 1:
        raise UserError(f"the recipe has several stages 2 with different groups; give --stage: {', '.join(stages)}")
    return next(iter((mixing or stages).items()))


def _ids(recipe: Recipe, pool: str) -> list[str]:
    """Ids of a pool; :class:`UserError` for an unknown one."""
    pools = recipe.suite.split().pools
    if pool not in pools:
        raise UserError(f"--pool {pool}: not in the split; it has {', '.join(pools)}")
    return pools[pool]


def diagnosis_jobs(tasks: Sequence[Task], plan: Plan, temperature: float) -> list[Job]:
    """Rollouts at one temperature: every task, token and repetition, in this order, each with a seed of its own."""
    return [
        Job(
            task,
            group_id=task.id,
            index=i,
            token=None if token == "none" else RewardToken(token),
            sampling=Sampling(
                temperature=temperature,
                top_p=plan.top_p,
                seed=seed_of(plan.seed, "diagnose", temperature, token, task.id, i),
            ),
        )
        for task in tasks
        for token in TOKENS
        for i in range(plan.rollouts)
    ]


def count(episodes: Sequence[Episode], plan: Plan) -> Counts:
    """Rewards of :func:`diagnosis_jobs`' episodes, in their order, as successes per prompt and token."""
    rewards = np.array([e.reward for e in episodes]).reshape(plan.tasks, len(TOKENS), plan.rollouts)
    if not np.isin(rewards, (0.0, 1.0)).all():
        raise UserError("diagnose counts 0/1 rewards, and this world gave others: choose another reward in the recipe")
    successes = rewards.sum(-1).astype(int)
    return Counts(plan.rollouts, *(successes[:, i] for i in range(len(TOKENS))))


def diagnose(
    checkpoint: str,
    recipe: Recipe,
    plan: Plan,
    *,
    device: str | None = None,
    watch: Callable[[str, int, int], None] = lambda title, done, total: None,
) -> dict[str, Any]:
    """Roll out and read; ``checkpoint``: a folder, a hub name, an embedded model, or ``base`` (the recipe's model).

    Returns what ``--json`` prints; shares in [0, 1], intervals as ``{"value", "low", "high"}``.
    """
    started = time.monotonic()
    path = recipe.model.path if checkpoint == BASE else checkpoint
    policy = load_policy(path, name=checkpoint, dtype=recipe.model.dtype, device=device or recipe.model.device)
    player = player_for(recipe, policy)
    ids = random.Random(f"{plan.seed}/diagnose").sample(_ids(recipe, plan.pool), plan.tasks)
    tasks = [recipe.suite.task(task_id) for task_id in ids]
    bootstrap = PromptBootstrap(plan.tasks, plan.seed)
    counted, readings, errors = [], [], 0
    for temperature in plan.temperatures:
        jobs = diagnosis_jobs(tasks, plan, temperature)
        episodes = player.policy(policy, jobs, _counter(watch, f"rollouts at {temperature:g}", len(jobs)))
        errors += sum(e.error is not None for e in episodes)
        counts = count(episodes, plan)
        counted.append(counts)
        readings.append(read(counts, temperature, plan.group_size, plan.p, bootstrap, plan.probes))
    return {
        "checkpoint": checkpoint,
        "recipe": recipe.name,
        "stage": plan.stage,
        "pool": plan.pool,
        "tasks": plan.tasks,
        "rollouts_per_token": plan.rollouts,
        "episodes": plan.episodes,
        "errors": errors,
        "group_size": plan.group_size,
        "p": plan.p,
        "sampler": plan.sampler,
        "top_p": plan.top_p,
        "plain": plain_token(readings[0]),
        "advice": [advice._asdict() for advice in advise(readings, plan.group_size, bootstrap)],
        "readings": [reading.record() for reading in readings],
        "prompts": [
            {"task": task.id, "category": task.category, **{t: [int(c[t][k]) for c in counted] for t in TOKENS}}
            for k, task in enumerate(tasks)
        ],
        "split_sha256": recipe.suite.split().sha256,
        "seconds": round(time.monotonic() - started, 1),
        "provenance": provenance(plan.seed),
    }


def _counter(watch: Callable[[str, int, int], None], title: str, total: int) -> Callable[[], None]:
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        watch(title, done, total)

    watch(title, 0, total)
    return advance
