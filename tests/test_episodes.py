"""Episodes on disk: exact, whole or not at all, and damage is named."""

import gzip
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rcgrpo.episodes.store import read_episodes, write_episodes
from rcgrpo.episodes.types import Call, Episode, ExecutedCall, Message, ParseFailure, Step, StopReason, Verdict
from rcgrpo.errors import UserError

texts = st.text(max_size=12)  # without lone surrogates, which are not text
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
values = st.recursive(scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(texts, v, max_size=3), max_leaves=5)
calls = st.builds(Call, name=texts, arguments=st.dictionaries(texts, values, max_size=2))
messages = st.builds(
    Message,
    role=st.sampled_from(["system", "user", "assistant", "tool"]),
    content=texts,
    calls=st.lists(calls, max_size=2),
)
steps = st.builds(
    Step,
    turn=st.integers(0, 5),
    message=messages,
    failures=st.lists(st.builds(ParseFailure, kind=st.just("json"), message=texts, text=texts), max_size=1),
    calls=st.lists(st.builds(ExecutedCall, turn=st.integers(0, 5), call=calls, result=texts), max_size=1),
)


@st.composite
def episodes(draw) -> Episode:
    mask = draw(st.lists(st.integers(0, 1), max_size=6))
    floats = st.floats(width=32, allow_nan=False, max_value=0)
    return Episode(
        task_id=draw(texts),
        category="base",
        scenario=draw(texts),
        group_id=draw(texts),
        policy=draw(texts),
        messages=draw(st.lists(messages, max_size=2)),
        steps=draw(st.lists(steps, max_size=2)),
        token_ids=[draw(st.integers(0, 200_000)) for _ in mask],
        loss_mask=mask,
        logprobs=[draw(floats) for _ in range(sum(mask))],
        verdicts=[Verdict(valid=draw(st.booleans()), detail=draw(texts))],
        stop_reason=draw(st.sampled_from(StopReason)),
        rewards={"success": draw(st.floats(allow_nan=False))},
        reward=draw(st.floats(allow_nan=False)),
    )


def same(a, b) -> bool:
    """Equal in value and in type at every depth: 1, 1.0 and True are three things."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b and not (isinstance(a, float) and math.copysign(1, a) != math.copysign(1, b))


@settings(max_examples=60, deadline=None)
@given(st.lists(episodes(), max_size=3), st.sampled_from(["e.jsonl", "e.jsonl.gz"]))
def test_what_was_written_is_read_again_exactly(tmp_path_factory, written, name):
    path = tmp_path_factory.mktemp("e") / name
    assert write_episodes(path, written) == len(written)
    read = list(read_episodes(path))
    assert len(read) == len(written)
    for a, b in zip(written, read, strict=True):
        assert same(a.model_dump(mode="json"), b.model_dump(mode="json"))


def example(task_id: str = "t", text: str = "hi") -> Episode:
    return Episode(
        task_id=task_id,
        category="base",
        scenario="s",
        group_id="g",
        policy="p",
        messages=[Message(role="user", content=text)],
        token_ids=[1, 2],
        loss_mask=[0, 1],
        stop_reason=StopReason.COMPLETED,
    )


def test_infinities_survive(tmp_path):
    episode = example().model_copy(update={"logprobs": [-math.inf], "reward": math.inf})
    write_episodes(tmp_path / "e.jsonl", [episode])
    (again,) = read_episodes(tmp_path / "e.jsonl")
    assert again.logprobs == [-math.inf] and again.reward == math.inf


def test_the_same_episodes_give_the_same_compressed_bytes(tmp_path):
    for name in ("a", "b"):
        write_episodes(tmp_path / f"{name}.gz", [example()])
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()


def test_a_damaged_line_is_named_with_its_field(tmp_path):
    path = tmp_path / "e.jsonl"
    write_episodes(path, [example("first"), example("second")])
    path.write_text(path.read_text().replace('"stop_reason":"completed"', '"stop_reason":"bored"'))
    with pytest.raises(UserError, match=r"e\.jsonl, line 1: stop_reason"):
        list(read_episodes(path))
    write_episodes(path, [example("first"), example("second")])
    path.write_bytes(path.read_bytes()[:-20])
    reader = read_episodes(path)
    assert next(reader).task_id == "first"
    with pytest.raises(UserError, match=r"e\.jsonl, line 2"):
        next(reader)


@pytest.mark.parametrize(
    ("old", "new", "field"), [('"turn":3', '"turn":"x"', "turn"), ('"failed":false', '"fialed":false', "fialed")]
)
def test_a_damaged_executed_call_is_named_with_its_field(tmp_path, old, new, field):
    """It is a dataclass and does not validate when made; when read it does."""
    path = tmp_path / "e.jsonl"
    step = Step(
        turn=0, message=Message(role="assistant"), calls=[ExecutedCall(turn=3, call=Call(name="ls"), result="[]")]
    )
    write_episodes(path, [example().model_copy(update={"steps": [step]})])
    assert [read.steps for read in read_episodes(path)] == [[step]]
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=rf"line 1: steps\.0\.calls\.0\.{field}"):
        list(read_episodes(path))


def test_a_mask_of_another_length_is_refused(tmp_path):
    path = tmp_path / "e.jsonl"
    write_episodes(path, [example()])
    path.write_text(path.read_text().replace('"loss_mask":[0,1]', '"loss_mask":[0]'))
    with pytest.raises(UserError, match=r"line 1: line: .*2 token_ids but 1 loss_mask"):
        list(read_episodes(path))


@pytest.mark.parametrize("damage", ["cut", "flipped", "not gzip"])
def test_damaged_compressed_files_are_the_users_to_mend(tmp_path, damage):
    path = tmp_path / "e.jsonl.gz"
    write_episodes(path, [example(str(i), text=str(i) * 50) for i in range(200)])
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        middle = len(content) // 2
        path.write_bytes(
            content[:middle] + bytes(255 - b for b in content[middle : middle + 40]) + content[middle + 40 :]
        )
    else:
        path.write_bytes(gzip.decompress(content))
    with pytest.raises(UserError, match=r"e\.jsonl\.gz"):
        list(read_episodes(path))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no episode file at .*none\.jsonl"):
        list(read_episodes(tmp_path / "none.jsonl"))


@pytest.mark.parametrize("name", ["e.jsonl", "e.jsonl.gz"])
def test_an_interrupted_write_leaves_what_was_there(tmp_path, name):
    write_episodes(tmp_path / name, [example("old")])

    def failing():
        yield example("new")
        raise RuntimeError("cut short")

    with pytest.raises(RuntimeError, match="cut short"):
        write_episodes(tmp_path / name, failing())
    assert [e.task_id for e in read_episodes(tmp_path / name)] == ["old"]
    assert [p.name for p in tmp_path.iterdir()] == [name]
