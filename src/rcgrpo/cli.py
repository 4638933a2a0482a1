"""The command line. Exit codes: 0 done, 2 the user's mistake, 1 a failure of ours, 130 stopped by Ctrl-C."""

from __future__ import annotations

import asyncio
import json
import math
import shlex
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from rcgrpo.bench.cli import app as bench_app
from rcgrpo.errors import UserError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Reward-conditioned GRPO for multi-turn tool-calling agents.",
)
bfcl_app = typer.Typer(no_args_is_help=True, help="The Berkeley Function Calling Leaderboard package.")
validate_app = typer.Typer(no_args_is_help=True, help="Replay gold answers without a model.")
app.add_typer(bfcl_app, name="bfcl")
app.add_typer(validate_app, name="validate")
app.add_typer(bench_app, name="bench")

log = Console(stderr=True)
"""All that is not a result."""

RecipePath = Annotated[Path, typer.Argument(help="A TOML recipe.")]
RunPath = Annotated[Path, typer.Argument(help="A run directory.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override: key=value, value in TOML; repeatable.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
Token = Annotated[str, typer.Option(help="Reward token at inference: high, low or none.")]


def emit(result: dict[str, Any], *, as_json: bool) -> None:
    """Print the result: one JSON object on standard output, or nothing if people were already shown it."""
    if as_json:
        print(json.dumps(result), flush=True)


def bars() -> Progress:
    """Progress bars on standard error."""
    return Progress(
        TextColumn("{task.description:<34}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=log
    )


def watcher(progress: Progress) -> Callable[[str, int, int], None]:
    """Shows a bar for each piece of work by its title, done and total."""
    tasks: dict[str, Any] = {}

    def watch(title: str, done: int, total: int) -> None:
        if title not in tasks:
            tasks[title] = progress.add_task(title, total=None)
        progress.update(tasks[title], completed=done, total=total or None)

    return watch


@app.command()
def run(
    recipe_path: RecipePath,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; runs/<name> if absent.")] = None,
    redo: Annotated[
        list[str] | None, typer.Option(help="Stage to do again, with all that follows; repeatable.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Stages at once; default: the cores, or the GPUs.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes (GPUs) per training stage.")] = 1,
    dry_run: Annotated[bool, typer.Option(help="Print the resolved recipe and the plan; do nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Do all stages of a recipe in order, skip those already done, and write the table and the report."""
    from rcgrpo.config import load_recipe
    from rcgrpo.report.page import write_report
    from rcgrpo.report.table import print_table
    from rcgrpo.stages.directory import RunDirectory
    from rcgrpo.stages.run import default_jobs, plan, run_recipe

    recipe = load_recipe(recipe_path, overrides)
    if recipe.ablation is not None:
        raise UserError(f"{recipe_path} has a table [ablation]: use rcgrpo ablate {recipe_path}")
    directory = RunDirectory(out or Path("runs") / recipe.name)
    if dry_run:
        directory.check(recipe, redo or [])
        steps = [work.title for work in plan(directory, recipe, redo=redo or [])]
        log.print_json(recipe.model_dump_json(exclude_none=True))
        log.print(f"run directory: {directory.path}\nto do: {', '.join(steps) or 'nothing'}", highlight=False)
        emit({"run_dir": str(directory.path), "plan": steps}, as_json=as_json)
        return
    jobs = jobs or default_jobs(recipe, processes)
    directory.check(recipe, redo or [])  # a mistake leaves no folder
    with directory.alone():
        directory.prepare(recipe, redo or [])
        with bars() as progress:
            rows = run_recipe(directory, recipe, jobs=jobs, processes=processes, watch=watcher(progress))
    report = write_report(directory.path)
    print_table(rows, log)
    log.print(f"report: {report}", highlight=False)
    emit({"run_dir": str(directory.path), "report": str(report), "table": rows}, as_json=as_json)


@app.command()
def ablate(
    recipe_path: RecipePath,
    overrides: Overrides = None,
    seeds: Annotated[str | None, typer.Option(help="How many of the planned seeds, or which: 0,1 or 3,")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Arm to run, by its row; repeatable. Default: all.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the seeds' runs; runs/<name> if absent.")] = None,
    results: Annotated[Path | None, typer.Option(help="Results file; OUT/results.json if absent.")] = None,
    redo: Annotated[list[str] | None, typer.Option(help="Stage to do again in the chosen seeds; repeatable.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Pieces of work at once; default: as for run.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes (GPUs) per training stage.")] = 1,
    plan_only: Annotated[
        bool, typer.Option(help="Write the plan, to be committed before the runs; run nothing.")
    ] = False,
    dry_run: Annotated[bool, typer.Option(help="Print arms, budgets and what is left; do nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run the ablation of a recipe: every arm under every seed, each evaluated under every token."""
    from rcgrpo.config import load_recipe
    from rcgrpo.experiments.ablate import ablate as run_ablation
    from rcgrpo.experiments.ablate import work_left
    from rcgrpo.experiments.plan import ablation_of, chosen_arms, chosen_seeds, plan_of
    from rcgrpo.experiments.results import open_results, write_results
    from rcgrpo.report.rows import print_plan
    from rcgrpo.stages.run import default_jobs

    recipe = load_recipe(recipe_path, overrides)
    table = ablation_of(recipe)
    chosen, arms = chosen_seeds(table, seeds), chosen_arms(table, only or [])
    folder = out or Path("runs") / recipe.name
    path = results or folder / "results.json"
    plan = plan_of(recipe)
    changes = "".join(f" --set {shlex.quote(change)}" for change in overrides or [])
    known = open_results(path, plan, f"rcgrpo ablate {recipe_path}{changes}")
    if dry_run or plan_only:
        print_plan(plan, log)
        if plan_only:
            write_results(path, known)
            log.print(f"plan: {path}; commit it before the runs start", highlight=False)
        left = [work.title for work in work_left(recipe, folder, known, chosen, arms, processes, redo or [])]
        log.print(f"left: {len(left)} pieces of work", highlight=False)
        emit({"results": str(path), "digest": plan["digest"], "left": left}, as_json=as_json)
        return
    jobs = jobs or default_jobs(recipe, processes)
    with bars() as progress:
        found = run_ablation(
            recipe, folder, path, known, chosen, arms, jobs=jobs, processes=processes, redo=redo or [],
            watch=watcher(progress),
        )  # fmt: skip
    show_ablation(found, path, folder / "report.html", as_json=as_json)


def show_ablation(found: dict[str, Any], path: Path, page: Path, *, as_json: bool) -> None:
    """Print an ablation's table and comparisons, write its page, and emit the result."""
    from rcgrpo.report.ablation import write_ablation_report
    from rcgrpo.report.rows import print_ablation

    write_ablation_report(found, page)
    print_ablation(found, log)
    log.print(f"results: {path}\nreport: {page}", highlight=False)
    emit(
        {
            "results": str(path),
            "report": str(page),
            "cells": len(found["cells"]),
            "comparisons": found["comparisons"],
        },
        as_json=as_json,
    )


@app.command("results")
def results_command(
    path: Annotated[Path, typer.Argument(help="Results file of an ablation.")],
    merge: Annotated[
        list[Path] | None, typer.Option(help="Results file of the same plan to join to it; repeatable.")
    ] = None,
    page: Annotated[Path | None, typer.Option("--report", help="The page to write; default: FILE with .html.")] = None,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(help="Print the difference of two rows (ROW, or ROW@TOKEN) alone: not planned, an exploration."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print an ablation's results file and draw its page; --merge first joins cells measured elsewhere to it."""
    from rcgrpo.experiments.results import merge as join
    from rcgrpo.experiments.results import read_results, unplanned, write_results
    from rcgrpo.report.rows import print_comparisons

    found = read_results(path)
    if compare:
        if merge or page:
            raise UserError("--compare prints two rows and changes no file: give it without --merge and --report")
        pair = unplanned(found, *compare)
        print_comparisons([pair], found["plan"].get("reward"), log, planned=False)
        emit(pair, as_json=as_json)
        return
    if merge:
        found = join(found, [(other, read_results(other)) for other in merge])
        write_results(path, found)
    show_ablation(found, path, page or path.with_suffix(".html"), as_json=as_json)


def _heed_the_starter() -> None:
    """Whoever starts this process stops it by SIGINT, which a shell has ignored in all that a script's job starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@app.command(hidden=True)
def stage(run_dir: RunPath, name: str) -> None:
    """Do one stage of a prepared run in this process (what `run` starts)."""
    from rcgrpo.stages.directory import RunDirectory
    from rcgrpo.stages.run import run_stage

    _heed_the_starter()
    run = RunDirectory.open(run_dir)
    with run.stage(name).complaining():
        log.print_json(data=run_stage(run, name))


@app.command(hidden=True)
def row(run_dir: RunPath, names: list[str]) -> None:
    """Measure rows of a prepared run's table in this process (what `run` starts)."""
    from rcgrpo.stages.directory import RunDirectory, StageDirectory
    from rcgrpo.stages.run import run_rows

    _heed_the_starter()
    run = RunDirectory.open(run_dir)
    with StageDirectory(run.evaluation(names[0])).complaining():
        run_rows(run, names)


@app.command("eval")
def evaluate(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint folder, a hub name, toolworld-base or bfcl-base.")],
    recipe_path: RecipePath,
    token: Token = "none",
    overrides: Overrides = None,
    episodes: Annotated[Path | None, typer.Option(help="Save the episodes here (.jsonl or .jsonl.gz).")] = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a checkpoint on the recipe's world, split and [evaluate] settings."""
    from rcgrpo.config import load_recipe
    from rcgrpo.environments.protocol import tasks_of
    from rcgrpo.episodes.store import write_episodes
    from rcgrpo.episodes.types import RewardToken
    from rcgrpo.policy.load import load_policy
    from rcgrpo.report.table import print_table
    from rcgrpo.stages.evaluate import evaluation_jobs, summarise
    from rcgrpo.stages.setup import player_for

    if token not in ("none", *RewardToken):
        raise UserError(f"--token {token}: choose high, low or none")
    reward_token = None if token == "none" else RewardToken(token)
    recipe = load_recipe(recipe_path, overrides)
    policy = load_policy(checkpoint, name=checkpoint, dtype=recipe.model.dtype, device=recipe.model.device)
    split = recipe.suite.split()
    tasks = tasks_of(recipe.suite, split, recipe.evaluate.pool, recipe.evaluate.limit)
    todo = evaluation_jobs(tasks, recipe.evaluate, reward_token, recipe.seed)
    with bars() as progress:
        bar = progress.add_task("episodes", total=len(todo))
        played = player_for(recipe, policy).policy(policy, todo, lambda: progress.advance(bar))
    if episodes:
        write_episodes(episodes, played)
    result = {
        **summarise(played),
        "row": f"{checkpoint} ({token})",
        "token": token,
        "temperature": recipe.evaluate.temperature,
        "split_sha256": split.sha256,
    }
    print_table([result], log)
    emit(result, as_json=as_json)


@app.command()
def diagnose(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint folder, a hub name, or base (the recipe's model).")],
    recipe_path: RecipePath,
    overrides: Overrides = None,
    stage: Annotated[str | None, typer.Option(help="Stage 2 to predict groups of; default: the recipe's own.")] = None,
    tasks: Annotated[int, typer.Option(min=8, help="Tasks to roll out.")] = 32,
    group: Annotated[
        int | None,
        typer.Option(min=1, help="Rollouts of each task under each token; default: twice the stage's group_size."),
    ] = None,
    temperatures: Annotated[
        str | None, typer.Option(help="Others to measure too: 1.2,1.5, or none; default: 1.3 times the stage's.")
    ] = None,
    pool: Annotated[str | None, typer.Option(help="Pool of the split; default: the stage's.")] = None,
    seed: Annotated[int | None, typer.Option(help="Draws tasks and rollouts; default: the recipe's.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda; default: the recipe's.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write diagnose.json and diagnose.html into this folder.")] = None,
    as_json: AsJson = False,
) -> None:
    """Before spending GPU hours: roll out a few groups under each token; predict flat groups, and say what to do."""
    from rcgrpo.config import load_recipe
    from rcgrpo.experiments.diagnose import diagnose as diagnose_checkpoint
    from rcgrpo.experiments.diagnose import plan_diagnosis
    from rcgrpo.report.diagnosis import print_diagnosis, write_diagnosis

    if device not in (None, "auto", "cpu", "cuda"):
        raise UserError(f"--device {device}: choose auto, cpu or cuda")
    recipe = load_recipe(recipe_path, overrides)
    others = None if temperatures is None else parse_temperatures(temperatures)
    plan = plan_diagnosis(recipe, stage=stage, tasks=tasks, rollouts=group, temperatures=others, pool=pool, seed=seed)
    try:
        with bars() as progress:
            found = diagnose_checkpoint(checkpoint, recipe, plan, device=device, watch=watcher(progress))
    except KeyboardInterrupt:
        log.print("stopped; nothing was written", highlight=False)
        raise typer.Exit(130) from None
    print_diagnosis(found, Console())
    if out is not None:
        log.print(f"report: {write_diagnosis(found, out)}", highlight=False)
    emit(found, as_json=as_json)


def parse_temperatures(text: str) -> list[float]:
    """Numbers separated by commas, or ``none``."""
    try:
        temperatures = [] if text == "none" else [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--temperatures {text!r}: give numbers separated by commas, or none") from None
    if not all(math.isfinite(temperature) for temperature in temperatures):
        raise UserError(f"--temperatures {text!r}: give finite numbers")
    return temperatures


@app.command()
def replay(
    episodes: Annotated[Path, typer.Argument(help="Saved episodes.")],
    recipe_path: RecipePath,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Re-score saved episodes without a model: their calls are run again in fresh worlds."""
    from rcgrpo.config import load_recipe
    from rcgrpo.report.table import print_table
    from rcgrpo.stages.evaluate import replay as rescore
    from rcgrpo.stages.evaluate import summarise

    recipe = load_recipe(recipe_path, overrides)
    rescored, changed = asyncio.run(rescore(recipe.suite, episodes, recipe.reward))
    if not rescored:
        raise UserError(f"{episodes} holds no episodes")
    result = {**summarise(rescored), "row": str(episodes), "changed": len(changed)}
    print_table([result], log)
    log.print(f"{len(changed)} of {len(rescored)} episodes changed their verdict or reward")
    emit(result, as_json=as_json)


@app.command()
def report(run_dir: RunPath, as_json: AsJson = False) -> None:
    """Write report.html of a run directory again."""
    from rcgrpo.report.page import write_report
    from rcgrpo.stages.directory import RunDirectory

    path = write_report(RunDirectory.open(run_dir).path)
    log.print(f"report: {path}", highlight=False)
    emit({"report": str(path)}, as_json=as_json)


@bfcl_app.command("install")
def bfcl_install(force: Annotated[bool, typer.Option(help="Fetch it even if it is there.")] = False) -> None:
    """Fetch the pinned bfcl-eval package (data, classes, official checker) into the cache and check its hash."""
    from rcgrpo.environments.bfcl.install import install

    log.print(f"BFCL is in {install(force=force)}", highlight=False)


@validate_app.command("bfcl")
def validate_bfcl_command(
    mutants: Annotated[int, typer.Option(min=0, help="Mutated answers to compare with the official checker.")] = 2000,
    seed: Annotated[int, typer.Option(help="Seed of the mutations.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Replay all 800 gold answers and compare our verdicts with the official checker's."""
    from rcgrpo.environments.bfcl.validate import validate_bfcl

    with bars() as progress:
        bar = progress.add_task("answers", total=None)
        result = validate_bfcl(
            count=mutants, seed=seed, progress=lambda done, total: progress.update(bar, completed=done, total=total)
        )
    content = result.model_dump()
    log.print(f"gold valid: {result.gold_valid} of {result.gold_total}")
    log.print(f"agreement with the official checker: {result.agreed} of {result.mutants} mutated answers")
    for difference in content["differences"]:
        log.print(difference, markup=False)
    emit(content, as_json=as_json)
    if result.gold_valid != result.gold_total or result.agreed != result.mutants:
        raise typer.Exit(1)


@validate_app.command("toolworld")
def validate_toolworld_command(
    tasks: Annotated[int, typer.Option(min=1, help="Tasks to generate and replay.")] = 2000,
    seed: Annotated[int, typer.Option(help="Seed of the generator.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Replay the gold answers of generated ToolWorld tasks."""
    from rcgrpo.environments.toolworld.validate import validate_toolworld

    result = validate_toolworld(n=tasks, seed=seed)
    log.print(f"gold valid: {result.gold_valid} of {result.gold_total}")
    emit(result.model_dump(), as_json=as_json)
    if result.gold_valid != result.gold_total:
        raise typer.Exit(1)


def guarded(command: Callable[[], Any]) -> int:
    """Run the command line; turn its end into an exit code and, for a user's mistake, one message."""
    from rcgrpo.stages.training import Interrupted

    try:
        command()
    except UserError as error:
        log.print(f"error: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        return 2
    except (Interrupted, KeyboardInterrupt):
        aside = " without --redo" if any(argument.startswith("--redo") for argument in sys.argv) else ""
        log.print(f"stopped; the same command{aside} goes on from the last resume point", highlight=False)
        return 130
    except Exception:  # noqa: BLE001  a failure of ours: the traceback helps whoever reports it
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    """Entry point of the ``rcgrpo`` command."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        # stages are processes in sessions of their own: only a Ctrl-C is passed on to them
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    sys.exit(guarded(app))
