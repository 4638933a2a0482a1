"""Stage 2: GRPO and RC-GRPO, by the same code. Only the token sampler differs.

A batch: draw tasks, sample a reward token for every rollout, play them, normalise rewards inside each group,
and take one or more clipped policy-gradient steps with a KL to the stage-1 policy under the same token.
Each process plays and trains its own groups; denominators are summed over processes, so the gradient is that
of the whole batch.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Sequence

import torch
from accelerate.utils import gather_object

from rcgrpo.algorithm.diagnostics import group_diagnostics
from rcgrpo.config import Recipe, ReinforceTable
from rcgrpo.environments.protocol import tasks_of
from rcgrpo.episodes.store import write_episodes
from rcgrpo.episodes.types import Episode, Sampling, Task
from rcgrpo.errors import UserError
from rcgrpo.policy.load import load_policy
from rcgrpo.policy.scoring import Scorer
from rcgrpo.stages.directory import RunDirectory
from rcgrpo.stages.rollout import Job
from rcgrpo.stages.setup import player_for, seed_of
from rcgrpo.stages.training import Trainer, adapt
from rcgrpo.stages.update import PolicyUpdate


def reinforce(run: RunDirectory, recipe: Recipe, name: str) -> dict[str, float]:
    """Train the stage from its start checkpoint; return what the last batches showed."""
    table = recipe.stages[name]
    assert isinstance(table, ReinforceTable)
    directory = run.stage(name)
    tasks = tasks_of(recipe.suite, run.split(), table.pool)
    policy = load_policy(
        run.checkpoint(recipe, table.start), name=name, dtype=recipe.model.dtype, device=recipe.model.device
    )
    reference = None
    adapt(policy, recipe.model, recipe.chat, recipe.seed)
    if table.beta and recipe.model.lora is None:
        reference = Scorer(copy.deepcopy(policy.model).requires_grad_(False), shared_prefix=table.shared_prefix)
    scorer = Scorer(policy.model, shared_prefix=table.shared_prefix, checkpoint=recipe.model.gradient_checkpointing)
    trainer = Trainer(policy, scorer, table.optimiser, table.steps * table.updates, directory)
    if table.groups % (trainer.world * table.updates):
        raise UserError(
            f"stages.{name}.groups = {table.groups} cannot be divided among {trainer.world} processes "
            f"and {table.updates} updates; choose a multiple of {trainer.world * table.updates}"
        )
    player = player_for(recipe, policy)
    update = PolicyUpdate(trainer, table, reference, recipe.rollout.episode_tokens)
    with trainer.interruptible():
        for step in range(trainer.resume(), table.steps):
            started = time.monotonic()
            jobs = draw_jobs(tasks, table, step, recipe.seed, trainer.rank, trainer.world)
            policy.model.eval()
            player.sync(policy, trainer.accelerator)
            episodes = player.policy(policy, jobs)
            played = time.monotonic()
            measured = update(episodes)
            everyone: list[Episode] = gather_object(episodes) if trainer.world > 1 else episodes
            if trainer.accelerator.is_main_process:
                directory.metric(
                    step=step + 1,
                    **describe(everyone),
                    **measured,
                    lr=trainer.schedule.get_last_lr()[0],
                    rollout_seconds=round(played - started, 3),
                    seconds=round(time.monotonic() - started, 3),
                )
                directory.progress(step + 1, table.steps)
                if (step + 1) % table.checkpoint_every == 0 or step + 1 == table.steps:
                    write_episodes(directory.rollouts / f"step-{step + 1:06d}.jsonl.gz", everyone)
            trainer.checkpoint_if_asked(step + 1, table.steps, table.checkpoint_every)
    trainer.finish(directory.checkpoint)
    last = directory.metrics()[-10:]
    keys = ("reward_mean", "zero_variance_share")
    return {"steps": table.steps, **{f"last_{k}": sum(m[k] for m in last) / len(last) for k in keys}}


def draw_jobs(tasks: Sequence[Task], table: ReinforceTable, step: int, seed: int, rank: int, world: int) -> list[Job]:
    """This process's rollouts of one batch. Tasks, tokens and sampling seeds depend on (seed, step, group) alone."""
    jobs = []
    for g in range(step * table.groups, (step + 1) * table.groups):
        if g % world != rank:
            continue
        epoch, offset = divmod(g, len(tasks))
        order = list(range(len(tasks)))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        task = tasks[order[offset]]
        tokens = table.sampler.sample(table.group_size, f"{seed}/{step}/{g}")
        for j, token in enumerate(tokens):
            sampling = Sampling(
                temperature=table.temperature, top_p=table.top_p, seed=seed_of(seed, "rollout", step, g, j)
            )
            jobs.append(Job(task, group_id=f"step{step}-group{g}", index=j, token=token, sampling=sampling))
    return jobs


def describe(episodes: Sequence[Episode]) -> dict[str, float | None]:
    """What a batch of rollouts shows about groups, tokens and lengths."""
    lengths = [sum(e.loss_mask) for e in episodes]
    return {
        **group_diagnostics(
            torch.tensor([e.reward for e in episodes]),
            [e.group_id for e in episodes],
            [e.reward_token for e in episodes],
        ),
        "response_length": sum(lengths) / len(lengths),
        "response_length_max": max(lengths),
        "truncated_share": sum(e.stop_reason in ("length", "step_limit") for e in episodes) / len(episodes),
        "errors": sum(e.error is not None for e in episodes),
        "generated_tokens": sum(lengths),
    }
