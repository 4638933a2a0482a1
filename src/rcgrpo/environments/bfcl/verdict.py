"""The official judgement of a turn, and the paper's judgement of a whole episode.

The official rules are those of ``multi_turn_checker`` (in ``bfcl_eval/eval_checker/multi_turn_eval``): its order and
irrelevance checks exist there but are never called, so neither exists here.
"""

from __future__ import annotations

import copy
import reprlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching

from rcgrpo.environments.bfcl.data import DONE
from rcgrpo.environments.bfcl.executor import World, error_text
from rcgrpo.episodes.types import Call, ExecutedCall, Task, Verdict

States = dict[str, dict[str, Any]]
"""Public attributes by class and name."""


@dataclass(frozen=True)
class GoldTurn:
    """What the gold calls of one turn returned, and the states they left. Never modified."""

    results: tuple[str, ...]
    states: States

    @cached_property
    def wanted(self) -> Counter[str]:
        """The results, counted."""
        return Counter(self.results)


class Runs(Protocol):
    """A world to trace gold in."""

    def run(self, name: str, arguments: dict[str, Any]) -> str: ...
    def states(self) -> States: ...


def trace_gold(task: Task, world: Runs | None = None) -> list[GoldTurn]:
    """Run a task's gold calls in a world of their own, fresh or given: one :class:`GoldTurn` per turn.

    It depends on the task alone, so one trace judges every rollout of the task. A state that did not change
    is shared with the turn before, to keep traces small.
    """
    world = world or World(task.data["classes"], task.data["config"], task.data["long_context"])
    trace: list[GoldTurn] = []
    known: States = {}
    for turn in task.turns:
        results = []
        for call in scored(turn.gold):
            try:
                results.append(world.run(call.name, call.arguments))
            except Exception as error:  # noqa: BLE001 - the official executor turns each into text, gold's too
                results.append(error_text(error))
        states = {}
        for name, state in world.states().items():
            states[name] = known[name] if known.get(name) == state else copy.deepcopy(state)
        trace.append(GoldTurn(tuple(results), states))
        known = states
    return trace


def scored(calls: Sequence[Call]) -> list[Call]:
    """The calls that count: all but ``done`` of the merged-turn protocol."""
    return [call for call in calls if call.name != DONE.name]


def judge_turn(
    turn: int, gold: GoldTurn, has_gold: bool, history: Sequence[ExecutedCall], difference: Callable[[], str]
) -> Verdict:
    """The official verdict of a turn, given that those before it were valid; ``difference`` of the state from gold's.

    Reasons: ``empty`` (gold has calls, the policy made none), ``state`` (some public attribute differs from
    gold's), ``response`` (a gold result is missing among all results so far, as multisets). A turn without gold
    calls is valid whatever was done.
    """
    if not has_gold:
        return Verdict(valid=True)
    if not history or history[-1].turn != turn:
        return Verdict(valid=False, reason="empty", detail=f"no call, gold has {len(gold.results)}")
    differs = difference()
    if differs:
        return Verdict(valid=False, reason="state", detail=differs)
    said = [executed.result for executed in history]
    for result, count in gold.wanted.items():
        if said.count(result) < count:
            break
    else:
        return Verdict(valid=True)
    missing = gold.wanted - Counter(said)
    first = next(iter(missing))
    return Verdict(valid=False, reason="response", detail=f"{missing.total()} missing, such as {_short(first)}")


def compare_states(states: States, gold: States) -> str:
    """Empty if every public attribute equals gold's, else the first difference in words."""
    for class_name, attributes in gold.items():
        for name, wanted in attributes.items():
            value = states[class_name].get(name)
            try:
                same = value == wanted
            except RecursionError:  # a tree deeper than the interpreter's stack; gold's are shallow
                same = False
            if not same:
                return f"{class_name}.{name}: {_difference(value, wanted)}"
    return ""


def _difference(value: Any, wanted: Any) -> str:
    if hasattr(wanted, "contents"):
        return _tree_difference(value, wanted)
    if isinstance(value, dict) and isinstance(wanted, dict):
        for key in [*wanted, *value]:
            if key not in value or key not in wanted or value[key] != wanted[key]:
                return f"[{key!r}] is {_short(value.get(key))}, gold {_short(wanted.get(key))}"
    return f"{_short(value)}, gold {_short(wanted)}"


def _tree_difference(value: Any, wanted: Any) -> str:
    """The first path that differs between two BFCL directories."""
    pairs = [("", value, wanted)]
    while pairs:
        path, ours, gold = pairs.pop()
        if not hasattr(ours, "contents") or not hasattr(gold, "contents"):
            if ours != gold:
                return f"{path} differs"
            continue
        for name in [*gold.contents, *ours.contents]:
            if name not in ours.contents:
                return f"{path}/{name} is missing"
            if name not in gold.contents:
                return f"{path}/{name} should not be there"
            pairs.append((f"{path}/{name}", ours.contents[name], gold.contents[name]))
    return "names differ"


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
_SHORT.maxdict = _SHORT.maxlist = 3


def _short(value: Any) -> str:
    return _SHORT.repr(value)


def action_reward(history: Sequence[ExecutedCall], gold: Sequence[Call]) -> float:
    """The paper's R_action in {0, 1}: every gold call occurs, same name and every gold parameter equal.

    Order, extra calls and extra parameters are ignored. Each gold call needs a call of its own: two equal gold
    calls need two. A call that raised or was refused has not occurred. Equality is Python's (1 equals 1.0).
    """
    made = [executed.call for executed in history if not executed.failed]
    if len(gold) > len(made):
        return 0.0
    # a call that equals a gold call serves it in some largest matching: whatever it covers, that gold call's own does
    spare, open_gold = [(call.name, call.arguments) for call in made], []
    for call in gold:
        try:
            spare.remove((call.name, call.arguments))
        except ValueError:
            open_gold.append(call)
    if not open_gold:
        return 1.0
    fits = np.array([[_covers(name, given, call) for name, given in spare] for call in open_gold], dtype=np.int8)
    matched = maximum_bipartite_matching(csr_matrix(fits), perm_type="column")
    return float((matched >= 0).all())


def _covers(name: str, given: dict[str, Any], gold: Call) -> bool:
    return name == gold.name and all(key in given and given[key] == value for key, value in gold.arguments.items())
