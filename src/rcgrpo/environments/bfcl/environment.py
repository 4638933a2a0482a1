"""One BFCL episode: a safe world, late reveals, verdicts with the official semantics, three rewards."""

from __future__ import annotations

from functools import cache
from typing import Any

from rcgrpo.environments.bfcl.data import DONE, DONE_SCHEMA, bare_schemas, schemas
from rcgrpo.environments.bfcl.executor import error_text
from rcgrpo.environments.bfcl.install import api_class
from rcgrpo.environments.bfcl.memory import Memory, RememberedWorld
from rcgrpo.environments.bfcl.verdict import GoldTurn, States, action_reward, judge_turn
from rcgrpo.environments.protocol import Environment, Tool, ToolError, format_result
from rcgrpo.episodes.types import Call, ExecutedCall, Task, Verdict


class BfclEnvironment(Environment):
    """The world of one episode of a BFCL task (see :func:`rcgrpo.environments.bfcl.data.load_task`).

    Args:
        task: The task, in official or merged-turn form.
        responses: Show the documents of the tools' results, as the official prompt does.
        withheld_callable: Let the policy call a tool before it is revealed, as the official executor does.
            By default such a call reads as one to an unknown tool, with one exception: multi_turn_miss_func_49
            withholds ``tail`` until turn 3 though its gold calls it in turn 1 (a defect of the benchmark), so a
            function that gold itself calls before its reveal stays callable, undocumented as it officially is.
        memory: What earlier episodes of this very task have learnt of its world; a new one by default.

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
        memory: Memory | None = None,
    ) -> None:
        self._responses = responses
        self._withheld_callable = withheld_callable
        self._memory = memory or Memory(task)
        self._done = False
        super().__init__(task)

    def start(self, data: dict[str, Any]) -> None:
        self._world = RememberedWorld(self._memory)
        self._merged = bool(data.get("merged", False))
        self._callable_from: dict[str, int] = {}
        turns = self.task.turns
        if self._withheld_callable or not any(turn.reveals for turn in turns):
            return
        revealed = {name: index for index, turn in enumerate(turns) for name in turn.reveals}
        early = {
            call.name for index, turn in enumerate(turns) for call in turn.gold if index < revealed.get(call.name, 0)
        }
        self._callable_from = {name: turn for name, turn in revealed.items() if name not in early}

    def tools(self) -> dict[str, Tool]:
        """Every function of the involved classes, in BFCL's order; ``done`` in the merged-turn protocol.

        Arguments are checked by Python's own call alone, as officially: a wrong one is a ``TypeError`` to read.
        """
        table = _tools(tuple(self.task.data["classes"]), self._responses)
        return {**table, DONE.name: Tool(DONE_SCHEMA, self._declare_done)} if self._merged else table

    def _declare_done(self) -> dict[str, str]:
        self._done = True
        return {"status": "done"}

    async def call(self, call: Call) -> ExecutedCall:
        """Nothing here waits, so this is :meth:`Environment.call` without its inner coroutine."""
        try:
            result, failed = self._run(call), False
        except Exception as error:  # noqa: BLE001  a tool's failure is what the policy reads, not a crash
            result, failed = error_text(error), True
        executed = ExecutedCall(turn=max(self.turn, 0), call=call, result=result, failed=failed)
        self.history.append(executed)
        return executed

    def _run(self, call: Call) -> str:
        """All calls go through :meth:`RememberedWorld.run`, none to the functions of the table directly."""
        if self._merged:
            if self._done:
                raise ToolError("the task was already declared done")
            if call.name == DONE.name:
                return format_result(self._declare_done(**call.arguments))
        if self._callable_from and self.turn < self._callable_from.get(call.name, -1):
            raise ToolError(f"name {call.name[:80]!r} is not defined")
        return self._world.run(call.name, call.arguments)

    def states(self) -> States:
        """The public attributes of every instance after all calls so far; live objects, not copies."""
        return self._world.states()

    @property
    def gold(self) -> list[GoldTurn]:
        """What gold returned and left, turn by turn."""
        return self._memory.gold

    def check(self, turn: int) -> Verdict:
        if self.verdicts and not self.verdicts[-1].valid:
            return Verdict(valid=False, reason="unreached")
        history = self.history
        if self._merged:
            history = [executed for executed in history if executed.call.name != DONE.name]
        has_gold = bool(self._memory.scored[turn])
        return judge_turn(turn, self.gold[turn], has_gold, history, lambda: self._world.difference(turn))

    def rewards(self) -> dict[str, float]:
        """``success`` (official 0/1), ``turn_fraction`` (turns before the first invalid one, of all turns) and
        ``state_action``: the paper's R_state * R_action of the whole episode, R_state in {0, 1} being whether the
        final public state of all involved instances equals gold's."""
        calls = [call for turn in self._memory.scored for call in turn]
        same_state = not self._world.difference(len(self.gold) - 1)
        state_action = action_reward(self.history, calls) if same_state else 0.0
        return {**super().rewards(), "state_action": state_action}


@cache
def _tools(classes: tuple[str, ...], responses: bool) -> dict[str, Tool]:
    table = {}
    for class_name in classes:
        documents = schemas(class_name) if responses else bare_schemas(class_name)
        table |= {name: Tool(schema, getattr(api_class(class_name), name)) for name, schema in documents.items()}
    return table
