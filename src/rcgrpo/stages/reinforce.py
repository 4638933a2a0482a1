"""Stage 2: GRPO and RC-GRPO, by the same code. Only the token sampler differs.

A batch: draw tasks, sample a reward token for every rollout, play them, normalise rewards inside each group,
and take one or more clipped policy-gradient steps with a KL to the stage-1 policy under the same token.
Each process plays and trains its own groups; denominators are summed over processes, so the gradient is that
of the whole batch.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence

import torch
from accelerate.utils import gather_object

from rcgrpo.algorithm.diagnostics import group_diagnostics
from rcgrpo.algorithm.gating import TokenGate
from rcgrpo.config import Recipe, ReinforceTable
from rcgrpo.environments.protocol import tasks_of
from rcgrpo.episodes.store import write_episodes
from rcgrpo.episodes.types import Episode, RewardToken
from rcgrpo.errors import UserError
from rcgrpo.policy.load import load_policy
from rcgrpo.policy.scoring import Scorer
from rcgrpo.stages.directory import RunDirectory
from rcgrpo.stages.groups import GroupSampler
from rcgrpo.stages.replay import Replay
from rcgrpo.stages.setup import player_for, seed_of
from rcgrpo.stages.training import Trainer, adapt
from rcgrpo.stages.update import PolicyUpdate, training_rewards


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
    if table.regularised and recipe.model.lora is None:
        reference = Scorer(copy.deepcopy(policy.model).requires_grad_(False), shared_prefix=table.shared_prefix)
    scorer = Scorer(policy.model, shared_prefix=table.shared_prefix, checkpoint=recipe.model.gradient_checkpointing)
    trainer = Trainer(policy, scorer, table.optimiser, table.steps * table.updates, directory)
    if table.groups % (trainer.world * table.updates):
        raise UserError(
            f"stages.{name}.groups = {table.groups} cannot be divided among {trainer.world} processes "
            f"and {table.updates} updates; choose a multiple of {trainer.world * table.updates}"
        )
    player = player_for(recipe, policy)
    replay = None
    if table.replay is not None:
        replay = Replay(run, recipe, player.codec, table.replay, table.batch_tokens)
    update = PolicyUpdate(trainer, table, reference, recipe.rollout.episode_tokens, replay)
    depth = reinforced(recipe, name)
    seed = seed_of(recipe.seed, "reinforced", depth) if depth else recipe.seed
    sampler = GroupSampler(tasks, table, seed, TokenGate() if table.sampler.kind == "gated" else None)
    steps = 0
    with trainer.interruptible():
        first = trainer.resume()
        total: int = trainer.carried.get("rollouts", 0)
        if sampler.gate is not None and first:
            sampler.gate.counts = trainer.carried["gate"]
        for step in range(first, table.steps):
            started = time.monotonic()
            policy.model.eval()
            player.sync(policy, trainer.accelerator)
            scripts = sampler.scripts(step, trainer.rank, trainer.world, replacements(table, total))
            places = player.conduct(policy, scripts)
            mine = [e for place in places for e in place.trained]
            played = time.monotonic()
            measured = update(mine, step)
            trained = gathered(trainer, mine)
            discarded = gathered(trainer, [e for place in places for e in place.discarded])
            sampler.observe([*trained, *discarded])
            total += len(trained) + len(discarded)
            trainer.carried = {"rollouts": total} | ({"gate": sampler.gate.counts} if sampler.gate else {})
            steps = step + 1
            last = steps == table.steps or replacements(table, total) < 0
            if trainer.accelerator.is_main_process:
                directory.metric(
                    step=steps,
                    **describe(trained, table, discarded),
                    **measured,
                    rollouts_total=total,
                    lr=trainer.schedule.get_last_lr()[0],
                    rollout_seconds=round(played - started, 3),
                    seconds=round(time.monotonic() - started, 3),
                )
                directory.progress(steps, steps if last else table.steps)
                if steps % table.checkpoint_every == 0 or last:
                    write_episodes(directory.rollouts / f"step-{steps:06d}.jsonl.gz", trained)
            trainer.checkpoint_if_asked(steps, steps if last else table.steps, table.checkpoint_every)
            if last:
                break
    trainer.finish(directory.checkpoint)
    tail = directory.metrics()[-10:]
    keys = ("reward_mean", "zero_variance_share")
    return {"steps": steps, "rollouts": total, **{f"last_{k}": sum(m[k] for m in tail) / len(tail) for k in keys}}


def reinforced(recipe: Recipe, name: str) -> int:
    """How many reinforce stages lead to this one: each draws tasks, tokens and rollouts of its own.

    Stages that start beside each other draw the same ones, which pairs them.
    """
    leading = recipe.needs(name)
    return max((reinforced(recipe, n) + isinstance(recipe.stages[n], ReinforceTable) for n in leading), default=0)


def replacements(table: ReinforceTable, played: int) -> int:
    """How often each flat group of the next batch may be replaced; below 0 where the budget allows no batch."""
    if table.rollout_budget is None:
        return table.resample
    return min(table.resample, (table.rollout_budget - played) // (table.groups * table.group_size) - 1)


def gathered(trainer: Trainer, episodes: list[Episode]) -> list[Episode]:
    """The episodes of all processes."""
    return gather_object(episodes) if trainer.world > 1 else episodes


def describe(
    trained: Sequence[Episode], table: ReinforceTable, discarded: Sequence[Episode] = ()
) -> dict[str, float | None]:
    """What a batch of rollouts shows about groups, tokens and lengths.

    Flat groups and variances are those of the groups that are trained on, by the rewards that their advantages are
    made of. Success, separation, mean reward (the true ones), lengths and counts include the discarded rollouts.
    """
    episodes = [*trained, *discarded]
    lengths = [sum(e.loss_mask) for e in episodes]
    rewards = torch.tensor([e.reward for e in episodes])
    everywhere = _group_figures(episodes, table)
    figures = {
        **_group_figures(trained, table),
        **{key: everywhere[key] for key in ("success_high", "success_low", "separation")},
        "reward_mean": float(rewards.mean()),
        "reward_std": float(rewards.std(correction=0)),
        "response_length": sum(lengths) / len(lengths),
        "response_length_max": max(lengths),
        "truncated_share": sum(e.stop_reason in ("length", "step_limit") for e in episodes) / len(episodes),
        "errors": sum(e.error is not None for e in episodes),
        "low_share": sum(e.reward_token is RewardToken.LOW for e in episodes) / len(episodes),
        "rollouts": len(episodes),
        "generated_tokens": sum(lengths),
    }
    if table.resample:
        figures["sampled_zero_variance_share"] = everywhere["zero_variance_share"]
        figures["discarded_rollouts"] = len(discarded)
    return figures


def _group_figures(episodes: Sequence[Episode], table: ReinforceTable) -> dict[str, float | None]:
    return group_diagnostics(
        training_rewards(episodes, table),
        [e.group_id for e in episodes],
        [e.reward_token for e in episodes],
        successes=torch.tensor([e.reward for e in episodes]),
    )
