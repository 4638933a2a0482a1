"""Matched budgets: what the arms of an ablation may spend, counted from the recipe before anything runs."""

from __future__ import annotations

from typing import NamedTuple

from rcgrpo.config import ArmTable, FinetuneTable, Recipe, ReinforceTable
from rcgrpo.errors import UserError
from rcgrpo.stages.run import stages_for


class Budget(NamedTuple):
    """What the stages that make a policy spend. 0: there is no such stage."""

    stage1_episodes: int
    """Stage 1: optimiser steps x batch; batches replayed in stage 2 included."""
    rollouts: int
    """Stage 2: episodes played, those of replaced groups included."""
    gradient_steps: int
    """Stage 2: optimiser steps; fewer are taken where replaced groups use up the rollouts before."""


NAMES = Budget("stage-1 episodes (steps x batch)", "RL rollouts", "RL gradient steps")  # pyright: ignore[reportArgumentType]
"""The quantities in words."""


def budget_of(recipe: Recipe, policy: str) -> Budget:
    """The budget of the stages that make ``policy``. Raises :class:`UserError` where one is not known beforehand."""
    episodes = rollouts = gradient_steps = 0
    for name in stages_for(recipe, [policy]):
        table = recipe.stages[name]
        if isinstance(table, FinetuneTable):
            if table.steps is None:
                raise UserError(
                    f"stages.{name}.epochs = {table.epochs}: the budgets of an ablation are compared before it runs; "
                    f"give steps instead"
                )
            episodes += table.steps * table.batch
        elif isinstance(table, ReinforceTable):
            batches, played = planned_rollouts(name, table)
            rollouts += played
            steps = batches * table.updates
            gradient_steps += steps
            episodes += steps * table.replay.batch if table.replay else 0
    return Budget(episodes, rollouts, gradient_steps)


def planned_rollouts(name: str, table: ReinforceTable) -> tuple[int, int]:
    """Batches and episodes that a reinforce stage plays; where flat groups are replaced, its budget of episodes."""
    batch = table.groups * table.group_size
    if not table.resample:
        batches = table.steps if table.rollout_budget is None else min(table.steps, table.rollout_budget // batch)
        return batches, batches * batch
    if table.rollout_budget is None:
        raise UserError(
            f"stages.{name}: resample = {table.resample} plays a number of rollouts that is not known beforehand; "
            f"give rollout_budget too ({table.steps * batch}: as many as without resample)"
        )
    return table.steps, table.rollout_budget


def check_budgets(recipe: Recipe, arms: list[ArmTable]) -> dict[str, Budget]:
    """The budget of each arm by row; raises :class:`UserError` where two arms spend differently on the same thing.

    Arms without a stage 1, or without a stage 2, are compared on what they have. An arm that says why it is
    ``unmatched`` is not compared; saying so of an arm that does match is an error too.
    """
    budgets = {arm.row: budget_of(recipe, arm.policy) for arm in arms}
    for i, quantity in enumerate(NAMES):
        matched = [arm for arm in arms if arm.unmatched is None and budgets[arm.row][i]]
        for arm in matched[1:]:
            first, ours, theirs = matched[0], budgets[arm.row][i], budgets[matched[0].row][i]
            if ours != theirs:
                raise UserError(
                    f"ablation.arms: the budgets differ: {quantity}: {first.row!r} has {theirs}, {arm.row!r} has "
                    f"{ours}; match them, or say why not in the arm's key unmatched"
                )
    for arm in arms:
        peers = [budgets[other.row] for other in arms if other.unmatched is None]
        if arm.unmatched is not None and all(_agree(budgets[arm.row], peer) for peer in peers):
            raise UserError(f"ablation.arms: {arm.row!r} spends what the others spend: remove its key unmatched")
    return budgets


def _agree(a: Budget, b: Budget) -> bool:
    return all(x == y or not x or not y for x, y in zip(a, b, strict=True))
