"""An ablation's results file as a section of docs/results.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rcgrpo.report.ablation import count, notes, summary
from rcgrpo.report.rows import ablation_rows, hours, p_value, training_seconds
from rcgrpo.report.table import percent, signed


def results_section(results: Mapping[str, Any], name: str) -> str:
    """Plan, table, success under every token, comparisons and cost; ``name`` is the file's under docs/results."""
    plan = results["plan"]
    tasks = plan["tasks"]
    fixed = f"commit `{plan['commit'][:12]}`" if plan["commit"] else "no commit"
    seeds = ", ".join(map(str, plan["seeds"]))
    parts = [
        f"## {plan['name']}",
        plan["description"],
        summary(results),
        *(f"> {note}" for note in notes(results)),
        f"[{name}](results/{name}). Plan fixed by {fixed}; seeds {seeds}; {tasks['n']} tasks of pool `{tasks['pool']}` "
        f"({tasks['split']}, split sha256 `{tasks['split_sha256'][:12]}`), temperature {tasks['temperature']:g}. "
        f"Runs and evaluations took {hours(training_seconds(results))} in all.",
        f"```\n{plan['command']} --results docs/results/{name}\n```",
        _table(results),
        _comparisons(results),
    ]
    return "\n\n".join(part for part in parts if part)


def _table(results: Mapping[str, Any]) -> str:
    rows = ablation_rows(results)
    tokens = results["plan"]["tokens"]
    by_cell = {(row.row, row.token): row for row in rows}
    lines = []
    for row in rows:
        if row.headline:
            figures = row.figures
            lines.append(
                [
                    row.row, row.token, f"**{percent(row.success)}**", f"{percent(row.low)} to {percent(row.high)}",
                    str(len(row.seeds)), ", ".join(percent(s) for s in row.by_seed),
                    *(percent(by_cell[row.row, t].success) if (row.row, t) in by_cell else "-" for t in tokens),
                    percent(figures["success_sampled"]), percent(figures["zero_variance_share"]),
                    signed(figures["separation"]), count(figures["rollouts"]), count(figures["tokens"]),
                    hours(figures["seconds"] or 0.0),
                ]
            )  # fmt: skip
    headings = ["row", "token", "success", "95% interval", "seeds", "by seed", *(f"under {t}" for t in tokens)]
    return markdown_table(
        [*headings, "sampled", "flat groups", "separation", "rollouts", "tokens generated", "time"], lines, texts=2
    )


def _comparisons(results: Mapping[str, Any]) -> str:
    lines = []
    for pair in results["comparisons"]:
        if pair["diff"] is None:
            lines.append([pair["a"], pair["b"], "not measured yet", *["-"] * 6])
            continue
        interval = f"{signed(pair['low'])} to {signed(pair['high'])}"
        tests = ", ".join(p_value(test["p"]) for test in pair["mcnemar"])
        figures = [p_value(pair["p"]), p_value(pair["p_holm"]), f"{pair['effect_h']:+.2f}", str(len(pair["seeds"]))]
        lines.append([pair["a"], pair["b"], f"**{signed(pair['diff'])}**", interval, *figures, tests])
    headings = ["a", "b", "a - b", "95% interval", "p", "p (Holm)", "h", "seeds", "McNemar by seed"]
    return markdown_table(headings, lines, texts=2) if lines else ""


def markdown_table(headings: Sequence[str], lines: Sequence[Sequence[str]], texts: int) -> str:
    """A table of Markdown; the first ``texts`` columns are aligned left, the others right."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    ruler = ["---"] * texts + ["---:"] * (len(headings) - texts)
    return "\n".join([line(headings), line(ruler), *map(line, lines)])
