"""ToolWorld: its tasks regenerate from their ids, gold verifies, broken answers do not, hostile calls do no harm."""

import asyncio
import copy
import json
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from rcgrpo.environments.toolworld import ToolWorldConfig, ToolWorldSuite
from rcgrpo.environments.toolworld.apis import READS, TOOLS
from rcgrpo.environments.toolworld.config import STARTS
from rcgrpo.environments.toolworld.corrupt import corrupt
from rcgrpo.environments.toolworld.generator import REVEAL, scenario
from rcgrpo.environments.toolworld.requests import BOTH, EASY, FOLLOW_UPS, HARD
from rcgrpo.environments.toolworld.validate import broken_answers, play, validate_toolworld
from rcgrpo.environments.toolworld.world import ToolWorld
from rcgrpo.episodes.types import Call, Message, Task, Turn
from rcgrpo.errors import UserError

CATEGORIES = ("base", "miss_func", "miss_param", "long_context")
ALL_ONE = {"success": 1.0, "turn_fraction": 1.0, "state_action": 1.0}
SUITE = ToolWorldSuite()

ids = st.builds(
    lambda category, number: f"toolworld_{category}_{number:06d}",
    st.sampled_from(CATEGORIES),
    st.integers(100_000, 999_999) | st.integers(0, 50),
)


def gold_of(task: Task) -> list[list[Call]]:
    return [list(turn.gold) for turn in task.turns]


def run(task: Task, answer: list[list[Call]]) -> ToolWorld:
    return asyncio.run(play(SUITE, task, answer))


def shop_task(turns: list[Turn], money: int = 50) -> Task:
    """A hand-made task: the oracle for verdicts, independent of the generator."""
    world = {
        "shop": {
            "items": {"lamp": {"id": 41, "price": 20, "stock": 3}, "rug": {"id": 52, "price": 30, "stock": 1}},
            "money": money,
            "bought": {},
            "watched": {},
        }
    }
    data = {"world": world, "tools": list(TOOLS["shop"]), "closings": ["Done."] * len(turns)}
    return Task(id="made", category="base", scenario="made", block="shop", turns=turns, data=data)


def user(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


BUY = Call(name="buy", arguments={"id": 41, "n": 2})
CATALOG = Call(name="catalog")


# -- gold and tasks


@settings(max_examples=150, deadline=None)
@given(ids)
def test_gold_always_verifies(task_id):
    task = SUITE.task(task_id)
    world = run(task, gold_of(task))
    assert all(verdict.valid for verdict in world.verdicts)
    assert world.rewards() == ALL_ONE


@settings(max_examples=30, deadline=None)
@given(
    ids,
    st.builds(
        ToolWorldConfig,
        seed=st.integers(0, 9),
        max_turns=st.integers(1, 6),
        hardness=st.floats(0, 1),
        two_domains=st.floats(0, 1),
        entries=st.integers(3, 14),
        long_entries=st.integers(0, 20),
        tools=st.integers(1, 32),
    ),
)
def test_gold_verifies_at_every_difficulty(task_id, config):
    task = ToolWorldSuite(config).task(task_id)
    assert run(task, gold_of(task)).rewards() == ALL_ONE


def test_a_task_is_a_function_of_its_id_and_survives_json():
    for number in range(200_000, 200_040):
        for category in CATEGORIES:
            task = SUITE.task(f"toolworld_{category}_{number}")
            assert ToolWorldSuite(ToolWorldConfig()).task(task.id) == task
            assert Task.model_validate_json(task.model_dump_json()) == task
    other = ToolWorldSuite(ToolWorldConfig(seed=1))
    assert other.task("toolworld_base_200000") != SUITE.task("toolworld_base_200000")


def test_every_kind_of_request_occurs():
    kinds = {kind for number in range(200_000, 201_000) for kind in scenario(SUITE.config, number).kinds}
    known = {kind.__name__ for pool in (EASY, FOLLOW_UPS, HARD, BOTH) for kinds_ in pool.values() for kind in kinds_}
    assert kinds == known


@pytest.mark.parametrize("text", ["toolworld_base_12", "toolworld_hard_000001", "x", "toolworld_base_0000001\n"])
def test_an_unknown_id_is_the_users_mistake(text):
    with pytest.raises(UserError, match="toolworld_base_000123"):
        SUITE.task(text)


def test_config_refuses_nonsense():
    with pytest.raises(ValidationError):
        ToolWorldConfig(hardnes=0.5)  # pyright: ignore[reportCallIssue]
    with pytest.raises(ValidationError, match="above max_turns"):
        ToolWorldConfig(min_turns=4, max_turns=2)


@settings(max_examples=60, deadline=None)
@given(st.integers(100_000, 999_999))
def test_the_four_variants_share_scenario_and_gold(number):
    base, func, param, long = (SUITE.task(f"toolworld_{category}_{number}") for category in CATEGORIES)
    calls = [call for turn in base.turns for call in turn.gold]
    for other in (func, param, long):
        assert other.scenario == base.scenario and other.block == base.block
        assert [call for turn in other.turns for call in turn.gold] == calls
        assert len(other.data["closings"]) == len(other.turns)
    # a refusal turn comes before the turn that makes up for it
    for other in (func, param):
        assert other.data["world"] == base.data["world"]
        assert len(other.turns) == len(base.turns) + 1
        [refusal] = [i for i, turn in enumerate(other.turns) if not turn.gold]
        assert refusal + 1 < len(other.turns)
    [reveal] = [turn for turn in func.turns if turn.reveals]
    assert reveal.messages[0].content == REVEAL
    assert any(call.name in reveal.reveals for call in reveal.gold)
    assert not any(turn.reveals for task in (base, param, long) for turn in task.turns)
    assert [turn.messages for turn in long.turns] == [turn.messages for turn in base.turns]
    assert len(json.dumps(long.data["world"])) > len(json.dumps(base.data["world"]))


# -- verdicts, against hand-made answers


def test_hand_made_verdicts():
    task = shop_task([Turn(messages=user("Buy two lamps."), gold=[CATALOG, BUY])])
    cases = {
        "": [CATALOG, BUY],
        "empty": [],
        "state": [CATALOG, Call(name="buy", arguments={"id": 41, "n": 1})],
        "response": [BUY],
    }
    for reason, calls in cases.items():
        world = run(task, [calls])
        assert world.verdicts[0].reason == reason
        assert world.verdicts[0].valid == (reason == "")
    # right state by another way: valid, though not gold's actions
    world = run(task, [[CATALOG, *[Call(name="buy", arguments={"id": 41, "n": 1})] * 2]])
    assert world.rewards() == {"success": 1.0, "turn_fraction": 1.0, "state_action": 0.0}
    # gold's actions in another order, and a read too many, are fine
    assert run(task, [[BUY, Call(name="balance"), CATALOG]]).rewards() == ALL_ONE


def test_an_error_that_gold_runs_into_is_not_asked_for():
    deposit = Call(name="deposit", arguments={"amount": 30})
    task = shop_task([Turn(messages=user("Buy two, pay in the rest."), gold=[CATALOG, BUY, deposit, BUY])], money=10)
    gold = run(task, gold_of(task))
    assert [call.failed for call in gold.history] == [False, True, False, False]
    assert json.loads(gold.history[1].result) == {"error": "30 short"}
    assert run(task, [[CATALOG, deposit, BUY]]).rewards() == ALL_ONE
    assert run(task, [[CATALOG, BUY]]).rewards()["success"] == 0.0


def test_a_refusal_turn_forbids_acting_and_absent_tools_but_not_reading():
    turns = [
        Turn(messages=user("Buy two lamps.")),
        Turn(messages=user(REVEAL), gold=[CATALOG, BUY], reveals=["buy"]),
    ]
    task = shop_task(turns)
    watch = Call(name="watch", arguments={"id": 41})
    assert run(task, [[], [CATALOG, BUY]]).rewards() == ALL_ONE
    assert run(task, [[CATALOG], [BUY]]).rewards() == ALL_ONE
    assert run(task, [[watch], [CATALOG, BUY]]).verdicts[0].reason == "state"
    assert run(task, [[BUY], [CATALOG, BUY]]).verdicts[0].reason == "refusal"


def test_rewards_of_an_unfinished_episode():
    task = shop_task([Turn(messages=user("a"), gold=[CATALOG]), Turn(messages=user("b"), gold=[BUY])])
    world = run(task, [[CATALOG]])
    assert world.rewards() == {"success": 0.0, "turn_fraction": 0.5, "state_action": 0.0}


def test_broken_answers_fail():
    tried = set()
    for number in range(200_000, 200_100):
        for category in CATEGORIES:
            task = SUITE.task(f"toolworld_{category}_{number}")
            for name, answer in broken_answers(task, random.Random(task.id)).items():
                tried.add(name)
                assert run(task, answer).rewards()["success"] == 0.0, (task.id, name)
    assert len(tried) == 6


def test_near_misses_differ_from_gold_and_mostly_fail():
    caught = total = 0
    for number in range(200_000, 200_150):
        for category in CATEGORIES:
            task = SUITE.task(f"toolworld_{category}_{number}")
            answer = corrupt(task, random.Random(task.id))
            assert answer == corrupt(task, random.Random(task.id))
            assert all(calls != turn.gold for calls, turn in zip(answer, task.turns, strict=True))
            total += 1
            caught += run(task, answer).rewards()["success"] == 0.0
    assert caught / total > 0.9


# -- the world


@settings(max_examples=60, deadline=None)
@given(st.integers(100_000, 999_999))
def test_a_withheld_tool_is_neither_shown_nor_callable_before_its_reveal(number):
    task = SUITE.task(f"toolworld_miss_func_{number}")
    world = SUITE.environment(task)
    for turn in task.turns:
        world.open_turn()
        shown = {schema["function"]["name"] for schema in world.visible()}
        assert shown | world.withheld() == set(task.data["tools"])
        for name in world.withheld():
            assert name not in shown
            wanted = next(call for later in task.turns for call in later.gold if call.name == name)
            executed = asyncio.run(world.call(wanted))
            assert executed.failed and "no tool named" in executed.result
        world.close_turn()
        if turn.reveals:
            assert set(turn.reveals) <= shown


def test_two_episodes_of_one_task_share_no_state():
    for number in range(200_000, 200_050):
        task = SUITE.task(f"toolworld_base_{number}")
        before = copy.deepcopy(task)
        for calls in (gold_of(task), corrupt(task, random.Random(number)), gold_of(task)):
            world = run(task, calls)
        assert world.rewards() == ALL_ONE
        assert task == before


def test_episodes_in_one_event_loop_do_not_mix():
    tasks = [SUITE.task(f"toolworld_{c}_{200_000 + n}") for n in range(20) for c in CATEGORIES] * 2

    async def together():
        return await asyncio.gather(*(play(SUITE, task, gold_of(task)) for task in tasks))

    assert all(world.rewards() == ALL_ONE for world in asyncio.run(together()))


def test_reads_change_nothing_and_the_results_are_json():
    for number in range(200_000, 200_100):
        task = SUITE.task(f"toolworld_base_{number}")
        world = SUITE.environment(task)
        world.open_turn()
        for turn in task.turns:
            for call in turn.gold:
                before = copy.deepcopy(world._state)
                executed = asyncio.run(world.call(call))
                assert isinstance(json.loads(executed.result), dict)
                assert executed.failed == ("error" in json.loads(executed.result))
                if call.name in READS or executed.failed:
                    assert world._state == before


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NOT_TOOLS = ["__init__", "_state", "start", "check", "rewards", "call"]
ALL_TOOLS = [name for names in TOOLS.values() for name in names]
PARAMETERS = ("dir", "file", "to", "text", "id", "n", "amount", "name", "day", "hour", "title", "to_day", "to_hour")


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.builds(
            Call,
            name=st.sampled_from([*ALL_TOOLS, *NOT_TOOLS]) | st.text(max_size=9),
            arguments=st.dictionaries(
                st.sampled_from(PARAMETERS) | st.text(max_size=5),
                json_values | st.integers(-3, 99) | st.sampled_from(["docs", "Mon", "Ana", "a" * 100_000]),
                max_size=4,
            ),
        ),
        max_size=4,
    )
)
def test_hostile_calls_are_answered_not_raised(calls):
    task = SUITE.task("toolworld_base_200003")
    world = SUITE.environment(task)
    world.open_turn()
    for call in calls:
        executed = asyncio.run(world.call(call))
        assert len(executed.result) < 3000
        if call.name not in task.data["tools"]:
            assert executed.failed
    world.close_turn()


HUGE = 10**5000


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("buy", {"id": 41, "n": HUGE}),
        ("buy", {"id": 41, "n": -1}),
        ("buy", {"id": 41, "n": 0}),
        ("buy", {"id": 41, "n": "2"}),
        ("buy", {"id": 41, "n": True}),
        ("buy", {"id": HUGE, "n": 1}),
        ("buy", {"id": 41}),
        ("buy", {"id": 41, "n": 1, "self": 1}),
        ("deposit", {"amount": HUGE}),
        ("deposit", {"amount": float("nan")}),
        ("deposit", {"amount": float("inf")}),
        ("deposit", {"amount": -5}),
        ("price", {"id": None}),
        ("__init__", {"task": None}),
        ("_item", {"id": 41}),
        ("restore", {"state": {}}),
        ("start", {"data": {}}),
        ("rewards", {}),
        ("__import__('os').system('true')", {}),
        ("x" * 1_000_000, {}),
    ],
)
def test_nonsense_fails_and_leaves_the_state_alone(name, arguments):
    task = shop_task([Turn(messages=user("Hi."))])
    world = SUITE.environment(task)
    world.open_turn()
    executed = asyncio.run(world.call(Call(name=name, arguments=arguments)))
    assert executed.failed and len(executed.result) < 500
    assert world._state == task.data["world"]


# -- pools and bulk


def test_experts_may_show_fewer_kinds_of_task_than_the_other_pools_hold():
    kinds = lambda config, pool: {ToolWorldSuite(config).task(t).category for t in pools(config)[pool]}  # noqa: E731
    pools = lambda config: ToolWorldSuite(config).split().pools  # noqa: E731
    all_of_them = ToolWorldConfig(test=8, experts=8, train=8)
    narrow = all_of_them.model_copy(update={"experts_categories": ("base",)})
    assert kinds(narrow, "experts") == {"base"} != kinds(all_of_them, "experts")
    for pool in ("test", "train"):
        assert pools(narrow)[pool] == pools(all_of_them)[pool] and len(kinds(narrow, pool)) == 4


def test_pools_are_disjoint_by_scenario_and_no_conversation_is_on_both_sides():
    suite = ToolWorldSuite(ToolWorldConfig(test=300, experts=300, train=800, pretrain=300))
    split = suite.split()
    assert {name: len(pool) for name, pool in split.pools.items()} == {
        "test": 300, "experts": 300, "train": 800, "pretrain": 300,
    }  # fmt: skip
    tasks = {task_id: suite.task(task_id) for pool in split.pools.values() for task_id in pool}
    scenario_of = {task_id: task.scenario for task_id, task in tasks.items()}
    for pool in STARTS:
        assert split.leaked_scenarios(scenario_of, pool) == set()

    def conversations(pool: str) -> list[tuple[str, ...]]:
        return [scenario(suite.config, int(scenario_of[task_id])).texts for task_id in split.pools[pool]]

    others = conversations("experts") + conversations("train") + conversations("pretrain")
    assert not set(conversations("test")) & set(others)
    # the control: short conversations do repeat where the rule does not keep them apart
    assert len(set(others)) < len(others)
    for pool in split.pools.values():
        seen = {(tasks[i].category, tasks[i].block) for i in pool}
        assert len(seen) == 16


def test_two_thousand_tasks_are_generated_and_validated_in_seconds():
    started = time.process_time()
    report = validate_toolworld(n=2000, seed=3)
    assert (report.gold_valid, report.gold_total) == (2000, 2000)
    assert report.duplicates == 0.0
    for name, rate in report.mutants.items():
        assert rate.total > 100
        assert rate.caught == rate.total or name == "corrupt"
    assert time.process_time() - started < 60


def test_a_call_takes_less_than_a_millisecond():
    task = shop_task([Turn(messages=user("Hi."))])
    world = SUITE.environment(task)
    world.open_turn()

    async def many():
        for _ in range(2000):
            await world.call(CATALOG)

    started = time.process_time()
    asyncio.run(many())
    assert (time.process_time() - started) / 2000 < 1e-3
