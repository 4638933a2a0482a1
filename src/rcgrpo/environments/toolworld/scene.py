"""A scenario in the making: entities, the random world, and the record of what the expert does in it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from rcgrpo.environments.protocol import ToolError
from rcgrpo.environments.toolworld.apis import DAYS, HOURS, State
from rcgrpo.environments.toolworld.words import DIRS, EXTENSIONS, ITEMS, NAMES, SAYINGS, STEMS, TITLES
from rcgrpo.environments.toolworld.world import World
from rcgrpo.episodes.types import Call


class Unfit(Exception):
    """A request does not fit the scene (no such entity, a call that would fail); the generator draws another."""


@dataclass
class Request:
    """One user turn in the making."""

    text: str
    closing: str = "Done."
    vague: tuple[str, str] | None = None
    """For miss_param: the request with something missing, and the clarification."""
    opener: str = ""
    """A greeting or the like before the text."""
    calls: list[Call] = field(default_factory=list)


def make_world(rng: random.Random, domains: tuple[str, ...], entries: int) -> State:
    """A random state of the ``domains`` with about ``entries`` entries per listing."""
    state: State = {}
    if "files" in domains:
        names = [f"{stem}.{rng.choice(EXTENSIONS)}" for stem in rng.sample(STEMS, min(len(STEMS), 2 * entries))]
        dirs = rng.sample(DIRS, 3)
        state["files"] = {dir: {} for dir in dirs}
        sizes = rng.sample(range(10, 99), len(names))
        for name, size in zip(names, sizes, strict=True):
            state["files"][rng.choice(dirs)][name] = {"size": size, "text": rng.choice(SAYINGS)}
    if "shop" in domains:
        items = rng.sample(ITEMS, entries)
        ids, prices = rng.sample(range(10, 99), entries), rng.sample(range(5, 60), entries)
        state["shop"] = {
            "items": {
                item: {"id": id, "price": price, "stock": rng.randint(2, 9)}
                for item, id, price in zip(items, ids, prices, strict=True)
            },
            "money": rng.randint(40, 250),
            "bought": {},
            "watched": {},
        }
    if "mail" in domains:
        names = rng.sample(NAMES, entries + 1)
        ids = rng.sample(range(10, 99), 2 * len(names))
        senders = rng.sample(names, entries)
        state["mail"] = {
            "contacts": dict(zip(names, ids, strict=False)),
            "inbox": {n: {"id": ids[-1 - i], "text": rng.choice(SAYINGS)} for i, n in enumerate(senders)},
            "sent": [],
            "blocked": {},
        }
    if "calendar" in domains:
        slots = rng.sample([(day, hour) for day in DAYS for hour in HOURS], 2 * entries)
        titles = rng.sample(TITLES, min(len(TITLES), 2 * entries))
        state["calendar"] = {day: {} for day in DAYS}
        for (day, hour), title in zip(slots, titles, strict=False):
            state["calendar"][day][str(hour)] = {"title": title, "alert": False}
    return state


class Scene:
    """The world as the expert finds it, and what has been talked about (``last``, for "it" and "the same")."""

    def __init__(self, rng: random.Random, state: State) -> None:
        self.rng = rng
        self.world = World(state)
        self.last: dict[str, Any] = {}
        self.calls: list[Call] = []

    # -- the expert acts

    def do(self, name: str, /, **arguments: Any) -> Any:
        """Call a tool, record it, and return its result. Raises :class:`Unfit` where the tool fails."""
        call = Call(name=name, arguments=arguments)
        self.calls.append(call)
        try:
            return getattr(self.world, name)(**arguments)
        except ToolError as error:
            raise Unfit(str(error)) from error

    def tries(self, name: str, /, **arguments: Any) -> str:
        """Call a tool that may fail: the error's text, or "" where it succeeded."""
        try:
            self.do(name, **arguments)
        except Unfit as error:
            return str(error)
        return ""

    def item_id(self, item: str) -> int:
        self.last["item"] = item
        return self.do("catalog")[item]

    def person_id(self, name: str) -> int:
        self.last["person"] = name
        return self.do("contact", name=name)["id"]

    # -- the user speaks

    def say(self, *options: str, **slots: Any) -> str:
        """One of the phrasings, its slots filled."""
        return self.rng.choice(options).format(**slots)

    def maybe(self, share: float) -> bool:
        return self.rng.random() < share

    def pick(self, pool: Any, n: int = 1) -> Any:
        """One of ``pool``, or ``n`` different ones. Raises :class:`Unfit` where there are too few."""
        pool = list(pool)
        if len(pool) < n:
            raise Unfit("too few")
        return self.rng.choice(pool) if n == 1 else self.rng.sample(pool, n)

    def known(self, key: str) -> Any:
        """What was talked about in an earlier turn."""
        if key not in self.last:
            raise Unfit(f"no {key} yet")
        return self.last[key]

    # -- what there is

    @property
    def items(self) -> dict[str, Any]:
        return self.world.state["shop"]["items"]

    @property
    def contacts(self) -> dict[str, int]:
        mail = self.world.state["mail"]
        return {name: id for name, id in mail["contacts"].items() if name not in mail["blocked"]}

    @property
    def inbox(self) -> dict[str, Any]:
        return self.world.state["mail"]["inbox"]

    @property
    def dirs(self) -> dict[str, Any]:
        return self.world.state["files"]

    @property
    def files(self) -> list[str]:
        """File names that stand in one dir only."""
        names = [file for files in self.dirs.values() for file in files]
        return [name for name in names if names.count(name) == 1]

    @property
    def titles(self) -> list[str]:
        """Titles that stand once in the calendar."""
        titles = [e["title"] for entries in self.world.state["calendar"].values() for e in entries.values()]
        return [title for title in titles if titles.count(title) == 1]

    def slot(self, free: bool) -> tuple[str, int]:
        """A random free or taken hour."""
        calendar = self.world.state["calendar"]
        slots = [(day, hour) for day in DAYS for hour in HOURS if (str(hour) in calendar[day]) != free]
        return self.pick(slots)

    def new_file(self) -> str:
        taken = {file for files in self.dirs.values() for file in files}
        return self.pick(f"{stem}.{x}" for stem in STEMS for x in EXTENSIONS if f"{stem}.{x}" not in taken)

    def new_title(self) -> str:
        taken = {e["title"] for entries in self.world.state["calendar"].values() for e in entries.values()}
        return self.pick(title for title in TITLES if title not in taken)
