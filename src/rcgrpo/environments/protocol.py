"""The one environment protocol; BFCL, ToolWorld and a user's own tools are its users.

An environment is a plain class. One instance is the world of one episode. Its public, typed and docstringed
methods are the tools; the names that :class:`Environment` itself defines are hooks, not tools::

    class Counter(Environment):
        def start(self, data):
            self._total = data["start"]

        def add(self, n: int) -> dict:
            \"\"\"Add to the total.

            Args:
                n: How much to add.
            \"\"\"
            self._total += n
            return {"total": self._total}

        def check(self, turn):
            wanted = sum(c.arguments["n"] for t in self.task.turns[: turn + 1] for c in t.gold)
            return Verdict(valid=self._total == self.task.data["start"] + wanted, reason="state")

A tool may be ``async def``; it is then awaited while other episodes go on. A tool that blocks is marked with
:func:`slow` and runs in a thread. Whatever a tool raises becomes text that the policy reads.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, TypeVar, runtime_checkable

import jsonschema
from transformers.utils.chat_template_utils import (
    DocstringParsingException,
    TypeHintParsingException,
    get_json_schema,
)

from rcgrpo.environments.split import Split
from rcgrpo.episodes.types import Call, ExecutedCall, Message, Task, Verdict
from rcgrpo.errors import UserError

Function = TypeVar("Function", bound=Callable[..., Any])
Schema = dict[str, Any]
"""A tool in the OpenAI form: ``{"type": "function", "function": {"name", "description", "parameters"}}``."""


def slow(function: Function) -> Function:
    """Mark a blocking tool: it runs in a thread, so that other episodes go on meanwhile."""
    function.__slow__ = True  # pyright: ignore[reportFunctionMemberAccess]
    return function


@dataclass(frozen=True)
class Tool:
    """A callable tool and its schema. ``validator`` checks arguments; None where the tool does it itself."""

    schema: Schema
    run: Callable[..., Any]
    validator: jsonschema.Draft202012Validator | None = None

    @property
    def name(self) -> str:
        return self.schema["function"]["name"]


class ToolError(Exception):
    """Raised by a tool to tell the policy why it failed."""


@cache
def _reflect(function: Callable[..., Any]) -> tuple[Schema, jsonschema.Draft202012Validator]:
    try:
        schema = get_json_schema(function)
    except (DocstringParsingException, TypeHintParsingException) as error:
        raise UserError(
            f"tool {function.__qualname__}: {error}; give each argument a type and a description"
        ) from error
    schema["function"].pop("return", None)
    parameters = {**schema["function"]["parameters"], "additionalProperties": False}
    return schema, jsonschema.Draft202012Validator(parameters)


def format_result(value: Any) -> str:
    """A tool's return value as the policy reads it (BFCL's rule): text as is, dict as JSON, else ``str``."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        try:
            return json.dumps(value)
        except (TypeError, ValueError):
            return str(value)
    return str(value)


class Environment(ABC):
    """The world of one episode. Subclass it; see the module's docstring.

    Attributes:
        task: The task being played.
        turn: Index of the open turn, -1 before the first.
        history: Every call so far, with the text that the policy read.
        verdicts: One per judged turn.
    """

    call_timeout: float | None = None
    """Seconds that one async or slow call may take; then the policy reads an error. None: no limit."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.turn = -1
        self.history: list[ExecutedCall] = []
        self.verdicts: list[Verdict] = []
        self.start(task.data)
        self._table = self.tools()

    # -- hooks: what a subclass writes

    @abstractmethod
    def start(self, data: dict[str, Any]) -> None:
        """Set up the world from ``task.data``; must not keep references into it (copy what is mutable)."""

    @abstractmethod
    def check(self, turn: int) -> Verdict:
        """Judge a turn that has just ended, from the world's state and ``self.history``."""

    def rewards(self) -> dict[str, float]:
        """Reward terms of the finished episode, by name.

        The default gives ``success`` (1.0 if every turn of the task is valid, else 0.0) and
        ``turn_fraction`` (share of the task's turns before the first failure).
        """
        total = len(self.task.turns)
        passed = 0
        for verdict in self.verdicts:
            if not verdict.valid:
                break
            passed += 1
        return {"success": float(passed == total), "turn_fraction": passed / total}

    # -- what the rollout calls

    def open_turn(self) -> list[Message]:
        """Advance to the next turn and return what the user says."""
        self.turn += 1
        return list(self.task.turns[self.turn].messages)

    def close_turn(self) -> Verdict:
        """Judge the open turn and remember the verdict."""
        verdict = self.check(self.turn)
        self.verdicts.append(verdict)
        return verdict

    def tools(self) -> dict[str, Tool]:
        """Every tool of this world by name, withheld ones included: by default the public methods."""
        table = {}
        for name, function in inspect.getmembers(type(self), inspect.isfunction):
            if not name.startswith("_") and name not in dir(Environment):
                schema, validator = _reflect(function)
                table[name] = Tool(schema, getattr(self, name), validator)
        return table

    def withheld(self) -> set[str]:
        """Names of the tools that the task reveals in a later turn than the open one."""
        return {name for turn in self.task.turns[max(self.turn, 0) + 1 :] for name in turn.reveals}

    def visible(self) -> list[Schema]:
        """Schemas of the tools that the policy has been shown up to the open turn (the first, before it)."""
        hidden = self.withheld()
        return [tool.schema for name, tool in self._table.items() if name not in hidden]

    async def call(self, call: Call) -> ExecutedCall:
        """Run one call from the policy and record it. Never raises for what the policy wrote."""
        try:
            result, failed = format_result(await self._dispatch(call)), False
        except Exception as error:  # noqa: BLE001  a tool's failure is what the policy reads, not a crash
            result, failed = self.format_error(error), True
        executed = ExecutedCall(turn=max(self.turn, 0), call=call, result=result, failed=failed)
        self.history.append(executed)
        return executed

    def format_error(self, error: Exception) -> str:
        """The text that the policy reads where a call failed."""
        return json.dumps({"error": str(error) or type(error).__name__})

    async def _dispatch(self, call: Call) -> Any:
        tool = self._table.get(call.name)
        if tool is None or call.name in self.withheld():
            raise ToolError(f"no tool named {call.name[:80]!r}")
        if tool.validator:
            for error in tool.validator.iter_errors(call.arguments):
                raise ToolError(f"bad arguments: {error.message[:200]}")
        if inspect.iscoroutinefunction(tool.run):
            pending = tool.run(**call.arguments)
        elif hasattr(tool.run, "__slow__"):
            pending = asyncio.to_thread(tool.run, **call.arguments)
        else:
            return tool.run(**call.arguments)
        limit = asyncio.timeout(self.call_timeout)
        try:
            async with limit:
                return await pending
        except TimeoutError:
            if not limit.expired():
                raise  # the tool's own
            raise ToolError(f"timed out after {self.call_timeout} s") from None


class Suite(Protocol):
    """A source of tasks and of environments for them: ToolWorld, BFCL, or a user's own."""

    def task(self, task_id: str) -> Task:
        """The task with this id. Raises :class:`UserError` for an unknown one."""
        ...

    def environment(self, task: Task) -> Environment:
        """A fresh world for one episode of ``task``."""
        ...

    def split(self) -> Split:
        """The pools of task ids, by the rule that the suite was configured with."""
        ...


@runtime_checkable
class PretrainSuite(Suite, Protocol):
    """A suite that can also make near misses, so that a base model can be pretrained on it."""

    def corrupt(self, task: Task, rng: random.Random) -> list[list[Call]]:
        """For each turn of ``task``, calls that are plausibly wrong, different from gold."""
        ...


def tasks_of(suite: Suite, split: Split, pool: str, limit: int | None = None) -> Sequence[Task]:
    """The tasks of a pool of a split, in order, at most ``limit``."""
    if pool not in split.pools:
        raise UserError(f"pool {pool!r} is not in the split; it has {', '.join(split.pools)}")
    if not split.pools[pool]:
        raise UserError(f"pool {pool!r} of the split is empty ({split.rule})")
    return [suite.task(task_id) for task_id in split.pools[pool][:limit]]
