"""Read a run directory for its report: nothing is computed here that a stage has not written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rcgrpo.environments.split import Split
from rcgrpo.episodes.store import read_episodes
from rcgrpo.episodes.types import Episode
from rcgrpo.errors import UserError
from rcgrpo.stages.directory import RunDirectory, read_json


@dataclass(frozen=True)
class StageData:
    """A stage that has left a trace."""

    name: str
    kind: str
    """``pretrain``, ``collect``, ``finetune`` or ``reinforce``."""
    settings: dict[str, Any]
    """Its table of the resolved recipe."""
    record: dict[str, Any] | None
    """``stage.json``; None while the stage is not done."""
    metrics: list[dict[str, Any]]
    """One object per step."""


@dataclass(frozen=True)
class RowData:
    """A row of the results table with the episodes behind it."""

    figures: dict[str, Any]
    episodes: list[Episode]
    colour: str
    """Name of its CSS variable, the same in all figures."""


@dataclass(frozen=True)
class RunData:
    """All that a report shows."""

    config: dict[str, Any]
    provenance: dict[str, Any]
    split: Split | None
    rows: list[RowData]
    stages: list[StageData]
    colours: dict[str, str]
    """CSS variable of each stage: that of the first row which evaluates it."""


COLOURS = 8
"""Distinct colours; beyond them they repeat, told apart by their dashes."""


def read_run(path: Path) -> RunData:
    """Read a run directory; a run still under way gives what is there.

    Raises :class:`UserError` if it is no run directory, or a file in it is damaged.
    """
    run = RunDirectory.open(path)
    config = read_json(path / "config.json")
    stages = [stage for name, table in config["stages"].items() if (stage := _stage(run, name, table))]
    figures = read_json(run.table_path) if run.table_path.is_file() else []
    colours = _colours([row["policy"] for row in figures], [s.name for s in stages if s.kind != "collect"])
    rows = []
    for number, row in enumerate(figures):
        episodes = run.evaluation(row["row"]) / "episodes.jsonl.gz"
        rows.append(RowData(row, list(read_episodes(episodes)) if episodes.is_file() else [], colours[number]))
    by_stage: dict[str, str] = {}
    for row in rows:
        by_stage.setdefault(row.figures["policy"], row.colour)
    spare = iter(colours[len(figures) :])
    for stage in stages:
        if stage.kind != "collect" and stage.name not in by_stage:
            by_stage[stage.name] = next(spare)
    return RunData(
        config=config,
        provenance=read_json(path / "provenance.json") if (path / "provenance.json").is_file() else {},
        split=run.split() if run.split_path.is_file() else None,
        rows=rows,
        stages=stages,
        colours=by_stage,
    )


def _stage(run: RunDirectory, name: str, settings: dict[str, Any]) -> StageData | None:
    directory = run.stage(name)
    if not directory.path.is_dir():
        return None
    try:
        metrics = directory.metrics()
    except ValueError as error:
        raise UserError(f"metrics.jsonl of stage {name!r} in {run.path} cannot be read: {error}") from error
    return StageData(name, settings["kind"], settings, directory.record, metrics)


def _colours(policies: list[str], stages: list[str]) -> list[str]:
    """Colour of each row, then of each stage without a row. The policy before training is grey."""
    colours, used = [], 0
    for policy in [*policies, *(stage for stage in stages if stage not in policies)]:
        if policy == "base":
            colours.append("base")
        else:
            colours.append(str(used % COLOURS))
            used += 1
    return colours


def overlapping_pools(run: RunData) -> dict[str, int]:
    """Pools that stages learn from and that share tasks with the evaluated pool: how many tasks each shares."""
    if run.split is None:
        return {}
    evaluated = run.config["evaluate"]
    tested = set(run.split.pools.get(evaluated["pool"], [])[: evaluated.get("limit")])
    learned: dict[str, set[str]] = {}
    for stage in run.stages:
        if pool := stage.settings.get("pool"):
            ids = run.split.pools.get(pool, [])[: stage.settings.get("limit")]
            learned.setdefault(pool, set()).update(ids)
    shared = {pool: len(tested & learned[pool]) for pool in sorted(learned)}
    return {pool: count for pool, count in shared.items() if count}


def select_episodes(episodes: list[Episode], per_outcome: int = 6) -> list[Episode]:
    """Up to ``per_outcome`` successes and as many failures, categories in turn, in the order they were saved."""
    chosen: list[Episode] = []
    for outcome in (True, False):
        queues: dict[str, list[Episode]] = {}
        for episode in episodes:
            if episode.success is outcome:
                queues.setdefault(episode.category, []).append(episode)
        picked: list[Episode] = []
        while len(picked) < per_outcome and any(queues.values()):
            picked += [queue.pop(0) for queue in queues.values() if queue]
        chosen += picked[:per_outcome]
    return chosen
