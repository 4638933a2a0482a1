"""An ablation from plan to results file, on the lights: two arms, two seeds."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from forked import ForkedProcess
from rcgrpo.cli import app, guarded
from rcgrpo.config import load_recipe
from rcgrpo.episodes.store import read_episodes
from rcgrpo.errors import UserError
from rcgrpo.experiments.ablate import seed_directory
from rcgrpo.experiments.cells import graded_rewards, thin
from rcgrpo.experiments.plan import fixing_commit, plan_of, seed_recipe
from rcgrpo.experiments.results import merge, open_results, with_cells, write_results
from rcgrpo.stages.evaluate import group_means, row_digest
from rcgrpo.stages.training import Interrupted

RECIPE = """
name = "pair"
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
[stages.sft]
kind = "finetune"
data = ["experts"]
conditioned = true
batch = 4
steps = 2
optimiser = {{lr = 1e-3}}
[stages.grpo]
kind = "reinforce"
start = "sft"
sampler = {{kind = "fixed"}}
steps = 2
groups = 2
group_size = 2
optimiser = {{lr = 1e-4}}
[evaluate]
probe_tasks = 1
probe_group = 2
[ablation]
seeds = [0, 1]
tokens = ["none", "high", "low"]
comparisons = [["GRPO", "base"]]
arms = [{{row = "base", policy = "base"}}, {{row = "GRPO", policy = "grpo", token = "high"}}]
"""


@pytest.fixture(autouse=True)
def _forked(monkeypatch):
    forking = SimpleNamespace(Popen=ForkedProcess, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr("rcgrpo.stages.run.subprocess", forking)


@pytest.fixture
def recipe(lights, tmp_path) -> Path:
    path = tmp_path / "pair.toml"
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


def load(path: Path) -> dict:
    return json.loads(path.read_text())


def test_a_matrix_is_run_piece_by_piece_and_each_piece_once(capsys, recipe, monkeypatch):
    out = recipe.parent / "out"
    code, text, err = cli(capsys, "ablate", recipe, "--out", out, "--dry-run", "--json")
    assert code == 0 and not out.exists(), err
    pieces = ["evaluate base (3 rows)", "experts", "sft", "grpo", "evaluate grpo (3 rows)"]
    assert json.loads(text)["left"] == [f"seed {seed}: {piece}" for seed in (0, 1) for piece in pieces]

    code, text, err = cli(capsys, "ablate", recipe, "--out", out, "--seeds", "1", "--only", "base", "--json")
    assert code == 0 and json.loads(text)["cells"] == 3, err
    assert not (out / "seed-0" / "stages").exists() and not (out / "seed-1").exists()
    partial = load(out / "results.json")
    assert partial["comparisons"][0]["diff"] is None and partial["comparisons"][0]["p_holm"] is None

    code, text, err = cli(capsys, "ablate", recipe, "--out", out, "--json")
    assert code == 0, err
    found = load(out / "results.json")
    assert [(c["row"], c["seed"], c["token"]) for c in found["cells"]] == [
        (row, seed, token) for row in ("base", "GRPO") for seed in (0, 1) for token in ("none", "high", "low")
    ]
    assert found["cells"][:3] == partial["cells"]
    check_cells(found, out)
    check_comparison(found)

    stamps = {p: p.stat().st_mtime_ns for p in out.glob("seed-*/*/*/*.json")}
    code, text, err = cli(capsys, "ablate", recipe, "--out", out, "--json")
    assert code == 0 and load(out / "results.json") == found
    assert {p: p.stat().st_mtime_ns for p in out.glob("seed-*/*/*/*.json")} == stamps
    report = Path(json.loads(text)["report"])
    assert report == out / "report.html" and "GRPO" in report.read_text()

    elsewhere = out.with_name("elsewhere")  # a machine that has the results file and not the runs
    copy = ["--out", elsewhere, "--results", out / "results.json", "--dry-run", "--json"]
    code, text, _ = cli(capsys, "ablate", recipe, *copy)
    assert code == 0 and json.loads(text)["left"] == []
    code, text, _ = cli(capsys, "ablate", recipe, *copy, "--redo", "grpo")
    pieces = ["experts", "sft", "grpo", "evaluate grpo (3 rows)"]  # base follows from no stage
    assert json.loads(text)["left"] == [f"seed {seed}: {piece}" for seed in (0, 1) for piece in pieces]

    code, text, err = cli(capsys, "results", out / "results.json", "--merge", out / "results.json", "--json")
    assert code == 0 and load(out / "results.json") == found, err
    assert json.loads(text)["comparisons"] == found["comparisons"] and (out / "results.html").is_file()
    code, _, err = cli(capsys, "results", recipe)
    assert code == 2 and "cannot be read" in err

    code, text, err = cli(capsys, "results", out / "results.json", "--compare", "base", "GRPO", "--json")
    pair, [planned] = json.loads(text), found["comparisons"]
    assert code == 0 and pair["diff"] == pytest.approx(-planned["diff"]) and "p is uncorrected" in err
    assert load(out / "results.json") == found
    code, text, err = cli(capsys, "results", out / "results.json", "--compare", "GRPO@low", "GRPO@none", "--json")
    means = [
        sum(c["success"] for c in found["cells"] if (c["row"], c["token"]) == ("GRPO", t)) / 2 for t in ("low", "none")
    ]
    assert code == 0 and json.loads(text)["diff"] == pytest.approx(means[0] - means[1]), err
    assert "separation" in pair and "separation" not in json.loads(text)  # which is of two tokens
    for wrong, message in (
        (["GRPO", "GRPO@no"], "no such row; the file has base, GRPO"),
        (["a", "b", "--merge", "x"], "without"),
    ):
        code, _, err = cli(capsys, "results", out / "results.json", "--compare", *wrong)
        assert code == 2 and message in " ".join(err.split())
    check_conflicts(capsys, recipe, out)
    check_redo(capsys, recipe, out, monkeypatch)


def check_conflicts(capsys, recipe: Path, out: Path) -> None:
    """A stage that was deleted to free the disk costs nothing; a run that contradicts the file is not believed."""
    found = load(out / "results.json")
    shutil.rmtree(out / "seed-0" / "stages" / "grpo")
    code, _, err = cli(capsys, "ablate", recipe, "--out", out)
    assert code == 0 and load(out / "results.json") == found, err
    other = {**found, "cells": [{**found["cells"][0], "outcomes": "0101"}, *found["cells"][1:]]}
    write_results(out / "other.json", other)
    code, _, err = cli(capsys, "ablate", recipe, "--out", out, "--results", out / "other.json")
    assert code == 2 and "('base', 0, 'none') was measured twice, with different outcomes" in " ".join(err.split())
    assert load(out / "other.json") == other


def check_redo(capsys, recipe: Path, out: Path, monkeypatch) -> None:
    """What is done again leaves the results first, so that the command without --redo goes on after a Ctrl-C."""
    with monkeypatch.context() as patched:
        patched.setattr("rcgrpo.experiments.ablate.work_off", raised(Interrupted()))
        patched.setattr("sys.argv", ["rcgrpo", "ablate", "--redo", "grpo"])
        code, _, err = cli(capsys, "ablate", recipe, "--out", out, "--seeds", "1,", "--redo", "grpo")
    assert code == 130 and "the same command without --redo goes on" in " ".join(err.split())
    left = {(c["row"], c["seed"]) for c in load(out / "results.json")["cells"]}
    assert left == {("base", 0), ("base", 1), ("GRPO", 0)}
    code, text, _ = cli(capsys, "ablate", recipe, "--out", out, "--dry-run", "--json")
    assert json.loads(text)["left"] == ["seed 1: grpo", "seed 1: evaluate grpo (3 rows)"]


def raised(error: BaseException):
    """A function that raises it."""

    def fail(*_, **__):
        raise error

    return fail


def check_cells(found: dict, out: Path) -> None:
    """Cells against what lies in the run directories and against the recipe."""
    for cell in found["cells"]:
        folder = out / f"seed-{cell['seed']}" / "evaluations" / f"{cell['row'].lower()}-{cell['token']}"
        result = load(folder / "result.json")
        played = list(read_episodes(folder / "episodes.jsonl.gz"))
        assert {e.sampling.temperature for e in played} == {0.0}  # the probe's are not among them
        assert {e.reward_token for e in played} == {None if cell["token"] == "none" else cell["token"]}
        assert cell["outcomes"] == "".join(str(int(e.success)) for e in played)
        assert cell["success"] == result["success"] == cell["outcomes"].count("1") / cell["n"] and cell["n"] == 4
        assert cell["zero_variance_share"] == result["probe"]["zero_variance_share"]
        assert sum(cell["probe_means"]) / len(cell["probe_means"]) == pytest.approx(cell["success_sampled"])
    trained = {(c["seed"], c["token"]): c for c in found["cells"] if c["row"] == "GRPO"}
    for (seed, token), cell in trained.items():
        assert (
            (cell["rollouts"], cell["gradient_steps"]) == (2 * 2 * 2, 2)
            and cell["tokens"] > 0
            and cell["stage1_tokens"] > 0
        )
        assert set(cell["stages"]) == {"experts", "sft", "grpo"}
        assert cell["seconds"] == pytest.approx(sum(cell["stages"].values()))
        probes = [trained[seed, t]["success_sampled"] for t in ("high", "low")]
        assert cell["separation"] == pytest.approx(probes[0] - probes[1])
        assert (cell["curves"] is not None) == (token == "high")
    metrics = (out / "seed-1" / "stages" / "grpo" / "metrics.jsonl").read_text().splitlines()
    curves = trained[1, "high"]["curves"]
    assert curves["step"] == [1, 2]
    assert curves["reward_mean"] == pytest.approx([json.loads(line)["reward_mean"] for line in metrics])


def check_comparison(found: dict) -> None:
    """The planned pair, each row under its own token, from the marks alone."""
    marks = {(c["row"], c["seed"], c["token"]): [int(m) for m in c["outcomes"]] for c in found["cells"]}
    [pair] = found["comparisons"]
    differences = [
        sum(marks["GRPO", seed, "high"]) / 4 - sum(marks["base", seed, "none"]) / 4 for seed in (0, 1)
    ]  # fmt: skip
    assert (pair["a"], pair["b"], pair["seeds"]) == ("GRPO", "base", [0, 1])
    assert pair["by_seed"] == pytest.approx(differences) and pair["diff"] == pytest.approx(sum(differences) / 2)
    assert pair["low"] <= pair["diff"] <= pair["high"] and pair["p"] == pair["p_holm"] <= 1
    for seed, test in enumerate(pair["mcnemar"]):
        a, b = marks["GRPO", seed, "high"], marks["base", seed, "none"]
        assert test["a_only"] == sum(x > y for x, y in zip(a, b, strict=True))


def test_a_reward_other_than_success_is_kept_of_every_episode(capsys, recipe):
    out = recipe.parent / "out"
    only = ["--out", out, "--only", "base", "--seeds", "1", "--set", "reward=turn_fraction", "--json"]
    code, _, err = cli(capsys, "ablate", recipe, *only)
    assert code == 0, err
    found = load(out / "results.json")
    assert found["plan"]["reward"] == "turn_fraction" and found["comparisons"][0]["reward"]["diff"] is None
    for cell in found["cells"]:
        played = read_episodes(out / "seed-0" / "evaluations" / f"base-{cell['token']}" / "episodes.jsonl.gz")
        assert cell["rewards"] == [e.rewards["turn_fraction"] for e in played]

    older = out / "seed-0" / "evaluations" / "base-high" / "result.json"
    content = load(older)
    del content["rewards"]
    older.write_text(json.dumps(content))  # as an earlier version wrote it: to be measured again
    (out / "results.json").unlink()
    code, text, err = cli(capsys, "ablate", recipe, *only, "--dry-run")
    assert code == 0 and json.loads(text)["left"] == ["seed 0: evaluate base, high"], err

    seeded = load_recipe(recipe, ["reward=turn_fraction"])
    with pytest.raises(UserError, match=r"was 1.5 in an episode of 'a': .* from 0 to 1"):
        graded_rewards(seeded, {"row": "a", "rewards": [0.5, 1.5]})
    assert graded_rewards(load_recipe(recipe), {"row": "a", "rewards": [1.5]}) == {}


def test_an_ablation_that_is_stopped_keeps_what_is_done_and_goes_on_to_the_same_end(capsys, recipe, monkeypatch):
    once = recipe.parent / "once"
    long = ["--set", "stages.grpo.steps=6", "--seeds", "1"]
    assert cli(capsys, "ablate", recipe, "--out", once, *long)[0] == 0

    out = recipe.parent / "out"
    grpo = seed_directory(out, 0).stage("grpo")
    kept = []

    def stopping(progress):
        def watch(title, done, total):
            if grpo.metrics():
                kept.extend(cell["row"] for cell in load(out / "results.json")["cells"])
                raise KeyboardInterrupt

        return watch

    with monkeypatch.context() as patched:
        patched.setattr("rcgrpo.cli.watcher", stopping)
        code, _, err = cli(capsys, "ablate", recipe, "--out", out, *long)
    assert code == 130 and "the same command goes on" in err
    assert kept == ["base"] * 3  # written while work went on: a process that is killed loses no cell
    assert 1 <= len(grpo.metrics()) < 6 and (grpo.resume / "state.pt").is_file() and grpo.record is None
    assert [cell["row"] for cell in load(out / "results.json")["cells"]] == ["base"] * 3

    assert cli(capsys, "ablate", recipe, "--out", out, *long)[0] == 0
    stopped, whole = load(out / "results.json"), load(once / "results.json")
    assert [c["outcomes"] for c in stopped["cells"]] == [c["outcomes"] for c in whole["cells"]]
    assert stopped["cells"][-2]["curves"]["kl"] == whole["cells"][-2]["curves"]["kl"]


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_a_plan_is_committed_before_the_runs_and_holds_from_then_on(capsys, recipe):
    repository = recipe.parent / "repository"
    repository.mkdir()
    git(repository, "init", "-q")
    path, out = repository / "pair.json", recipe.parent / "out"
    path.write_text("{}")  # a placeholder, which ends no search
    git(repository, "add", "pair.json")
    git(repository, "commit", "-qm", "later")
    path.unlink()
    where = ["--out", out, "--results", path, "--only", "base", "--seeds", "1"]
    code, text, err = cli(capsys, "ablate", recipe, *where, "--plan-only", "--json")
    assert code == 0 and not out.exists(), err
    plan = load(path)["plan"]
    tested = load_recipe(recipe).suite.split().pools["test"]
    assert plan["scenarios"] == [task_id.split("-")[0] for task_id in tested] and len(set(plan["scenarios"])) == 2
    categories = [load_recipe(recipe).suite.task(task_id).category for task_id in tested]
    assert plan["categories"] == {c: "".join("01"[x == c] for x in categories) for c in sorted(set(categories))}
    assert load(path)["cells"] == [] and plan["digest"] == json.loads(text)["digest"]
    assert plan["seeds"] == [0, 1] and plan["comparisons"] == [["GRPO", "base"]] and plan["tasks"]["n"] == 4
    git(repository, "add", "pair.json")
    git(repository, "commit", "-qm", "the plan")
    fixed = git(repository, "rev-parse", "HEAD")

    assert cli(capsys, "ablate", recipe, *where)[0] == 0
    assert load(path)["plan"]["commit"] == fixed and load(path)["plan"]["started"]
    git(repository, "commit", "-qam", "results")
    assert fixing_commit(path, plan["digest"]) == fixed
    assert fixing_commit(path, "another") is None and fixing_commit(recipe, plan["digest"]) is None

    git(repository, "rm", "-q", "pair.json")  # an earlier plan made way for this one
    git(repository, "commit", "-qm", "gone")
    write_results(path, {"plan": {**plan, "digest": "later"}, "cells": [], "comparisons": []})
    git(repository, "add", "pair.json")
    git(repository, "commit", "-qm", "a new plan")
    assert fixing_commit(path, "later") == git(repository, "rev-parse", "HEAD")
    git(repository, "checkout", "-q", "HEAD~2", "pair.json")

    for change in ("stages.grpo.beta=0.5", "ablation.seeds=[0,1,2]", "evaluate.limit=2"):
        code, _, err = cli(capsys, "ablate", recipe, *where, "--set", change)
        assert code == 2 and "holds another plan" in err, err
    code, _, err = cli(capsys, "ablate", recipe, *where, "--set", "stages.grpo.beta=0.5")
    assert "differ in settings_sha256)" in err


def test_a_plan_committed_with_results_in_it_was_not_fixed_beforehand(capsys, recipe, monkeypatch):
    repository = recipe.parent / "repository"
    repository.mkdir()
    git(repository, "init", "-q")
    path = repository / "pair.json"
    results = open_results(path, plan_of(load_recipe(recipe)), "rcgrpo ablate pair.toml")
    write_results(path, {**results, "cells": [{"row": "base", "seed": 0, "token": "none"}]})
    git(repository, "add", "pair.json")
    git(repository, "commit", "-qm", "too late")
    assert fixing_commit(path, results["plan"]["digest"]) is None


def test_what_decides_the_figures_changes_the_digest_of_a_plan(recipe):
    sampled = [planned(recipe, "evaluate.temperature=0.7", f"evaluate.top_p={p}")["digest"] for p in (1.0, 0.5)]
    assert len({planned(recipe)["digest"], *sampled}) == 3

    tasks = recipe.parent / "mine.jsonl"
    custom = load_recipe(recipe).custom
    assert custom is not None
    first, *others = custom.tasks.read_text().splitlines()
    digests = set()
    for note in ("one", "another"):  # the same ids and settings, other content
        tasks.write_text("\n".join([json.dumps({**json.loads(first), "data": {"note": note}}), *others]))
        mine = load_recipe(recipe, [f"custom.tasks={str(tasks)!r}"])
        row = seed_recipe(mine, 0).evaluate.rows[0]
        digests |= {plan_of(mine)["digest"], mine.digest("grpo"), row_digest(mine, row)}
    assert len(digests) == 6


def planned(recipe: Path, *overrides: str) -> dict:
    return plan_of(load_recipe(recipe, list(overrides)))


ARMS = "ablation.arms=[{row='SFT', policy='sft'}, {row='GRPO', policy='grpo'}, {row='more', policy='more'%s}]"
MORE = (
    "stages.more={kind='reinforce', start='sft', sampler={kind='fixed'}, steps=%s, groups=2, group_size=%s, "
    "updates=%s, optimiser={lr=1e-4}}"
)


def test_budgets_are_counted_from_the_recipe(recipe):
    plan = planned(recipe, MORE % (1, 4, 2), ARMS % "", "ablation.comparisons=[]")
    budgets = {arm["row"]: tuple(arm["budget"].values()) for arm in plan["arms"]}
    # sft: 2 steps of 4 episodes. GRPO: 2 x 2 groups x 2, one update each. more: 1 x 2 x 4, two updates
    assert budgets == {"SFT": (8, 0, 0), "GRPO": (8, 8, 2), "more": (8, 8, 2)}


def test_replaced_groups_and_replayed_batches_count(recipe):
    resampling = (MORE % (4, 2, 1)).replace("updates", "resample=2, rollout_budget=8, updates")
    plan = planned(recipe, resampling, ARMS % ", unmatched='more updates'", "ablation.comparisons=[]")
    assert tuple(plan["arms"][2]["budget"].values()) == (8, 8, 4)
    capped = (MORE % (4, 2, 1)).replace("updates", "rollout_budget=11, updates")  # 2 whole batches of 4
    plan = planned(recipe, capped, ARMS % "", "ablation.comparisons=[]")
    assert tuple(plan["arms"][2]["budget"].values()) == (8, 8, 2)
    with pytest.raises(UserError, match=r"stages.more: resample = 2 .* give rollout_budget too \(16"):
        planned(recipe, resampling.replace("rollout_budget=8, ", ""), ARMS % "", "ablation.comparisons=[]")
    replaying = (MORE % (2, 2, 1)).replace("updates", "replay={data=['experts'], batch=3}, updates")
    with pytest.raises(UserError, match=r"stage-1 episodes .*: 'SFT' has 8, 'more' has 14"):
        planned(recipe, replaying, ARMS % "", "ablation.comparisons=[]")


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ((2, 4, 1), "RL rollouts: 'GRPO' has 8, 'more' has 16"),
        ((2, 2, 2), "RL gradient steps: 'GRPO' has 2, 'more' has 4"),
    ],
)
def test_a_mismatch_of_budgets_names_both_arms_unless_a_reason_is_given(recipe, size, said):
    with pytest.raises(UserError, match=said):
        planned(recipe, MORE % size, ARMS % "", "ablation.comparisons=[]")
    plan = planned(recipe, MORE % size, ARMS % ", unmatched='it resamples'", "ablation.comparisons=[]")
    assert plan["arms"][2]["unmatched"] == "it resamples"


def test_a_reason_without_a_mismatch_is_an_error(recipe):
    with pytest.raises(UserError, match="'more' spends what the others spend: remove its key unmatched"):
        planned(recipe, MORE % (2, 2, 1), ARMS % ", unmatched='why not'", "ablation.comparisons=[]")


def test_cells_measured_apart_are_joined(recipe):
    def cell(row: str, seed: int, marks: str) -> dict:
        return {"row": row, "seed": seed, "token": "high" if row == "GRPO" else "none", "outcomes": marks}

    empty = open_results(recipe.with_name("none.json"), planned(recipe), "")
    first = with_cells(empty, [cell("base", 0, "1000"), cell("GRPO", 0, "1110")])
    second = with_cells(empty, [cell("GRPO", 1, "0110"), cell("base", 1, "0100")])
    joined = merge(first, [(Path("b.json"), second)])
    assert [(c["row"], c["seed"]) for c in joined["cells"]] == [("base", 0), ("base", 1), ("GRPO", 0), ("GRPO", 1)]
    assert joined["comparisons"][0]["seeds"] == [0, 1]
    assert joined["comparisons"][0]["diff"] == pytest.approx((2 + 1) / 8)
    assert merge(joined, [(Path("a.json"), first)]) == joined
    with pytest.raises(UserError, match=r"c.json: the cell \('base', 1, 'none'\) was measured twice"):
        merge(joined, [(Path("c.json"), with_cells(empty, [cell("base", 1, "1100")]))])
    begun = {**second, "plan": {**second["plan"], "commit": "0123", "started": "2026-01-01"}}
    taken = merge(empty, [(Path("b.json"), begun)])["plan"]  # ours holds the plan alone: the runs began elsewhere
    assert (taken["commit"], taken["started"]) == ("0123", "2026-01-01")
    ours = {**first, "plan": {**first["plan"], "commit": None, "started": "2025-01-01"}}
    assert merge(ours, [(Path("b.json"), begun)])["plan"] == ours["plan"]
    assert merge(begun, [(Path("a.json"), ours)])["plan"] == ours["plan"]  # one that was not fixed beforehand is enough
    probes = [
        {**cell("GRPO", 0, "1110"), "token": t, "separation": None, "success_sampled": s}
        for t, s in (("high", 0.5), ("low", 0.2))
    ]
    halves = merge(with_cells(empty, probes[:1]), [(Path("low.json"), with_cells(empty, probes[1:]))])
    assert [c["separation"] for c in halves["cells"]] == [pytest.approx(0.3)] * 2  # each half knew of one token
    late = {**first, "plan": {**first["plan"], "commit": None, "started": "2027-01-01"}}
    assert merge(begun, [(Path("a.json"), late)])["plan"]["commit"] is None
    other = {**second, "plan": {**second["plan"], "digest": "0"}}
    with pytest.raises(UserError, match=r"b.json holds another plan"):
        merge(first, [(Path("b.json"), other)])


def test_a_curve_is_averaged_over_stretches_and_keeps_its_gaps():
    metrics = [{"step": i + 1, "kl": float(i), "success_low": 1.0 if i < 2 else None} for i in range(200)]
    thinned = thin(metrics)
    assert {len(values) for values in thinned.values()} == {50}
    assert thinned["step"][:2] == [2.5, 6.5] and thinned["kl"][-1] == pytest.approx((196 + 197 + 198 + 199) / 4)
    assert thinned["success_low"][:2] == [1.0, None] and thinned["entropy"] == [None] * 50
    assert thin(metrics[:3])["step"] == [1, 2, 3] and thin([])["step"] == []


MISTAKES = [
    ("seeds", ["--seeds", "3"], ["--seeds 3", "plans 2"]),
    ("unplanned seed", ["--seeds", "0,7"], ["7 is not among the planned"]),
    ("no seed", ["--seeds", "x"], ["--seeds 'x'", "0,1,2"]),
    ("only", ["--only", "DAPO"], ["--only 'DAPO'", "base, GRPO"]),
    ("redo", ["--redo", "nothing"], ["--redo nothing", "no such stage"]),
    ("rows", ["--set", "evaluate.rows=[{row='a', policy='base'}]"], ["evaluate.rows", "rows are its arms"]),
    ("sampled", ["--set", "evaluate.seeds=2", "--set", "evaluate.temperature=1.0"], ["evaluate.seeds", "has to be 1"]),
    ("policy", ["--set", "ablation.arms=[{row='a', policy='experts'}]", "--set", "ablation.comparisons=[]"],
     ["'experts' has no checkpoint"]),
    ("pair", ["--set", "ablation.comparisons=[['GRPO', 'DAPO']]"], ["comparisons: no arm 'DAPO'"]),
    ("token", ["--set", "ablation.tokens=['none']"], ["its token 'high' is not among tokens"]),
    ("epochs", ["--set", "stages.sft={kind='finetune', data=['experts'], conditioned=true, batch=4, epochs=1, "
                "optimiser={lr=1e-3}}"], ["stages.sft.epochs", "give steps instead"]),
]  # fmt: skip


@pytest.mark.parametrize(("options", "said"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_a_users_mistake_is_told_before_anything_runs(capsys, recipe, options, said):
    out = recipe.parent / "out"
    code, _, err = cli(capsys, "ablate", recipe, "--out", out, *options)
    assert code == 2 and "Traceback" not in err, err
    assert all(words in " ".join(err.split()) for words in said), err
    assert not (out / "seed-0").exists()


def test_run_and_ablate_each_take_their_own_recipes(capsys, recipe):
    code, _, err = cli(capsys, "run", recipe, "--out", recipe.parent / "out")
    assert code == 2 and "use rcgrpo ablate" in err
    plain = recipe.with_name("plain.toml")
    plain.write_text(recipe.read_text().split("[ablation]")[0])
    code, _, err = cli(capsys, "ablate", plain)
    assert code == 2 and "has no table [ablation]" in err


def test_probed_groups_keep_the_order_of_the_tasks():
    """So that those under high and under low are pairs."""
    played = [("b", 1.0), ("b", 0.0), ("a", 1.0), ("a", 1.0)]
    episodes = [SimpleNamespace(group_id=group, reward=reward) for group, reward in played]
    assert group_means(episodes) == [0.5, 1.0]  # pyright: ignore[reportArgumentType]
