"""The results file of an ablation: plan, cells, comparisons. From it alone tables, report and docs are drawn."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from rcgrpo.errors import UserError
from rcgrpo.experiments.plan import fixing_commit
from rcgrpo.experiments.statistics import Difference, compare, difference, holm
from rcgrpo.files import write_text
from rcgrpo.stages.directory import read_json

Results = dict[str, Any]
"""``{"plan": {...}, "cells": [...], "comparisons": [...]}``."""
Key = tuple[str, int, str]
"""Row, seed, token of a cell."""
PLANNED = {
    "name", "description", "tasks", "seeds", "tokens", "arms", "comparisons", "digest", "command", "commit", "started",
}  # fmt: skip
"""What the plan of every results file has."""
UNMEASURED = dict.fromkeys(Difference._fields)
"""The difference of two rows that have no seed in common yet."""


def key_of(cell: Mapping[str, Any]) -> Key:
    """What names a cell."""
    return cell["row"], cell["seed"], cell["token"]


def read_results(path: Path) -> Results:
    """Read a results file; :class:`UserError` where it is none."""
    content = read_json(path)
    parts = {"plan": dict, "cells": list, "comparisons": list}
    if not isinstance(content, dict) or any(not isinstance(content.get(part), kind) for part, kind in parts.items()):
        raise UserError(f"{path} is not the results of an ablation: it needs plan, cells and comparisons")
    if lacking := PLANNED - content["plan"].keys():
        raise UserError(f"{path} is not the results of an ablation: its plan lacks {', '.join(sorted(lacking))}")
    return content


def write_results(path: Path, results: Results) -> None:
    """Write it through a temporary file and a rename; a cell takes a line."""

    def lines(items: Iterable[Any]) -> str:
        text = ",\n".join("  " + json.dumps(item) for item in items)
        return f"[\n{text}\n ]" if text else "[]"

    plan = json.dumps(results["plan"], indent=1).replace("\n", "\n ")
    text = f'{{\n "plan": {plan},\n "cells": {lines(results["cells"])},\n "comparisons": {lines(results["comparisons"])}\n}}\n'  # noqa: E501
    write_text(path, text)


def open_results(path: Path, plan: dict[str, Any], command: str) -> Results:
    """The results so far under ``plan``, or none yet. Raises :class:`UserError` where the file has another plan.

    ``command`` is what makes them, for people.
    """
    if not path.is_file():
        return {"plan": {**plan, "command": command, "commit": None, "started": None}, "cells": [], "comparisons": []}
    results = read_results(path)
    if results["plan"].get("digest") != plan["digest"]:
        changed = [key for key in plan if key != "digest" and results["plan"].get(key) != plan[key]]
        raise UserError(
            f"{path} holds another plan than this recipe's (they differ in {', '.join(changed)}): "
            f"set the recipe back, or choose another --results"
        )
    return {**results, "plan": {**plan, **results["plan"]}}


def start(path: Path, results: Results) -> None:
    """Note in the file when the runs began and which commit had fixed the plan before; done once, kept afterwards."""
    if results["plan"]["started"] is not None:
        return
    fixed = {
        "commit": fixing_commit(path, results["plan"]["digest"]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_results(path, {**results, "plan": {**results["plan"], **fixed}})


def with_cells(results: Results, cells: Iterable[dict[str, Any]]) -> Results:
    """The results with these cells added or replaced, in the plan's order, and every comparison made again."""
    by_key = {key_of(cell): cell for cell in [*results["cells"], *cells]}
    plan = results["plan"]
    order = [(arm["row"], seed, token) for arm in plan["arms"] for seed in plan["seeds"] for token in plan["tokens"]]

    def separation(row: str, seed: int) -> float | None:  # two sessions may have measured one token each
        high, low = (by_key.get((row, seed, token), {}).get("success_sampled") for token in ("high", "low"))
        return None if high is None or low is None else high - low

    ordered = [
        {**by_key[key], "separation": separation(*key[:2])} if by_key[key].get("separation") is None else by_key[key]
        for key in order
        if key in by_key
    ]
    return {"plan": plan, "cells": ordered, "comparisons": comparisons(plan, ordered)}


def merge(results: Results, others: Iterable[tuple[Path, Results]]) -> Results:
    """Join cells that were measured apart under one plan.

    The runs began when the first of them did, and a commit had fixed the plan only if it had for all that began.
    Raises :class:`UserError` where another file has another plan, or measured the same cell otherwise.
    """
    begun, cells = [results["plan"]] if results["plan"]["started"] else [], results["cells"]
    for path, other in others:
        if other["plan"]["digest"] != results["plan"]["digest"]:
            raise UserError(f"{path} holds another plan: only cells of one plan can be joined")
        begun += [other["plan"]] if other["plan"]["started"] else []
        check_same(cells, other["cells"], str(path))
        known = {key_of(cell) for cell in cells}
        cells = [*cells, *(cell for cell in other["cells"] if key_of(cell) not in known)]
    plan = results["plan"]
    if begun:
        first = min(begun, key=lambda plan: plan["started"])
        fixed = all(plan["commit"] for plan in begun)
        plan = {**plan, "started": first["started"], "commit": first["commit"] if fixed else None}
    return with_cells({**results, "plan": plan, "cells": cells}, [])


def check_same(known: Iterable[Mapping[str, Any]], cells: Iterable[Mapping[str, Any]], source: str) -> None:
    """Raise :class:`UserError` where one of the ``cells`` is known with different outcomes."""

    def measured(cell: Mapping[str, Any]) -> Any:
        return cell["outcomes"], cell.get("rewards")

    by_key = {key_of(cell): measured(cell) for cell in known}
    for cell in cells:
        if by_key.get(key_of(cell), measured(cell)) != measured(cell):
            raise UserError(f"{source}: the cell {key_of(cell)} was measured twice, with different outcomes")


def outcomes(cells: Iterable[Mapping[str, Any]], row: str, token: str) -> dict[int, np.ndarray]:
    """Per seed the 0/1 outcome of every task, int8 [T]."""
    return {
        cell["seed"]: np.array([int(mark) for mark in cell["outcomes"]], dtype=np.int8)
        for cell in cells
        if (cell["row"], cell["token"]) == (row, token)
    }


def rewards(cells: Iterable[Mapping[str, Any]], row: str, token: str) -> dict[int, np.ndarray]:
    """Per seed the reward of every task, float64 [T], in the term that the plan names."""
    return {
        cell["seed"]: np.array(cell["rewards"], dtype=np.float64)
        for cell in cells
        if (cell["row"], cell["token"]) == (row, token)
    }


def separations(cells: Iterable[Mapping[str, Any]], row: str) -> dict[int, np.ndarray]:
    """Per seed and probed task the mean reward sampled under high minus that under low, float64 [T].

    Only of seeds that were probed under both; cells of earlier versions do not have the means of single tasks.
    """
    means = {
        (cell["token"], cell["seed"]): np.array(cell["probe_means"], dtype=np.float64)
        for cell in cells
        if cell["row"] == row and cell.get("probe_means")
    }
    return {
        seed: high_T - means["low", seed]
        for (token, seed), high_T in means.items()
        if token == "high" and ("low", seed) in means
    }


def probed_scenarios(plan: Mapping[str, Any]) -> list[str] | None:
    """The scenario of each probed task, where the plan names those of the outcomes (one per task and draw)."""
    if "scenarios" not in plan:
        return None
    draws = len(plan["scenarios"]) // plan["tasks"]["n"]
    return plan["scenarios"][::draws][: plan["tasks"]["probe_tasks"]]


def unplanned(results: Results, a: str, b: str) -> dict[str, Any]:
    """Two rows that the plan did not set out to compare; ``p_holm`` is corrected for nothing. An exploration.

    A row stands under its own token, ``row@token`` under another (and has no separation then, which is of two tokens).
    Raises :class:`UserError` where the plan has none such.
    """
    plan = results["plan"]
    own = {arm["row"]: arm["token"] for arm in plan["arms"]}
    arms, cells = [], []
    for name in (a, b):
        row, _, token = (name, "", own[name]) if name in own else name.rpartition("@")
        if row not in own or token not in plan["tokens"]:
            raise UserError(
                f"--compare {name!r}: no such row; the file has {', '.join(own)}, each also followed by @ and one of "
                f"{', '.join(plan['tokens'])}"
            )
        arms.append({"row": name, "token": token})
        cells += [{**cell, "row": name} for cell in results["cells"] if cell["row"] == row]
    [pair] = comparisons({**plan, "arms": arms, "comparisons": [[a, b]]}, cells)
    return pair if {a, b} <= own.keys() else {key: value for key, value in pair.items() if key != "separation"}


def comparisons(plan: Mapping[str, Any], cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The planned comparisons, each row under its own token, on the seeds that both rows have.

    A pair without a common seed has nulls. Holm's correction runs over all planned pairs, measured or not. Where the
    plan names a reward other than success, ``reward`` holds the difference of its means, corrected by itself; where
    cells hold their probed tasks, ``separation`` holds that of the sampled separations, corrected by itself too.
    """
    token = {arm["row"]: arm["token"] for arm in plan["arms"]}
    probed = any(cell.get("probe_means") for cell in cells)
    made: list[dict[str, Any]] = []
    for a, b in plan["comparisons"]:
        ours, theirs = outcomes(cells, a, token[a]), outcomes(cells, b, token[b])
        seeds = [seed for seed in plan["seeds"] if seed in ours and seed in theirs]
        entry: dict[str, Any] = {"a": a, "b": b, "diff": None, "low": None, "high": None, "p": None, "p_holm": None}
        entry |= {"seeds": seeds, "effect_h": None, "odds_ratio": None, "by_seed": [], "mcnemar": []}
        if seeds:
            pair = compare(*(np.stack([of[s] for s in seeds]) for of in (ours, theirs)), plan.get("scenarios"))
            entry |= pair._asdict()
            entry["mcnemar"] = [{"seed": s, **test._asdict()} for s, test in zip(seeds, pair.mcnemar, strict=True)]
        if "reward" in plan:
            ours, theirs = rewards(cells, a, token[a]), rewards(cells, b, token[b])
            entry["reward"] = {**UNMEASURED}
            if seeds:
                sides = (np.stack([of[s] for s in seeds]) for of in (ours, theirs))
                entry["reward"] = difference(*sides, plan.get("scenarios"))._asdict()
        if probed:
            ours, theirs = separations(cells, a), separations(cells, b)
            entry["separation"] = {**UNMEASURED}
            if shared := [seed for seed in plan["seeds"] if seed in ours and seed in theirs]:
                sides = (np.stack([of[s] for s in shared]) for of in (ours, theirs))
                entry["separation"] = difference(*sides, probed_scenarios(plan), reach=2.0)._asdict()
        made.append(entry)
    families = [made, *([entry[key] for entry in made if key in entry] for key in ("reward", "separation"))]
    for family in families:
        for entry, corrected in zip(family, holm([entry["p"] for entry in family]), strict=True):
            entry["p_holm"] = corrected
    return made
