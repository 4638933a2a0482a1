"""One BFCL episode: a safe world, late reveals, verdicts with the official semantics, three rewards."""

from __future__ import annotations

from typing import Any

from rcgrpo.environments.bfcl.data import DONE, DONE_SCHEMA, bare_schemas, schemas
from rcgrpo.environments.bfcl.executor import World, error_text
from rcgrpo.environments.bfcl.verdict import (
    GoldTurn,
    action_reward,
    compare_states,
    judge_turn,
    scored,
    trace_gold,
)
from rcgrpo.environments.protocol import Environment, Tool, ToolError
from rcgrpo.episodes.types import Call, Task, Verdict


class BfclEnvironment(Environment):
    """The world of one episode of a BFCL task (see :func:`rcgrpo.environments.bfcl.data.load_task`).

    Args:
        task: The task, in official or merged-turn form.
        responses: Show the documents of the tools' results, as the official prompt does.
        withheld_callable: Let the policy call a tool before it is revealed, as the official executor does.
            By default such a call reads as one to an unknown tool, with one exception: multi_turn_miss_func_49
            withholds ``tail`` until turn 3 though its gold calls it in turn 1 (a defect of the benchmark), so a
            function that gold itself calls before its reveal stays callable, undocumented as it officially is.
        gold: The task's gold trace, where the caller has it already; traced when first needed otherwise.

    After the first invalid turn every later one gets the reason ``unreached``: the official checker stops there.
    The calls are executed all the same, so the policy goes on in a live world. Hence ``success`` (all turns valid)
    equals the official 0/1.
    """

    def __init__(
        self,
        task: Task,
        *,
        responses: bool = True,
        withheld_callable: bool = False,
        gold: list[GoldTurn] | None = None,
    ) -> None:
        self._responses = responses
        self._withheld_callable = withheld_callable
        self._gold = gold
        self._done = False
        super().__init__(task)

    def start(self, data: dict[str, Any]) -> None:
        self._world = World(data["classes"], data["config"], data["long_context"])
        self._merged = bool(data.get("merged", False))
        turns = self.task.turns
        revealed = {name: index for index, turn in enumerate(turns) for name in turn.reveals}
        early = {
            call.name for index, turn in enumerate(turns) for call in turn.gold if index < revealed.get(call.name, 0)
        }
        self._callable_from = {} if self._withheld_callable else {n: t for n, t in revealed.items() if n not in early}

    def tools(self) -> dict[str, Tool]:
        """Every function of the involved classes, in BFCL's order; ``done`` in the merged-turn protocol.

        Arguments are checked by Python's own call alone, as officially: a wrong one is a ``TypeError`` to read.
        """
        table = {}
        for class_name in self.task.data["classes"]:
            documents = schemas(class_name) if self._responses else bare_schemas(class_name)
            for name, schema in documents.items():
                table[name] = Tool(schema, getattr(self._world.instances[class_name], name))
        if self._merged:
            table[DONE.name] = Tool(DONE_SCHEMA, self._declare_done)
        return table

    def _declare_done(self) -> dict[str, str]:
        self._done = True
        return {"status": "done"}

    async def _dispatch(self, call: Call) -> Any:
        """All calls go through :meth:`World.run`, none to the bound methods of the table directly."""
        if self._done:
            raise ToolError("the task was already declared done")
        if self._merged and call.name == DONE.name:
            return self._declare_done(**call.arguments)
        if self.turn < self._callable_from.get(call.name, -1):
            raise ToolError(f"name {call.name[:80]!r} is not defined")
        return self._world.run(call.name, call.arguments)

    def format_error(self, error: Exception) -> str:
        return error_text(error)

    @property
    def gold(self) -> list[GoldTurn]:
        """What gold returned and left, turn by turn."""
        if self._gold is None:
            self._gold = trace_gold(self.task)
        return self._gold

    def check(self, turn: int) -> Verdict:
        if any(not verdict.valid for verdict in self.verdicts):
            return Verdict(valid=False, reason="unreached")
        history = [executed for executed in self.history if executed.call.name != DONE.name]
        has_gold = bool(scored(self.task.turns[turn].gold))
        return judge_turn(turn, self.gold[turn], has_gold, history, self._world.states())

    def rewards(self) -> dict[str, float]:
        """``success`` (official 0/1), ``turn_fraction`` (turns before the first invalid one, of all turns) and
        ``state_action``: the paper's R_state * R_action of the whole episode, R_state in {0, 1} being whether the
        final public state of all involved instances equals gold's."""
        calls = [call for turn in self.task.turns for call in scored(turn.gold)]
        same_state = not compare_states(self._world.states(), self.gold[-1].states)
        state_action = action_reward(self.history, calls) if same_state else 0.0
        return {**super().rewards(), "state_action": state_action}
