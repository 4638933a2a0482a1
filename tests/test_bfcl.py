"""BFCL: the official checker in a subprocess is the oracle; hostile calls, isolation, splits and rewards."""

from __future__ import annotations

import ast
import asyncio
import inspect
import time
from collections import Counter

import jsonschema
import pytest

from rcgrpo.environments.bfcl import memory as memory_module
from rcgrpo.environments.bfcl import verdict as verdict_module
from rcgrpo.environments.bfcl.data import (
    BLOCKS,
    CATEGORIES,
    DOC_FILES,
    DONE,
    REVEAL,
    bare_schemas,
    entries,
    load_task,
    merged,
    parse_call,
    schemas,
)
from rcgrpo.environments.bfcl.environment import BfclEnvironment
from rcgrpo.environments.bfcl.executor import World, error_text
from rcgrpo.environments.bfcl.install import api_class, location
from rcgrpo.environments.bfcl.mutate import gold_answer, mutants
from rcgrpo.environments.bfcl.splits import NEAR_DUPLICATES, scenario_of, scenario_split, smoke_split, task_split
from rcgrpo.environments.bfcl.suite import BfclConfig, BfclSuite
from rcgrpo.environments.bfcl.validate import OfficialChecker, judgement, play, render, validate_bfcl
from rcgrpo.environments.bfcl.verdict import action_reward, trace_gold
from rcgrpo.environments.protocol import ToolError
from rcgrpo.episodes.types import Call, ExecutedCall, Task
from rcgrpo.errors import UserError

try:
    location()
except UserError as missing:
    pytest.skip(f"{missing} (`make setup` does)", allow_module_level=True)


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    return [load_task(category, number) for category in CATEGORIES for number in range(200)]


@pytest.fixture(scope="module")
def official():
    with OfficialChecker() as checker:
        yield checker


def played(environment: BfclEnvironment, answer: list[list[Call]]) -> BfclEnvironment:
    asyncio.run(play(environment, answer))
    return environment


def call(environment: BfclEnvironment, name: str, **arguments) -> ExecutedCall:
    return asyncio.run(environment.call(Call(name=name, arguments=arguments)))


def opened(category: str, number: int, **options) -> BfclEnvironment:
    environment = BfclEnvironment(load_task(category, number), **options)  # pyright: ignore[reportArgumentType]
    environment.open_turn()
    return environment


# -- data


def test_tools_are_exactly_the_public_methods_and_their_schemas_are_json_schema():
    count = 0
    for class_name in DOC_FILES:
        methods = {name for name, _ in inspect.getmembers(api_class(class_name), inspect.isfunction) if name[0] != "_"}
        assert set(schemas(class_name)) == methods
        count += len(methods)
        for tool in schemas(class_name).values():
            jsonschema.Draft202012Validator.check_schema(tool["function"]["parameters"])
            assert "response" in tool["function"]
        assert all("response" not in tool["function"] for tool in bare_schemas(class_name).values())
    assert count == 128


def test_gold_is_parsed_whole_with_positional_arguments_bound_to_their_names(tasks):
    texts = [
        t for category in CATEGORIES for e in entries(category).values() for turn in e["ground_truth"] for t in turn
    ]
    calls = [c for task in tasks for turn in task.turns for c in turn.gold]
    assert len(texts) == len(calls) == 4625
    positional = 0
    for text, parsed in zip(texts, calls, strict=True):
        node = ast.parse(text.strip(), mode="eval").body
        assert isinstance(node, ast.Call)
        positional += bool(node.args)
        assert parsed.name == ast.unparse(node.func)
        assert len(parsed.arguments) == len(node.args) + len(node.keywords)
    assert positional == 160
    assert parse_call("sort('a.txt')").arguments == {"file_name": "a.txt"}
    assert parse_call("add(1, b=-2)").arguments == {"a": 1, "b": -2}


@pytest.mark.parametrize("text", ["__import__('os')", "cd(folder=x)", "cd", "a.b()", "cd(**{})", "cd(folder=cd())"])
def test_a_gold_text_that_is_no_literal_call_of_a_known_function_is_refused(text):
    with pytest.raises(ValueError):
        parse_call(text)


def test_reveal_turns_say_the_official_words_and_show_the_tool_only_then():
    environment = BfclEnvironment(load_task("miss_func", 0))
    for turn in range(5):
        messages = environment.open_turn()
        shown = {schema["function"]["name"] for schema in environment.visible()}
        assert ("sort" in shown) == (turn >= 3)
        assert (messages[0].content == REVEAL) == (turn == 3)
        environment.close_turn()


# -- verdicts, against the official checker


def test_all_800_gold_answers_succeed_under_both_protocols_and_the_papers_reward(tasks):
    for task in tasks:
        for form in (task, merged(task)):
            rewards = played(BfclEnvironment(form), gold_answer(form)).rewards()
            assert rewards == {"success": 1.0, "turn_fraction": 1.0, "state_action": 1.0}, form.id


def test_gold_and_mutated_answers_are_judged_as_by_the_official_checker():
    report = validate_bfcl(350, seed=3)
    assert (report.gold_valid, report.gold_agreed, report.gold_total) == (800, 800, 800)
    assert report.differences == []
    assert report.agreed == report.mutants == 350
    valid = sum(valid for valid, _ in report.valid_by_mutation.values())
    assert 50 < valid < 300  # both verdicts occur, so that agreeing means something


@pytest.mark.parametrize("broken", ["compare_states", "judge_turn"])
def test_a_broken_judgement_disagrees_with_the_official_checker(tasks, official, monkeypatch, broken):
    if broken == "compare_states":
        monkeypatch.setattr(memory_module, "compare_states", lambda states, gold: "")
    else:  # gold's results are not asked for
        monkeypatch.setattr(verdict_module.GoldTurn, "wanted", Counter())
    disagreed = 0
    for task, _, answer in mutants(tasks, 150, seed=0):
        ours = judgement(played(BfclEnvironment(task, withheld_callable=True), answer).verdicts)
        disagreed += (ours == "") != (official.judge(task, answer) == "")
    assert disagreed > 5


def test_results_are_those_of_the_official_executor_word_for_word(tasks, official):
    compared = failures = 0
    for task, _, answer in mutants(tasks, 120, seed=5):
        calls = [c for turn in answer for c in turn]
        environment = played(BfclEnvironment(task, withheld_callable=True), answer)
        ours = [executed.result for executed in environment.history]
        assert ours == official.ask(task, {"calls": [render(c) for c in calls]})["results"], task.id
        compared += len(ours)
        failures += sum(executed.failed for executed in environment.history)
    assert compared > 500 and failures > 10


def test_a_difference_caused_by_shared_official_objects_is_explained_by_mending_them(official):
    # An insurance paid with a filler card: officially gold's world shares that card, so the states agree.
    task = load_task("long_context", 164)
    world = World(task.data["classes"], task.data["config"], True)
    cards = world.states()["TravelAPI"]["credit_card_list"]
    filler = next(card for card in cards if card not in task.data["config"]["TravelAPI"]["credit_card_list"])
    bookings = world.states()["TravelAPI"]["booking_record"]
    paid = Call(
        name="purchase_insurance",
        arguments={
            "access_token": "abc123",
            "insurance_type": "travel",
            "booking_id": next(iter(bookings)),
            "insurance_cost": 10.0,
            "card_id": filler,
        },
    )
    answer = gold_answer(task)
    answer[-1] = [*answer[-1], paid]
    environment = played(BfclEnvironment(task), answer)
    assert '"insurance_status": true' in environment.history[-1].result
    assert judgement(environment.verdicts) == "state"
    assert official.judge(task, answer) == ""
    assert official.judge(task, answer, ["aliasing"]) == "state"


def test_the_official_rewriting_of_text_arguments_is_recognised(official):
    task = load_task("base", 0)
    request = {"gold": [["echo(content='see foo (x)')"]], "answer": [[["echo(content='see foo(x)')"]]]}
    assert official.ask(task, request)["valid"]  # the space in gold's text was eaten
    assert not official.ask(task, {**request, "patches": ["rewriting"]})["valid"]


def test_a_result_of_an_earlier_turn_counts_as_officially(tasks, official):
    """Calls that change nothing, made one turn before gold makes them, beside others of their turn."""
    found = 0
    for task in tasks[:200]:
        answer = gold_answer(task)
        for turn in range(1, len(answer)):
            if len(answer[turn]) < 2 or answer[turn][0].name not in ("ls", "grep", "get_stock_info", "get_flight_cost"):
                continue
            moved = [list(calls) for calls in answer]
            moved[turn - 1].append(moved[turn].pop(0))
            ours = judgement(played(BfclEnvironment(task), moved).verdicts)
            assert ours == official.judge(task, moved)
            found += ours == ""
    assert found > 5


def test_after_the_first_failure_turns_are_unreached_and_success_is_zero():
    task = load_task("base", 0)
    answer = gold_answer(task)
    answer[1] = []
    environment = played(BfclEnvironment(task), answer)
    assert [v.reason for v in environment.verdicts] == ["", "empty", *["unreached"] * (len(task.turns) - 2)]
    assert environment.rewards()["success"] == 0.0
    assert environment.rewards()["turn_fraction"] == pytest.approx(1 / len(task.turns))


def test_an_episode_cut_short_is_no_success():
    task = load_task("base", 0)
    environment = played(BfclEnvironment(task), gold_answer(task)[:-1])
    assert all(v.valid for v in environment.verdicts)
    assert environment.rewards()["success"] == 0.0


# -- withheld tools, merged turns


def test_a_withheld_tool_is_refused_until_its_reveal_unless_configured_otherwise():
    refused, allowed = opened("miss_func", 0), opened("miss_func", 0, withheld_callable=True)
    assert call(refused, "sort", file_name="x").result == "Error during execution: name 'sort' is not defined"
    assert not call(allowed, "sort", file_name="x").failed
    for _ in range(3):
        refused.close_turn()
        refused.open_turn()
    assert not call(refused, "sort", file_name="x").failed


def test_the_tool_that_gold_calls_before_its_reveal_stays_callable():
    environment = opened("miss_func", 49)
    assert "tail" in environment.withheld()
    assert "not defined" not in call(environment, "tail", file_name="file3.txt").result
    assert "not defined" in call(environment, "wc", file_name="file3.txt").result


def test_merged_turns_say_everything_at_once_and_end_with_done():
    task = merged(load_task("miss_func", 0))
    environment = BfclEnvironment(task)
    (message,) = environment.open_turn()
    assert REVEAL not in message.content and "Step 4: " in message.content and "Step 5: " not in message.content
    assert {"sort", "done"} <= {schema["function"]["name"] for schema in environment.visible()}
    assert call(environment, "done").result == '{"status": "done"}'
    assert environment.close_turn().reason == "empty"  # done alone is no call
    assert call(environment, "ls").failed


# -- hostile calls


@pytest.mark.parametrize(
    "name",
    ["__class__", "_load_scenario", "__init__", "__import__('os').getcwd", "__import__('os')", "World.run", "eval",
     "GorillaFileSystem.ls", "ls;ls", "ls()", "", "x" * 100_000, "start", "check", "root", "done"],
)  # fmt: skip
def test_a_hostile_name_is_an_error_to_read_and_changes_nothing(name):
    environment = opened("base", 0)
    before = str(environment._world.states())
    executed = call(environment, name, scenario={})
    assert executed.failed and executed.result.startswith("Error during execution: ")
    assert len(executed.result) < 200
    assert str(environment._world.states()) == before


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("power", {"base": 10, "exponent": 10_000_000}),
        ("power", {"base": 10, "exponent": 10**4000}),
        ("logarithm", {"value": 2, "base": 10, "precision": 1_000_000}),
        ("logarithm", {"value": 2, "base": 10, "precision": "100000000"}),
        ("logarithm", {"value": "1e999999999", "base": 10, "precision": 5}),
        ("square_root", {"number": 2, "precision": 10_000_000}),
        ("round_number", {"number": 5, "decimal_places": -(10**9)}),
        ("add", {"a": float("nan"), "b": 1}),
        ("add", {"a": 10**5000, "b": 1}),
        ("mean", {"numbers": [1] * 50_000}),
        ("add", {"a": "x" * 1_000_000, "b": "y"}),
    ],
)
def test_arguments_that_would_hang_return_at_once(name, arguments):
    world = World(["MathAPI"], {}, False)
    began = time.perf_counter()
    if name == "round_number":
        assert world.run(name, arguments) == '{"result": 0}'
    else:
        with pytest.raises((ToolError, ValueError)) as refused:
            world.run(name, arguments)
        assert len(str(refused.value)) < 300
    assert time.perf_counter() - began < 1


def test_a_refused_power_reads_as_the_official_one(official):
    task = next(load_task("base", n) for n in range(200) if "MathAPI" in load_task("base", n).data["classes"])
    for base, exponent in [(10, 4298), (10, 4299), (10, 4300), (10, 9000), (-2, 14_283), (-2, 20_000), (2, -30_000)]:
        power = Call(name="power", arguments={"base": base, "exponent": exponent})
        ours = call(BfclEnvironment(task), power.name, **power.arguments).result
        assert [ours] == official.ask(task, {"calls": [render(power)]})["results"]


def test_arguments_nested_without_end_are_refused():
    nested: list = []
    for _ in range(5000):
        nested = [nested]
    assert isinstance(_raised(World(["MathAPI"], {}, False), "mean", numbers=nested), ToolError)


def _raised(world: World, name: str, **arguments) -> Exception | None:
    try:
        world.run(name, arguments)
    except Exception as error:  # noqa: BLE001
        return error
    return None


def _files() -> World:
    root = {"r": {"type": "directory", "contents": {"d": {"type": "directory", "contents": {}}}}}
    return World(["GorillaFileSystem"], {"GorillaFileSystem": {"root": root}}, False)


def test_copying_a_directory_into_itself_is_refused_and_undone():
    world = _files()
    before = str(world.states())
    assert isinstance(_raised(world, "cp", source="d", destination="d"), ToolError)
    assert str(world.states()) == before
    assert world.run("find", {}) == '{"matches": ["./d"]}'


def test_copies_of_copies_cannot_grow_a_tree_beyond_walking():
    world = _files()
    began = time.perf_counter()
    refused = 0
    for n in range(40):
        refused += _raised(world, "cp", source="d", destination=f"e{n}") is not None
        refused += _raised(world, "mv", source=f"e{n}", destination="d") is not None
    world.run("find", {})
    assert refused > 0
    assert time.perf_counter() - began < 10


def test_the_precision_of_a_call_does_not_leak_into_the_process():
    import decimal

    import mpmath

    world = World(["MathAPI"], {}, False)
    before = (mpmath.mp.dps, decimal.getcontext().prec)
    world.run("logarithm", {"value": 2, "base": 10, "precision": 40})
    world.run("square_root", {"number": 2, "precision": 40})
    assert (mpmath.mp.dps, decimal.getcontext().prec) == before


# -- isolation


def test_concurrent_episodes_of_one_task_do_not_meet(tasks):
    async def interleaved(task: Task) -> tuple[bool, bool]:
        good, bad = BfclEnvironment(task), BfclEnvironment(task)

        async def spoil() -> None:
            for turn in range(len(task.turns)):
                bad.open_turn()
                for c in task.turns[turn].gold * 2:
                    await bad.call(c)
                    await asyncio.sleep(0)
                bad.close_turn()

        async def solve() -> None:
            for turn in task.turns:
                good.open_turn()
                for c in turn.gold:
                    await good.call(c)
                    await asyncio.sleep(0)
                good.close_turn()

        await asyncio.gather(spoil(), solve())
        return good.rewards()["success"] == 1.0, bad.rewards()["success"] == 1.0

    outcomes = [asyncio.run(interleaved(task)) for task in tasks[::10]]
    assert all(good for good, _ in outcomes)
    assert not all(bad for _, bad in outcomes)


def test_default_lists_and_filler_cards_belong_to_one_world():
    task = load_task("base", 5)
    first, second = BfclEnvironment(task), BfclEnvironment(task)
    for environment in (first, second):
        config = task.data["config"]["TwitterAPI"]
        call(environment, "authenticate_twitter", username=config["username"], password=config["password"])
        posted = ast.literal_eval(call(environment, "post_tweet", content="hello").result)
        assert posted["mentions"] == []
        call(environment, "mention", tweet_id=posted["id"], mentioned_usernames=["@x"])
    fillers = [World(["TravelAPI"], {"TravelAPI": {}}, True).states()["TravelAPI"] for _ in range(2)]
    card = next(iter(fillers[0]["credit_card_list"]))
    fillers[0]["credit_card_list"][card]["balance"] = -1
    assert fillers[1]["credit_card_list"][card]["balance"] != -1


def test_a_list_argument_in_the_record_is_not_the_one_in_the_world():
    environment = opened("base", 5)
    config = environment.task.data["config"]["TwitterAPI"]
    call(environment, "authenticate_twitter", username=config["username"], password=config["password"])
    posted = call(environment, "post_tweet", content="hi", mentions=["@a"])
    call(environment, "mention", tweet_id=ast.literal_eval(posted.result)["id"], mentioned_usernames=["@b"])
    assert posted.call.arguments["mentions"] == ["@a"]


def test_gold_traces_survive_the_rollouts_that_they_judge():
    suite = BfclSuite()
    task = suite.task("multi_turn_long_context_164")
    played(suite.environment(task), [turn * 2 for turn in gold_answer(task)])
    assert suite.environment(task).gold is suite.environment(task).gold
    assert suite.environment(task).gold == trace_gold(task)
    assert played(suite.environment(task), gold_answer(task)).rewards()["success"] == 1.0


# -- the paper's reward


def _made(*calls: Call, failed: bool = False) -> list[ExecutedCall]:
    return [ExecutedCall(turn=0, call=c, result="", failed=failed) for c in calls]


def test_action_reward_by_hand():
    def f(**arguments) -> Call:
        return Call(name="f", arguments=arguments)

    g = Call(name="g")
    assert action_reward(_made(g, f(a=1, extra=2)), [f(a=1), g]) == 1.0  # order and extra parameters are ignored
    assert action_reward(_made(f(a=2)), [f(a=1)]) == 0.0
    assert action_reward(_made(f()), [f(a=1)]) == 0.0
    assert action_reward(_made(f(a=1)), [f(a=1), f(a=1)]) == 0.0  # each gold call needs one of its own
    assert action_reward(_made(f(a=1), f(a=1)), [f(a=1), f(a=1)]) == 1.0
    assert action_reward(_made(f(a=1), failed=True), [f(a=1)]) == 0.0
    assert action_reward([], []) == 1.0
    # a greedy match would give f(a=1, b=2) to f(a=1) and leave nothing for the other
    assert action_reward(_made(f(a=1, b=2), f(a=1)), [f(a=1), f(a=1, b=2)]) == 1.0


def test_state_action_asks_for_both_the_state_and_the_calls():
    task = load_task("base", 0)
    gold = gold_answer(task)
    all_first = [[c for turn in gold for c in turn], *([] for _ in gold[1:])]
    environment = played(BfclEnvironment(task), all_first)
    assert environment.rewards()["state_action"] == 1.0 and environment.rewards()["success"] == 0.0
    spoilt = [*gold[:-1], [*gold[-1], Call(name="touch", arguments={"file_name": "new"})]]
    assert played(BfclEnvironment(task), spoilt).rewards()["state_action"] == 0.0
    looked = [*gold[:-1], gold[-1][:-1]]  # without the last call, which reads only
    assert gold[-1][-1].name == "diff"
    assert played(BfclEnvironment(task), looked).rewards()["state_action"] == 0.0


# -- splits and suite


@pytest.mark.parametrize("seed", range(5))
def test_the_scenario_split_is_stratified_whole_and_without_leak(seed):
    split = scenario_split(seed, 0.2)
    sides = {name: {int(i.rsplit("_", 1)[1]) for i in split.pools[name]} for name in ("train", "test")}
    assert [sum(n // 50 == b for n in sides["test"]) for b in range(len(BLOCKS))] == [10, 10, 10, 10]
    assert sides["train"] | sides["test"] == set(range(200)) and not sides["train"] & sides["test"]
    assert Counter(i.rsplit("_", 1)[0] for i in split.pools["test"]) == {f"multi_turn_{c}": 40 for c in CATEGORIES}
    assert all(group <= sides["train"] or group <= sides["test"] for group in NEAR_DUPLICATES)
    assert split.leaked_scenarios(scenario_of()) == set()
    assert split.sha256 == scenario_split(seed, 0.2).sha256 != scenario_split(seed + 1, 0.2).sha256


def test_near_duplicates_have_identical_initial_states_and_nothing_else_does():
    same: dict[str, set[int]] = {}
    for number in range(200):
        same.setdefault(str(load_task("base", number).data["config"]), set()).add(number)
    assert sorted(map(sorted, (g for g in same.values() if len(g) > 1))) == sorted(map(sorted, NEAR_DUPLICATES))


def test_the_papers_task_split_leaks_and_says_so():
    split = task_split(0)
    assert (len(split.pools["train"]), len(split.pools["test"])) == (720, 80)
    leaked = split.leaked_scenarios(scenario_of())
    assert len(leaked) > 60
    assert f"LEAKS: {len(leaked)} of" in split.rule


def test_the_smoke_split_trains_on_its_test_tasks_and_says_so(tasks):
    split = smoke_split()
    assert split.pools["train"] == split.pools["test"] and len(split.pools["test"]) == 16
    assert "ALIKE" in split.rule
    block = {task.id: task.block for task in tasks}
    assert Counter(block[i] for i in split.pools["test"]) == dict.fromkeys(BLOCKS, 4)


def test_the_suite_gives_tasks_by_id_under_its_protocol():
    assert len(BfclSuite().task("multi_turn_base_0").turns) == 4
    suite = BfclSuite(BfclConfig(protocol="paper_merged", categories=("base",)))
    assert suite.task("multi_turn_base_0").turns[0].gold[-1] == DONE
    assert len(suite.split().pools["test"]) == 40
    for wrong in ("multi_turn_base_200", "base_0", "multi_turn_base_00"):
        with pytest.raises(UserError, match="no BFCL task"):
            suite.task(wrong)


@pytest.mark.parametrize(
    "options",
    [{"rule": "smoke", "split_seed": 1}, {"protocol": "merged"}, {"unknown": 1}, {"categories": ()},
     {"protocol": "paper_merged", "withheld_callable": True}, {"categories": ("base", "base")}],
)  # fmt: skip
def test_an_option_that_would_do_nothing_is_an_error(options):
    with pytest.raises(ValueError):
        BfclConfig(**options)


def test_errors_read_as_the_official_ones():
    assert error_text(ValueError("x")) == "Error during execution: x"
