"""What the table of an ablation says, in the terminal, on the page and in the docs: from the results file alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rcgrpo.experiments.results import outcomes, probed_scenarios, rewards, separations
from rcgrpo.experiments.statistics import Difference, Interval, difference, mean_interval
from rcgrpo.report.table import percent, signed, span


@dataclass(frozen=True)
class AblationRow:
    """An arm under a token, over its seeds. Shares in [0, 1]; None where nothing was measured."""

    row: str
    token: str
    headline: bool
    """This token is the arm's own at inference."""
    seeds: list[int]
    by_seed: list[float]
    """Success of each seed."""
    success: float
    low: float
    high: float
    """95% interval over seeds and tasks."""
    reward: Interval | None
    """Mean of the plan's graded reward with its interval; None where the plan has none beside success."""
    figures: dict[str, float | None]
    """Means over the seeds: ``success_sampled``, ``zero_variance_share``, ``separation``, ``rollouts``,
    ``gradient_steps``, ``tokens``, ``stage1_tokens``, ``seconds``."""


AVERAGED = (
    "success_sampled", "zero_variance_share", "separation", "rollouts", "gradient_steps", "tokens", "stage1_tokens",
    "seconds",
)  # fmt: skip


def ablation_rows(results: Mapping[str, Any]) -> list[AblationRow]:
    """Every arm under every token that some seed was measured under, in the plan's order."""
    rows = []
    for arm in results["plan"]["arms"]:
        for token in results["plan"]["tokens"]:
            cells = [c for c in results["cells"] if (c["row"], c["token"]) == (arm["row"], token)]
            if not cells:
                continue
            by_seed = outcomes(cells, arm["row"], token)
            scenarios = results["plan"].get("scenarios")
            over = mean_interval(np.stack(list(by_seed.values())), scenarios)
            graded = rewards(cells, arm["row"], token) if "reward" in results["plan"] else {}
            rows.append(
                AblationRow(
                    arm["row"],
                    token,
                    token == arm["token"],
                    list(by_seed),
                    [cell["success"] for cell in cells],
                    over.value,
                    over.low,
                    over.high,
                    mean_interval(np.stack(list(graded.values())), scenarios) if graded else None,
                    {key: mean_known(cell[key] for cell in cells) for key in AVERAGED},
                )
            )
    return rows


@dataclass(frozen=True)
class CategoryRow:
    """An arm under its own token, by category of the tasks."""

    row: str
    token: str
    success: dict[str, Interval]


def category_rows(results: Mapping[str, Any]) -> list[CategoryRow]:
    """Of every arm that is measured, in the plan's order; none where the plan knows of no categories."""
    plan = results["plan"]
    scenarios = np.array(plan["scenarios"]) if "scenarios" in plan else None
    chosen = {name: np.array([mark == "1" for mark in marks]) for name, marks in plan.get("categories", {}).items()}
    rows = []
    for arm in plan["arms"] if chosen else []:
        by_seed = outcomes(results["cells"], arm["row"], arm["token"])
        if by_seed:
            outcomes_ST = np.stack(list(by_seed.values()))
            success = {
                name: mean_interval(outcomes_ST[:, which_T], None if scenarios is None else scenarios[which_T].tolist())
                for name, which_T in chosen.items()
            }
            rows.append(CategoryRow(arm["row"], arm["token"], success))
    return rows


@dataclass(frozen=True)
class TokenEffect:
    """What asking for high instead of low changes in an arm's policy."""

    row: str
    evaluated: Difference
    """At evaluation: the plan's reward, or success where it has none beside, under high minus that under low, on the
    same tasks and seeds."""
    sampled: Difference | None
    """The separation, at temperature 1 on the probed tasks; None where the cells do not hold these."""


def token_effects(results: Mapping[str, Any]) -> list[TokenEffect]:
    """Of every arm that some seed measured under both tokens, in the plan's order."""
    plan, cells = results["plan"], results["cells"]
    read = rewards if "reward" in plan else outcomes
    effects = []
    for arm in plan["arms"]:
        high, low = (read(cells, arm["row"], token) for token in ("high", "low"))
        if seeds := [seed for seed in plan["seeds"] if seed in high and seed in low]:
            high_ST, low_ST = (np.stack([of[seed] for seed in seeds]) for of in (high, low))
            evaluated = difference(high_ST, low_ST, plan.get("scenarios"))
            by_seed = separations(cells, arm["row"])
            probed_ST = np.stack(list(by_seed.values())) if by_seed else None
            sampled = None if probed_ST is None else difference(probed_ST, 0 * probed_ST, probed_scenarios(plan))
            effects.append(TokenEffect(arm["row"], evaluated, sampled))
    return effects


def mean_known(values: Iterable[float | None]) -> float | None:
    """The mean of the known values; None if there is none."""
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def training_seconds(results: Mapping[str, Any]) -> float:
    """Seconds of all stages, a stage that several arms share counted once per seed, and of all evaluations."""
    stages = {(c["seed"], name): s for c in results["cells"] for name, s in c["stages"].items()}
    return sum(stages.values()) + sum(c["evaluate_seconds"] for c in results["cells"])


def p_value(p: float | None) -> str:
    """A p-value for people."""
    return "-" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def hours(seconds: float) -> str:
    """A duration for people."""
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.0f} s"


def print_plan(plan: Mapping[str, Any], console: Console) -> None:
    """Print arms and budgets of a plan."""
    table = Table(caption=f"seeds {plan['seeds']}; {plan['tasks']['n']} tasks; tokens {', '.join(plan['tokens'])}")
    for heading in ("arm", "token"):
        table.add_column(heading, overflow="fold")
    for heading in ("stage-1 episodes", "rollouts", "gradient steps"):
        table.add_column(heading, justify="right")
    table.add_column("unmatched because", overflow="fold")
    for arm in plan["arms"]:
        spent = (str(value) for value in arm["budget"].values())
        table.add_row(escape(arm["row"]), arm["token"], *spent, escape(arm["unmatched"] or ""))
    console.print(table)


def print_ablation(results: Mapping[str, Any], console: Console) -> None:
    """Print the headline rows and the comparisons of an ablation."""
    graded = results["plan"].get("reward")
    wide = console.width >= 110
    extra = ("sampled", "flat groups", "separation") if wide else ()
    rows = [row for row in ablation_rows(results) if row.headline]
    table = _table("percent; 95% intervals", ["row"], ["token", "success", "95% interval", "seeds", *extra])
    for row in rows:
        more = [percent(row.figures[k]) for k in ("success_sampled", "zero_variance_share")]
        more = [*more, signed(row.figures["separation"])] if wide else []
        interval = f"{percent(row.low)} - {percent(row.high)}"
        table.add_row(escape(row.row), row.token, percent(row.success), interval, str(len(row.seeds)), *more)
    console.print(table)
    if graded:
        table = _table("the same episodes, percent", ["row"], ["token", graded, "95% interval", "seeds"])
        for row in rows:
            if row.reward:
                interval = f"{percent(row.reward.low)} - {percent(row.reward.high)}"
                table.add_row(escape(row.row), row.token, percent(row.reward.value), interval, str(len(row.seeds)))
        console.print(table)
    if results["comparisons"]:
        print_comparisons(results["comparisons"], graded, console)


def print_comparisons(
    pairs: Sequence[Mapping[str, Any]], graded: str | None, console: Console, *, planned: bool = True
) -> None:
    """Print pairs of rows by success, by the plan's graded reward and by separation, as far as they have them."""
    tests = {
        "success": [(pair, pair) for pair in pairs],
        f"{graded}": [(pair, pair["reward"]) for pair in pairs if "reward" in pair],
        "separation, sampled": [(pair, pair["separation"]) for pair in pairs if "separation" in pair],
    }
    corrected = "p after Holm's correction over the planned comparisons" if planned else "not planned: p is uncorrected"
    figures = ["a - b", "95% interval", "p", *(["p (Holm)"] if planned else []), "seeds"]
    for measure, tested in tests.items():
        table = _table(f"{measure}, points; {corrected}", ["a", "b"], figures)
        for pair, test in tested:
            found = [signed(test["diff"]), span(test["low"], test["high"]), p_value(test["p"])]
            found += [p_value(test["p_holm"])] if planned else []
            table.add_row(escape(pair["a"]), escape(pair["b"]), *found, str(len(test["by_seed"] or [])))
        if tested:
            console.print(table)


def _table(caption: str, texts: Iterable[str], figures: Iterable[str]) -> Table:
    table = Table(caption=caption, caption_justify="left")
    for heading in texts:
        table.add_column(heading, overflow="fold")
    for heading in figures:
        table.add_column(heading, justify="right", no_wrap=True)
    return table
