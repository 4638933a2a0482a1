"""What is known already of a task's world: the results of call sequences that were made in it before.

A BFCL world is deterministic: what a call returns depends on the task and the calls before it, on nothing else.
Rollouts of one task repeat each other, and gold, so each sequence of calls is executed once and remembered in a tree.
An episode walks down that tree; it gets a live world only where it leaves what is known, and then its own calls are
replayed in it, each once.
"""

from __future__ import annotations

from functools import cached_property

from rcgrpo.environments.bfcl.executor import Arguments, World
from rcgrpo.environments.bfcl.verdict import GoldTurn, States, compare_states, scored, trace_gold
from rcgrpo.environments.protocol import ToolError
from rcgrpo.episodes.types import Task

MAX_CHARACTERS = 1_000_000
"""Of calls and results that one task's memory holds; afterwards it learns nothing new."""

_Key = tuple[str, str]


class _Moment:
    """The world after a sequence of calls."""

    __slots__ = ("differences", "following")

    def __init__(self) -> None:
        self.following: dict[_Key, tuple[str, bool, _Moment]] = {}
        """By the next call: its result, whether it raised, and the moment after it."""
        self.differences: dict[int, str] = {}
        """By turn: how the state differs from gold's at that turn's end; empty where it does not."""


class Memory:
    """What all episodes of one task in this process have learnt of its world. ``gold`` is the task's gold trace."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._room = MAX_CHARACTERS
        self.start = _Moment()
        self.scored = [scored(turn.gold) for turn in task.turns]
        """Gold calls that count, by turn."""

    @cached_property
    def gold(self) -> list[GoldTurn]:
        return trace_gold(self._task, RememberedWorld(self))

    def forget(self) -> None:
        """Forget all calls; gold's trace stays."""
        self.start, self._room = _Moment(), MAX_CHARACTERS

    def live(self) -> World:
        """A world in its initial state."""
        return World(self._task.data["classes"], self._task.data["config"], self._task.data["long_context"])

    def learn(self, moment: _Moment, key: _Key | None, result: str, failed: bool) -> _Moment:
        """The moment after a call; remembered as long as there is room."""
        after = _Moment()
        size = 0 if key is None else sum(map(len, key)) + len(result)
        if key is not None and size <= self._room:
            self._room -= size
            moment.following[key] = (result, failed, after)
        return after


class RememberedWorld:
    """One episode's world; ``run`` and ``states`` are those of :class:`World`, and give the same."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._moment = memory.start
        self._pending: list[tuple[str, Arguments]] = []
        self._live: World | None = None

    def run(self, name: str, arguments: Arguments) -> str:
        """Run one call and return the text of its result; a :class:`ToolError` has the text of what the API raised."""
        try:
            key = (name, repr(arguments))
        except (RecursionError, ValueError):  # too deep, or an integer too long to print: refused in a moment
            key = None
        known = self._moment.following.get(key) if key else None
        if known is None:
            try:
                result, failed = self.live.run(name, arguments), False
            except Exception as error:  # noqa: BLE001 - whatever the API raised is what its caller reads
                result, failed = str(error), True
            self._moment = self._memory.learn(self._moment, key, result, failed)
        else:
            result, failed, self._moment = known
            self._pending.append((name, arguments))
        if failed:
            raise ToolError(result)
        return result

    @property
    def live(self) -> World:
        """The world itself, with all calls so far executed in it."""
        if self._live is None:
            self._live = self._memory.live()
        for name, arguments in self._pending:
            try:
                self._live.run(name, arguments)
            except Exception:  # noqa: BLE001 - it was read when the call was made
                continue
        self._pending.clear()
        return self._live

    def states(self) -> States:
        """The public attributes of every instance, live."""
        return self.live.states()

    def difference(self, turn: int) -> str:
        """How the state differs from the one gold left after ``turn``; empty where it does not."""
        known = self._moment.differences
        if turn not in known:
            known[turn] = compare_states(self.states(), self._memory.gold[turn].states)
        return known[turn]
