"""The command line as a user or a script meets it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from rcgrpo.cli import app, guarded
from rcgrpo.config import load_recipe
from rcgrpo.errors import UserError
from rcgrpo.stages.directory import RunDirectory
from rcgrpo.stages.run import plan

RECIPE = """
name = "lights"
[custom]
environment = "light_world:Light"
tasks = "{folder}/tasks.jsonl"
test_share = 0.25
[model]
path = "{folder}/base"
device = "cpu"
[chat]
schemas = "compact"
[rollout]
steps_per_turn = 3
step_tokens = 24
episode_tokens = 320
[stages.experts]
kind = "collect"
policy = "gold"
[stages.finetune]
kind = "finetune"
data = ["experts"]
conditioned = true
batch = 4
steps = 3
optimiser = {{lr = 1e-3}}
[stages.rcgrpo]
kind = "reinforce"
start = "finetune"
sampler = {{kind = "stratified", p = 0.5}}
steps = 1
groups = 2
group_size = 2
optimiser = {{lr = 1e-4}}
[evaluate]
probe_tasks = 1
probe_group = 2
rows = [{{row = "base", policy = "base"}}, {{row = "RC-GRPO", policy = "rcgrpo", token = "high"}}]
"""


@pytest.fixture
def recipe(lights, tmp_path) -> Path:
    path = tmp_path / "lights.toml"
    path.write_text(RECIPE.format(folder=lights))
    return path


def cli(capsys, *arguments) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of the command, in this process."""
    try:
        code = guarded(lambda: app([str(a) for a in arguments]))
    except SystemExit as end:
        code = int(end.code or 0)
    out, err = capsys.readouterr()
    return code, out, re.sub(r"\x1b\[[0-9;]*m", "", err)


MISTAKES = [
    ("typo", ["run", "{bad}"], ["stages.finetune.optimiser.lrr", "unknown key: check its spelling"]),
    ("override", ["run", "{recipe}", "--set", "evaluate.sseds=3"], ["evaluate.sseds", "unknown key", "3"]),
    (
        "value",
        ["run", "{recipe}", "--set", "stages.rcgrpo.group_size=1"],
        ["stages.rcgrpo.group_size", "given: 1", "2"],
    ),
    ("no value", ["run", "{recipe}", "--set", "seed"], ["override 'seed'", "key=value"]),
    ("not a table", ["run", "{recipe}", "--set", "name.x=1"], ["override 'name.x=1'", "name is not a table"]),
    (
        "reference",
        ["run", "{recipe}", "--set", "stages.rcgrpo.start=nothing"],
        ["stages.rcgrpo", "'nothing'", "choose"],
    ),
    ("no recipe", ["run", "none.toml"], ["no recipe at none.toml"]),
    ("no toml", ["run", "{tasks}"], ["tasks.jsonl"]),
    ("redo", ["run", "{recipe}", "--redo", "sft"], ["--redo sft", "no such stage", "experts, finetune, rcgrpo"]),
    ("world", ["run", "{recipe}", "--set", "toolworld.seed=1"], ["exactly one of [toolworld], [bfcl], [custom]"]),
    (
        "evaluated",
        ["run", "{recipe}", "--set", "evaluate.pool=exam"],
        ["evaluate.pool = 'exam'", "experts, train, test"],
    ),
    ("played", ["run", "{recipe}", "--set", "stages.rcgrpo.pool=trian"], ["stages.rcgrpo.pool = 'trian'", "train"]),
    (
        "greedy",
        ["run", "{recipe}", "--set", "stages.more={{kind='collect', policy='base', temperature=0, samples=2}}"],
        ["samples > 1 needs a temperature above 0"],
    ),
    ("updates", ["run", "{recipe}", "--set", "stages.rcgrpo.updates=5"], ["cannot be divided among 5 updates"]),
    ("token", ["eval", "x", "{recipe}", "--token", "medium"], ["--token medium", "high, low or none"]),
    ("checkpoint", ["eval", "./nothing", "{recipe}"], ["./nothing", "cannot be loaded"]),
    ("pool", ["eval", "{base}", "{recipe}", "--set", "evaluate.pool=exam"], ["'exam'", "experts, train, test"]),
    ("reward", ["eval", "{base}", "{recipe}", "--set", "reward=fame"], ["reward = 'fame'", "success, turn_fraction"]),
    ("report", ["report", "nowhere"], ["nowhere is not a run directory"]),
    ("stage", ["stage", "nowhere", "sft"], ["nowhere is not a run directory"]),
    ("replay", ["replay", "none.jsonl", "{recipe}"], ["no episode file at none.jsonl"]),
    ("damaged", ["replay", "{tasks}", "{recipe}"], ["tasks.jsonl, line 1: "]),
    ("option", ["run", "{recipe}", "--frobnicate"], ["frobnicate"]),
]


@pytest.mark.parametrize(("arguments", "said"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_a_users_mistake_gets_a_message_and_exit_code_2(capsys, recipe, lights, arguments, said, monkeypatch):
    monkeypatch.chdir(recipe.parent)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    bad = recipe.with_name("bad.toml")
    bad.write_text(recipe.read_text().replace("lr = 1e-3", "lrr = 1e-3"))
    known = {"recipe": recipe, "bad": bad, "tasks": lights / "tasks.jsonl", "base": lights / "base"}
    code, out, err = cli(capsys, *[a.format(**known) for a in arguments])
    assert code == 2, err
    assert out == "" and "Traceback" not in err
    for words in said:
        assert words in err, err
    assert not (recipe.parent / "runs").exists()


def test_a_second_session_on_a_run_is_refused(capsys, recipe):
    out = recipe.parent / "run"
    with RunDirectory(out).alone():
        code, _, err = cli(capsys, "run", recipe, "--out", out)
    assert code == 2 and "another session works on" in err and not (out / "config.json").exists()


def test_a_failure_of_ours_gets_a_traceback_and_exit_code_1(capsys, recipe, monkeypatch):
    def broken(self):
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("rcgrpo.environments.custom.CustomSuite.split", broken)
    code, out, err = cli(capsys, "run", recipe, "--out", recipe.parent / "run")
    assert code == 1 and out == ""
    assert "Traceback" in err and "ZeroDivisionError: a defect" in err


def test_a_dry_run_shows_recipe_and_plan_and_writes_nothing(capsys, recipe):
    before = sorted(recipe.parent.rglob("*"))
    out_dir = recipe.parent / "run"
    code, out, err = cli(capsys, "run", recipe, "--out", out_dir, "--set", "seed=7", "--dry-run", "--json")
    assert code == 0 and sorted(recipe.parent.rglob("*")) == before
    assert '"seed": 7' in err and "experts, finetune, rcgrpo, evaluate base, evaluate RC-GRPO" in err
    assert json.loads(out) == {
        "run_dir": str(out_dir),
        "plan": ["experts", "finetune", "rcgrpo", "evaluate base", "evaluate RC-GRPO"],
    }


def test_validate_toolworld_for_scripts(capsys):
    code, out, err = cli(capsys, "validate", "toolworld", "--tasks", "12", "--json")
    result = json.loads(out.splitlines()[-1])
    assert code == 0 and (result["gold_valid"], result["gold_total"]) == (12, 12)
    assert len(out.splitlines()) == 1 and "gold valid: 12 of 12" in err


def test_eval_and_replay_for_scripts(capsys, recipe, lights):
    saved = recipe.parent / "episodes.jsonl.gz"
    code, out, err = cli(capsys, "eval", lights / "base", recipe, "--token", "low", "--episodes", saved, "--json")
    result = json.loads(out)
    assert code == 0 and "episodes" in err
    assert {"success", "low", "high", "n", "by_category", "token", "split_sha256"} <= result.keys()
    assert result["n"] == 4 and result["token"] == "low" and len(result["split_sha256"]) == 64
    assert 0 <= result["low"] <= result["success"] <= result["high"] <= 1
    assert set(result["by_category"]) == {"on", "off"} and result["by_category"]["on"]["n"] == 2
    code, out, err = cli(capsys, "replay", saved, recipe, "--json")
    again = json.loads(out)
    assert code == 0 and again["changed"] == 0 and again["success"] == result["success"]


@pytest.mark.timeout(600)  # five processes that each import torch
def test_a_recipe_from_start_to_report(capsys, recipe, lights):
    """Run, run again (nothing to do), change (refused), redo: what is done is done once, and what follows follows."""
    out_dir = recipe.parent / "run"
    code, out, err = cli(capsys, "run", recipe, "--out", out_dir, "--jobs", "2", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["run_dir"] == str(out_dir) and [row["row"] for row in result["table"]] == ["base", "RC-GRPO"]
    assert all({"success", "low", "high", "n"} <= row.keys() for row in result["table"])
    assert Path(result["report"]).read_text().startswith("<!")
    for name in ("config.json", "provenance.json", "split.json", "table.json"):
        assert json.loads((out_dir / name).read_text())
    base, trained = (json.loads((out_dir / "evaluations" / n / "result.json").read_text()) for n in ("base", "rc-grpo"))
    assert base["token"] is None and trained["token"] == "high"

    stamps = lambda: {p: p.stat().st_mtime_ns for p in out_dir.glob("stages/*/stage.json")}  # noqa: E731
    before = stamps()
    code, out, err = cli(capsys, "run", recipe, "--out", out_dir, "--json")
    assert code == 0 and json.loads(out)["table"] == result["table"] and stamps() == before

    change = ["--set", "stages.finetune.steps=2"]
    code, out, err = cli(capsys, "run", recipe, "--out", out_dir, *change)
    assert code == 2 and "'finetune'" in err and "another --out" in err and "--redo finetune" in err
    assert stamps() == before

    code, out, err = cli(capsys, "run", recipe, "--out", out_dir, *change, "--redo", "finetune", "--dry-run", "--json")
    assert json.loads(out)["plan"] == ["finetune", "rcgrpo", "evaluate RC-GRPO"] and stamps() == before
    directory = RunDirectory(out_dir)
    changed = load_recipe(recipe, change[1:])
    directory.prepare(changed, ["finetune"])
    assert [work.title for work in plan(directory, changed)] == ["finetune", "rcgrpo", "evaluate RC-GRPO"]
    assert not directory.stage("finetune").metrics() and directory.stage("experts").episodes.is_file()


@pytest.mark.parametrize("command", ["stage", "row"])
def test_work_that_a_background_job_started_can_still_be_stopped(tmp_path, command):
    """A shell has SIGINT ignored in a script's background job and in all that it starts."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(UserError):
            app([command, str(tmp_path / "none"), "x"])
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("how", ["Ctrl-C", "terminate"])
def test_a_stopped_run_writes_a_resume_point_that_only_the_same_recipe_continues(capsys, recipe, how):
    """Ctrl-C as a terminal sends it, to the whole process group; a scheduler's signal to the command alone."""
    out_dir = recipe.parent / "run"
    long = ["--set", "stages.finetune.steps=100000", "--set", "stages.finetune.checkpoint_every=100000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "rcgrpo", "run", str(recipe), "--out", str(out_dir), *long],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )
    stage = RunDirectory(out_dir).stage("finetune")
    deadline = time.monotonic() + 120
    while len(stage.metrics()) < 2 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    try:
        if how == "Ctrl-C":
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.terminate()
        _, err = process.communicate(timeout=280)  # a busy machine takes minutes to import torch
    finally:
        process.terminate()  # which also ends its stages, if it is still there
    assert process.returncode == 130, err
    assert "the same command goes on" in err and "Traceback" not in err
    state = torch.load(stage.resume / "state.pt", weights_only=True)
    assert stage.record is None and state["done"] == len(stage.metrics()) >= 2

    code, _, err = cli(capsys, "run", recipe, "--out", out_dir, *long, "--set", "stages.finetune.batch=5")
    assert code == 2 and "begun with another configuration" in err and "--redo finetune" in err
