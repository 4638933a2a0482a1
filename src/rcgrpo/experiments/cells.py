"""One cell of an ablation's matrix: an arm under a seed and a token, read from its run directory."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rcgrpo.config import ArmTable, Recipe, ReinforceTable
from rcgrpo.errors import UserError
from rcgrpo.experiments.plan import ablation_of, cell_name, seed_recipe
from rcgrpo.stages.directory import RunDirectory
from rcgrpo.stages.evaluate import finished_row
from rcgrpo.stages.run import stages_for

CURVES = (
    "step", "reward_mean", "zero_variance_share", "separation", "success_high", "success_low", "between_variance",
    "within_variance", "entropy", "kl",
)  # fmt: skip
"""Quantities of a reinforce stage that a cell keeps over the steps."""
POINTS = 50
"""Points of a curve; longer ones are averaged over stretches of equal length."""


def found_cells(recipe: Recipe, run: RunDirectory, seed: int) -> list[dict[str, Any]]:
    """All cells of a seed that are measured under the present settings, in the plan's order.

    None of a policy one of whose stages is gone: what it cost is not known any more, and an ablation does it again.
    """
    seeded = seed_recipe(recipe, seed)
    rows = {row.row: finished_row(run, seeded, row) for row in seeded.evaluate.rows}
    cells = []
    for arm in ablation_of(recipe).arms:
        results = {token: rows[cell_name(arm.row, token)] for token in ablation_of(recipe).tokens}
        if not all(run.stage(name).record for name in stages_for(seeded, [arm.policy])):
            continue
        made = cost_of(run, seeded, arm) if any(results.values()) else {}
        separation = sampled_separation(results)
        for token, result in results.items():
            if result is not None:
                headline = token == arm.token
                cells.append(
                    {
                        "row": arm.row,
                        "seed": seed,
                        "token": token,
                        "success": result["success"],
                        "n": result["n"],
                        "success_sampled": result["probe"].get("reward_mean"),
                        "zero_variance_share": result["zero_variance_share"],
                        "separation": separation,
                        **made,
                        "evaluate_seconds": result["seconds"],
                        "outcomes": result["outcomes"],
                        **graded_rewards(recipe, result),
                        "probe_means": result.get("probe_means", []),
                        "curves": curves_of(run, seeded, arm) if headline else None,
                    }
                )
    return cells


def graded_rewards(recipe: Recipe, result: Mapping[str, Any]) -> dict[str, list[float]]:
    """The reward of every outcome where it is not success. Raises :class:`UserError` where one is not in [0, 1]."""
    if recipe.reward == "success":
        return {}
    if beyond := [reward for reward in result["rewards"] if not 0 <= reward <= 1]:
        raise UserError(
            f"reward = {recipe.reward!r} was {beyond[0]} in an episode of {result['row']!r}: an ablation compares "
            "rewards from 0 to 1, so let the environment scale it"
        )
    return {"rewards": result["rewards"]}


def sampled_separation(results: Mapping[str, dict[str, Any] | None]) -> float | None:
    """Mean reward of the probe under high minus that under low; None unless both were probed."""
    means = [(results.get(token) or {}).get("probe", {}).get("reward_mean") for token in ("high", "low")]
    return None if None in means else means[0] - means[1]


def cost_of(run: RunDirectory, recipe: Recipe, arm: ArmTable) -> dict[str, Any]:
    """What making the arm's policy took: all its stages, those included that other arms share.

    ``rollouts``: episodes played in stage 2; ``gradient_steps`` taken there; ``tokens``: tokens generated in them;
    ``stage1_tokens``: tokens trained in stage 1; ``seconds``: of all stages, by name in ``stages``; ``commit``: of
    the code that trained it.
    """
    rollouts = gradient_steps = tokens = stage1_tokens = 0
    seconds: dict[str, float] = {}
    commit = None
    for name in stages_for(recipe, [arm.policy]):
        table, stage = recipe.stages[name], run.stage(name)
        record = stage.record
        assert record is not None
        seconds[name] = record["seconds"]
        commit = record["provenance"]["commit"]
        if isinstance(table, ReinforceTable):
            metrics = stage.metrics()
            rollouts += record["result"]["rollouts"]
            gradient_steps += len(metrics) * table.updates
            tokens += sum(m["generated_tokens"] for m in metrics)
            # a stage that was interrupted notes its last process's time only; its steps note each their own
            seconds[name] = round(max(seconds[name], sum(m["seconds"] for m in metrics)), 2)
        elif table.kind == "finetune":
            stage1_tokens += record["result"]["trained_tokens"]
    return {
        "rollouts": rollouts,
        "gradient_steps": gradient_steps,
        "tokens": tokens,
        "stage1_tokens": stage1_tokens,
        "seconds": round(sum(seconds.values()), 2),
        "stages": seconds,
        "commit": commit,
    }


def curves_of(run: RunDirectory, recipe: Recipe, arm: ArmTable) -> dict[str, list[float | None]] | None:
    """The training curves of the arm's last stage, thinned; None unless that is a reinforce stage."""
    table = recipe.stages.get(arm.policy)
    return thin(run.stage(arm.policy).metrics()) if isinstance(table, ReinforceTable) else None


def thin(metrics: Sequence[Mapping[str, Any]], points: int = POINTS) -> dict[str, list[float | None]]:
    """Columns of :data:`CURVES`, averaged over at most ``points`` stretches of steps; None where nothing is known."""
    count = min(points, len(metrics))
    bounds = [round(i * len(metrics) / count) for i in range(count + 1)] if count else [0]
    stretches = [metrics[a:b] for a, b in itertools.pairwise(bounds)]
    return {key: [_mean([m.get(key) for m in stretch]) for stretch in stretches] for key in CURVES}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None and math.isfinite(v)]
    return float(f"{sum(known) / len(known):.4g}") if known else None
