"""``rcgrpo bench``: each command measures one thing against its peer and prints a table or one JSON object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from rcgrpo.errors import UserError

app = typer.Typer(no_args_is_help=True, help="Measure speed against peers in the same run.")
log = Console(stderr=True)

Pairs = Annotated[int, typer.Option(min=1, help="Interleaved pairs; medians are reported.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of torch; not more than free cores.")]
Quick = Annotated[bool, typer.Option("--quick", help="One pair, without a warm-up.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]


def _start(threads: int) -> dict[str, Any]:
    from rcgrpo.bench.measure import environment

    around = environment(threads)
    log.print(around, highlight=False)
    return around


def _report(result: dict[str, Any], around: dict[str, Any], *, pairs: int, as_json: bool) -> None:
    whole = {**result, **around, "pairs": pairs}
    for key, value in result.items():
        log.print(f"{key:>18}  {value}", highlight=False, markup=False)
    if as_json:
        print(json.dumps(whole), flush=True)


def _numbers(text: str, option: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise UserError(f"{option} {text!r}: give whole numbers from 1 on, separated by commas")
    return numbers


def _shape(shape: str) -> Any:
    if shape not in ("small", "bfcl", "tiny"):
        raise UserError(f"--shape {shape}: choose small or bfcl (tiny is for tests)")
    return shape


@app.command()
def step(
    shape: Annotated[str, typer.Option(help="small or bfcl.")] = "small",
    pairs: Pairs = 3,
    threads: Threads = 1,
    quick: Quick = False,
    as_json: AsJson = False,
) -> None:
    """A whole step (rollouts and update) against TRL's GRPOTrainer, per generated token; quick bfcl: one prompt."""
    from rcgrpo.bench.step import bench_step

    pairs = 1 if quick else pairs
    around = _start(threads)
    prompts = 1 if quick and shape == "bfcl" else None
    result = bench_step(_shape(shape), pairs, warmup=0 if quick else 1, prompts=prompts)
    _report(result, around, pairs=pairs, as_json=as_json)


@app.command()
def update(
    shape: Annotated[str, typer.Option(help="bfcl or small.")] = "bfcl",
    pairs: Pairs = 3,
    threads: Threads = 1,
    quick: Quick = False,
    as_json: AsJson = False,
) -> None:
    """The shared-prefix update against our ordinary forward and TRL's: seconds and peak memory."""
    from rcgrpo.bench.update import bench_update

    pairs = 1 if quick else pairs
    around = _start(threads)
    _report(bench_update(_shape(shape), pairs, threads), around, pairs=pairs, as_json=as_json)


@app.command()
def rollout(
    turns: Annotated[str, typer.Option(help="Counts of user turns, fewest first.")] = "2,4,8,16",
    pairs: Pairs = 3,
    threads: Threads = 1,
    quick: Quick = False,
    as_json: AsJson = False,
) -> None:
    """Rollouts of more and more turns: growth of time over growth of tokens."""
    from rcgrpo.bench.rollout import bench_rollout

    pairs = 1 if quick else pairs
    around = _start(threads)
    _report(bench_rollout(_numbers(turns, "--turns"), pairs), around, pairs=pairs, as_json=as_json)


@app.command()
def env(
    pairs: Pairs = 3,
    threads: Threads = 1,
    mutants: Annotated[int, typer.Option(min=1, help="Mutated answers whose verdicts are compared.")] = 2000,
    quick: Quick = False,
    as_json: AsJson = False,
) -> None:
    """BFCL's calls and verdicts against the official executor and checker."""
    from rcgrpo.bench.env import bench_env

    pairs = 1 if quick else pairs
    around = _start(threads)
    result = bench_env(pairs, every=4 if quick else 1, mutants=min(mutants, 200) if quick else mutants)
    _report(result, around, pairs=pairs, as_json=as_json)


@app.command()
def decode(
    batches: Annotated[str, typer.Option(help="Rows that decode together.")] = "1,8,64,256",
    pairs: Pairs = 3,
    threads: Threads = 1,
    quick: Quick = False,
    as_json: AsJson = False,
) -> None:
    """Decode steps against generate() with dynamic and static caches, and against the machine's measured peaks."""
    from rcgrpo.bench.decode import bench_decode

    pairs = 1 if quick else pairs
    around = _start(threads)
    result = bench_decode(_numbers(batches, "--batches"), pairs, new=16 if quick else 48)
    _report(result, around, pairs=pairs, as_json=as_json)


@app.command()
def gpu(
    model: Annotated[str, typer.Option(help="qwen2.5-7b or llama-3.1-8b (small and tiny also run on a CPU).")],
    part: Annotated[str, typer.Option(help="Parts, separated by commas; all by default.")] = "",
    budget_seconds: Annotated[float, typer.Option(min=1, help="No piece starts after so many seconds.")] = 540,
    out: Annotated[Path, typer.Option(help="Folder of the JSON file, which is rewritten after every piece.")] = Path(
        "docs/results/gpu"
    ),
    as_json: AsJson = False,
) -> None:
    """Correctness, rollouts, updates, steps and peers at 7B shape with random weights, on one GPU (docs/gpu.md)."""
    from rcgrpo.bench.gpu import PARTS, bench_gpu, result_path

    parts = part.split(",") if part else list(PARTS)
    path = result_path(out, model, parts)
    result = bench_gpu(model, parts, path, budget_seconds)
    log.print(f"written to {path}", highlight=False)
    if as_json:
        print(json.dumps(result), flush=True)
