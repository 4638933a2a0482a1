"""Synthetic BFCL scenarios: from a number to a world, its requests and gold, and from those to the four categories.

A task is a function of (seed, category, number) alone. Gold is never written down: the expert acts in the real API
classes while the request is made, and what a call needs comes from the user's words or from results before it.
Nothing is taken from the benchmark's scenarios; which functions, conventions (all four doors, one folder per ``cd``)
and pairs of classes occur was modelled on the scenarios that ``scenario_split(seed=0)`` trains on.
"""

from __future__ import annotations

import copy
import random
from typing import Any

from rcgrpo.environments.bfcl.data import REVEAL, Category
from rcgrpo.environments.bfcl.synthetic import files, trading, travel, vehicle
from rcgrpo.environments.bfcl.synthetic.scene import Kind, Request, Scene, Unfit
from rcgrpo.environments.bfcl.synthetic.side import SIDES
from rcgrpo.environments.bfcl.synthetic.words import AFTERTHOUGHTS, CONNECTIVES, OPENERS
from rcgrpo.episodes.types import Message, Task, Turn

MAINS = {"file_system": files, "vehicle": vehicle, "trading": trading, "travel": travel}
"""The blocks of the benchmark: a main API each."""

COMPANIONS = {
    "file_system": ("TwitterAPI", "MathAPI", "MessageAPI", "TicketAPI"),
    "vehicle": ("TwitterAPI", "MessageAPI", "MathAPI"),
    "trading": ("MessageAPI", "TicketAPI", "MathAPI", "TwitterAPI"),
    "travel": ("TicketAPI", "MessageAPI", "TwitterAPI", "MathAPI"),
}
"""The side APIs of each block, the frequent ones first."""

SHARE_WITH_SIDE = 0.7
SHARE_OF_SIDE = 0.4
"""How often there is a side API, and a request then goes to it."""
SHARE_OF_PAIRS = 0.2
"""How often a user asks for two things in one turn."""
TURNS = (2, 3, 3, 4, 4, 5)
MAX_CALLS = 8
"""Of one turn."""


def task(seed: int, category: Category, number: int) -> Task:
    """The ``category`` task with this number. Each category draws worlds and requests of its own."""
    attempt = 0
    while True:
        rng = random.Random(f"bfcl/{seed}/{category}/{number}/{attempt}")
        attempt += 1
        try:
            return _draw(rng, category, number)
        except Unfit:
            continue


def _draw(rng: random.Random, category: Category, number: int) -> Task:
    block = rng.choice(list(MAINS))
    main = MAINS[block]
    classes, config, side = [main.CLASS], {main.CLASS: main.config(rng)}, None
    if rng.random() < SHARE_WITH_SIDE:
        side = rng.choices(COMPANIONS[block], weights=(4, 3, 2, 1)[: len(COMPANIONS[block])])[0]
        classes.insert(rng.randrange(2), side)
        config[side] = SIDES[side][0](rng)
    scene = Scene(rng, classes, config, category == "long_context")
    requests: list[Request] = []
    used: list[Kind] = []
    for _ in range(rng.choice(TURNS)):
        kinds = SIDES[side][1] if side and rng.random() < SHARE_OF_SIDE else main.KINDS
        request = _request(scene, kinds, used)
        if rng.random() < SHARE_OF_PAIRS:
            second = _request(scene, main.KINDS, used)
            text = request.text + rng.choice(CONNECTIVES) + second.text
            request = Request(text, calls=request.calls + second.calls)
        requests.append(request)
    turns = [_turn(rng, request.text, request) for request in requests]
    if category == "miss_func":
        index, names = _withheld(rng, requests)
        turns[index : index + 1] = [
            Turn(messages=turns[index].messages),
            Turn(messages=[_user(REVEAL)], gold=turns[index].gold, reveals=names),
        ]
    elif category == "miss_param":
        index = _one(rng, [i for i, request in enumerate(requests) if request.vague])
        vague, clarification = requests[index].vague or ("", "")
        turns[index : index + 1] = [
            Turn(messages=[_user(rng.choice(OPENERS) + vague)]),
            _turn(rng, clarification, requests[index], opener=""),
        ]
    return Task(
        id=f"bfcl_synthetic_{category}_{number:06d}",
        category=category,
        scenario=f"bfcl_synthetic_{category}_{number:06d}",
        block=block,
        turns=turns,
        data={"classes": classes, "config": config, "long_context": category == "long_context"},
    )


def _request(scene: Scene, kinds: tuple[Kind, ...], used: list[Kind]) -> Request:
    """One request that fits the scene as it is now, its kind added to ``used``; raises :class:`Unfit` at a loss."""
    for _ in range(40):
        kind = scene.rng.choice(kinds)
        if kind in used and scene.rng.random() < 0.8:
            continue
        world, last = copy.deepcopy(scene.world), dict(scene.last)
        scene.calls = []
        try:
            request = kind(scene)
            if not 0 < len(scene.calls) <= MAX_CALLS:
                raise Unfit("too many calls")
        except Unfit:
            scene.world, scene.last = world, last
            continue
        request.calls = scene.calls
        used.append(kind)
        return request
    raise Unfit("nothing fits")


def _turn(rng: random.Random, text: str, request: Request, opener: str | None = None) -> Turn:
    before = rng.choice(OPENERS) if opener is None else opener
    text = before + text + rng.choice(AFTERTHOUGHTS)
    return Turn(messages=[_user(text[:1].upper() + text[1:])], gold=request.calls)


def _user(text: str) -> Message:
    return Message(role="user", content=text)


def _withheld(rng: random.Random, requests: list[Request]) -> tuple[int, list[str]]:
    """A turn, and one or two functions of it that no earlier turn uses."""
    options: list[tuple[int, list[str]]] = []
    used: set[str] = set()
    for index, request in enumerate(requests):
        names = list(dict.fromkeys(call.name for call in request.calls if call.name not in used))
        if names:
            options.append((index, names))
        used |= {call.name for call in request.calls}
    index, names = _one(rng, options)
    return index, rng.sample(names, min(len(names), rng.choice((1, 1, 1, 2))))


def _one(rng: random.Random, options: list[Any]) -> Any:
    if not options:
        raise Unfit("no such turn")
    return rng.choice(options)
