"""What is remembered of a world against the world itself."""

import random

import pytest

from rcgrpo.environments.bfcl import memory as memory_module
from rcgrpo.environments.bfcl.data import CATEGORIES, load_task
from rcgrpo.environments.bfcl.executor import World
from rcgrpo.environments.bfcl.memory import Memory, RememberedWorld
from rcgrpo.environments.bfcl.mutate import mutants
from rcgrpo.environments.bfcl.verdict import compare_states


def tried(world, name, arguments) -> str:
    try:
        return world.run(name, arguments)
    except Exception as error:  # noqa: BLE001
        return f"raised {error}"


def disagreements(count: int) -> int:
    """Random mixtures of gold calls, other scenarios' too, through one memory per task and through worlds alone."""
    rng, wrong = random.Random(0), 0
    for number in range(0, 200, 40):
        for category in CATEGORIES:
            task = load_task(category, number)
            calls = [c for t in (task, load_task("base", number + 1)) for turn in t.turns for c in turn.gold]
            calls = rng.sample(calls, min(6, len(calls)))
            memory = Memory(task)
            for _ in range(count):
                remembered = RememberedWorld(memory)
                alone = World(task.data["classes"], task.data["config"], task.data["long_context"])
                for call in rng.choices(calls, k=5):
                    wrong += tried(remembered, call.name, call.arguments) != tried(alone, call.name, call.arguments)
                    if rng.random() < 0.2:
                        turn = rng.randrange(len(task.turns))
                        expected = compare_states(alone.states(), memory.gold[turn].states)
                        wrong += remembered.difference(turn) != expected
                wrong += bool(compare_states(remembered.states(), alone.states()))
    return wrong


def test_a_remembered_world_is_the_world_itself():
    assert disagreements(12) == 0


def test_a_memory_without_order_would_be_noticed(monkeypatch):
    learn = Memory.learn

    def merged(self, moment, key, result, failed):
        learn(self, moment, key, result, failed)
        return self.start  # every sequence of calls is the same moment

    monkeypatch.setattr(memory_module.Memory, "learn", merged)
    assert disagreements(12) > 10


def test_known_calls_need_no_live_world_and_new_ones_do():
    task = load_task("base", 0)
    memory, calls = Memory(task), [c for turn in load_task("base", 0).turns for c in turn.gold]
    assert memory.gold
    world = RememberedWorld(memory)
    results = [tried(world, call.name, call.arguments) for call in calls]
    assert tuple(results) == tuple(r for turn in memory.gold for r in turn.results)
    assert world._live is None
    world.run("ls", {"a": True})
    assert world._live is not None and not world._pending


def test_arguments_that_python_calls_equal_are_told_apart():
    task = next(load_task("base", n) for n in range(200) if "MathAPI" in load_task("base", n).data["classes"])
    world = lambda: RememberedWorld(memory)  # noqa: E731
    memory = Memory(task)
    assert world().run("add", {"a": 1, "b": 1}) == '{"result": 2}'
    assert world().run("add", {"a": 1.0, "b": 1}) == '{"result": 2.0}'


def test_a_full_memory_still_answers(monkeypatch):
    monkeypatch.setattr(memory_module, "MAX_CHARACTERS", 200)
    tasks = [load_task("base", 3)]
    memory = Memory(tasks[0])
    for task, _, answer in mutants(tasks, 20, seed=1):
        remembered = RememberedWorld(memory)
        alone = World(task.data["classes"], task.data["config"], task.data["long_context"])
        for call in (call for turn in answer for call in turn):
            assert tried(remembered, call.name, call.arguments) == tried(alone, call.name, call.arguments)
    held, open_moments = 0, [memory.start]
    while open_moments:
        for key, (result, _, after) in open_moments.pop().following.items():
            held += sum(map(len, key)) + len(result)
            open_moments.append(after)
    assert 0 < held <= 200


@pytest.mark.parametrize("arguments", [{"a": 10**5000, "b": 1}, {"a": [[[[1]]]], "b": 1}])
def test_arguments_that_cannot_be_written_down_are_refused_as_ever(arguments):
    deep: list = []
    for _ in range(10_000):
        deep = [deep]
    task = load_task("base", 0)
    for given in (arguments, {"a": deep}):
        remembered = tried(RememberedWorld(Memory(task)), "ls", given)
        assert remembered == tried(World(task.data["classes"], task.data["config"], False), "ls", given)
        assert remembered.startswith("raised")
