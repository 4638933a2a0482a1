"""What an ablation is going to do, fixed before it starts: tasks, seeds, arms, comparisons, budgets, settings."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

from rcgrpo.config import AblationTable, ArmTable, Recipe, parse_recipe
from rcgrpo.environments.protocol import tasks_of
from rcgrpo.errors import UserError
from rcgrpo.experiments.budget import check_budgets
from rcgrpo.stages.run import stages_for


def ablation_of(recipe: Recipe) -> AblationTable:
    """The recipe's table; :class:`UserError` where it has none."""
    if recipe.ablation is None:
        raise UserError(f"recipe {recipe.name!r} has no table [ablation]: it names arms, seeds and comparisons")
    return recipe.ablation


def cell_name(row: str, token: str) -> str:
    """The row of a seed's run that measures an arm under a token."""
    return f"{row}, {token}"


def seed_recipe(recipe: Recipe, seed: int) -> Recipe:
    """The ordinary recipe of one seed: all stages, and a row for every arm under every token.

    Each row's groups are probed under its own token alone: what the policy does under high, under low, under none.
    """
    table = ablation_of(recipe)
    content = recipe.model_dump(mode="json")
    content |= {"seed": seed, "ablation": None}
    content["evaluate"]["rows"] = [
        {
            "row": cell_name(arm.row, token),
            "policy": arm.policy,
            "token": None if token == "none" else token,
            "probe": {"kind": "fixed", "token": None if token == "none" else token},
        }
        for arm in table.arms
        for token in table.tokens
    ]
    return parse_recipe(content, f"{recipe.name}, seed {seed}")


def plan_of(recipe: Recipe) -> dict[str, Any]:
    """The plan as the results file keeps it; ``digest`` covers all of it and every setting of the arms' stages.

    Of tasks their ids are hashed: the package's worlds make the rest from those and from the settings. A tasks file of
    the user's own is hashed whole. The code of worlds is not covered; each cell names its commit.

    ``scenarios``, that of each outcome, is there where some scenario has several, which are no independent draws then.
    ``categories`` mark the outcomes of each, as a string of 0 and 1, where there are several.
    Raises :class:`UserError` where the arms' budgets do not match.
    """
    table, evaluate = ablation_of(recipe), recipe.evaluate
    budgets = check_budgets(recipe, table.arms)
    split = recipe.suite.split()
    tasks = tasks_of(recipe.suite, split, evaluate.pool, evaluate.limit)
    ids = [task.id for task in tasks]
    scenarios = [task.scenario for task in tasks for _ in range(evaluate.seeds)]
    # what says nothing more about most recipes is left out, so that it leaves their plans as they are
    more = {} if evaluate.temperature == 0 else {"top_p": evaluate.top_p}
    more |= {} if recipe.tasks_sha256 is None else {"tasks_sha256": recipe.tasks_sha256}
    plan: dict[str, Any] = {
        "name": recipe.name,
        "description": recipe.description,
        "tasks": {
            "pool": evaluate.pool,
            "n": len(ids),
            "ids_sha256": _hash(ids),
            "split": split.rule,
            "split_sha256": split.sha256,
            "temperature": evaluate.temperature,
            "probe_tasks": min(evaluate.probe_tasks, len(ids)),
            "probe_group": evaluate.probe_group,
            **more,
        },
        "seeds": table.seeds,
        "tokens": table.tokens,
        "arms": [{**arm.model_dump(), "budget": budgets[arm.row]._asdict()} for arm in table.arms],
        "comparisons": [list(pair) for pair in table.comparisons],
        "settings_sha256": _hash(_settings(recipe)),
    }
    if recipe.reward != "success":
        plan["reward"] = recipe.reward  # measured and compared beside success
    follows: dict[str, Any] = {"scenarios": scenarios} if len(set(scenarios)) < len(scenarios) else {}
    of = [task.category for task in tasks for _ in range(evaluate.seeds)]
    if len(set(of)) > 1:
        follows["categories"] = {
            name: "".join("1" if category == name else "0" for category in of) for name in sorted(set(of))
        }
    return {**plan, "digest": _hash(plan), **follows}  # from the tasks, so the digest need not cover it


def _settings(recipe: Recipe) -> dict[str, str]:
    """A digest of each stage that some arm needs, the seed aside."""
    unseeded = recipe.model_copy(update={"seed": 0})
    stages = stages_for(recipe, [arm.policy for arm in ablation_of(recipe).arms])
    return {name: unseeded.digest(name) for name in stages} | {"model": recipe.model.model_dump_json()}


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def chosen_seeds(table: AblationTable, given: str | None) -> list[int]:
    """``--seeds``: a number takes the first so many of the plan's; a list (``0,2`` or ``3,``) names them."""
    if given is None:
        return table.seeds
    try:
        numbers = [int(part) for part in given.split(",") if part.strip()]
    except ValueError:
        numbers = []
    if not numbers:
        raise UserError(f"--seeds {given!r}: give how many, or a list such as 0,1,2 (a single one: 2,)")
    if "," not in given:
        count = numbers[0]
        if not 1 <= count <= len(table.seeds):
            raise UserError(
                f"--seeds {count}: the recipe plans {len(table.seeds)}: {table.seeds} (a single one: {count},)"
            )
        return table.seeds[:count]
    if unplanned := [n for n in numbers if n not in table.seeds]:
        raise UserError(f"--seeds {given}: {unplanned[0]} is not among the planned {table.seeds}")
    return numbers


def chosen_arms(table: AblationTable, only: list[str]) -> list[ArmTable]:
    """``--only``: the named arms, in the plan's order; all if none is named."""
    rows = [arm.row for arm in table.arms]
    if unknown := [name for name in only if name not in rows]:
        raise UserError(f"--only {unknown[0]!r}: no such arm; the recipe has {', '.join(rows)}")
    return [arm for arm in table.arms if not only or arm.row in only]


def fixing_commit(path: Path, digest: str) -> str | None:
    """The first commit in which ``path`` holds this plan and no results yet; None if there is none."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(path.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def plans_it(commit: str) -> bool:
        try:
            content = json.loads(git("show", f"{commit}:./{path.name}"))
            return content["plan"]["digest"] == digest and not content["cells"]
        except (subprocess.CalledProcessError, ValueError, KeyError, TypeError):
            return False  # something else stood in its place then

    try:
        # deletions aside: a plan may take the place of an earlier one
        commits = git("log", "--reverse", "--diff-filter=AM", "--format=%H", "--", path.name).split()
    except (OSError, subprocess.CalledProcessError):
        return None  # no git, or no repository
    return next(filter(plans_it, commits), None)
