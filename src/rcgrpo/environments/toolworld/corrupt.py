"""Near misses: what a half-competent policy might call instead of gold.

The base model is pretrained on demonstrations of which some turns are replaced by these, so that its failures are
plausible ones: a guessed id, a step left out, a wrong amount, an action where it should have refused.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from rcgrpo.environments.toolworld.apis import DAYS, HOURS, READS
from rcgrpo.environments.toolworld.words import DIRS, NAMES, SAYINGS, TITLES
from rcgrpo.episodes.types import Call, Task

Calls = list[Call]

MISTAKEN = {"watch": "refund", "refund": "watch", "star": "trash", "trash": "star", "cp": "mv", "mv": "cp",
            "cancel": "alert", "alert": "cancel"}  # fmt: skip
"""Tools with the same parameters that are easily taken for each other."""

SWAPPED = (("dir", "to"), ("id", "n"), ("day", "to_day"), ("hour", "to_hour"))
"""Arguments that are easily swapped."""


def corrupt(task: Task, rng: random.Random) -> list[Calls]:
    """For each turn a near miss of its gold, different from gold (mixing them with gold is the caller's business).

    A turn to refuse becomes one that acts: the next turn's calls come early, the withheld tool included, or with a
    guess in place of what the user has not said. Nothing is executed here: a near miss may happen to be harmless.
    """
    streams = []
    for index, turn in enumerate(task.turns):
        if turn.gold:
            streams.append(_near_miss(task, turn.gold, rng))
        else:
            early = task.turns[index + 1].gold
            guess = task.category == "miss_param" and rng.random() < 0.7
            streams.append(_near_miss(task, early, rng, (wrong_value, guess_id)) if guess else list(early))
    return streams


def _near_miss(task: Task, gold: Calls, rng: random.Random, mistakes: tuple[Mistake, ...] | None = None) -> Calls:
    """Gold with one mistake that changes it."""
    kinds = list(mistakes or MISTAKES)
    rng.shuffle(kinds)
    for mistake in kinds:
        calls = mistake(task, gold, rng)
        if calls is not None and calls != gold:
            return calls
    return gold[:-1]


def wrong_value(task: Task, gold: Calls, rng: random.Random) -> Calls | None:
    """One argument of one call has another plausible value."""
    places = [(i, key) for i, call in enumerate(gold) for key in call.arguments]
    if not places:
        return None
    at, key = rng.choice(places)
    value = _other(task, key, gold[at].arguments[key], rng)
    changed = Call(name=gold[at].name, arguments={**gold[at].arguments, key: value})
    return [*gold[:at], changed, *gold[at + 1 :]]


def _other(task: Task, key: str, value: object, rng: random.Random) -> int | str:
    """A value that could have stood for ``value``: from the task's world where that has some, else from the words."""
    world = task.data["world"]
    if isinstance(value, int):
        if key in ("id", "to"):
            shop, mail = world.get("shop", {"items": {}}), world.get("mail", {"contacts": {}, "inbox": {}})
            ids = [*(entry["id"] for part in (shop["items"], mail["inbox"]) for entry in part.values())]
            return _pick([*ids, *mail["contacts"].values()], value, rng)
        if key in ("hour", "to_hour"):
            return _pick(list(HOURS), value, rng)
        return max(1, value + rng.choice((-5, -2, -1, 1, 2, 5)))
    files = world.get("files", {})
    pools: dict[str, list[str]] = {
        "dir": list(files) or list(DIRS),
        "to": list(files) or list(DIRS),
        "file": [name for entries in files.values() for name in entries],
        "name": list(world.get("mail", {"contacts": NAMES})["contacts"]),
        "day": list(DAYS),
        "to_day": list(DAYS),
        "title": list(TITLES),
        "text": list(SAYINGS),
    }
    return _pick(pools[key], value, rng)


def _pick(pool: list[Any], value: object, rng: random.Random) -> Any:
    return rng.choice([other for other in pool if other != value] or [value])


def guess_id(task: Task, gold: Calls, rng: random.Random) -> Calls | None:
    """Skips a look-up and guesses what it would have told."""
    keys = ("id", "to", "dir", "day", "hour")
    reads = [i for i, call in enumerate(gold[:-1]) if call.name in READS]
    if not reads:
        return None
    skipped = rng.choice(reads)
    rest = []
    for i, call in enumerate(gold):
        if i == skipped:
            continue
        guesses = {
            key: _other(task, key, value, rng)
            for key, value in call.arguments.items()
            if i > skipped and key in keys and rng.random() < 0.7
        }
        rest.append(Call(name=call.name, arguments={**call.arguments, **guesses}))
    return rest


def drop_one(task: Task, gold: Calls, rng: random.Random) -> Calls | None:
    """Leaves one call out."""
    at = rng.randrange(len(gold))
    return [*gold[:at], *gold[at + 1 :]]


def stop_early(task: Task, gold: Calls, rng: random.Random) -> Calls | None:
    """Stops in the middle, for example after an error."""
    return gold[: rng.randrange(1, len(gold))] if len(gold) > 1 else None


def refuse(task: Task, gold: Calls, rng: random.Random) -> Calls | None:
    """Does nothing where something can be done."""
    return []


def swap_arguments(task: Task, gold: Calls, rng: random.Random) -> Calls | None:
    """Two arguments change places."""
    places = [(i, a, b) for i, call in enumerate(gold) for a, b in SWAPPED if {a, b} <= call.arguments.keys()]
    if not places:
        return None
    at, a, b = rng.choice(places)
    arguments = gold[at].arguments
    swapped = Call(name=gold[at].name, arguments={**arguments, a: arguments[b], b: arguments[a]})
    return [*gold[:at], swapped, *gold[at + 1 :]]


def mistake_tool(task: Task, gold: Calls, rng: random.Random) -> Calls | None:
    """Takes one tool for another with the same parameters."""
    places = [i for i, call in enumerate(gold) if MISTAKEN.get(call.name) in task.data["tools"]]
    if not places:
        return None
    at = rng.choice(places)
    taken = Call(name=MISTAKEN[gold[at].name], arguments=dict(gold[at].arguments))
    return [*gold[:at], taken, *gold[at + 1 :]]


def repeat(task: Task, gold: Calls, rng: random.Random) -> Calls | None:
    """Does the last action twice."""
    return [*gold, gold[-1]]


Mistake = Callable[[Task, Calls, random.Random], Calls | None]
MISTAKES: tuple[Mistake, ...] = (
    *(wrong_value,) * 4, *(guess_id,) * 3, *(drop_one,) * 2, *(stop_early,) * 2,
    refuse, swap_arguments, mistake_tool, repeat,
)  # fmt: skip
"""The mistakes, the frequent ones several times."""
