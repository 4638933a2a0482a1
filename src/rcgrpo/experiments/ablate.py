"""Run an ablation: each seed is one ordinary run directory, all their work is one queue, cells are read from both."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from rcgrpo.config import ArmTable, Recipe
from rcgrpo.experiments.cells import found_cells
from rcgrpo.experiments.plan import ablation_of, cell_name, seed_recipe
from rcgrpo.experiments.results import Results, check_same, key_of, read_results, start, with_cells, write_results
from rcgrpo.stages.directory import RunDirectory, provenance, write_json
from rcgrpo.stages.run import Watcher, Work, plan, work_off


def seed_directory(out: Path, seed: int) -> RunDirectory:
    """Where the run of a seed lies."""
    return RunDirectory(out / f"seed-{seed}")


def work_left(
    recipe: Recipe,
    out: Path,
    results: Results,
    seeds: Sequence[int],
    arms: Sequence[ArmTable],
    processes: int,
    redo: Sequence[str] = (),
) -> list[Work]:
    """What is left to do: seed by seed, arm by arm; an arm's stages, then the cells of its tokens.

    A cell that ``results`` hold is done, wherever it was measured, also where its run directory is gone, unless
    ``redo`` names a stage that its policy follows from.
    """
    measured = {key_of(cell) for cell in without_redone(recipe, results, seeds, redo)["cells"]}
    work: dict[Path, Work] = {}
    for seed in seeds:
        run, seeded = seed_directory(out, seed), seed_recipe(recipe, seed)
        for arm in arms:
            tokens = [token for token in ablation_of(recipe).tokens if (arm.row, seed, token) not in measured]
            rows = [cell_name(arm.row, token) for token in tokens]
            for piece in plan(run, seeded, processes, redo, rows):
                work.setdefault(piece.directory.path, replace(piece, title=f"seed {seed}: {piece.title}"))
    return list(work.values())


def ablate(
    recipe: Recipe,
    out: Path,
    path: Path,
    results: Results,
    seeds: Sequence[int],
    arms: Sequence[ArmTable],
    *,
    jobs: int,
    processes: int,
    redo: list[str],
    watch: Watcher = lambda *_: None,
) -> Results:
    """Do what is left of the chosen seeds and arms; ``results`` so far grow by the cells and are written to ``path``.

    They are written before the first piece of work and after each, also where it is stopped by Ctrl-C or fails: all
    cells found by then. What ``redo`` makes void leaves the file first, so that the command without it goes on.
    Raises :class:`UserError` where ``out`` and the file hold one cell with different outcomes.
    """
    runs = {seed: (seed_directory(out, seed), seed_recipe(recipe, seed)) for seed in seeds}
    for run, seeded in runs.values():
        run.check(seeded, redo)  # a mistake leaves no folder
    with ExitStack() as held:
        for run, _ in runs.values():
            held.enter_context(run.alone())
        start(path, results)
        for seed, (run, seeded) in runs.items():
            run.prepare(seeded, redo)
            write_json(run.path / "provenance.json", {**provenance(seed), "jobs": jobs, "processes": processes})
        if redo:
            write_results(path, without_redone(recipe, read_results(path), seeds, redo))

        def keep() -> None:
            known = read_results(path)  # again: another session may add cells
            write_results(path, collect(recipe, out, {**known, "plan": {**results["plan"], **known["plan"]}}))

        keep()
        left = work_left(recipe, out, read_results(path), seeds, arms, processes)
        work_off(left, jobs=jobs, processes=processes, watch=watch, finished=keep)
        return read_results(path)


def without_redone(recipe: Recipe, results: Results, seeds: Sequence[int], redo: Sequence[str]) -> Results:
    """The results without the cells of these seeds whose policy follows from a stage that is done again."""
    again = recipe.with_followers(redo)
    void = {arm.row for arm in ablation_of(recipe).arms if arm.policy in again}
    kept = [cell for cell in results["cells"] if not (cell["row"] in void and cell["seed"] in seeds)]
    return with_cells({**results, "cells": kept}, [])


def collect(recipe: Recipe, out: Path, results: Results) -> Results:
    """The results with every cell that is found under ``out``, whatever session or machine measured it.

    Raises :class:`UserError` where the results hold one of them with different outcomes.
    """
    cells: list[dict[str, Any]] = []
    for seed in ablation_of(recipe).seeds:
        run = seed_directory(out, seed)
        if (run.path / "config.json").is_file():
            found = found_cells(recipe, run, seed)
            check_same(results["cells"], found, f"{run.path} (--redo, or another --out, parts them)")
            cells += found
    return with_cells(results, cells)
