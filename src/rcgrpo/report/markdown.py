"""Ablations' results files as sections of docs/results.md."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rcgrpo.experiments.results import outcomes, rewards
from rcgrpo.experiments.statistics import Interval, by_scenario, unpaired
from rcgrpo.report.ablation import count, notes, summary
from rcgrpo.report.rows import ablation_rows, category_rows, hours, p_value, token_effects, training_seconds
from rcgrpo.report.table import percent, signed, span


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
        _categories(results),
        _rewards(results),
        _more_comparisons(results, "reward"),
        _tokens(results),
        _more_comparisons(results, "separation"),
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
                    signed(figures["separation"]), count(figures["rollouts"]), count(figures["gradient_steps"]),
                    count(figures["tokens"]), hours(figures["seconds"] or 0.0),
                ]
            )  # fmt: skip
    headings = ["row", "token", "success", "95% interval", "seeds", "by seed", *(f"under {t}" for t in tokens)]
    sampled = f"sampled `{results['plan']['reward']}`" if "reward" in results["plan"] else "sampled"
    return markdown_table(
        [*headings, sampled, "flat groups", "separation", "rollouts", "gradient steps", "tokens generated", "time"],
        lines,
        texts=2,
    )


def _comparisons(results: Mapping[str, Any]) -> str:
    lines = []
    for pair in results["comparisons"]:
        if pair["diff"] is None:
            lines.append([pair["a"], pair["b"], "not measured yet", *["-"] * 6])
            continue
        tests = ", ".join(p_value(test["p"]) for test in pair["mcnemar"])
        figures = [p_value(pair["p"]), p_value(pair["p_holm"]), f"{pair['effect_h']:+.2f}", str(len(pair["seeds"]))]
        difference = [f"**{signed(pair['diff'])}**", span(pair["low"], pair["high"])]
        lines.append([pair["a"], pair["b"], *difference, *figures, tests])
    headings = ["a", "b", "a - b", "95% interval", "p", "p (Holm)", "h", "seeds", "McNemar by seed"]
    return markdown_table(headings, lines, texts=2) if lines else ""


def _categories(results: Mapping[str, Any]) -> str:
    """Success by category of the tasks."""

    def cell(x: Interval) -> str:
        return f"**{percent(x.value)}** ({percent(x.low)} to {percent(x.high)})"

    lines = [[row.row, *map(cell, row.success.values())] for row in category_rows(results)]
    sizes = [f"{name} ({marks.count('1')})" for name, marks in results["plan"].get("categories", {}).items()]
    return markdown_table(["row", *sizes], lines, texts=1) if lines else ""


def _rewards(results: Mapping[str, Any]) -> str:
    """The plan's graded reward of the same episodes, where it has one."""
    if "reward" not in results["plan"]:
        return ""
    rows, tokens = ablation_rows(results), results["plan"]["tokens"]
    means = {(row.row, row.token): row.reward for row in rows}
    lines = []
    for row in rows:
        if row.headline and row.reward:
            under = [means.get((row.row, token)) for token in tokens]
            interval = f"{percent(row.reward.low)} to {percent(row.reward.high)}"
            by_token = [percent(mean.value) if mean else "-" for mean in under]
            lines.append([row.row, row.token, f"**{percent(row.reward.value)}**", interval, *by_token])
    headings = ["row", "token", f"mean `{results['plan']['reward']}`", "95% interval", *(f"under {t}" for t in tokens)]
    return markdown_table(headings, lines, texts=2) if lines else ""


def _tokens(results: Mapping[str, Any]) -> str:
    """What the tokens change in each row; the sampled separation where the cells hold the probed tasks."""
    effects = token_effects(results)
    probed = any(effect.sampled for effect in effects)
    lines = []
    for effect in effects:
        found = (effect.evaluated, effect.sampled) if probed else (effect.evaluated,)
        tests = [[f"**{signed(x.diff)}**", span(x.low, x.high), p_value(x.p)] if x else ["-"] * 3 for x in found]
        lines.append([effect.row, *itertools.chain(*tests), ", ".join(map(signed, effect.evaluated.by_seed))])
    measured = results["plan"].get("reward", "success")
    first, sampled = [f"{measured}, high - low", "95% interval", "p"], ["separation", "95% interval", "p"]
    headings = ["row", *first, *(sampled if probed else []), "by seed"]
    return markdown_table(headings, lines, texts=1) if lines else ""


def _more_comparisons(results: Mapping[str, Any], measure: str) -> str:
    """The planned pairs once more, by ``reward`` or ``separation``."""
    lines = []
    for pair in results["comparisons"]:
        of = pair.get(measure)
        if of and of["diff"] is not None:
            difference = [f"**{signed(of['diff'])}**", span(of["low"], of["high"])]
            by_seed = ", ".join(map(signed, of["by_seed"]))
            lines.append([pair["a"], pair["b"], *difference, p_value(of["p"]), p_value(of["p_holm"]), by_seed])
    headings = ["a", "b", f"a - b, {measure}", "95% interval", "p", "p (Holm)", "by seed"]
    return markdown_table(headings, lines, texts=2) if lines else ""


def leak_section(honest: Mapping[str, Any], leaky: Mapping[str, Any]) -> str:
    """What training on the test's own scenarios is worth: each row's gain over the base, on a leaky split and without.

    The splits test other tasks, so a row is compared with the base on the same tasks first, and the two gains then.
    Empty where a plan has no base, or the two have no seed in common.
    """
    plans = [of["plan"] for of in (honest, leaky)]
    bases = [next((arm for arm in plan["arms"] if arm["policy"] == "base"), None) for plan in plans]
    graded = plans[0].get("reward") if plans[0].get("reward") == plans[1].get("reward") else None
    lines = []
    for what, read in (("success", outcomes), (graded, rewards)):
        for arm in plans[0]["arms"] if what and all(bases) else []:
            sides = [
                (read(of["cells"], arm["row"], arm["token"]), read(of["cells"], base["row"], base["token"]))
                for of, base in zip((honest, leaky), bases, strict=True)
                if base
            ]
            seeds = sorted(set.intersection(*(set(found) for side in sides for found in side)))
            if not seeds or arm["policy"] == "base":
                continue
            gains = [
                by_scenario(np.stack([ours[s].astype(float) - theirs[s] for s in seeds]), plan.get("scenarios"))
                for (ours, theirs), plan in zip(sides, plans, strict=True)
            ]
            effect = unpaired(gains[1], gains[0])
            means = [signed(float(gain_SC.mean())) for gain_SC in gains]
            interval = "-" if effect.low is None else span(effect.low, effect.high)
            figures = [f"**{signed(effect.diff)}**", interval, p_value(effect.p)]
            lines.append([arm["row"], str(what), *means, *figures, str(len(seeds))])
    if not lines:
        return ""
    shared = set(plans[0].get("scenarios", ())) & set(plans[1].get("scenarios", ()))
    both = f", although {len(shared)} scenarios are tested by both" if shared else ""
    headings = ["row", "measure", "over base, honest", "over base, leaky", "leak", "95% interval", "p", "seeds"]
    return "\n\n".join(
        [
            "## The leak",
            f"The gain of each row over the base, in points, on the split without leak (`{plans[0]['name']}`) and on "
            f"the leaky one (`{plans[1]['name']}`), and how much larger it is there. A gain is paired by task and "
            f"seed; the two gains are taken for independent{both}. p is not corrected; there is no interval where a "
            "gain is the same in all scenarios.",
            markdown_table(headings, lines, texts=2),
        ]
    )


def markdown_table(headings: Sequence[str], lines: Sequence[Sequence[str]], texts: int) -> str:
    """A table of Markdown; the first ``texts`` columns are aligned left, the others right."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    ruler = ["---"] * texts + ["---:"] * (len(headings) - texts)
    return "\n".join([line(headings), line(ruler), *map(line, lines)])
