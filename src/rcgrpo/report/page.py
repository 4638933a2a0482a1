"""Write ``report.html``: one file, no network, everything that a policy wrote escaped."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from rcgrpo.episodes.types import Call, Episode, Message, RewardToken, Step, Verdict
from rcgrpo.files import write_text
from rcgrpo.report.data import RunData, overlapping_pools, read_run, select_episodes
from rcgrpo.report.figures import DASHES, finetune_panels, reinforce_panels, smoothing_window
from rcgrpo.report.table import percent, signed

_TEMPLATES = files("rcgrpo.report").joinpath("templates")

LONGEST_TEXT = 4000
"""Characters of one message or result that the page shows; of what is left out it gives the number."""


class TurnView(NamedTuple):
    """One user turn as it is read: what was said, what was done, how it was judged."""

    said: list[Message]
    steps: list[Step]
    verdict: Verdict | None


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` into a run directory (through a rename) and return its path.

    A run still under way is reported as far as it got. Raises :class:`rcgrpo.errors.UserError` where
    ``run_dir`` is not a run directory or a file in it is damaged.
    """
    path = run_dir / "report.html"
    # a lone surrogate, which JSON can smuggle into a string, has no UTF-8
    write_text(path, render(read_run(run_dir)), errors="backslashreplace")
    return path


def render(run: RunData) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("rcgrpo.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, finalize=_printable,
    )  # fmt: skip
    environment.filters |= {
        "percent": percent,
        "signed": signed,
        "call": call_text,
        "shorten": shorten,
        "mark": mark_goal,
    }
    script, style = (_TEMPLATES.joinpath(name).read_text() for name in ("report.js", "report.css"))
    metrics = {s.name: s.metrics for s in run.stages if s.metrics}
    reinforced = {s.name: metrics[s.name] for s in run.stages if s.kind == "reinforce" and s.metrics}
    finetuned = {s.name: metrics[s.name] for s in run.stages if s.kind in ("pretrain", "finetune") and s.metrics}
    return environment.get_template("report.html.jinja").render(
        run=run,
        config=json.dumps(run.config, indent=2, ensure_ascii=False),
        summary=summary(run),
        notes=notes(run),
        categories=sorted({name for row in run.rows for name in row.figures.get("by_category") or {}}),
        reinforce=reinforce_panels(reinforced, run.colours),
        finetune=finetune_panels(finetuned, run.colours),
        legends={
            "reinforce": [(name, run.colours[name], i % len(DASHES)) for i, name in enumerate(reinforced)],
            "finetune": [(name, run.colours[name], i % len(DASHES)) for i, name in enumerate(finetuned)],
        },
        window=max((smoothing_window(len(lines)) for lines in metrics.values()), default=1),
        browser=[(row, [(e, turns(e)) for e in select_episodes(row.episodes)]) for row in run.rows if row.episodes],
        style=style,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def summary(run: RunData) -> str:
    """What was run and what came out, in a few sentences, from the figures alone."""
    config, evaluated = run.config, run.config["evaluate"]
    world = next(name for name in ("toolworld", "bfcl", "custom") if config.get(name) is not None)
    done = sum(stage.record is not None for stage in run.stages)
    parts = [f"{done} of {len(config['stages'])} stages done, seed {config['seed']}, world {world}."]
    if not run.rows:
        return " ".join([*parts, "Nothing is evaluated yet."])
    decoding = "greedy decoding" if evaluated["temperature"] == 0 else f"temperature {evaluated['temperature']:g}"
    best = max(run.rows, key=lambda row: row.figures["success"]).figures
    parts.append(
        f"Highest success on pool {evaluated['pool']!r} under {decoding}: {best['row']}, "
        f"{percent(best['success'])}% of {best['n']} episodes "
        f"(95% interval {percent(best['low'])} to {percent(best['high'])})."
    )
    others = [row.figures for row in run.rows if row.figures is not best]
    rivals = [figures["row"] for figures in others if figures["high"] >= best["low"]]
    if rivals:
        named = "; ".join(rivals)
        parts.append(f"Its interval overlaps with {named}: so few episodes do not settle that order.")
    return " ".join(parts)


def notes(run: RunData) -> list[str]:
    """What a reader must know before believing the figures."""
    found = [
        f"{count} of the evaluated tasks are also in pool {pool!r}, which stages learned from: "
        "these figures say that the plumbing works, not that the policy generalises."
        for pool, count in overlapping_pools(run).items()
    ]
    errors = sum(row.figures.get("errors", 0) for row in run.rows)
    if errors:
        found.append(f"{errors} evaluated episodes ended in an error of the environment; they count as failures.")
    unfinished = [stage.name for stage in run.stages if stage.record is None]
    if unfinished:
        found.append(f"Not finished when this page was written: {', '.join(unfinished)}.")
    return found


def turns(episode: Episode) -> list[TurnView]:
    """Cut an episode into the user turns of its task; turns never reached have a verdict and nothing else."""
    said: dict[int, list[Message]] = {}
    turn, steps = 0, iter(episode.steps)
    waiting: list[Message] = []
    for message in episode.messages:
        if message.role == "assistant":
            turn = next(steps).turn
            said.setdefault(turn, []).extend(waiting)
            waiting = []
        elif message.role != "tool":  # results are shown with their calls
            waiting.append(message)
    if waiting:  # said, but the episode ended before an answer
        said.setdefault(turn + 1 if episode.steps else 0, []).extend(waiting)
    count = max(len(episode.verdicts), max(said, default=-1) + 1)
    return [
        TurnView(
            said.get(i, []),
            [step for step in episode.steps if step.turn == i],
            episode.verdicts[i] if i < len(episode.verdicts) else None,
        )
        for i in range(count)
    ]


def call_text(call: Call) -> str:
    """A call as it is usually written: ``name(key=value, ...)``, values in JSON."""
    arguments = ", ".join(f"{k}={json.dumps(v, ensure_ascii=False)}" for k, v in call.arguments.items())
    return f"{call.name}({arguments})"


def shorten(text: str, limit: int = LONGEST_TEXT) -> str:
    """The beginning of a long text and how much is left out."""
    return text if len(text) <= limit else f"{text[:limit]}\n… {len(text) - limit:,} more characters"


def mark_goal(text: str, token: RewardToken | None) -> Markup:
    """A user message with the reward token that it was conditioned on highlighted."""
    before, goal, after = text.rpartition(token.text if token else "\0")
    return Markup("{}<mark>{}</mark>{}").format(before, goal, after) if goal else escape(text)


def _printable(value: Any) -> Any:
    """Show control characters, which HTML forbids and which can hide text, by their numbers."""
    if isinstance(value, str) and _CONTROL.search(value):
        return type(value)(_CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", value))
    return value


_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
