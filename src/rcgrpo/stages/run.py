"""Walk a recipe: stages in order, each in a process of its own, those already done skipped; then the table.

A stage runs as ``rcgrpo stage RUN_DIR NAME``: its memory is freed when it ends, several can run side by side
(``jobs``), and with ``processes`` above 1 it is launched through torch.distributed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from rcgrpo.config import CollectTable, FinetuneTable, PretrainTable, Recipe, RetokeniseTable
from rcgrpo.errors import UserError
from rcgrpo.stages.collect import collect
from rcgrpo.stages.directory import RunDirectory, StageDirectory, provenance, write_json
from rcgrpo.stages.evaluate import evaluate_row, evaluation_size, finished_row
from rcgrpo.stages.finetune import finetune
from rcgrpo.stages.pretrain import pretrain
from rcgrpo.stages.reinforce import reinforce
from rcgrpo.stages.retokenise import retokenise
from rcgrpo.stages.training import Interrupted

INTERRUPTED = 130
"""Exit code of a stage that was stopped by Ctrl-C after writing a resume point."""


def run_stage(run: RunDirectory, name: str) -> dict[str, Any]:
    """Do one stage in this process, whatever its kind, and mark it done."""
    recipe = run.recipe()
    if name not in recipe.stages:
        raise UserError(f"no stage {name!r} in {run.path}; it has {', '.join(recipe.stages)}")
    table = recipe.stages[name]
    run.stage(name).begin(recipe.digest(name))
    started = time.monotonic()
    if isinstance(table, CollectTable):
        result = collect(run, recipe, name)
    elif isinstance(table, FinetuneTable):
        result = finetune(run, recipe, name)
    elif isinstance(table, PretrainTable):
        result = pretrain(run, recipe, name)
    elif isinstance(table, RetokeniseTable):
        result = retokenise(run, recipe, name)
    else:
        result = reinforce(run, recipe, name)
    if int(os.environ.get("RANK", "0")) == 0:
        run.stage(name).finish(
            kind=table.kind,
            needs=recipe.needs(name),
            digest=recipe.digest(name),
            seconds=round(time.monotonic() - started, 2),
            result=result,
            provenance=provenance(recipe.seed),
        )
    return result


def run_rows(run: RunDirectory, names: list[str]) -> None:
    """Measure rows of the table in this process; log and progress lie in the first one's folder."""
    recipe = run.recipe()
    rows = [row for row in recipe.evaluate.rows if row.row in names]
    directory = StageDirectory(run.evaluation(names[0]))
    total, done = evaluation_size(run, recipe) * len(rows), 0

    def progress() -> None:
        nonlocal done
        done += 1
        directory.progress(done, total)

    for row in rows:
        evaluate_row(run, recipe, row, progress)


@dataclass
class Work:
    """A subprocess to run: a stage, or the evaluation of a policy's rows."""

    title: str
    arguments: list[str]
    directory: StageDirectory
    """Its own among all work that runs together."""
    after: set[Path]
    """Folders of the work that has to be done first."""
    processes: int = 1
    process: subprocess.Popen[bytes] | None = None
    slot: int = 0
    """Its place among what runs at once."""

    def start(self, threads: int, gpus: Sequence[str] = ()) -> None:
        """Start it; it sees ``gpus`` alone where some are given, else all of the machine."""
        self.directory.path.mkdir(parents=True, exist_ok=True)
        self.directory.complaint.unlink(missing_ok=True)
        launcher = [sys.executable]
        if self.processes > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.processes}"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        with self.directory.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*launcher, "-m", "rcgrpo", *self.arguments],
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # the terminal's Ctrl-C comes to us alone, which pass it on once
            )

    def workers(self, *, all_below: bool = False) -> list[psutil.Process]:
        """The processes that a launcher started, or everything below it, as far as they live."""
        assert self.process is not None
        try:
            return psutil.Process(self.process.pid).children(recursive=all_below)
        except psutil.NoSuchProcess:
            return []

    def interrupt(self) -> None:
        """Ask it to stop at its next resume point. A launcher is not told: it would kill its workers after 30 s."""
        assert self.process is not None
        if self.process.poll() is not None:
            return
        for process in (self.workers() if self.processes > 1 else []) or [self.process]:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """End it at once, with all that it started."""
        assert self.process is not None
        if self.process.poll() is not None:
            return
        for process in self.workers(all_below=True) if self.processes > 1 else []:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        os.killpg(self.process.pid, signal.SIGKILL)


Watcher = Callable[[str, int, int], None]
"""Called with (title, done, total) while work goes on."""


def plan(
    run: RunDirectory,
    recipe: Recipe,
    processes: int = 1,
    redo: Sequence[str] = (),
    rows: Sequence[str] | None = None,
) -> list[Work]:
    """The work that is left: stages not done or to be done again, rows not measured.

    ``rows`` restricts it to these rows of the table and the stages that they need. The rows of one policy are
    one piece of work.
    """
    again = recipe.with_followers(redo)
    chosen = [row for row in recipe.evaluate.rows if rows is None or row.row in rows]
    wanted = recipe.order() if rows is None else stages_for(recipe, [row.policy for row in chosen])
    left = [name for name in wanted if name in again or run.stage(name).record is None]
    work = [
        Work(
            title=name,
            arguments=["stage", str(run.path), name],
            directory=run.stage(name),
            after={run.stage(need).path for need in recipe.needs(name) if need in left},
            processes=processes if recipe.stages[name].kind in ("pretrain", "finetune", "reinforce") else 1,
        )
        for name in left
    ]
    unmeasured: dict[str, list[str]] = {}
    for row in chosen:
        if row.policy in left or finished_row(run, recipe, row) is None:
            unmeasured.setdefault(row.policy, []).append(row.row)
    for policy, names in unmeasured.items():
        work.append(
            Work(
                title=f"evaluate {names[0] if len(names) == 1 else f'{policy} ({len(names)} rows)'}",
                arguments=["row", str(run.path), *names],
                directory=StageDirectory(run.evaluation(names[0])),
                after={run.stage(policy).path} if policy in left else set(),
            )
        )
    return work


def stages_for(recipe: Recipe, policies: Sequence[str]) -> list[str]:
    """The stages that make these policies, in order; none for ``base``."""
    found = {name for name in policies if name in recipe.stages}
    for name in reversed(recipe.order()):
        if name in found:
            found.update(recipe.needs(name))
    return [name for name in recipe.order() if name in found]


def run_recipe(
    run: RunDirectory, recipe: Recipe, *, jobs: int, processes: int, watch: Watcher = lambda *_: None
) -> list[dict[str, Any]]:
    """Do all work that is left, at most ``jobs`` pieces at once; return the table.

    Raises :class:`Interrupted` after Ctrl-C, once the stages have written their resume points.
    """
    write_json(run.path / "provenance.json", {**provenance(recipe.seed), "jobs": jobs, "processes": processes})
    work_off(plan(run, recipe, processes), jobs=jobs, processes=processes, watch=watch)
    table = [finished_row(run, recipe, row) for row in recipe.evaluate.rows]
    rows = [row for row in table if row is not None]
    write_json(run.table_path, rows)
    return rows


def work_off(
    work: Sequence[Work],
    *,
    jobs: int,
    processes: int,
    watch: Watcher = lambda *_: None,
    finished: Callable[[], None] = lambda: None,
) -> None:
    """Do pieces of work, each after what it needs, at most ``jobs`` at once, the first ones first.

    ``finished`` is called after each piece, and once more where the work ends early.
    Raises :class:`Interrupted` after Ctrl-C, once what ran has written its resume points.
    """
    waiting = list(work)
    running: list[Work] = []
    done: set[Path] = set()
    # torch counts the free cores and heeds OMP_NUM_THREADS; more threads than that are many times slower
    threads = max(1, torch.get_num_threads() // (jobs * processes))
    gpus = visible_gpus() if jobs > 1 else []
    try:
        while waiting or running:
            for piece in [w for w in waiting if w.after <= done][: jobs - len(running)]:
                waiting.remove(piece)
                piece.slot = min(set(range(jobs)) - {other.slot for other in running})
                piece.start(threads, share_of_gpus(gpus, piece.slot, processes))
                running.append(piece)
            time.sleep(0.1)
            for piece in list(running):
                watch(piece.title, *piece.directory.read_progress())
                assert piece.process is not None
                if (code := piece.process.poll()) is None:
                    continue
                running.remove(piece)
                _check_exit(piece, code)
                done.add(piece.directory.path)
                finished()
    except KeyboardInterrupt:
        raise Interrupted from None
    finally:
        if running:
            _wind_down(running)
            finished()


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES takes."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [name.strip() for name in given.split(",")] if given else [str(i) for i in range(torch.cuda.device_count())]
    return names[: torch.cuda.device_count()]


def share_of_gpus(gpus: Sequence[str], slot: int, processes: int) -> list[str]:
    """The GPUs of the piece of work in a slot, one per process; slots beyond the last GPU begin again at the first."""
    first = slot * processes
    return [gpus[i % len(gpus)] for i in range(first, first + min(processes, len(gpus)))] if gpus else []


def _check_exit(work: Work, code: int) -> None:
    if code == 0:
        return
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if work.directory.complaint.is_file():
        raise UserError(f"{work.title}: {work.directory.complaint.read_text(encoding='utf-8')}")
    log = work.directory.log.read_text(errors="replace").strip()
    tail = "\n".join(log.splitlines()[-15:])
    raise RuntimeError(f"{work.title} failed with exit code {code}; the end of {work.directory.log}:\n{tail}")


def _wind_down(running: list[Work]) -> None:
    """Ask what still runs to stop at its next resume point, and wait for it; a second Ctrl-C waits no longer."""
    for work in running:
        work.interrupt()
    try:
        for work in running:
            if work.process is not None:
                work.process.wait()  # a batch of a large model takes minutes
    except KeyboardInterrupt:
        for work in running:
            work.kill()


def default_jobs(recipe: Recipe, processes: int = 1) -> int:
    """Pieces of work at once: on GPUs as many as leave each process one of its own; on a CPU one per core, at most 4.

    One for a server, which has the weights of one policy at a time.
    """
    if recipe.rollout.backend == "vllm":
        return 1
    on_gpu = recipe.model.device != "cpu" and torch.cuda.is_available()
    return max(1, torch.cuda.device_count() // processes if on_gpu else min(4, os.cpu_count() or 1))
