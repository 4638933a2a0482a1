"""Reading tool calls out of generated text. Hostile input: it is read as JSON only, and nothing here raises."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from rcgrpo.episodes.types import Call, Message, ParseFailure

MAX_DEPTH = 64
"""Deepest nesting of a call's JSON. Python's and pydantic's readers both give up somewhere beyond 200 levels."""

_SPACE = re.compile(r"\s*")
_SEPARATOR = re.compile(r"[\s;,]*")
_LLAMA_CALL = re.compile(r'<\|python_tag\|>|\{\s*"(?:name|type|parameters)"\s*:')


@dataclass
class Parsed:
    """An assistant message as text and calls, and what was wrong with the calls that could not be read."""

    message: Message
    failures: list[ParseFailure] = field(default_factory=list)


def parse_qwen(text: str) -> Parsed:
    """``<tool_call>`` blocks, any number per message; calls inside a leading ``<think>`` block do not count."""
    reader = _Reader(text, "arguments", 'write <tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call>')
    position = 0
    if text.startswith("<think>"):
        position = text.find("</think>") + len("</think>") if "</think>" in text else len(text)
        position = _skip(_SPACE, text, position)
        reader.thought = text[:position]
    while (start := text.find("<tool_call>", position)) >= 0:
        reader.outside.append(text[position:start])
        position = _read_block(reader, start)
    rest = text[position:]
    if "</tool_call>" in rest:
        reader.fail("shape", "</tool_call> without a <tool_call> before it", rest)
    reader.outside.append(rest)
    return reader.parsed()


def _read_block(reader: _Reader, start: int) -> int:
    """Read the block that opens at ``start``; returns where to go on."""
    text, close = reader.text, "</tool_call>"
    body = _skip(_SPACE, text, start + len("<tool_call>"))
    value, end, error = read_json(text, body)
    if not error and text.startswith(close, _skip(_SPACE, text, end)):
        end = _skip(_SPACE, text, end) + len(close)
        reader.accept(value, text[start:end])
        return end
    opening = text.find("<tool_call>", body)
    end = len(text) if opening < 0 else opening
    closing = text.find(close, body, end)
    if closing < 0:
        reader.fail("unclosed", f"a tool call has no {close}", text[start:end])
        return end
    end = closing + len(close)
    reader.fail("json", error or f"text between the JSON object and {close}", text[start:end])
    return end


def parse_llama(text: str) -> Parsed:
    """JSON objects, one after the other (``;``, ``,`` or space between), behind ``<|python_tag|>`` or not."""
    reader = _Reader(text, "parameters", 'write {"name": ..., "parameters": {...}}')
    match = _LLAMA_CALL.search(text)
    if text.lstrip().startswith("{"):
        start = position = _skip(_SPACE, text, 0)
    elif match:
        start, position = match.start(), match.start()
        if match[0] == "<|python_tag|>":
            position = _skip(_SPACE, text, match.end())
    else:
        return Parsed(Message(role="assistant", content=text))
    reader.outside.append(text[:start])
    while position < len(text):
        value, end, error = read_json(text, position)
        if error:
            cut_off = end >= len(text)
            reader.fail("unclosed" if cut_off else "json", error, text[position:])
            return reader.parsed()
        reader.accept(value, text[position:end])
        position = _skip(_SEPARATOR, text, end)
        if not text.startswith("{", position):
            break
    reader.outside.append(text[position:])
    return reader.parsed()


def read_json(text: str, start: int) -> tuple[Any, int, str]:
    """The JSON value at ``start``, the place after it, and an error (empty if none).

    Stricter than :mod:`json`: no NaN or infinities (also not through overflow), no key twice, no lone
    surrogates, at most :data:`MAX_DEPTH` levels. On an error the place is where reading stopped, or the end of
    the text where the value was cut off.
    """
    try:
        value, end = _DECODER.raw_decode(text, start)
        if _deeper_than(value, MAX_DEPTH):
            return None, start, f"nested deeper than {MAX_DEPTH} levels"
        json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        cut_off = _skip(_SPACE, text, error.pos) == len(text) or error.msg.startswith("Unterminated string")
        return None, len(text) if cut_off else error.pos, f"{error.msg} at character {error.pos - start + 1}"
    except RecursionError:
        return None, start, f"nested deeper than {MAX_DEPTH} levels"
    except UnicodeEncodeError:
        return None, start, "half of a surrogate pair in a string"
    except ValueError as error:  # ours below, and Python's limit on the digits of an integer
        return None, start, str(error)
    return value, end, ""


def _finite(digits: str) -> float:
    if math.isinf(value := float(digits)):
        raise ValueError("a number too large")
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("an object names the same key twice")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite, parse_constant=_refuse_constant)


def _deeper_than(value: Any, levels: int) -> bool:
    if not isinstance(value, (dict, list)):
        return False
    items = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_deeper_than(item, levels - 1) for item in items)


def _skip(pattern: re.Pattern[str], text: str, start: int) -> int:
    match = pattern.match(text, start)
    return match.end() if match else start


@dataclass
class _Reader:
    """Collects what one message holds."""

    text: str
    key: str
    """What the family calls the arguments."""
    cure: str
    thought: str = ""
    outside: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    failures: list[ParseFailure] = field(default_factory=list)

    def accept(self, value: Any, text: str) -> None:
        """A JSON value that stands where a call should: a call, or a failure of shape."""
        if not isinstance(value, dict):
            self.fail("shape", "a tool call must be a JSON object", text)
        elif not isinstance(value.get("name"), str) or not value["name"]:
            self.fail("shape", 'a tool call needs a "name", a string', text)
        elif not isinstance(value.get(self.key), dict):
            self.fail("shape", f'a tool call needs "{self.key}", an object of arguments by name', text)
        else:
            self.calls.append(Call(name=value["name"], arguments=value[self.key]))

    def fail(self, kind: Literal["json", "shape", "unclosed"], reason: str, text: str) -> None:
        message = f"Malformed tool call ({reason}). To call a tool, {self.cure}."
        self.failures.append(ParseFailure(kind=kind, message=message, text=text))

    def parsed(self) -> Parsed:
        pieces = self.outside
        if self.calls or self.failures:
            pieces = ["\n".join(piece for piece in map(str.strip, self.outside) if piece)]
        message = Message(role="assistant", content=self.thought + "".join(pieces), calls=self.calls)
        return Parsed(message, self.failures)
