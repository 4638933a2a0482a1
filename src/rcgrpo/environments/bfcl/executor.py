"""The safe executor: one set of BFCL's API instances per episode, calls dispatched from a table.

It gives the results of the official ``execute_multi_turn_func_call`` without its ``eval``, its process-wide
instances, or its shared objects: in the official one, long_context cards and bookings are module-level
dictionaries that every instance books on, and ``post_tweet`` keeps its mutable default lists.

What the policy writes can hang or blow up the API classes; such calls are refused with an error that it reads:
see :func:`_checked` (argument sizes), :data:`_GUARDS` (MathAPI) and :meth:`World._move` (file trees).
"""

from __future__ import annotations

import copy
import decimal
import inspect
import math
import re
from collections.abc import Callable
from functools import cache
from types import MethodType
from typing import Any

import mpmath

from rcgrpo.environments.bfcl.data import schemas
from rcgrpo.environments.bfcl.install import api_class
from rcgrpo.environments.protocol import ToolError, format_result

MAX_TEXT = 100_000
"""Characters in one string argument (BFCL's longest gold argument has 6,690)."""
MAX_ITEMS = 10_000
"""Values in all the arguments of one call, containers included."""
MAX_DEPTH = 20
MAX_DIGITS = 4300
"""CPython's own limit for turning an integer into text."""
MAX_BITS = int(MAX_DIGITS / math.log10(2)) + 1
"""Any integer with more bits has more than MAX_DIGITS digits."""
MAX_PLAIN = 1 << 63
"""Integers below it need no look at their digits."""
MAX_PRECISION = 1000
"""Digits asked of ``logarithm`` and ``square_root``; gold asks for at most 10."""
MAX_FILES = 20_000
"""Files and directories in one tree, counted by path: copies share their content, so a tree can grow 2^n."""

Arguments = dict[str, Any]


def error_text(error: Exception) -> str:
    """What the policy reads where a call raised (the official words)."""
    return f"Error during execution: {error}"


class World:
    """The API instances of one episode, and the only functions that can be called on them.

    Args:
        classes: Names of the involved API classes.
        config: Initial state by class name; copied.
        long_context: Load the inflated states of the long_context category.
    """

    def __init__(self, classes: list[str], config: dict[str, Any], long_context: bool) -> None:
        self.instances = {name: _load(name, config.get(name, {}), long_context) for name in classes}
        self._table: dict[str, MethodType] = {}
        for name, instance in self.instances.items():
            for function in _functions(name):
                self._table[function] = getattr(instance, function)

    def run(self, name: str, arguments: Arguments) -> str:
        """Run one call and return the text of its result.

        Raises whatever the API raised, and :class:`ToolError` for a name that is no function of these classes
        or for arguments that are refused.
        """
        method = self._table.get(name)
        if method is None:
            raise ToolError(f"name {name[:80]!r} is not defined")
        given = _own(arguments)
        if name not in _SPECIAL:
            return format_result(method(**given))
        given = dict(given)  # what follows changes it
        for key in _mutable_defaults(method.__func__):
            given.setdefault(key, [])
        if name in ("cp", "mv"):
            return format_result(self._move(method, given))
        guard = _GUARDS.get(name)
        if guard is None:
            return format_result(method(**given))
        guard(given)
        # Both libraries keep their precision in process-wide contexts: the API sets it, we put it back. The
        # result is formatted before that, for the digits shown depend on it.
        with decimal.localcontext(), mpmath.workprec(mpmath.mp.prec):
            return format_result(method(**given))

    def states(self) -> dict[str, dict[str, Any]]:
        """The public attributes of every instance: what the checker compares. Live objects, not copies."""
        return {
            name: {key: value for key, value in vars(instance).items() if not key.startswith("_")}
            for name, instance in self.instances.items()
        }

    def _move(self, method: Callable[..., Any], given: Arguments) -> Any:
        """``cp`` or ``mv``, undone and refused where it leaves a cyclic tree or one too large to walk."""
        files = self.instances["GorillaFileSystem"]
        here = files._current_dir.contents
        source, destination = (given.get(key) for key in ("source", "destination"))
        if not isinstance(source, str) or not isinstance(destination, str):
            return method(**given)
        target = getattr(here.get(destination), "contents", here)
        before = [(contents, dict(contents)) for contents in (here, target)]
        result = method(**given)
        if hasattr(before[0][1].get(source), "contents") and _too_large(files.root, files._current_dir):
            for contents, items in before:
                contents.clear()
                contents.update(items)
            raise ToolError(f"a copy of {source[:80]!r} in {destination[:80]!r} makes the tree cyclic or too large")
        return result


def _load(class_name: str, config: dict[str, Any], long_context: bool) -> Any:
    instance = api_class(class_name)()
    if class_name == "MathAPI":  # stateless: it has no scenario
        return instance
    instance._load_scenario(copy.deepcopy(config), long_context=long_context)
    if class_name == "TravelAPI" and long_context:  # filled up with module-level dictionaries
        instance.credit_card_list = copy.deepcopy(instance.credit_card_list)
        instance.booking_record = copy.deepcopy(instance.booking_record)
    return instance


@cache
def _functions(class_name: str) -> tuple[str, ...]:
    """The documented functions of a class: exactly its public methods."""
    return tuple(schemas(class_name))


@cache
def _mutable_defaults(function: Any) -> tuple[str, ...]:
    """Parameters whose default is a list that all calls would share."""
    return tuple(p.name for p in inspect.signature(function).parameters.values() if isinstance(p.default, list))


def _too_large(*roots: Any) -> bool:
    """Whether a tree has over MAX_FILES paths; a cyclic one has infinitely many."""
    for root in roots:
        stack, seen = [root], 0
        while stack:
            for item in stack.pop().contents.values():
                seen += 1
                if hasattr(item, "contents"):
                    stack.append(item)
            if seen > MAX_FILES:
                return True
    return False


def _own(arguments: Arguments) -> Arguments:
    """The arguments as the API may have them: within the limits, nothing shared with the episode's record."""
    for value in arguments.values():
        kind = type(value)
        if kind is str:
            if len(value) > MAX_TEXT:
                break
        elif kind is not bool and value is not None and not (kind is int and -MAX_PLAIN < value < MAX_PLAIN):
            break
    else:  # most calls hold nothing but short texts and small numbers
        return arguments if len(arguments) < MAX_ITEMS else _within_limits(arguments)
    return {key: _checked(value) for key, value in _within_limits(arguments).items()}


def _within_limits(arguments: Arguments) -> Arguments:
    stack: list[tuple[Any, int]] = [(arguments, 0)]
    seen = 0
    while stack:
        value, depth = stack.pop()
        if isinstance(value, dict | list):
            seen += len(value)
            if depth > MAX_DEPTH or seen > MAX_ITEMS:
                raise ToolError(f"arguments may nest {MAX_DEPTH} deep and hold {MAX_ITEMS} values")
            stack.extend((item, depth + 1) for item in (value.values() if isinstance(value, dict) else value))
    return arguments


def _checked(value: Any) -> Any:
    """A copy of a JSON value (a list that went into a state must not be the one in the episode's record)."""
    if isinstance(value, str):
        if len(value) > MAX_TEXT:
            raise ToolError(f"a text argument may have {MAX_TEXT} characters, this one has {len(value)}")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ToolError(f"name '{value}' is not defined")  # as in the official executor: it is no literal
    elif isinstance(value, int):
        if value.bit_length() > MAX_BITS:
            raise ToolError(f"an integer argument may have {MAX_DIGITS} digits")
    elif isinstance(value, list):
        return [_checked(item) for item in value]
    elif isinstance(value, dict):
        return {key: _checked(item) for key, item in value.items()}
    return value


def _guard_power(given: Arguments) -> None:
    """An integer power with too many digits raises, once computed, exactly this error in ``json.dumps``."""
    base, exponent = given.get("base"), given.get("exponent")
    if isinstance(base, int) and isinstance(exponent, int) and exponent * (abs(base).bit_length() - 1) > MAX_BITS:
        raise ValueError(
            f"Exceeds the limit ({MAX_DIGITS} digits) for integer string conversion; "
            "use sys.set_int_max_str_digits() to increase the limit"
        )


def _guard_precision(given: Arguments) -> None:
    """mpmath and decimal work in C for hours where asked for millions of digits, deaf to signals."""
    try:
        digits = int(given.get("precision", 0))
    except (TypeError, ValueError):
        return  # the API will say so itself
    if digits > MAX_PRECISION:
        raise ToolError(f"precision must be at most {MAX_PRECISION}")
    for value in given.values():  # mpmath reads numbers from text, such as "1e999999999"
        if isinstance(value, str) and not re.fullmatch(r"[+-]?\d{1,50}(\.\d{0,50})?", value):
            raise ToolError(f"not a plain number: {value[:80]!r}")


def _guard_round(given: Arguments) -> None:
    """No number has more digits than this, so the result is the same; Python would compute 10**places."""
    places = given.get("decimal_places")
    if isinstance(places, int) and isinstance(given.get("number"), int):
        given["decimal_places"] = max(places, -2 * MAX_DIGITS)


_GUARDS: dict[str, Callable[[Arguments], None]] = {
    "power": _guard_power,
    "logarithm": _guard_precision,
    "square_root": _guard_precision,
    "round_number": _guard_round,
}
_SPECIAL = frozenset({*_GUARDS, "cp", "mv", "post_tweet"})
"""Functions that are not just called: see :meth:`World.run`."""
