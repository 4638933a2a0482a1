"""The page of an ablation, drawn from its results file alone: one file, no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from rcgrpo.files import write_text
from rcgrpo.report.ablation_figures import Trained, curve_panels, success_panels
from rcgrpo.report.data import COLOURS
from rcgrpo.report.figures import DASHES
from rcgrpo.report.rows import (
    AblationRow,
    ablation_rows,
    category_rows,
    hours,
    p_value,
    token_effects,
    training_seconds,
)
from rcgrpo.report.table import percent, signed, span


@dataclass(frozen=True)
class ArmView:
    """An arm of the table: its row under its own token, and under every token."""

    arm: Mapping[str, Any]
    """Its entry in the plan."""
    colour: str
    dash: int
    headline: AblationRow | None
    by_token: dict[str, AblationRow]


def write_ablation_report(results: Mapping[str, Any], path: Path) -> Path:
    """Write the page of ``results`` to ``path`` (through a rename) and return it."""
    write_text(path, render_ablation(results))
    return path


def render_ablation(results: Mapping[str, Any]) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("rcgrpo.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"percent": percent, "signed": signed, "p": p_value, "hours": hours, "count": count}
    arms = arm_views(results)
    trained = trained_arms(results, arms)
    return environment.get_template("ablation.html.jinja").render(
        plan=results["plan"],
        arms=arms,
        comparisons=results["comparisons"],
        reach=forest_reach(results["comparisons"]),
        colours={view.arm["row"]: view.colour for view in arms},
        trained=trained,
        shown=shown_at_first(results, trained),
        curves=curve_panels(trained),
        against=success_panels(trained),
        categories=category_rows(results),
        effects=token_effects(results),
        summary=summary(results),
        notes=notes(results),
        seconds=training_seconds(results),
        commits=sorted({cell["commit"] for cell in results["cells"] if cell["commit"]}),
        style=files("rcgrpo.report").joinpath("templates", "report.css").read_text(),
    )


def arm_views(results: Mapping[str, Any]) -> list[ArmView]:
    """The plan's arms that have a cell. The policy before training is grey, the others take the colours in turn."""
    rows = ablation_rows(results)
    views = []
    used = 0
    for arm in results["plan"]["arms"]:
        by_token = {row.token: row for row in rows if row.row == arm["row"]}
        if not by_token:
            continue
        colour = "base" if arm["policy"] == "base" else str(used % COLOURS)
        views.append(ArmView(arm, colour, used // COLOURS % len(DASHES), by_token.get(arm["token"]), by_token))
        used += arm["policy"] != "base"
    return views


def trained_arms(results: Mapping[str, Any], views: Sequence[ArmView]) -> list[Trained]:
    """The arms with training curves."""
    trained = []
    for view in views:
        cells = [c for c in results["cells"] if c["row"] == view.arm["row"] and c["curves"] is not None]
        if cells:
            trained.append(Trained(view.arm["row"], view.colour, view.dash, cells))
    return trained


def shown_at_first(results: Mapping[str, Any], trained: Sequence[Trained]) -> set[str]:
    """Rows whose curves are not hidden when the page opens: all, or of many the first in the plan's comparisons."""
    if len(trained) <= COLOURS:
        return {arm.row for arm in trained}
    names = [row for pair in results["plan"]["comparisons"] for row in pair] + [arm.row for arm in trained]
    return set(list(dict.fromkeys(n for n in names if n in {arm.row for arm in trained}))[:COLOURS])


def forest_reach(comparisons: Sequence[Mapping[str, Any]]) -> int:
    """Half the width of the forest plot's axis, in points: the widest interval, rounded up to a multiple of 10.

    At most 100; what is wider runs out of it.
    """
    shown = [*comparisons, *(pair[key] for pair in comparisons for key in ("reward", "separation") if key in pair)]
    ends = [abs(pair[key]) for pair in shown for key in ("low", "high") if pair[key] is not None]
    return min(100, max(10, 10 * -int(-100 * max(ends, default=0.1) // 10)))


def summary(results: Mapping[str, Any]) -> str:
    """What was run and what came out, in a few sentences, from the figures alone."""
    plan = results["plan"]
    planned = len(plan["arms"]) * len(plan["seeds"]) * len(plan["tokens"])
    parts = [
        f"{len(plan['arms'])} arms, {len(plan['seeds'])} seeds, {plan['tasks']['n']} tasks of pool "
        f"{plan['tasks']['pool']!r}; {len(results['cells'])} of {planned} cells measured."
    ]
    pairs = results["comparisons"]
    parts += _held("success", [(pair, pair) for pair in pairs])
    if "reward" in plan:
        parts += _held(f"the reward {plan['reward']}", [(pair, pair["reward"]) for pair in pairs])
    parts += _held("the sampled separation", [(pair, pair["separation"]) for pair in pairs if "separation" in pair])
    return " ".join(parts)


def _held(what: str, tested: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> list[str]:
    """Which planned pairs, each with its test, hold."""
    if all(test["p_holm"] is None for _, test in tested):
        return []
    clear = [(pair, test) for pair, test in tested if test["p_holm"] is not None and test["p_holm"] < 0.05]
    return [f"Of {len(tested)} planned comparisons of {what} {len(clear)} hold after Holm's correction (5%)."] + [
        f"{pair['a']} against {pair['b']}: {signed(test['diff'])} points ({span(test['low'], test['high'])}"
        f"{', one seed' if len(test['by_seed']) == 1 else ''})."
        for pair, test in clear
    ]


def notes(results: Mapping[str, Any]) -> list[str]:
    """What a reader must know before believing the figures."""
    plan, rows = results["plan"], ablation_rows(results)
    found = []
    if plan["started"] and plan["commit"] is None:
        found.append("The plan was not committed before the runs started: read these figures as exploration.")
    seeds = {seed for row in rows for seed in row.seeds}
    if missing := [str(seed) for seed in plan["seeds"] if seed not in seeds]:
        found.append(f"Not measured yet: seed {', '.join(missing)}.")
    short = [row.row for row in rows if row.headline and 0 < len(row.seeds) < len(seeds)]
    if short:
        found.append(f"Fewer seeds than the others: {', '.join(short)}.")
    own = {row.row: row.seeds for row in rows if row.headline}
    if partly := [f"{row.row} under {row.token}" for row in rows if row.seeds != own.get(row.row, row.seeds)]:
        found.append(f"Measured under other seeds than the row under its own token: {', '.join(partly)}.")
    base = {arm["row"] for arm in plan["arms"] if arm["policy"] == "base"}
    if max((len(row.seeds) for row in rows if row.row not in base), default=len(seeds)) == 1:
        found.append("One seed only: the intervals speak of other tasks, not of other seeds.")
    if scenarios := plan.get("scenarios"):
        found.append(
            f"The {len(scenarios)} tasks come from {len(set(scenarios))} scenarios: intervals and p resample "
            "scenarios, except McNemar's, which takes the tasks for independent."
        )
    found += [
        f"{row.row}: its budget of rollouts was used up after {row.figures['gradient_steps']:.0f} of "
        f"{arm['budget']['gradient_steps']} gradient steps."
        for arm in plan["arms"]
        for row in rows
        if (row.row, row.token) == (arm["row"], arm["token"])
        and (row.figures["gradient_steps"] or 0) < arm["budget"]["gradient_steps"]
    ]
    found += [f"{arm['row']} has another budget: {arm['unmatched']}" for arm in plan["arms"] if arm["unmatched"]]
    return found


def count(number: float | None) -> str:
    """A large number for people."""
    if number is None:
        return "-"
    return f"{number / 1e6:.2f}M" if number >= 1e6 else f"{number / 1e3:.1f}k" if number >= 1e4 else f"{number:,.0f}"
