"""A user's own world: its tools, its tasks, and what is said where they are wrong."""

import asyncio
import json
import time

import pytest

from counter_world import Counter, Patient
from rcgrpo.environments.custom import CustomConfig, CustomSuite
from rcgrpo.environments.protocol import tasks_of
from rcgrpo.environments.split import Split
from rcgrpo.episodes.types import Call, Message, Task, Turn
from rcgrpo.errors import UserError


def turn(text: str, *amounts: int, reveals=()) -> Turn:
    return Turn(
        messages=[Message(role="user", content=text)],
        gold=[Call(name="add", arguments={"n": n}) for n in amounts],
        reveals=list(reveals),
    )


def task(*turns: Turn, **fields) -> Task:
    made = {"id": "t", "category": "base", "scenario": "s", "block": "b", "data": {"start": 1}, "turns": list(turns)}
    return Task(**{**made, **fields})


def call(world, name, **arguments):
    return asyncio.run(world.call(Call(name=name, arguments=arguments)))


def test_public_methods_are_the_tools_and_the_docstring_their_documentation():
    world = Patient(task(turn("go", 1)))
    assert set(world.tools()) == {"add", "wait", "block", "impatient", "fail", "register"}
    (add,) = [s["function"] for s in world.visible() if s["function"]["name"] == "add"]
    assert add["description"] == "Add to the total."
    assert add["parameters"] == {
        "type": "object",
        "properties": {"n": {"type": "integer", "description": "How much to add."}},
        "required": ["n"],
    }


def test_a_call_runs_is_recorded_and_its_result_is_json():
    world = Counter(task(turn("add 2", 2)))
    world.open_turn()
    done = call(world, "add", n=2)
    assert (done.result, done.failed) == ('{"total": 3}', False)
    assert world.history == [done]
    assert world.close_turn().valid
    assert world.rewards() == {"success": 1.0, "turn_fraction": 1.0}


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("add", {"n": "2"}, "bad arguments: '2' is not of type 'integer'"),
        ("add", {"n": 2, "m": 3}, "bad arguments: Additional properties are not allowed"),
        ("add", {}, "bad arguments: 'n' is a required property"),
        ("_hidden", {}, "no tool named '_hidden'"),
        ("__init__", {"task": None}, "no tool named '__init__'"),
        ("close_turn", {}, "no tool named 'close_turn'"),
        ("fail", {"how": "tool"}, "not today"),
        ("fail", {"how": "value"}, "odd"),
        ("fail", {"how": "silent"}, "KeyError"),
        ("impatient", {}, "the database is busy"),
        ("wait", {"seconds": 5}, "timed out after 0.5 s"),
    ],
)
def test_what_goes_wrong_becomes_text(name, arguments, said):
    world = Patient(task(turn("go", 1)))
    world.open_turn()
    done = call(world, name, **arguments)
    assert done.failed and said in json.loads(done.result)["error"]
    assert world._total == 1


@pytest.mark.parametrize("name", ["wait", "block"])
def test_episodes_do_not_wait_for_each_others_tools(name):
    async def together(count):
        worlds = [Patient(task(turn("go", 1))) for _ in range(count)]
        started = time.monotonic()
        done = await asyncio.gather(*(w.call(Call(name=name, arguments={"seconds": 0.3})) for w in worlds))
        return time.monotonic() - started, [d.failed for d in done]

    seconds, failed = asyncio.run(together(4))
    assert failed == [False] * 4
    assert 0.3 <= seconds < 0.9  # one after the other they take 1.2


def test_withheld_tools_cannot_be_seen_or_called_until_revealed():
    world = Patient(task(turn("first", 1), turn("second", 1, reveals=["register"])))
    names = lambda: {s["function"]["name"] for s in world.visible()}  # noqa: E731
    assert "register" not in names()  # before the first turn opens
    world.open_turn()
    assert "register" not in names()
    assert call(world, "register").failed
    world.open_turn()
    assert "register" in names()
    assert call(world, "register").result == "registered"


def test_turns_after_the_first_failure_do_not_count():
    world = Counter(task(turn("a", 1), turn("b", 1), turn("c", 1)))
    for amounts in ([1], [], [2]):  # the second turn fails, the third makes up for it
        world.open_turn()
        for n in amounts:
            call(world, "add", n=n)
        world.close_turn()
    assert [v.valid for v in world.verdicts] == [True, False, True]
    assert world.rewards() == {"success": 0.0, "turn_fraction": 1 / 3}


def tasks_file(path, tasks):
    path.write_text("\n".join(t.model_dump_json() for t in tasks) + "\n", encoding="utf-8")
    return path


def custom(path, name="counter_world:Counter", **fields) -> CustomSuite:
    return CustomSuite(CustomConfig(environment=name, tasks=path, **fields))


def test_a_custom_split_keeps_scenarios_together_in_every_block(tmp_path):
    tasks = [
        task(turn("x", 1), id=f"{block}{scenario}-{variant}", scenario=f"{block}{scenario}", block=block)
        for block in "pq"
        for scenario in range(10)
        for variant in range(3)
    ]
    suite = custom(tasks_file(tmp_path / "t.jsonl", tasks), test_share=0.2)
    split = suite.split()
    assert split.leaked_scenarios({t.id: t.scenario for t in tasks}) == set()
    scenarios = {i.split("-")[0] for i in split.pools["test"]}
    assert [sum(s.startswith(block) for s in scenarios) for block in "pq"] == [2, 2]
    assert sorted(split.pools["train"] + split.pools["test"]) == sorted(t.id for t in tasks)
    assert split == suite.split()
    assert split.sha256 != custom(tmp_path / "t.jsonl", split_seed=1).split().sha256
    leaky = split.model_copy(update={"pools": {**split.pools, "test": [*split.pools["test"], split.pools["train"][0]]}})
    assert leaky.leaked_scenarios({t.id: t.scenario for t in tasks}) == {split.pools["train"][0].split("-")[0]}


def test_a_split_that_was_edited_is_refused(tmp_path):
    split = Split(suite="s", rule="r", pools={"test": ["a"]})
    split.save(tmp_path / "split.json")
    assert Split.load(tmp_path / "split.json") == split
    path = tmp_path / "split.json"
    path.write_text(path.read_text().replace('"a"', '"b"'))
    with pytest.raises(UserError, match="was changed"):
        Split.load(path)


def test_line_separators_inside_strings_do_not_end_a_line(tmp_path):
    text = "one\u2028two\x85three\x0b"
    tasks_file(tmp_path / "t.jsonl", [task(turn(text, 1))])
    assert custom(tmp_path / "t.jsonl").task("t").turns[0].messages[0].content == text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "holds no tasks"),
        ("{}\n", "line 1: id: Field required"),
        ('{"id": "a"', "line 1"),
        ("\n\n[1]\n", "line 3"),
        (task(id="a").model_dump_json(), "line 1: task 'a' has no turns"),
        (f"{task(turn('x', 1)).model_dump_json()}\n" * 2, "line 2: task id 't' occurs twice"),
        (b"\xff\xfe", "line 1"),
    ],
)
def test_bad_task_files_are_named_with_line_and_field(tmp_path, content, said):
    path = tmp_path / "t.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=said):
        custom(path).split()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_such_module:Counter", "cannot be imported: No module named 'no_such_module'"),
        ("counter_world:Nobody", "cannot be imported"),
        ("counter_world:asyncio", "not a subclass"),
        ("counter_world:Unfinished", "has to define start and check"),
    ],
)
def test_bad_environment_classes_are_named(tmp_path, name, said):
    with pytest.raises(UserError, match=said):
        custom(tmp_path / "none.jsonl", name)


def test_a_tool_without_types_is_named(tmp_path):
    with pytest.raises(UserError, match=r"Undocumented\.subtract.*type hint"):
        suite = custom(tasks_file(tmp_path / "t.jsonl", [task(turn("x", 1))]), "counter_world:Undocumented")
        suite.environment(suite.task("t"))


def test_unknown_tasks_and_pools_are_named(tmp_path):
    suite = custom(tasks_file(tmp_path / "t.jsonl", [task(turn("x", 1))]))
    with pytest.raises(UserError, match="no task 'nobody'"):
        suite.task("nobody")
    with pytest.raises(UserError, match="pool 'exam' is not in the split; it has experts, train, test"):
        tasks_of(suite, suite.split(), "exam")
    with pytest.raises(UserError, match="pool 'test' of the split is empty"):
        tasks_of(suite, suite.split(), "test")
