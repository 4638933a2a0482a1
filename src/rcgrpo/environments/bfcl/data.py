"""BFCL's 800 multi-turn entries as tasks, and its function documents as JSON Schema tools."""

from __future__ import annotations

import ast
import inspect
import json
from functools import cache
from typing import Any, Literal

from rcgrpo.environments.bfcl.install import api_class, data_dir
from rcgrpo.environments.protocol import Schema
from rcgrpo.episodes.types import Call, Message, Task, Turn

Category = Literal["base", "miss_func", "miss_param", "long_context"]
CATEGORIES: tuple[Category, ...] = ("base", "miss_func", "miss_param", "long_context")
BLOCKS = ("file_system", "vehicle", "trading", "travel")
"""Scenarios 0-49, 50-99, 100-149 and 150-199: the four strata of every split."""

SCENARIOS = 200
REVEAL = "I have updated some more functions you can choose from. What about now?"
"""What the official protocol says when it shows the withheld functions (its prompt for function calling)."""

DOC_FILES = {
    "GorillaFileSystem": "gorilla_file_system",
    "MathAPI": "math_api",
    "MessageAPI": "message_api",
    "TwitterAPI": "posting_api",
    "TicketAPI": "ticket_api",
    "TradingBot": "trading_bot",
    "TravelAPI": "travel_booking",
    "VehicleControlAPI": "vehicle_control",
}

_JSON_TYPES = {"dict": "object", "float": "number", "tuple": "array"}


def block_of(number: int) -> str:
    """The domain block of scenario ``number`` (0-199)."""
    return BLOCKS[number // 50]


def entry_id(category: str, number: int) -> str:
    """BFCL's own id: ``multi_turn_base_0``."""
    return f"multi_turn_{category}_{number}"


@cache
def entries(category: Category) -> dict[str, dict[str, Any]]:
    """The raw entries of a category by id, each with its ``ground_truth`` (call strings per turn). Read only."""
    name = f"BFCL_v4_multi_turn_{category}.json"
    by_id = {}
    with (data_dir() / name).open() as questions, (data_dir() / "possible_answer" / name).open() as answers:
        for question, answer in zip(questions, answers, strict=True):
            entry, gold = json.loads(question), json.loads(answer)
            if entry["id"] != gold["id"]:
                raise ValueError(f"{name}: entry {entry['id']} stands beside the gold of {gold['id']}")
            by_id[entry["id"]] = {**entry, "ground_truth": gold["ground_truth"]}
    return by_id


@cache
def schemas(class_name: str) -> dict[str, Schema]:
    """The tools of one API class by name, in BFCL's order, in the OpenAI form with JSON Schema types.

    Each keeps BFCL's ``response`` document (the shape of the result) beside ``parameters``. Read only.
    """
    tools = {}
    with (data_dir() / "multi_turn_func_doc" / f"{DOC_FILES[class_name]}.json").open() as lines:
        for line in lines:
            document = _as_json_schema(json.loads(line))
            tools[document["name"]] = {"type": "function", "function": document}
    return tools


@cache
def bare_schemas(class_name: str) -> dict[str, Schema]:
    """:func:`schemas` without the ``response`` documents (about 40% fewer tokens)."""
    return {
        name: {**tool, "function": {k: v for k, v in tool["function"].items() if k != "response"}}
        for name, tool in schemas(class_name).items()
    }


def _as_json_schema(value: Any) -> Any:
    """``value`` with BFCL's type names replaced by JSON Schema's; ``any`` is written as no type at all."""
    if isinstance(value, list):
        return [_as_json_schema(item) for item in value]
    if not isinstance(value, dict):
        return value
    converted = {key: _as_json_schema(item) for key, item in value.items()}
    kind = value.get("type")
    if isinstance(kind, str):  # a property may itself be called "type": then it is a dict
        if kind == "any":
            del converted["type"]
        else:
            converted["type"] = _JSON_TYPES.get(kind, kind)
    return converted


@cache
def owner_of() -> dict[str, str]:
    """Which API class each function name belongs to (names are unique over all classes)."""
    return {name: class_name for class_name in DOC_FILES for name in schemas(class_name)}


def parse_call(text: str) -> Call:
    """Read a gold call such as ``cd(folder='a')`` or ``sort('a.txt')`` without evaluating anything.

    Positional arguments are bound to the names of the method's signature. Raises ValueError where ``text`` is
    not one call of a known function with literal arguments.
    """
    node = ast.parse(text.strip(), mode="eval").body
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise ValueError(f"not a plain call: {text!r}")
    name = node.func.id
    if name not in owner_of():
        raise ValueError(f"no BFCL function is named {name!r}")
    if any(keyword.arg is None for keyword in node.keywords):
        raise ValueError(f"** in a gold call: {text!r}")
    arguments = {}
    if node.args:
        method = getattr(api_class(owner_of()[name]), name)
        positional = [ast.literal_eval(argument) for argument in node.args]
        arguments.update(inspect.signature(method).bind_partial(None, *positional).arguments)
        arguments.pop("self")
    arguments.update({str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords})
    return Call(name=name, arguments=arguments)


def load_task(category: Category, number: int) -> Task:
    """One entry as a task of the official protocol: turns, gold, late reveals.

    ``task.data`` holds ``classes`` (involved API classes), ``config`` (their initial states, shared with
    :func:`entries` and so read only: a world copies it) and ``long_context``.
    """
    entry = entries(category)[entry_id(category, number)]
    reveals: dict[str, list[str]] = entry.get("missed_function", {})
    turns = []
    for index, (question, gold) in enumerate(zip(entry["question"], entry["ground_truth"], strict=True)):
        messages = [Message(role=m["role"], content=m["content"]) for m in question]
        turns.append(
            Turn(
                messages=messages or [Message(role="user", content=REVEAL)],
                gold=[parse_call(text) for text in gold],
                reveals=reveals.get(str(index), []),
            )
        )
    data = {
        "classes": entry["involved_classes"],
        "config": entry["initial_config"],
        "long_context": category == "long_context",
    }
    return Task(
        id=entry["id"],
        category=category,
        scenario=f"bfcl_{number}",
        block=block_of(number),
        turns=turns,
        data=data,
    )


DONE = Call(name="done")
DONE_SCHEMA: Schema = {
    "type": "function",
    "function": {
        "name": "done",
        "description": "Declare that every step of the task has been carried out. Call it once, last.",
        "parameters": {"type": "object", "properties": {}, "required": []},
    },
}


def merged(task: Task) -> Task:
    """The paper's merged-turn form of a task: every user turn at once, numbered, ended by a ``done`` tool.

    One turn; its gold is the concatenation of all gold calls and ``done()``. The late reveal vanishes (every
    tool is shown from the start), and a late clarification is just the next step of the same message. The
    wording is ours: the paper gives only its shape ("Step 1..N, call done()").
    """
    said = [m.content for turn in task.turns if not turn.reveals for m in turn.messages]
    steps = "\n".join(f"Step {i}: {content}" for i, content in enumerate(said, 1))
    prompt = f"Carry out the following steps in order, then call done().\n{steps}"
    gold = [call for turn in task.turns for call in turn.gold]
    turn = Turn(messages=[Message(role="user", content=prompt)], gold=[*gold, DONE])
    return task.model_copy(update={"turns": [turn], "data": {**task.data, "merged": True}})
