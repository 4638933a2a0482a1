"""How the two model families write a conversation, as text: Qwen2.5/Qwen3 and Llama 3.1.

A format only continues a conversation; the opening prompt is left to the tokenizer's own chat template. It
works on chat dicts (``Message.as_chat()``) whose texts :func:`guard` has already made harmless.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

Chat = dict[str, Any]

CUT = "\ud800"
"""A mark inside text where tokenisation is cut in two. A lone surrogate: no text that can be encoded has one."""

EMPTY_THINKING = "<think>\n\n</think>\n\n"
"""What Qwen3's template opens an answer with when thinking is off."""

_SURROGATE = re.compile("[\ud800-\udfff]")


def guard(value: Any, reserved: re.Pattern[str]) -> Any:
    """Cut every text of a reserved token in two, in all strings of a JSON value (keys included).

    ``reserved`` matches the first character of each place where the text of an added token starts. Encoded piece
    by piece, such text gives the ids of ordinary words, and decodes to what it was.
    """
    if isinstance(value, str):
        text = _SURROGATE.sub("\ufffd", value)
        return reserved.sub(lambda match: match[0] + CUT, text)
    if isinstance(value, dict):
        return {guard(key, reserved): guard(item, reserved) for key, item in value.items()}
    if isinstance(value, list):
        return [guard(item, reserved) for item in value]
    return value


def dumps(value: Any, indent: int | None = None) -> str:
    """JSON as chat templates write it (the ``tojson`` of transformers)."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


@dataclass(frozen=True)
class Qwen:
    """ChatML with ``<tool_call>`` blocks; all tool results that follow one answer share one user message."""

    generation: str = "<|im_start|>assistant\n"
    end: str = "<|im_end|>"
    after_end: str = "\n"
    """Stands between the end of a message and the next message; never generated."""
    stops: tuple[str, ...] = ("<|im_end|>",)
    calls_per_message: int | None = None
    schema_indent: int | None = None
    how_to_call: str = (
        "For each function call, return a json object with function name and arguments within "
        '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": '
        "<args-json-object>}\n</tool_call>"
    )

    def answer(self, chat: Chat) -> str:
        content = chat["content"]
        thought = f"<think>\n{chat['reasoning_content']}\n</think>\n\n" if "reasoning_content" in chat else ""
        calls = [
            f'<tool_call>\n{{"name": {dumps(f["name"])}, "arguments": {dumps(f["arguments"])}}}\n</tool_call>'
            for f in (call["function"] for call in chat.get("tool_calls", []))
        ]
        return thought + "\n".join([content] * bool(content or not calls) + calls) + self.end

    def given(self, chats: Sequence[Chat]) -> str:
        text = ""
        for is_tool, run in groupby(chats, lambda chat: chat["role"] == "tool"):
            if is_tool:
                results = "".join(f"\n<tool_response>\n{chat['content']}\n</tool_response>" for chat in run)
                text += f"<|im_start|>user{results}<|im_end|>\n"
            else:
                text += "".join(f"<|im_start|>{chat['role']}\n{chat['content']}<|im_end|>\n" for chat in run)
        return text


@dataclass(frozen=True)
class Llama:
    """Header tokens; one JSON object per call message; results in the ``ipython`` role, as JSON strings."""

    generation: str = "<|start_header_id|>assistant<|end_header_id|>\n\n"
    end: str = "<|eot_id|>"
    after_end: str = ""
    stops: tuple[str, ...] = ("<|eot_id|>", "<|eom_id|>")
    calls_per_message: int | None = 1
    """The template refuses a message with more."""
    schema_indent: int | None = 4
    how_to_call: str = (
        'To call a function, respond only with {"name": function name, "parameters": dictionary of argument '
        "name and its value}. Do not use variables."
    )

    def answer(self, chat: Chat) -> str:
        calls = chat.get("tool_calls", [])
        if not calls:
            return chat["content"].strip() + self.end
        if len(calls) > 1:
            raise ValueError(f"Llama 3.1 allows 1 call per assistant message, this one has {len(calls)}")
        function = calls[0]["function"]  # the template drops text beside a call
        return f'{{"name": {dumps(function["name"])}, "parameters": {dumps(function["arguments"])}}}' + self.end

    def given(self, chats: Sequence[Chat]) -> str:
        text = ""
        for chat in chats:
            is_tool = chat["role"] == "tool"
            role = "ipython" if is_tool else chat["role"]
            content = dumps(chat["content"]) if is_tool else chat["content"].strip()
            text += f"<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>"
        return text


Format = Qwen | Llama
