"""Scenarios without end: from a number to a world, its requests and gold, and from those to the four task variants.

A scenario is a function of (config, number) alone. Gold is never written down by hand: the expert acts in a real world
while the request is made, and the arguments of a call come from the results before it.
"""

from __future__ import annotations

import copy
import hashlib
import random
from dataclasses import dataclass

from rcgrpo.environments.toolworld.apis import APIS, READS, TOOLS, State
from rcgrpo.environments.toolworld.config import Category, ToolWorldConfig
from rcgrpo.environments.toolworld.requests import BOTH, EASY, FOLLOW_UPS, HARD, Kind
from rcgrpo.environments.toolworld.scene import Request, Scene, Unfit, make_world
from rcgrpo.environments.toolworld.words import FILLER_ITEMS, FILLER_NAMES, FILLER_TITLES, SAYINGS, STEMS
from rcgrpo.episodes.types import Message, Task, Turn

REVEAL = "I have updated some more functions you can choose from. What about now?"
NO_TOOL = "I have no tool for that."
UNCLEAR = "Please tell me more."

DOMAINS = tuple(APIS)
HELD_OUT_BUCKETS = 8
"""One scenario in so many, by the hash of its user texts, may only be a test scenario."""

SUBSTITUTES = {"mv": "cp", "shift": "book"}
"""A withheld tool could be replaced by its substitute (and a removal): the substitute is not shown then."""

NO_WAY_ROUND = frozenset(("catalog", "price", "inbox", "open_mail", "contact", "read"))
"""Reads that no other tool can replace."""

_OPENERS = ("", "", "", "", "", "Please do this: ", "Hi! ", "Hello. ", "OK. ", "Thanks. ", "Next: ", "One more thing: ")


@dataclass(frozen=True)
class Scenario:
    """A world, its domains, and the requests of the base variant."""

    number: int
    domains: tuple[str, ...]
    world: State
    requests: tuple[Request, ...]
    kinds: tuple[str, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        """What the user asks for, turn by turn, without greetings: what must not stand on both sides of a split."""
        return tuple(request.text for request in self.requests)


def is_held_out(texts: tuple[str, ...]) -> bool:
    """Whether these user texts belong to the test side: no text sequence stands on both sides."""
    return hashlib.sha256("\n".join(texts).encode()).digest()[0] % HELD_OUT_BUCKETS == 0


def scenario(config: ToolWorldConfig, number: int) -> Scenario:
    """The scenario with this number: draws until one fits all four variants and its side of the split."""
    attempt = 0
    while True:
        drawn = _draw(config, number, random.Random(f"{config.seed}/{number}/{attempt}"))
        attempt += 1
        if drawn is None or is_held_out(drawn.texts) != config.is_test(number):
            continue
        if _withholdable(drawn) and any(request.vague for request in drawn.requests):
            return drawn


def _draw(config: ToolWorldConfig, number: int, rng: random.Random) -> Scenario | None:
    first = DOMAINS[number // len(DOMAINS) % len(DOMAINS)]  # not number % 4: pools deal categories out by that
    domains = (first,)
    if rng.random() < config.two_domains:
        domains += (rng.choice([domain for domain in DOMAINS if domain != first]),)
    world = make_world(rng, domains, config.entries)
    scene, requests, kinds = Scene(rng, world), [], []
    wanted = rng.randint(config.min_turns, config.max_turns)
    while len(requests) < wanted:
        request = _request(config, scene, domains)
        if request is None:
            return None
        requests.append(request[0])
        kinds.append(request[1])
    return Scenario(number, domains, world, tuple(requests), tuple(kinds))


def _request(config: ToolWorldConfig, scene: Scene, domains: tuple[str, ...]) -> tuple[Request, str] | None:
    """One request that fits the scene as it is now, and its kind; None after too many misfits."""
    rng = scene.rng
    for _ in range(30):
        kind = rng.choice(_options(config, rng, domains, bool(scene.last)))
        before, last = copy.deepcopy(scene.world.state), dict(scene.last)
        scene.calls = []
        try:
            request = kind(scene)
            if scene.calls[-1].name not in READS and scene.world.state == before:
                raise Unfit("it is so already: leaving it out could not be noticed")
        except Unfit:
            scene.world.restore(before)
            scene.last = last
            continue
        request.opener = rng.choice(_OPENERS)
        request.calls = scene.calls
        return request, kind.__name__
    return None


def _options(config: ToolWorldConfig, rng: random.Random, domains: tuple[str, ...], later: bool) -> tuple[Kind, ...]:
    """The kinds of request to draw the next one from; ``later``: something has been talked about."""
    if later and rng.random() < config.follow_ups:
        return FOLLOW_UPS[rng.choice(domains)]
    if rng.random() >= config.hardness:
        return EASY[rng.choice(domains)]
    if len(domains) == 2 and rng.random() < 0.5:
        return BOTH[frozenset(domains)]
    return HARD[rng.choice(domains)]


def _withholdable(drawn: Scenario) -> list[tuple[int, str]]:
    """(turn, tool) pairs fit for miss_func: the turn cannot be done without, and no earlier turn uses it."""
    pairs, used = [], set()
    everything = {call.name for request in drawn.requests for call in request.calls}
    for turn, request in enumerate(drawn.requests):
        names = [call.name for call in request.calls if call.name not in used]
        writes = [name for name in names if name not in READS and SUBSTITUTES.get(name) not in everything]
        needed = writes or [name for name in names if name in NO_WAY_ROUND]
        pairs += [(turn, name) for name in needed]
        used.update(call.name for call in request.calls)
    return pairs


def task(config: ToolWorldConfig, category: Category, number: int) -> Task:
    """The ``category`` variant of scenario ``number``."""
    drawn = scenario(config, number)
    rng = random.Random(f"{config.seed}/{number}/variant")
    turns = [Turn(messages=[_user(r.opener + r.text)], gold=r.calls) for r in drawn.requests]
    closings = [request.closing for request in drawn.requests]
    world, hidden = drawn.world, set()
    if category == "miss_func":
        turn, tool = rng.choice(_withholdable(drawn))
        hidden = {SUBSTITUTES.get(tool, "")}
        turns[turn : turn + 1] = [
            Turn(messages=turns[turn].messages),
            Turn(messages=[_user(REVEAL)], gold=turns[turn].gold, reveals=[tool]),
        ]
        closings.insert(turn, NO_TOOL)
    elif category == "miss_param":
        turn = rng.choice([i for i, request in enumerate(drawn.requests) if request.vague])
        vague, clarification = drawn.requests[turn].vague or ("", "")
        turns[turn : turn + 1] = [
            Turn(messages=[_user(vague)]),
            Turn(messages=[_user(clarification)], gold=turns[turn].gold),
        ]
        closings.insert(turn, UNCLEAR)
    elif category == "long_context":
        world = inflate(drawn.world, rng, config.long_entries)
    used = {call.name for turn in turns for call in turn.gold}
    return Task(
        id=f"toolworld_{category}_{number:06d}",
        category=category,
        scenario=f"{number:06d}",
        block=drawn.domains[0],
        turns=turns,
        data={
            "world": world,
            "tools": _shown(config, drawn, used, hidden),
            "closings": closings,
            "kinds": list(drawn.kinds),
        },
    )


def _user(text: str) -> Message:
    return Message(role="user", content=text)


def _shown(config: ToolWorldConfig, drawn: Scenario, used: set[str], hidden: set[str]) -> list[str]:
    """The tools of a task: those that gold uses, and others of its domains up to ``config.tools``."""
    names = [name for domain in drawn.domains for name in TOOLS[domain] if name not in hidden]
    others = [name for name in names if name not in used]
    rng = random.Random(f"{config.seed}/{drawn.number}/tools")
    chosen = used | set(rng.sample(others, max(0, min(len(others), config.tools - len(used)))))
    return [name for name in names if name in chosen]


def inflate(world: State, rng: random.Random, entries: int) -> State:
    """``world`` with ``entries`` more entries per listing, none of which changes what gold does.

    The fillers have names of their own, sizes below every real file's, and hours after those that can be booked.
    """
    world = copy.deepcopy(world)
    for files in world.get("files", {}).values():
        for stem in rng.sample(STEMS, entries // 2):
            files[f"{stem}.log"] = {"size": rng.randint(1, 9), "text": rng.choice(SAYINGS)}
    if "shop" in world:
        items = world["shop"]["items"]
        ids = [id for id in range(10, 99) if id not in {item["id"] for item in items.values()}]
        for name, id in zip(rng.sample(FILLER_ITEMS, entries), rng.sample(ids, entries), strict=True):
            items[name] = {"id": id, "price": rng.randint(5, 60), "stock": rng.randint(2, 9)}
        world["shop"]["items"] = _shuffled(items, rng)
    if "mail" in world:
        inbox = world["mail"]["inbox"]
        ids = [id for id in range(10, 99) if id not in {mail["id"] for mail in inbox.values()}]
        for name, id in zip(rng.sample(FILLER_NAMES, entries), rng.sample(ids, entries), strict=True):
            inbox[name] = {"id": id, "text": rng.choice(SAYINGS)}
        world["mail"]["inbox"] = _shuffled(inbox, rng)
    for day in world.get("calendar", {}).values():
        for hour in rng.sample(range(18, 24), min(6, entries // 2)):
            day[str(hour)] = {"title": rng.choice(FILLER_TITLES), "alert": False}
    return world


def _shuffled(entries: dict, rng: random.Random) -> dict:
    return dict(rng.sample(list(entries.items()), len(entries)))
