"""Each benchmark on toy sizes: what it reports, and that both sides really did the same."""

from __future__ import annotations

import json
import math
import statistics

import pytest
import torch
from typer.testing import CliRunner

from rcgrpo.bench import update
from rcgrpo.bench.measure import Timed, compare
from rcgrpo.bench.script import endings, scripted_engine
from rcgrpo.bench.workloads import Script, workload
from rcgrpo.cli import app
from rcgrpo.environments.bfcl.data import DOC_FILES, schemas
from rcgrpo.environments.bfcl.executor import _SPECIAL, _mutable_defaults
from rcgrpo.environments.bfcl.install import api_class
from rcgrpo.episodes.types import Call
from rcgrpo.stages.rollout import Player

COMMON = {"ratio", "ratios", "ours_s", "peer_s", "threads", "shape", "versions", "pairs"}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny():
    return workload("tiny")


def bench(*arguments: str) -> dict:
    done = CliRunner().invoke(app, ["bench", *arguments, "--quick", "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout.splitlines()[-1])
    assert result.keys() >= COMMON
    assert result["threads"] == 1 and result["pairs"] == len(result["ratios"]) == 1
    assert result["ratio"] == statistics.median(result["ratios"]) > 0
    return result


def test_ratios_are_per_unit_of_work_and_their_median_is_taken():
    ours = [Timed(1.0, 1.0, 100), Timed(2.0, 1.0, 100), Timed(1.0, 1.0, 50)]
    peer = [Timed(6.0, 3.0, 200), Timed(8.0, 3.0, 100), Timed(1.0, 3.0, 100)]
    result = compare(ours, peer)
    assert result["ratios"] == [3.0, 4.0, 0.5] and result["ratio"] == 3.0
    assert (result["ours_s"], result["peer_s"]) == (1.0, 6.0)


def test_step_compares_with_trl_on_the_same_prompts():
    pytest.importorskip("trl")
    result = bench("step", "--shape", "tiny")
    assert result["shape"]["prompt_tokens"] == result["shape"]["peer_prompt_tokens"]
    assert result["ours_tokens"][0] > 0 and result["peer_tokens"][0] > 0
    per_token = (result["peer_s"] / result["peer_tokens"][0]) / (result["ours_s"] / result["ours_tokens"][0])
    assert math.isclose(result["ratio"], per_token, rel_tol=0.01)


def test_the_peer_is_given_our_prompt_token_by_token(tiny):
    pytest.importorskip("trl")
    from rcgrpo.bench.peer import chat, environment_class, peer_tokenizer

    world = environment_class(tiny)()
    messages = chat(tiny, 1)
    tool = next(getattr(world, n) for n in dir(world) if not n.startswith("_") and n not in ("reset", "get_reward"))
    for job in tiny.jobs(tiny.tasks, 0)[tiny.group : tiny.group + 2]:
        said = world.reset(index=1)  # TRL puts this at the end of the last message
        given = [*messages[:-1], {**messages[-1], "content": messages[-1]["content"] + said}]
        ids = peer_tokenizer(tiny).apply_chat_template(given, tools=[tool], add_generation_prompt=True)
        assert ids["input_ids"] == tiny.prompt(job)


def test_update_measures_time_and_memory(monkeypatch):
    pytest.importorskip("trl")
    fresh = update._fresh("shared", "tiny", 1)
    assert fresh["wall"] > 0 and fresh["mib"] >= 0
    monkeypatch.setattr(update, "_fresh", update.one_update)  # starting processes is most of the time
    result = bench("update", "--shape", "tiny")
    assert result.keys() >= {"memory_ratio", "trl_ratio", "trl_memory_ratio", "peak_mib"}


def test_both_updates_of_ours_take_the_same_step(tmp_path):
    shared, ordinary = (update.our_update(flag, tmp_path / str(flag)) for flag in (True, False))
    after = []
    for run in (shared, ordinary):
        run(update.batch("tiny"))
        after.append(run.trainer.parameters)
    for one, other in zip(*after, strict=True):
        torch.testing.assert_close(one, other, atol=2.5e-6, rtol=0)  # one AdamW step moves a weight by 1e-6


def test_rollout_reports_times_and_tokens_per_turn_count():
    rows = bench("rollout", "--turns", "1,2")["turns"]
    assert [row["turns"] for row in rows] == [1, 2]
    assert rows[0]["tokens"] == 16 * 48 and rows[1]["tokens"] > 2 * rows[0]["tokens"]


def test_decode_reports_each_batch_and_its_share_of_the_peaks():
    result = bench("decode", "--batches", "1,8")
    assert [row["batch"] for row in result["batches"]] == [1, 8]
    for row in result["batches"]:
        assert 0 < row["matmul_share"] < 1 and row["copy_share"] > 0 and row["static_ratio"] > 0


def test_env_agrees_with_the_official_checker():
    result = bench("env", "--mutants", "50")
    assert result["agreed"] == result["total"] == 850


def test_a_script_decides_lengths_and_calls_and_nothing_else(tiny):
    script = Script((24, 8), (True, False), Call(name="nothing_there"))
    assert [len(message) for message in endings(script, tiny.codec)] == [24, 8]
    player = Player(tiny.suite, tiny.codec, tiny.limits, "success")
    with scripted_engine(script, tiny.codec):
        episodes = player.policy(tiny.policy, tiny.jobs(tiny.tasks, 0))
    for episode in episodes:
        assert [[call.name for call in step.message.calls] for step in episode.steps] == [["nothing_there"], []]
        assert sum(episode.loss_mask) == 32
    assert len({tuple(e.token_ids[-20:]) for e in episodes}) == len(episodes)


def test_mistaken_options_are_named():
    for arguments in (["step", "--shape", "huge"], ["decode", "--batches", "1,x"]):
        done = CliRunner().invoke(app, ["bench", *arguments])
        assert type(done.exception).__name__ == "UserError" and arguments[2] in str(done.exception)


def test_functions_with_shared_lists_as_defaults_take_the_careful_path():
    functions = {name: getattr(api_class(c), name) for c in DOC_FILES for name in schemas(c)}
    assert {name for name, function in functions.items() if _mutable_defaults(function)} <= _SPECIAL
