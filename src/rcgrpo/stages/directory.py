"""The run directory: where everything that a run produces lies, and how it is written whole or not at all.

::

    config.json provenance.json split.json table.json report.html
    stages/<stage>/stage.json            kind, digest, seconds: present once the stage is done
    stages/<stage>/metrics.jsonl         one object per step
    stages/<stage>/progress.json         {"done", "total"} while it runs
    stages/<stage>/episodes.jsonl.gz     collect: the episodes
    stages/<stage>/rollouts/*.jsonl.gz   reinforce: the batch at each resume point
    stages/<stage>/checkpoint/           all but collect: Hugging Face format
    stages/<stage>/resume/               state of an unfinished stage
    stages/<stage>/digest                what it was begun with
    stages/<stage>/error.txt             the user's mistake that ended it
    evaluations/<row>/                   result.json, episodes.jsonl.gz
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from rcgrpo.config import BASE, Recipe, parse_recipe
from rcgrpo.environments.split import Split
from rcgrpo.errors import UserError
from rcgrpo.files import write_text


def write_json(path: Path, content: Any) -> None:
    """Write JSON through a temporary file and a rename."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; a damaged file is a :class:`UserError` that names it."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


class StageDirectory:
    """One stage's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.episodes = path / "episodes.jsonl.gz"
        self.checkpoint = path / "checkpoint"
        self.resume = path / "resume"
        self.rollouts = path / "rollouts"
        self.log = path / "log.txt"
        self._metrics = path / "metrics.jsonl"
        self.complaint = path / "error.txt"
        self._marker = path / "stage.json"
        self._begun = path / "digest"
        self._reported = 0.0

    @property
    def record(self) -> dict[str, Any] | None:
        """What a finished stage noted about itself; None while it is not done."""
        return read_json(self._marker) if self._marker.is_file() else None

    def finish(self, **record: Any) -> None:
        """Mark the stage done."""
        write_json(self._marker, record)

    @property
    def begun(self) -> str:
        """The digest that the stage was begun with; empty where that is not known."""
        return self._begun.read_text().strip() if self._begun.is_file() else ""

    def begin(self, digest: str) -> None:
        """Note what decides the stage's result, unless it goes on from a resume point."""
        if not (self.resume / "state.pt").is_file():
            write_text(self._begun, digest + "\n")

    @contextmanager
    def complaining(self) -> Iterator[None]:
        """Within: the message of a :class:`UserError` is left in ``error.txt``; a launcher would hide it."""
        try:
            yield
        except UserError as error:
            write_text(self.complaint, str(error))
            raise

    def metric(self, **values: Any) -> None:
        """Append one object to metrics.jsonl."""
        self.path.mkdir(parents=True, exist_ok=True)
        with self._metrics.open("a") as stream:
            stream.write(json.dumps(values) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """All objects of metrics.jsonl."""
        lines = self._metrics.read_text().split("\n")[:-1] if self._metrics.exists() else []
        return [json.loads(line) for line in lines]  # what follows the last line feed was cut off while being written

    def rewind(self, step: int) -> None:
        """Drop metrics of steps after ``step``: they are about to be done again."""
        kept = [m for m in self.metrics() if m["step"] <= step]
        write_text(self._metrics, "".join(json.dumps(m) + "\n" for m in kept))

    def progress(self, done: int, total: int) -> None:
        """Note how far the stage is (at most a few times a second)."""
        if done == total or time.monotonic() - self._reported > 0.3:
            self._reported = time.monotonic()
            write_json(self.path / "progress.json", {"done": done, "total": total})

    def read_progress(self) -> tuple[int, int]:
        """(done, total); (0, 0) before the first note."""
        path = self.path / "progress.json"
        noted = read_json(path) if path.is_file() else {"done": 0, "total": 0}
        return noted["done"], noted["total"]


class RunDirectory:
    """A run on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.split_path = path / "split.json"
        self.table_path = path / "table.json"

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """An existing run; :class:`UserError` if there is none."""
        if not (path / "config.json").is_file():
            raise UserError(f"{path} is not a run directory: it has no config.json")
        return cls(path)

    def prepare(self, recipe: Recipe, redo: list[str]) -> None:
        """Create the directory or check that it belongs to this recipe; forget ``redo``; note config and split."""
        self.check(recipe, redo)
        self.path.mkdir(parents=True, exist_ok=True)
        self._forget(recipe, redo)  # first: the new config must not stand beside what the old one made
        recipe.suite.split().save(self.split_path)
        write_json(self.path / "config.json", recipe.model_dump(mode="json"))

    def _forget(self, recipe: Recipe, redo: list[str]) -> None:
        """Remove the results of stages to be done again, and of all that follows from them."""
        stale = recipe.with_followers(redo)
        for name in stale:
            if (folder := self.stage(name).path).exists():
                shutil.rmtree(folder)
        for row in recipe.evaluate.rows:
            if row.policy in stale:
                (self.evaluation(row.row) / "result.json").unlink(missing_ok=True)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Within: no other session works on this run. Raises :class:`UserError` where one does."""
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise UserError(f"another session works on {self.path}: wait for it, or choose another --out") from None
        try:
            yield
        finally:
            lock.release()

    def check(self, recipe: Recipe, redo: list[str]) -> None:
        """Raises :class:`UserError` where the directory holds results of another recipe."""
        for name in redo:
            if name not in recipe.stages:
                raise UserError(f"--redo {name}: the recipe has no such stage; it has {', '.join(recipe.stages)}")
        forgotten = recipe.with_followers(redo)
        for name in recipe.order():
            digest = self._digest_of(name)
            if digest not in (None, recipe.digest(name)) and name not in forgotten:
                raise UserError(
                    f"{self.path}: stage {name!r} was done or begun with another configuration (or tasks file); "
                    f"choose another --out, or give --redo {name} to do it and what follows from it again"
                )
        folders = [self.evaluation(row.row) for row in recipe.evaluate.rows]
        for row, folder in zip(recipe.evaluate.rows, folders, strict=True):
            if folders.count(folder) > 1:
                raise UserError(f"evaluate.rows: {row.row!r} and another row would share {folder}; rename one")
        split = recipe.suite.split()
        known = [pool for pool, tasks in split.pools.items() if tasks]
        for where, pool in recipe.pools():
            if pool not in known:
                raise UserError(f"{where} = {pool!r}: this world has tasks in the pools {', '.join(known)}")
        if self.split_path.is_file() and self.split().sha256 != split.sha256:
            raise UserError(f"{self.path} was made with another split; choose another --out")

    def _digest_of(self, name: str) -> str | None:
        """Digest of the configuration that a stage was done with, or begun if it has a resume point."""
        stage = self.stage(name)
        if stage.record is not None:
            return stage.record["digest"]
        return stage.begun if (stage.resume / "state.pt").is_file() else None

    def recipe(self) -> Recipe:
        """The resolved recipe that the run was prepared with."""
        path = self.path / "config.json"
        return parse_recipe(read_json(path), str(path))

    def split(self) -> Split:
        """The run's split."""
        return Split.load(self.split_path)

    def stage(self, name: str) -> StageDirectory:
        """The folder of a stage."""
        return StageDirectory(self.path / "stages" / name)

    def evaluation(self, row: str) -> Path:
        """The folder of a row of the results table."""
        return self.path / "evaluations" / (re.sub(r"[^a-z0-9]+", "-", row.lower()).strip("-") or "row")

    def checkpoint(self, recipe: Recipe, name: str) -> str:
        """What ``load_policy`` takes for ``base`` or a finished stage."""
        if name == BASE:
            return recipe.model.path
        folder = self.stage(name).checkpoint
        if self.stage(name).record is None or not folder.is_dir():
            raise UserError(f"stage {name!r} has no checkpoint yet in {self.path}: run it first")
        return str(folder)


def source_commit(package: Path) -> str | None:
    """The commit that a package is checked out from, ``-dirty`` where files of it differ; None where git has it not.

    An installation in the ``.venv`` of somebody's repository is not that repository's.
    """
    git = shutil.which("git")
    if git is None:
        return None

    def ask(*question: str) -> str:
        return subprocess.run([git, *question], cwd=package, capture_output=True, text=True).stdout.strip()

    if not ask("ls-files", "__init__.py"):
        return None
    return ask("rev-parse", "--short=12", "HEAD") + ("-dirty" if ask("status", "--porcelain", "--", ".") else "")


def provenance(seed: int) -> dict[str, Any]:
    """What a reader needs to know about where figures came from."""
    names = ("rcgrpo", "torch", "transformers", "accelerate", "peft", "tokenizers", "numpy")
    return {
        "versions": {"python": platform.python_version(), **{n: importlib.metadata.version(n) for n in names}},
        "commit": source_commit(Path(__file__).parents[1]),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "seed": seed,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
