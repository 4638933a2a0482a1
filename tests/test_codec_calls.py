"""Reading calls out of text, without a tokenizer: what malformed and hostile text becomes."""

import time

import pytest

from rcgrpo.codec.calls import MAX_DEPTH, parse_llama, parse_qwen
from rcgrpo.episodes.types import Message


def test_text_around_calls():
    block = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    parsed = parse_qwen(f"I look.\n{block}\n{block}\nDone.")
    assert (parsed.message.content, len(parsed.message.calls), parsed.failures) == ("I look.\nDone.", 2, [])
    parsed = parse_llama('Sure: {"name": "f", "parameters": {"x": 1}}; {"name": "g", "parameters": {}}<|eom_id|>')
    assert [call.name for call in parsed.message.calls] == ["f", "g"]
    assert parsed.message.content.startswith("Sure:")


@pytest.mark.parametrize(
    "body, kind, reason",
    [
        ('{"name": "f"}', "shape", "an object"),
        ('{"name": "f", "%s": "{}"}', "shape", "an object"),
        ('{"name": 3, "%s": {}}', "shape", '"name"'),
        ('{"name": "", "%s": {}}', "shape", '"name"'),
        ('{"name": "f", "%s": [1]}', "shape", "an object"),
        ('{"name": "f", "%s": {"x": NaN}}', "json", "NaN"),
        ('{"name": "f", "%s": {"x": -Infinity}}', "json", "Infinity"),
        ('{"name": "f", "%s": {"x": 1e999}}', "json", "too large"),
        ('{"name": "f", "%s": {"x": ' + "9" * 5000 + "}}", "json", "integer string conversion"),
        ('{"name": "f", "%s": {"x": 1, "x": 2}}', "json", "twice"),
        ('{"name": "f", "name": "g", "%s": {}}', "json", "twice"),
        ('{"name": "f", "%s": {"x": "\\ud800"}}', "json", "surrogate"),
        ('{"name": "f", "%s": {"x": ' + "[" * 100 + "]" * 100 + "}}", "json", "deeper"),
        ('{"name": "f", "%s": {"x": ' + "[" * 100_000 + "]" * 100_000 + "}}", "json", "deeper"),
        ("{'name': 'f', '%s': {}}", "json", "double quotes"),
        ('{"name": "f", "%s": {"x": __import__("os")}}', "json", "Expecting value"),
        ('{"name": "f", "%s": {"x": tr', "unclosed", ""),
        ('{"name": "f", "%s": {"x": "aa', "unclosed", ""),
        ('{"name": "f", "%s": {"x": 1', "unclosed", ""),
    ],
)
def test_malformed_calls_become_failures_that_help(body, kind, reason):
    for parse, key in ((parse_qwen, "arguments"), (parse_llama, "parameters")):
        text = body.replace("%s", key)
        if parse is parse_qwen:
            text = f"<tool_call>\n{text}" + ("" if kind == "unclosed" else "\n</tool_call>")
        elif text.endswith(": tr"):
            continue  # without a closing tag, "tr" is just wrong
        parsed = parse(text)
        assert [failure.kind for failure in parsed.failures] == [kind], parsed
        assert reason in parsed.failures[0].message
        assert key in parsed.failures[0].message, "it says how to do better"
        assert parsed.message.calls == []


def test_qwen_blocks_that_never_close_do_not_swallow_the_next():
    good = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    for bad, kind in {
        '<tool_call>\n{"name": "g", "arguments": {}}\n': "unclosed",
        "<tool_call>\nnot json\n</tool_call>\n": "json",
        '<tool_call>\n{"name": "g", "arguments": {}} and more\n</tool_call>\n': "json",
        "<tool_call></tool_call>": "json",
    }.items():
        for text in (bad + good, good + "\n" + bad):
            parsed = parse_qwen(text)
            assert ([call.name for call in parsed.message.calls], len(parsed.failures)) == (["f"], 1)
            assert parsed.failures[0].kind == kind
    assert [failure.kind for failure in parse_qwen("so\n</tool_call>").failures] == ["shape"]


def test_the_deepest_arguments_allowed_survive_saving():
    inside = "[" * (MAX_DEPTH - 2) + "]" * (MAX_DEPTH - 2)
    text = '<tool_call>\n{"name": "f", "arguments": {"x": ' + inside + "}}\n</tool_call>"
    message = parse_qwen(text).message
    assert message.calls
    assert Message.model_validate_json(message.model_dump_json()) == message


@pytest.mark.parametrize(
    "piece",
    ["<tool_call>", '<tool_call>{"', "<tool_call>[", "{ ", '{"name":', "{\n", '{"name": "a"},', '<tool_call>"\\'],
)
def test_takes_little_time_on_hostile_text(piece):
    for parse in (parse_qwen, parse_llama):
        start = time.perf_counter()
        parse(piece * (100_000 // len(piece)))
        assert time.perf_counter() - start < 3, "100,000 characters, far more than one answer"
