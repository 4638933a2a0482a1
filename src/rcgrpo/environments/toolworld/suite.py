"""ToolWorld as a suite: tasks by id, environments, pools."""

from __future__ import annotations

import random
import re
from itertools import cycle

from rcgrpo.environments.split import Split
from rcgrpo.environments.toolworld import generator
from rcgrpo.environments.toolworld.config import STARTS, ToolWorldConfig
from rcgrpo.environments.toolworld.corrupt import corrupt
from rcgrpo.environments.toolworld.world import ToolWorld
from rcgrpo.episodes.types import Call, Task
from rcgrpo.errors import UserError

_ID = re.compile(r"toolworld_(base|miss_func|miss_param|long_context)_([0-9]{6})")


class ToolWorldSuite:
    """A :class:`~rcgrpo.environments.protocol.PretrainSuite` without end: every id of the form
    ``toolworld_<category>_<six digits>`` is a task, whether or not a pool holds it."""

    def __init__(self, config: ToolWorldConfig | None = None) -> None:
        self.config = config or ToolWorldConfig()

    def task(self, task_id: str) -> Task:
        match = _ID.fullmatch(task_id)
        if match is None:
            raise UserError(f"task id {task_id!r} is not ToolWorld's: write it like toolworld_base_000123")
        return generator.task(self.config, match[1], int(match[2]))  # pyright: ignore[reportArgumentType]

    def environment(self, task: Task) -> ToolWorld:
        return ToolWorld(task)

    def corrupt(self, task: Task, rng: random.Random) -> list[list[Call]]:
        """A near miss for each turn, see :mod:`rcgrpo.environments.toolworld.corrupt`."""
        return corrupt(task, rng)

    def split(self) -> Split:
        """Pools ``experts``, ``train``, ``test`` and ``pretrain``, by disjoint ranges of scenario numbers.

        Beyond that, a scenario whose user texts hash to the held-out side only occurs in the test range
        (:func:`~rcgrpo.environments.toolworld.generator.is_held_out`): no test conversation is ever trained on.
        """
        pools = {
            pool: [
                f"toolworld_{kind}_{n:06d}" for n, kind in zip(self.config.numbers(pool), cycle(kinds), strict=False)
            ]
            for pool in STARTS
            for kinds in [self.config.kinds(pool)]
        }
        return Split(suite="toolworld", rule=f"by scenario number, seed {self.config.seed}", pools=pools)
