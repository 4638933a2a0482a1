"""A synthetic BFCL scenario in the making: a real world, the expert who acts in it, and the user who speaks."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from rcgrpo.environments.bfcl.executor import World
from rcgrpo.episodes.types import Call

MAX_ARGUMENT = 240
"""Characters of a text argument; a request that needs a longer one is drawn again."""


class Unfit(Exception):
    """A request does not fit the scene (no such entity, a call that would fail); the generator draws another."""


@dataclass
class Request:
    """One user turn in the making."""

    text: str
    vague: tuple[str, str] | None = None
    """For miss_param: the request with something missing, and the clarification."""
    calls: list[Call] = field(default_factory=list)


Kind = Callable[["Scene"], Request]


class Scene:
    """The world as the expert finds it, and what has been talked about (``last``, for "it" and "that order")."""

    def __init__(self, rng: random.Random, classes: list[str], config: dict[str, Any], long_context: bool) -> None:
        self.rng = rng
        self.classes = classes
        self.world = World(classes, config, long_context)
        self.last: dict[str, Any] = {}
        self.calls: list[Call] = []

    # -- the expert acts

    def do(self, name: str, /, **arguments: Any) -> Any:
        """Call a function, record it, return its result. Raises :class:`Unfit` where it fails or writes too much."""
        if any(isinstance(value, str) and len(value) > MAX_ARGUMENT for value in arguments.values()):
            raise Unfit("too long")
        self.calls.append(Call(name=name, arguments=arguments))
        return self.probe(name, **arguments)

    def probe(self, name: str, /, **arguments: Any) -> Any:
        """Call a function without recording it: for the generator's own look into the world."""
        try:
            text = self.world.run(name, json.loads(json.dumps(arguments)))
        except Exception as error:  # whatever BFCL's own classes raise: this request is not one to train on
            raise Unfit(str(error)) from error
        if "error" in text[:12].lower():  # also as a list that holds one
            raise Unfit(text)
        try:
            result = json.loads(text)
        except ValueError:  # plain words, or what Python prints
            return text
        if isinstance(result, dict):
            refused = (value is False for key, value in result.items() if key == "success" or key.endswith("status"))
            if "error" in result or any(refused):
                raise Unfit(text)
        return result

    def api(self, class_name: str) -> Any:
        """The live instance of an API class. Raises :class:`Unfit` where this world has none."""
        if class_name not in self.world.instances:
            raise Unfit(f"no {class_name}")
        return self.world.instances[class_name]

    # -- the user speaks

    def say(self, *options: str, **slots: Any) -> str:
        """One of the phrasings, its slots filled."""
        return self.rng.choice(options).format(**slots)

    def maybe(self, share: float) -> bool:
        return self.rng.random() < share

    def pick(self, pool: Iterable[Any]) -> Any:
        """One of ``pool``. Raises :class:`Unfit` where there is none."""
        items = list(pool)
        if not items:
            raise Unfit("none")
        return self.rng.choice(items)

    def sample(self, pool: Iterable[Any], count: int) -> list[Any]:
        """``count`` different ones. Raises :class:`Unfit` where there are too few."""
        items = list(pool)
        if len(items) < count:
            raise Unfit("too few")
        return self.rng.sample(items, count)

    def known(self, key: str) -> Any:
        """What an earlier turn was about."""
        if key not in self.last:
            raise Unfit(f"no {key} yet")
        return self.last[key]

    def quoted(self, text: str) -> str:
        """The text in quotes that it does not hold itself."""
        return f'"{text}"' if "'" in text else f"'{text}'"
