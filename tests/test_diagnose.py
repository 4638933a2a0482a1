"""``rcgrpo diagnose`` on a real checkpoint: what it predicts is what sampled groups then show."""

import json
import math
import re
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from light_world import ROOMS, light_recipe, light_task
from rcgrpo.algorithm.gating import TokenGate
from rcgrpo.conditioning import TokenSampler
from rcgrpo.config import Recipe, ReinforceTable
from rcgrpo.episodes.types import Call, Message, RewardToken, Sampling
from rcgrpo.errors import UserError
from rcgrpo.experiments.diagnose import diagnose, plan_diagnosis
from rcgrpo.policy.load import load_policy, save_policy, teach_reward_tokens
from rcgrpo.policy.packing import ScoringBatch
from rcgrpo.policy.scoring import Scorer
from rcgrpo.stages.groups import GroupSampler
from rcgrpo.stages.rollout import Job
from rcgrpo.stages.setup import player_for, seed_of
from test_cli import cli

SEED, G, WARM = 3, 4, 2.0
ON = {RewardToken.HIGH: (0.98, 0.9, 0.75), RewardToken.LOW: (0.3, 0.1, 0.02)}
"""How often the policy is taught to switch on, by floor; so tasks that want the lamp off are solved more under low."""


def recipe_of(folder: Path) -> Recipe:
    stage = {"kind": "reinforce", "start": "base", "sampler": {"kind": "stratified"}, "steps": 1, "groups": 1}
    stages = {"rcgrpo": {**stage, "group_size": G, "optimiser": {"lr": 1e-4}}}
    return light_recipe(folder, stages=stages)


@pytest.fixture(scope="module")
def conditioned(lights, tmp_path_factory) -> Path:
    """tasks.jsonl, base/ (a policy whose success depends on token and floor): some seconds of RCTP."""
    folder = tmp_path_factory.mktemp("conditioned")
    floors = ("upper", "middle", "lower")
    wanted = dict.fromkeys(ROOMS, "on") | {ROOMS[0]: "off"}
    tasks = [light_task(f"{floor} {room}", wanted[room]) for floor in floors for room in ROOMS]
    (folder / "tasks.jsonl").write_text("".join(task.model_dump_json() + "\n" for task in tasks))
    recipe = recipe_of(folder)
    policy = load_policy(lights / "base", name="base", device="cpu")
    ids = teach_reward_tokens(policy)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # far apart, so that seconds of training suffice
        policy.model.get_input_embeddings().weight[ids] = torch.randn(2, 32, generator=generator)
    jobs, streams = [], []
    for task in tasks:
        for token, rates in ON.items():
            rate = rates[floors.index(task.id.split()[0])]
            for switched_on in (torch.rand(12, generator=generator) < rate).tolist():
                jobs.append(Job(task, group_id=task.id, token=token))
                call = Call(name="on" if switched_on else "off")
                streams.append(iter([Message(role="assistant", calls=[call]), Message(role="assistant", content="ok")]))
    episodes = player_for(recipe, policy).scripted(jobs, streams)
    scorer = Scorer(policy.model, shared_prefix=False)
    optimiser = torch.optim.AdamW(policy.model.parameters(), lr=1e-2)
    for _ in range(240):
        part = [episodes[i] for i in torch.randperm(len(episodes), generator=generator)[:12].tolist()]
        batch = ScoringBatch.pack([e.token_ids for e in part], [e.loss_mask for e in part], range(12))
        loss = -scorer(batch, 1.0).logprobs_BL.sum() / batch.mask_BL.sum()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    save_policy(policy, folder / "base")
    return folder


@pytest.fixture(scope="module")
def found(conditioned):
    recipe = recipe_of(conditioned)
    plan = plan_diagnosis(recipe, tasks=18, rollouts=2 * G, seed=SEED, temperatures=[WARM])
    return diagnose("base", recipe, plan)


def sampled_flat(
    folder: Path, sampler: TokenSampler, group_size: int, groups: int = 10, temperature: float = 1.0
) -> tuple[float, int]:
    """The share of flat groups when the pool is really sampled, by seeds of its own, and how many groups it is of."""
    recipe = recipe_of(folder)
    policy = load_policy(folder / "base", name="base", device="cpu")
    jobs = [
        Job(
            recipe.suite.task(task_id),
            group_id=f"{task_id}/{g}",
            index=i,
            token=token,
            sampling=Sampling(temperature=temperature, seed=seed_of("really", task_id, g, i)),
        )
        for task_id in recipe.suite.split().pools["train"]
        for g in range(groups)
        for i, token in enumerate(sampler.sample(group_size, f"really/{task_id}/{g}"))
    ]
    rewards = defaultdict(set)
    for episode in player_for(recipe, policy).policy(policy, jobs):
        rewards[episode.group_id].add(episode.reward)
    return sum(len(r) == 1 for r in rewards.values()) / len(rewards), len(rewards)


def gated_flat(folder: Path, batches: int = 24, settling: int = 6) -> tuple[float, int]:
    """The same of gated groups, played as in training while the policy stays as it is, once the gate has settled."""
    recipe, policy = recipe_of(folder), load_policy(folder / "base", name="base", device="cpu")
    table = ReinforceTable.model_validate(
        recipe.stages["rcgrpo"].model_dump() | {"sampler": {"kind": "gated"}, "groups": 12}
    )
    tasks = [recipe.suite.task(task_id) for task_id in recipe.suite.split().pools["train"]]
    sampler, player, flat = GroupSampler(tasks, table, SEED, TokenGate()), player_for(recipe, policy), []
    for step in range(batches):
        places = player.conduct(policy, sampler.scripts(step, 0, 1))
        sampler.observe([episode for place in places for episode in place.trained])
        if step >= settling:
            flat += [len({episode.reward for episode in place.trained}) == 1 for place in places]
    return sum(flat) / len(flat), len(flat)


def flat(found, scheme: str, group_size: int, reading: int = 0):
    [prediction] = [
        p for p in found["readings"][reading]["predictions"] if (p["scheme"], p["group_size"]) == (scheme, group_size)
    ]
    return prediction["flat"]


SCHEMES = {
    "high": TokenSampler.fixed("high"),
    "low": TokenSampler.fixed("low"),
    "iid": TokenSampler.iid(0.5),
    "stratified": TokenSampler.stratified(0.5),
}


def happens(predicted, share: float, groups: int) -> bool:
    """Whether a share lies in the predicted interval, widened by the noise of measuring it with so many groups."""
    noise = 1.96 * (share * (1 - share) / groups) ** 0.5
    below, above = (math.hypot(predicted["value"] - predicted[side], noise) for side in ("low", "high"))
    return predicted["value"] - below <= share <= predicted["value"] + above


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_was_predicted_is_what_sampled_groups_show(conditioned, found, scheme):
    share, groups = sampled_flat(conditioned, SCHEMES[scheme], G)
    assert happens(flat(found, scheme, G), share, groups), (flat(found, scheme, G), share)
    if scheme in ("high", "stratified"):  # the control: each other's predictions do not happen
        other = flat(found, "stratified" if scheme == "high" else "high", G)
        assert not happens(other, share, groups), (other, share)


@pytest.mark.parametrize("scheme", ["high", "stratified"])
def test_larger_groups_are_flat_as_often_as_predicted(conditioned, found, scheme):
    share, groups = sampled_flat(conditioned, SCHEMES[scheme], 2 * G, groups=6)
    assert happens(flat(found, scheme, 2 * G), share, groups), (flat(found, scheme, 2 * G), share)


def test_at_a_higher_temperature_groups_are_flat_as_often_as_predicted(conditioned, found):
    share, groups = sampled_flat(conditioned, SCHEMES["high"], G, temperature=WARM)
    assert found["readings"][1]["temperature"] == WARM
    assert happens(flat(found, "high", G, reading=1), share, groups), (flat(found, "high", G, reading=1), share)
    assert not happens(flat(found, "high", G), share, groups)  # the control: what was predicted for temperature 1


def test_gated_groups_are_flat_as_often_as_predicted(conditioned, found):
    share, groups = gated_flat(conditioned)
    assert happens(flat(found, "gated", G), share, groups), (flat(found, "gated", G), share)
    assert not happens(flat(found, "high", G), share, groups)  # the control: a gate that never mixes


def test_another_policy_does_not_show_it(lights, conditioned, found, tmp_path):
    """Negative control: the policy before stage 1, against what was predicted after it."""
    (tmp_path / "tasks.jsonl").write_text((conditioned / "tasks.jsonl").read_text())
    (tmp_path / "base").symlink_to(lights / "base")
    assert not happens(flat(found, "high", G), *sampled_flat(tmp_path, SCHEMES["high"], G))


def test_the_diagnosis_says_what_was_rolled_out_and_repeats_itself(conditioned, found):
    assert found["episodes"] == found["tasks"] * found["rollouts_per_token"] * 3 * len(found["readings"])
    assert found["readings"][0]["separation"]["low"] > 0
    assert {*found["prompts"][0]} == {"task", "category", "none", "high", "low"}
    assert all(0 <= prompt["high"][0] <= 2 * G for prompt in found["prompts"])


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
[stages.grpo]
kind = "reinforce"
start = "base"
sampler = {{kind = "iid"}}
steps = 1
groups = 2
group_size = 2
optimiser = {{lr = 1e-4}}
"""


@pytest.fixture
def recipe_path(conditioned, tmp_path) -> Path:
    path = tmp_path / "lights.toml"
    path.write_text(RECIPE.format(folder=conditioned))
    return path


def test_the_command_prints_json_last_and_writes_a_page_that_stands_alone(capsys, recipe_path, tmp_path):
    folder = tmp_path / "out"
    options = ["--tasks", "8", "--group", "2", "--temperatures", "1.5", "--seed", "1", "--device", "cpu"]
    code, out, err = cli(capsys, "diagnose", "base", recipe_path, *options, "--out", folder, "--json")
    assert code == 0, err
    last = json.loads(out.strip().splitlines()[-1])
    assert last == json.loads((folder / "diagnose.json").read_text())
    assert [reading["temperature"] for reading in last["readings"]] == [1.0, 1.5]
    assert "What to do next" in out and last["advice"][0]["action"] in out
    page = (folder / "diagnose.html").read_text()
    assert page.count("<svg viewBox") == 6 and "stratified" in page
    assert not re.search(r'(src|href)="(?!#)', page)
    assert {path.name for path in folder.iterdir()} == {"diagnose.json", "diagnose.html"}


MISTAKES = [
    (["--tasks", "500"], ["--tasks 500", "pool 'train' has 18"]),
    (["--group", "1"], ["--group 1", "group_size is 2"]),
    (["--temperatures", "warm"], ["--temperatures 'warm'", "numbers"]),
    (["--temperatures", "1.2,nan"], ["--temperatures '1.2,nan'", "finite"]),
    (["--temperatures", "0", "--tasks", "8"], ["--temperatures 0", "above 0"]),
    (["--pool", "nowhere"], ["--pool nowhere", "train"]),
    (["--stage", "sft"], ["--stage sft", "grpo"]),
    (["--device", "tpu"], ["--device tpu", "cuda"]),
    (["--set", "reward='turn_fraction'"], ["turn_fraction", "0/1"]),
]


@pytest.mark.parametrize(("options", "named"), MISTAKES, ids=lambda value: value[0])
def test_a_mistake_is_named_with_its_cure(capsys, recipe_path, options, named):
    code, _, err = cli(capsys, "diagnose", "base", recipe_path, *options)
    assert code == 2 and "Traceback" not in err
    assert all(word in " ".join(err.split()) for word in named), err


def test_ctrl_c_writes_nothing(capsys, recipe_path, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("rcgrpo.experiments.diagnose.diagnosis_jobs", interrupted)
    code, _, err = cli(capsys, "diagnose", "base", recipe_path, "--tasks", "8", "--out", tmp_path / "out")
    assert code == 130 and "nothing was written" in err and not (tmp_path / "out").exists()


def test_stages_that_sample_differently_need_a_name(conditioned):
    recipe = recipe_of(conditioned)
    other = recipe.stages["rcgrpo"].model_copy(update={"group_size": 8})
    both = recipe.model_copy(update={"stages": {**recipe.stages, "other": other}})
    with pytest.raises(UserError, match="--stage"):
        plan_diagnosis(both, tasks=8)
    assert plan_diagnosis(both, tasks=8, stage="other").rollouts == 16
