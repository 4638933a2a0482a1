"""Tools described for the policy in few tokens: one signature per line, or their names alone."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Literal

from rcgrpo.environments.protocol import Schema

Detail = Literal["full", "compact", "names"]
"""How much a prompt says about a tool: its JSON schema, a signature, or its name."""

_LONGEST = 100
"""Characters of a description that are kept."""


def signatures(tools: Sequence[Schema]) -> str:
    """``name(arg: type, opt: type = default): one short line`` for each tool; ``opt?`` has no stated default."""
    return "\n".join(_signature(tool["function"]) for tool in tools)


def names(tools: Sequence[Schema]) -> str:
    """The tools' names in one line: for a policy that knows by heart how they are called."""
    return ", ".join(tool["function"]["name"] for tool in tools)


def _signature(function: dict[str, Any]) -> str:
    parameters = function.get("parameters", {})
    required = parameters.get("required", [])
    arguments = ", ".join(
        _argument(name, schema, name in required) for name, schema in parameters.get("properties", {}).items()
    )
    line = _short(function.get("description", ""))
    return f"{function['name']}({arguments})" + (f": {line}" if line else "")


def _argument(name: str, schema: dict[str, Any], required: bool) -> str:
    if "default" in schema:
        return f"{name}: {_type(schema)} = {json.dumps(schema['default'], ensure_ascii=False)}"
    return f"{name}{'' if required else '?'}: {_type(schema)}"


def _type(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return "|".join(json.dumps(value, ensure_ascii=False) for value in schema["enum"])
    kind = schema.get("type", "any")
    if isinstance(kind, list):
        return "|".join(kind)
    if kind == "array" and "items" in schema:
        return f"{_type(schema['items'])}[]"
    return kind


def _short(description: str) -> str:
    """The first sentence. BFCL puts the same preface about the whole API before each ``Tool description:``."""
    sentence = re.split(r"(?<=[.!?])\s", description.rpartition("Tool description:")[2].strip(), maxsplit=1)[0]
    sentence = " ".join(sentence.split()).rstrip(".")
    return sentence if len(sentence) <= _LONGEST else sentence[: _LONGEST - 1].rstrip() + "…"
