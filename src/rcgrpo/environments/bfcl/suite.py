"""BFCL as a suite: tasks by id, worlds for them, and the split, by one configuration."""

from __future__ import annotations

import random
import re
from functools import cached_property
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rcgrpo.environments.bfcl.corrupt import corrupt
from rcgrpo.environments.bfcl.data import CATEGORIES, SCENARIOS, Category, load_task, merged
from rcgrpo.environments.bfcl.environment import BfclEnvironment
from rcgrpo.environments.bfcl.memory import Memory
from rcgrpo.environments.bfcl.splits import scenario_split, smoke_split, task_split
from rcgrpo.environments.bfcl.synthetic import generator
from rcgrpo.environments.split import Split
from rcgrpo.episodes.types import Call, Task
from rcgrpo.errors import UserError


class BfclConfig(BaseModel):
    """How BFCL is played and split."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    protocol: Literal["official", "paper_merged"] = "official"
    """``official``: turn by turn, with late reveals and clarifications. ``paper_merged``: the RC-GRPO paper's
    prompt, all user turns in one message "Step 1..N, then call done()": everything is said and shown at once."""
    responses: bool = True
    """Show the document of each tool's result, as the official prompt does; without it, 40% fewer tokens."""
    withheld_callable: bool = False
    """Let the policy call tools that were not revealed yet, as the official executor does."""
    rule: Literal["scenario", "task", "smoke"] = "scenario"
    """``scenario``: no leak. ``task``: the paper's random split of the 800 tasks, which leaks nearly every
    test scenario. ``smoke``: 16 base tasks that are both train and test, a test of the plumbing."""
    split_seed: int = 0
    """Seed of the split; ``smoke`` has none."""
    test_share: float | None = Field(default=None, gt=0, lt=1)
    """Share tested; by default 0.2 of the scenarios, or 0.1 of the tasks as in the paper. ``smoke`` has none."""
    categories: tuple[Category, ...] = Field(default=CATEGORIES, min_length=1)
    """Which categories are trained and tested on. ``smoke`` is always base."""
    pretrain: int = Field(default=0, ge=0, le=10**6)
    """Size of the pool ``pretrain``: generated tasks over BFCL's API classes, in worlds and words of our own,
    dealt out over ``pretrain_categories``. 0: there is no such pool."""
    pretrain_categories: tuple[Category, ...] = Field(default=CATEGORIES, min_length=1)
    """Categories of the generated tasks; name one twice to have it twice as often."""
    pretrain_seed: int = 0
    """Seed of the generated tasks."""

    @model_validator(mode="after")
    def _no_idle_option(self) -> BfclConfig:
        if len(set(self.categories)) != len(self.categories):
            raise ValueError(f"categories names one twice: {list(self.categories)}")
        given = self.model_dump(exclude_defaults=True)
        if self.rule == "smoke":
            for name in ("split_seed", "test_share", "categories"):
                if name in given:
                    raise ValueError(f"{name} has no meaning for rule = 'smoke': remove it")
        if not self.pretrain and given.keys() & {"pretrain_categories", "pretrain_seed"}:
            raise ValueError("pretrain_categories and pretrain_seed have no meaning without pretrain: give its size")
        if self.protocol == "paper_merged" and self.withheld_callable:
            raise ValueError("withheld_callable has no meaning for protocol = 'paper_merged': remove it")
        return self


_ID = re.compile(rf"multi_turn_({'|'.join(CATEGORIES)})_(\d{{1,3}})")
_SYNTHETIC = re.compile(rf"bfcl_synthetic_({'|'.join(CATEGORIES)})_(\d{{6}})")


class BfclSuite:
    """All 800 BFCL tasks, and generated ones without end, under one configuration; a ``protocol.PretrainSuite``.

    Generated ids are like ``bfcl_synthetic_base_000123`` and exist whether or not a pool holds them.

    Raises :class:`UserError` on first use where BFCL is not installed. Tasks and their memories are kept, so
    that the rollouts of a group parse, trace gold and execute a sequence of calls once.
    """

    def __init__(self, config: BfclConfig | None = None) -> None:
        self.config = config or BfclConfig()
        self._tasks: dict[str, Task] = {}
        self._memories: dict[str, Memory] = {}

    def task(self, task_id: str) -> Task:
        synthetic = _SYNTHETIC.fullmatch(task_id)
        if synthetic:  # not kept: each is made in milliseconds, and there are many
            task = generator.task(self.config.pretrain_seed, synthetic[1], int(synthetic[2]))  # pyright: ignore[reportArgumentType] - the pattern ensures it
            return merged(task) if self.config.protocol == "paper_merged" else task
        if task_id not in self._tasks:
            found = _ID.fullmatch(task_id)
            if not found or int(found[2]) >= SCENARIOS or found[2] != str(int(found[2])):
                raise UserError(f"no BFCL task {task_id!r}: ids are like multi_turn_base_0, up to 199")
            task = load_task(found[1], int(found[2]))  # pyright: ignore[reportArgumentType] - the pattern ensures it
            self._tasks[task_id] = merged(task) if self.config.protocol == "paper_merged" else task
        return self._tasks[task_id]

    def environment(self, task: Task) -> BfclEnvironment:
        memory = None
        if task is self._tasks.get(task.id):  # a changed copy of a task has a gold of its own
            memory = self._memories.get(task.id)
            if memory is None:
                memory = self._memories[task.id] = Memory(task)
        return BfclEnvironment(
            task,
            responses=self.config.responses,
            withheld_callable=self.config.withheld_callable,
            memory=memory,
        )

    def forget(self) -> None:
        """Forget what calls returned in earlier episodes; to measure what they cost."""
        for memory in self._memories.values():
            memory.forget()

    def corrupt(self, task: Task, rng: random.Random) -> list[list[Call]]:
        """A near miss for each turn, see :mod:`rcgrpo.environments.bfcl.corrupt`."""
        return corrupt(task, rng)

    def split(self) -> Split:
        return self._split

    @cached_property
    def _split(self) -> Split:
        split = self._benchmark()
        if not self.config.pretrain:
            return split
        kinds = self.config.pretrain_categories
        ids = [f"bfcl_synthetic_{kinds[n % len(kinds)]}_{n:06d}" for n in range(self.config.pretrain)]
        rule = f"{split.rule}; pretrain: generated, seed {self.config.pretrain_seed}"
        return split.model_copy(update={"rule": rule, "pools": {**split.pools, "pretrain": ids}})

    def _benchmark(self) -> Split:
        seed, share, categories = self.config.split_seed, self.config.test_share, self.config.categories
        if self.config.rule == "smoke":
            return smoke_split()
        if self.config.rule == "task":
            return task_split(seed, 0.1 if share is None else share, categories)
        return scenario_split(seed, 0.2 if share is None else share, categories)
