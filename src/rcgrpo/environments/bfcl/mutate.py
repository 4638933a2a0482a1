"""Wrong, odd and partly right answers made from gold: what the two checkers are compared on."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from pydantic import JsonValue

from rcgrpo.episodes.types import Call, Task

Answer = list[list[Call]]
"""Calls per turn."""


def gold_answer(task: Task) -> Answer:
    return [list(turn.gold) for turn in task.turns]


def _some_turn(answer: Answer, rng: random.Random, at_least: int = 1) -> int | None:
    turns = [index for index, calls in enumerate(answer) if len(calls) >= at_least]
    return rng.choice(turns) if turns else None


def dropped(answer: Answer, rng: random.Random, _: Sequence[Call]) -> Answer | None:
    """Without one call."""
    turn = _some_turn(answer, rng)
    if turn is None:
        return None
    del answer[turn][rng.randrange(len(answer[turn]))]
    return answer


def doubled(answer: Answer, rng: random.Random, _: Sequence[Call]) -> Answer | None:
    """One call, or every call, twice in a row."""
    turn = _some_turn(answer, rng)
    if turn is None:
        return None
    if rng.random() < 0.3:
        return [[call for call in calls for _ in range(2)] for calls in answer]
    index = rng.randrange(len(answer[turn]))
    answer[turn].insert(index, answer[turn][index])
    return answer


def reordered(answer: Answer, rng: random.Random, _: Sequence[Call]) -> Answer | None:
    """The calls of one turn in another order."""
    turn = _some_turn(answer, rng, at_least=2)
    if turn is None:
        return None
    rng.shuffle(answer[turn])
    return answer


def wrong_argument(answer: Answer, rng: random.Random, _: Sequence[Call]) -> Answer | None:
    """One argument of one call changed, left out, or one too many."""
    turn = _some_turn(answer, rng)
    if turn is None:
        return None
    index = rng.randrange(len(answer[turn]))
    call = answer[turn][index]
    arguments = dict(call.arguments)
    if not arguments or rng.random() < 0.1:
        arguments["extra"] = 1
    else:
        name = rng.choice(sorted(arguments))
        if rng.random() < 0.15:
            del arguments[name]
        else:
            arguments[name] = _other_value(arguments[name], rng)
    answer[turn][index] = Call(name=call.name, arguments=arguments)
    return answer


def _other_value(value: JsonValue, rng: random.Random) -> JsonValue:
    if rng.random() < 0.1:
        return rng.choice([None, "", -1, [], {}, True, 0.5])
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + rng.choice([-1, 1, 0.25, 1000])
    if isinstance(value, str):
        # text that looks like a call meets the official executor's name rewriting
        return rng.choice([value + "x", value.upper(), value[1:], f"{value} sort(it)", f"'{value}\"\n"])
    if isinstance(value, list):
        return rng.choice([value[1:], value[::-1], [*value, "x"]])
    return None


def spam(answer: Answer, rng: random.Random, corpus: Sequence[Call]) -> Answer | None:
    """One to five gold calls of its block (``corpus``) put in between, or functions that do not exist."""
    for _ in range(rng.randint(1, 5)):
        turn = rng.randrange(len(answer))
        call = Call(name="does_not_exist") if rng.random() < 0.1 else rng.choice(corpus)
        answer[turn].insert(rng.randint(0, len(answer[turn])), call)
    return answer


def early(answer: Answer, rng: random.Random, _: Sequence[Call]) -> Answer | None:
    """Made a turn too soon: one call of several, or a whole turn's; or all calls in the first turn."""
    if len(answer) < 2:
        return None
    kind = rng.choice(["one", "turn", "all"])
    if kind == "all":
        return [[call for calls in answer for call in calls], *([] for _ in answer[1:])]
    turns = [turn for turn in range(1, len(answer)) if len(answer[turn]) > (kind == "one")]
    if not turns:
        return None
    turn = rng.choice(turns)
    moved = 1 if kind == "one" else len(answer[turn])
    answer[turn - 1] += answer[turn][:moved]
    del answer[turn][:moved]
    return answer


def empty(answer: Answer, rng: random.Random, _: Sequence[Call]) -> Answer | None:
    """No call in one turn, or in any."""
    if rng.random() < 0.2:
        return [[] for _ in answer]
    turn = _some_turn(answer, rng)
    if turn is None:
        return None
    answer[turn] = []
    return answer


MUTATIONS: tuple[Callable[[Answer, random.Random, Sequence[Call]], Answer | None], ...] = (
    dropped,
    doubled,
    reordered,
    wrong_argument,
    spam,
    early,
    empty,
)


def mutants(tasks: Sequence[Task], count: int, seed: int) -> list[tuple[Task, str, Answer]]:
    """``count`` mutated answers over random tasks, each kind about equally often; a function of its arguments."""
    rng = random.Random(seed)
    corpus: dict[str, list[Call]] = {}
    for task in tasks:
        for turn in task.turns:
            for call in turn.gold:
                corpus.setdefault(task.block, []).append(call)
    made = []
    while len(made) < count:
        task = rng.choice(tasks)
        mutation = MUTATIONS[len(made) % len(MUTATIONS)]
        answer = mutation(gold_answer(task), rng, corpus[task.block])
        if answer is not None:
            made.append((task, mutation.__name__, answer))
    return made
