"""Every recipe that ships is valid, and says of itself what it has to."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rcgrpo.cli import app
from rcgrpo.config import load_recipe

EVERY = sorted((Path(__file__).parent.parent / "recipes").glob("*.toml"))
RECIPES = [path for path in EVERY if load_recipe(path).ablation is None]
ABLATIONS = [path for path in EVERY if path not in RECIPES]
PAPER = [path for path in RECIPES if path.name.startswith("paper-")]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_dry_run_plans_every_stage_and_row(path, tmp_path):
    done = CliRunner().invoke(app, ["run", str(path), "--dry-run", "--json", "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    recipe = load_recipe(path)
    planned = json.loads(done.stdout.splitlines()[-1])["plan"]
    rows = {policy: [r.row for r in recipe.evaluate.rows if r.policy == policy] for policy in ["base", *recipe.stages]}
    measured = {f"{names[0]}" if len(names) == 1 else f"{p} ({len(names)} rows)" for p, names in rows.items() if names}
    assert planned[: len(recipe.stages)] == recipe.order()
    assert sorted(planned[len(recipe.stages) :]) == sorted(f"evaluate {title}" for title in measured)
    assert recipe.name == path.stem
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda path: path.stem)
def test_every_arm_of_an_ablation_is_planned_and_no_stage_is_made_in_vain(path, tmp_path):
    done = CliRunner().invoke(app, ["ablate", str(path), "--dry-run", "--json", "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    recipe = load_recipe(path)
    left = json.loads(done.stdout.splitlines()[-1])["left"]
    for seed in recipe.ablation.seeds:
        planned = [title.removeprefix(f"seed {seed}: ") for title in left if title.startswith(f"seed {seed}: ")]
        assert set(recipe.stages) <= set(planned)
        assert len(planned) == len(recipe.stages) + len({arm.policy for arm in recipe.ablation.arms})
    assert recipe.name == path.stem


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_paper_recipes_hold_the_papers_numbers(path):
    recipe = load_recipe(path)
    assert len(PAPER) == 4
    assert recipe.model.dtype == "bfloat16" and (recipe.model.lora is not None) == path.stem.endswith("-lora")
    assert recipe.reward == "state_action"
    assert recipe.bfcl and recipe.bfcl.rule == "scenario" and recipe.bfcl.protocol == "official"
    sft, rctp = recipe.stages["sft"], recipe.stages["rctp"]
    assert (sft.epochs, rctp.epochs) == (2, 5) and rctp.balance and rctp.conditioned and not sft.conditioned
    assert all((stage.batch, stage.optimiser.lr) == (16, 1e-5) for stage in (sft, rctp))
    arms = {name: stage for name, stage in recipe.stages.items() if stage.kind == "reinforce"}
    assert {name: stage.sampler.kind for name, stage in arms.items()} == {
        "sft-grpo": "fixed",
        "sft-rcgrpo": "iid",
        "rctp-grpo": "fixed",
        "rctp-rcgrpo": "iid",
    }
    alike = [stage.model_dump(exclude={"sampler", "start"}) for stage in arms.values()]
    assert all(stage == alike[0] for stage in alike), "the arms differ in sampler and start alone"
    arm = arms["rctp-rcgrpo"]
    assert (arm.group_size, arm.beta, arm.clip_low, arm.clip_high, arm.optimiser.lr) == (5, 0.1, 0.2, 0.2, 1e-6)
    assert (arm.sampler.p, arm.steps, arm.groups % 8) == (0.5, 400, 0)
    assert abs(arm.groups * arm.group_size - 256) <= 20
    assert [row.row for row in recipe.evaluate.rows] == [
        "base",
        "SFT + GRPO",
        "SFT + RC-GRPO",
        "RCTP + GRPO",
        "RCTP + RC-GRPO",
    ]


def test_the_papers_own_split_and_prompt_are_two_overrides_away():
    recipe = load_recipe(PAPER[0], ['bfcl.rule="task"', 'bfcl.protocol="paper_merged"'])
    assert recipe.bfcl and (recipe.bfcl.rule, recipe.bfcl.protocol) == ("task", "paper_merged")


def test_the_smoke_recipe_says_that_it_tests_the_plumbing():
    path = next(path for path in RECIPES if path.stem == "bfcl-smoke")
    assert "PLUMBING" in path.read_text()
    assert "trained on" in load_recipe(path).description
