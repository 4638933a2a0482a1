"""ToolWorld's environment: the APIs as one world, run beside the world that gold leads to."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

from rcgrpo.environments.protocol import Environment, Tool, ToolError, format_result
from rcgrpo.environments.toolworld.apis import READS, Calendar, Files, Mail, Shop, State
from rcgrpo.episodes.types import Call, ExecutedCall, Verdict


class World(Files, Shop, Mail, Calendar):
    """The four APIs over one state, without an episode: what gold is computed and replayed with."""

    def __init__(self, state: State) -> None:
        self._state = copy.deepcopy(state)

    @property
    def state(self) -> State:
        return self._state

    def restore(self, state: State) -> None:
        """Go back to ``state``, which the world then owns."""
        self._state = state

    def run(self, call: Call) -> tuple[str, bool]:
        """Result text of a trusted call (the generator's own, never a policy's), and whether it failed."""
        try:
            return format_result(getattr(self, call.name)(**call.arguments)), False
        except ToolError as error:
            return json.dumps({"error": str(error)}), True


def occurs(gold: Call, calls: Sequence[Call]) -> bool:
    """Whether some call has gold's name and every gold argument (paper, R_action: extra arguments ignored)."""
    return any(
        call.name == gold.name
        and all(key in call.arguments and call.arguments[key] == value for key, value in gold.arguments.items())
        for call in calls
    )


def _difference(domain: str, got: dict[str, Any], wanted: dict[str, Any]) -> str:
    parts = [key for key in {**wanted, **got} if got.get(key) != wanted.get(key)]
    return "; ".join(f"{domain}.{key}: {got.get(key)} where gold has {wanted.get(key)}" for key in parts)[:500]


class ToolWorld(Files, Shop, Mail, Calendar, Environment):
    """One episode of a ToolWorld task.

    ``task.data``: ``world`` (the initial state), ``tools`` (names of the task's tools), ``closings`` (what the
    expert says at the end of each turn).

    A turn is judged like BFCL's, with one addition. Gold non-empty: the policy called something (else
    ``empty``), its state equals gold's (``state``), and every result that gold read in this turn was read by the
    policy, in this turn or earlier (``response``). Failed gold calls, with which the expert runs into an error before
    it recovers, are not asked for. Gold empty: refusing counts, so the state must be gold's still (``state``) and no
    tool may be called that is not there (``refusal``); reading is allowed.
    """

    def start(self, data: dict[str, Any]) -> None:
        self._state = copy.deepcopy(data["world"])
        self._gold = World(data["world"])
        self._gold_turns: list[list[ExecutedCall]] = []

    def tools(self) -> dict[str, Tool]:
        names = set(self.task.data["tools"])
        return {name: tool for name, tool in super().tools().items() if name in names}

    def _advance_gold(self, turn: int) -> list[ExecutedCall]:
        """Play gold up to the end of ``turn``; its executed calls of that turn."""
        while len(self._gold_turns) <= turn:
            index, executed = len(self._gold_turns), []
            for call in self.task.turns[index].gold:
                result, failed = self._gold.run(call)
                executed.append(ExecutedCall(turn=index, call=call, result=result, failed=failed))
            self._gold_turns.append(executed)
        return self._gold_turns[turn]

    def check(self, turn: int) -> Verdict:
        gold = self._advance_gold(turn)
        called = [executed for executed in self.history if executed.turn == turn]
        if gold and not called:
            return Verdict(valid=False, reason="empty", detail="no call was made")
        for domain, wanted in self._gold.state.items():
            if self._state[domain] != wanted:
                return Verdict(valid=False, reason="state", detail=_difference(domain, self._state[domain], wanted))
        if not gold:
            there = self._table.keys() - self.withheld()
            absent = [e.call.name[:80] for e in called if e.call.name not in there]
            if absent:
                return Verdict(valid=False, reason="refusal", detail=f"called {absent[0]!r}, which is not there")
        seen = {executed.result for executed in self.history if not executed.failed}
        for executed in gold:
            if executed.call.name in READS and not executed.failed and executed.result not in seen:
                return Verdict(
                    valid=False, reason="response", detail=f"never read {executed.call.name}: {executed.result}"
                )
        return Verdict(valid=True)

    def rewards(self) -> dict[str, float]:
        """``success``, ``turn_fraction``, and ``state_action``: the paper's ``R_state * R_action``.

        ``state_action`` looks at the whole episode: the final state equals gold's, and every gold call that
        succeeded occurs among the policy's calls, whatever the order or turn (so it does not see refusals).
        """
        self._advance_gold(len(self.task.turns) - 1)
        calls = [executed.call for executed in self.history]
        gold = [executed.call for turn in self._gold_turns for executed in turn if not executed.failed]
        acted = self._state == self._gold.state and all(occurs(call, calls) for call in gold)
        return {**super().rewards(), "state_action": float(acted)}
