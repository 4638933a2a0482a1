"""Near misses: what a half-competent policy might call instead of gold.

A base model is pretrained on demonstrations of which some turns are replaced by these, so that its failures are
plausible ones. (The answers of ``mutate`` are odder: they are made to find differences between two checkers.)
"""

from __future__ import annotations

import random
from collections.abc import Callable

from pydantic import JsonValue

from rcgrpo.environments.bfcl.data import bare_schemas, owner_of
from rcgrpo.episodes.types import Call, Task

Calls = list[Call]
Pools = dict[str, list[JsonValue]]
"""The values that gold gives to each argument name, over the whole task."""

READING = (
    "get_",
    "view_",
    "list_",
    "check_",
    "display",
    "estimate_",
    "find",
    "ls",
    "cat",
    "wc",
    "tail",
    "grep",
    "sort",
)
"""How the names of functions begin that a careless policy leaves out."""


def corrupt(task: Task, rng: random.Random) -> list[Calls]:
    """For each turn a near miss of its gold, different from gold (mixing them with gold is the caller's business).

    A turn to refuse becomes one that acts: the next turn's calls come early, the withheld function included.
    Nothing is executed here: a near miss may happen to be harmless.
    """
    pools: Pools = {}
    for turn in task.turns:
        for call in turn.gold:
            for key, value in call.arguments.items():
                pools.setdefault(key, []).append(value)
    streams = []
    for index, turn in enumerate(task.turns):
        if turn.gold:
            streams.append(_near_miss(turn.gold, pools, rng))
        else:
            early = task.turns[index + 1].gold if index + 1 < len(task.turns) else []
            guess = task.category == "miss_param" and rng.random() < 0.7
            streams.append(_near_miss(early, pools, rng, (wrong_value, forget_option)) if guess else list(early))
    return streams


def _near_miss(gold: Calls, pools: Pools, rng: random.Random, mistakes: tuple[Mistake, ...] | None = None) -> Calls:
    """Gold with one mistake that changes it."""
    kinds = mistakes or MISTAKES
    for mistake in rng.sample(kinds, len(kinds)):
        calls = mistake(gold, pools, rng)
        if calls is not None and calls != gold:
            return calls
    return [*gold, gold[-1]] if mistakes else gold[:-1]


def wrong_value(gold: Calls, pools: Pools, rng: random.Random) -> Calls | None:
    """One argument of one call has another plausible value."""
    places = [(i, key) for i, call in enumerate(gold) for key in call.arguments]
    if not places:
        return None
    at, key = rng.choice(places)
    value = _other(gold[at].name, key, gold[at].arguments[key], pools, rng)
    changed = Call(name=gold[at].name, arguments={**gold[at].arguments, key: value})
    return [*gold[:at], changed, *gold[at + 1 :]]


def _other(name: str, key: str, value: JsonValue, pools: Pools, rng: random.Random) -> JsonValue:
    """What could have stood for ``value``: of the schema's choices, of the same argument elsewhere, or a slip."""
    schema = bare_schemas(owner_of()[name])[name]["function"]["parameters"]["properties"].get(key, {})
    others = [other for other in (schema.get("enum") or pools[key]) if other != value]
    if others and rng.random() < 0.7:
        return rng.choice(others)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return max(0, value + rng.choice((-10, -5, -1, 1, 5, 10)))
    if isinstance(value, str):
        return rng.choice(_slips(value))
    if isinstance(value, list):
        return value[:-1] if len(value) > 1 else []
    return None


def _slips(text: str) -> list[str]:
    words = text.split(" ")
    slips = [text.lower(), text.title(), f"{text}.", text.removesuffix("."), text.split(".")[0]]
    if len(words) > 2:
        slips += [" ".join(words[:-1]), " ".join(words[1:]), " ".join((words[1], words[0], *words[2:]))]
    if any(character.isdigit() for character in text):
        slips += [text.translate(str.maketrans("0123456789", "1234567890"))]
    return [slip for slip in slips if slip != text] or [f"{text} 2"]


def forget_option(gold: Calls, pools: Pools, rng: random.Random) -> Calls | None:
    """Leaves an argument out."""
    places = [(i, key) for i, call in enumerate(gold) for key in call.arguments]
    if not places:
        return None
    at, key = rng.choice(places)
    kept = {name: value for name, value in gold[at].arguments.items() if name != key}
    return [*gold[:at], Call(name=gold[at].name, arguments=kept), *gold[at + 1 :]]


def skip_reading(gold: Calls, pools: Pools, rng: random.Random) -> Calls | None:
    """Skips a look-up and guesses what it would have told."""
    reads = [i for i, call in enumerate(gold[:-1]) if call.name.startswith(READING)]
    if not reads:
        return None
    skipped = rng.choice(reads)
    rest = [*gold[:skipped], *gold[skipped + 1 :]]
    return wrong_value(rest, pools, rng)


def drop_one(gold: Calls, pools: Pools, rng: random.Random) -> Calls | None:
    """Leaves one call out."""
    at = rng.randrange(len(gold))
    return [*gold[:at], *gold[at + 1 :]]


def stop_early(gold: Calls, pools: Pools, rng: random.Random) -> Calls | None:
    """Stops in the middle."""
    return gold[: rng.randrange(1, len(gold))] if len(gold) > 1 else None


def refuse(gold: Calls, pools: Pools, rng: random.Random) -> Calls | None:
    """Does nothing where something can be done."""
    return []


def reorder(gold: Calls, pools: Pools, rng: random.Random) -> Calls | None:
    """Two calls that follow one another change places."""
    if len(gold) < 2:
        return None
    at = rng.randrange(len(gold) - 1)
    return [*gold[:at], gold[at + 1], gold[at], *gold[at + 2 :]]


Mistake = Callable[[Calls, Pools, random.Random], Calls | None]
MISTAKES: tuple[Mistake, ...] = (
    *(wrong_value,) * 5, forget_option, *(skip_reading,) * 2, *(drop_one,) * 2, stop_early, refuse, reorder,
)  # fmt: skip
"""The mistakes, the frequent ones several times."""
