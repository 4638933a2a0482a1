"""The Counter of the protocol's docstring, and worlds that use what else the protocol offers."""

import asyncio
import time

from rcgrpo.environments.protocol import Environment, ToolError, slow
from rcgrpo.episodes.types import Verdict


class Counter(Environment):
    def start(self, data):
        self._total = data["start"]

    def add(self, n: int) -> dict:
        """Add to the total.

        Args:
            n: How much to add.
        """
        self._total += n
        return {"total": self._total}

    def check(self, turn):
        wanted = sum(c.arguments["n"] for t in self.task.turns[: turn + 1] for c in t.gold)
        return Verdict(valid=self._total == self.task.data["start"] + wanted, reason="state")


class Patient(Counter):
    """Tools that take their time or fail."""

    call_timeout = 0.5

    async def wait(self, seconds: float) -> str:
        """Wait without holding up others.

        Args:
            seconds: How long.
        """
        await asyncio.sleep(seconds)
        return "waited"

    @slow
    def block(self, seconds: float) -> str:
        """Block a thread.

        Args:
            seconds: How long.
        """
        time.sleep(seconds)
        return "blocked"

    async def impatient(self) -> str:
        """Fail with a timeout of its own."""
        raise TimeoutError("the database is busy")

    def fail(self, how: str) -> str:
        """Fail.

        Args:
            how: tool, value or silent.
        """
        raise {"tool": ToolError("not today"), "value": ValueError("odd"), "silent": KeyError()}[how]

    def register(self) -> str:
        """A name that Python's own machinery uses too."""
        return "registered"

    def _hidden(self) -> str:
        return "never a tool"


class Unfinished(Environment):
    """Lacks check."""

    def start(self, data):
        pass


class Undocumented(Counter):
    def subtract(self, n):
        """Subtract."""
