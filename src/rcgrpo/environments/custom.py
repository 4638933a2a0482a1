"""A user's own tools: an :class:`Environment` subclass by import path, tasks from a JSON-lines file."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import random
from functools import cached_property
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rcgrpo.environments.protocol import Environment
from rcgrpo.environments.split import Split
from rcgrpo.episodes.types import Task
from rcgrpo.errors import UserError


class CustomConfig(BaseModel):
    """The recipe's ``[custom]`` table."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    environment: str = Field(pattern=r"^[\w.]+:\w+$")
    """Import path of the class: ``package.module:Class``."""
    tasks: Path
    """JSON lines, one :class:`~rcgrpo.episodes.types.Task` each."""
    test_share: float = Field(default=0.2, gt=0, lt=1)
    """Share of the scenarios, per block, that become the test pool."""
    split_seed: int = 0
    """Seed of the split."""


class CustomSuite:
    """Tasks of a file, split by scenario and stratified by block."""

    def __init__(self, config: CustomConfig) -> None:
        self.config = config
        module, _, name = config.environment.partition(":")
        try:
            self._class = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise UserError(f"custom.environment = {config.environment!r} cannot be imported: {error}") from error
        if not (isinstance(self._class, type) and issubclass(self._class, Environment)):
            raise UserError(f"custom.environment = {config.environment!r} is not a subclass of rcgrpo's Environment")
        if inspect.isabstract(self._class):
            raise UserError(f"custom.environment = {config.environment!r} has to define start and check")

    @cached_property
    def _content(self) -> bytes:
        if not self.config.tasks.is_file():
            raise UserError(f"custom.tasks: no file at {self.config.tasks}")
        return self.config.tasks.read_bytes()

    @property
    def tasks_sha256(self) -> str:
        """Hash of the tasks file, hex."""
        return hashlib.sha256(self._content).hexdigest()

    @cached_property
    def _tasks(self) -> dict[str, Task]:
        path = self.config.tasks
        tasks: dict[str, Task] = {}
        # as bytes: a line ends at a line feed alone, not at the other separators that a JSON string may hold
        for number, line in enumerate(self._content.split(b"\n"), 1):
            if not line.strip():
                continue
            try:
                task = Task.model_validate_json(line)
            except ValidationError as error:
                first = error.errors()[0]
                raise UserError(f"{path}, line {number}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
            if not task.turns:
                raise UserError(f"{path}, line {number}: task {task.id!r} has no turns")
            if task.id in tasks:
                raise UserError(f"{path}, line {number}: task id {task.id!r} occurs twice")
            tasks[task.id] = task
        if not tasks:
            raise UserError(f"custom.tasks: {path} holds no tasks")
        return tasks

    def task(self, task_id: str) -> Task:
        if task_id not in self._tasks:
            raise UserError(f"no task {task_id!r} in {self.config.tasks}")
        return self._tasks[task_id]

    def environment(self, task: Task) -> Environment:
        return self._class(task)

    def split(self) -> Split:
        rng = random.Random(self.config.split_seed)
        test: set[tuple[str, str]] = set()
        blocks: dict[str, set[str]] = {}
        for task in self._tasks.values():
            blocks.setdefault(task.block, set()).add(task.scenario)
        for block, scenarios in sorted(blocks.items()):
            shuffled = sorted(scenarios)
            rng.shuffle(shuffled)
            test |= {(block, s) for s in shuffled[: round(self.config.test_share * len(shuffled))]}
        pools: dict[str, list[str]] = {"experts": [], "train": [], "test": []}
        for task in self._tasks.values():
            names = ("test",) if (task.block, task.scenario) in test else ("experts", "train")
            for name in names:
                pools[name].append(task.id)
        rule = f"by scenario within each block, test share {self.config.test_share}, seed {self.config.split_seed}"
        return Split(suite=self.config.environment, rule=rule, pools=pools)
