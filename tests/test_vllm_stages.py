"""Stages whose rollouts come from a vLLM server: every batch from the weights that are trained; recipes that fit."""

import sys

import pytest

pytest.importorskip("httpx2", reason="the client of the extra rcgrpo[vllm]")
import torch
from transformers import AutoModelForCausalLM

from fake_vllm import FakeVllm, serving
from light_world import light_recipe, write_tasks
from rcgrpo.config import Recipe
from rcgrpo.errors import UserError
from rcgrpo.policy.load import load_policy
from rcgrpo.stages.directory import RunDirectory
from rcgrpo.stages.evaluate import evaluation_jobs
from rcgrpo.stages.reinforce import reinforce
from rcgrpo.stages.rollout import ModelFailure, Player
from rcgrpo.stages.run import default_jobs
from rcgrpo.stages.setup import player_for


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def vllm_recipe(lights, url, tmp_path, sync="weights", stages=None, **tables) -> Recipe:
    table = {"url": url, "model": "policy", "folder": str(tmp_path / "weights"), "sync": sync, "timeout": 20}
    rollout = {"steps_per_turn": 3, "step_tokens": 24, "episode_tokens": 320, "backend": "vllm", "vllm": table}
    return light_recipe(lights, stages=stages, rollout=rollout, **tables)


def light_server(lights) -> FakeVllm:
    return FakeVllm(AutoModelForCausalLM.from_pretrained(lights / "base").eval())


def test_a_player_gets_the_same_episodes_from_both_backends(lights, tmp_path):
    fake = light_server(lights)
    with torch.no_grad():
        fake.model.get_input_embeddings().weight.zero_()
    with serving(fake) as url:
        recipe = vllm_recipe(lights, url, tmp_path)
        policy = load_policy(lights / "base", name="base", device="cpu")
        suite = recipe.suite
        jobs = evaluation_jobs([suite.task(i) for i in suite.split().pools["test"]], recipe.evaluate, None, 0)
        theirs = player_for(recipe, policy).policy(policy, jobs)
    ours = player_for(light_recipe(lights), policy).policy(policy, jobs)
    assert [e.model_dump(exclude={"logprobs"}) for e in ours] == [e.model_dump(exclude={"logprobs"}) for e in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(torch.tensor(a.logprobs), torch.tensor(b.logprobs), rtol=0, atol=1e-4)
    assert default_jobs(recipe) == 1


REINFORCE = {
    "kind": "reinforce",
    "start": "base",
    "sampler": {"kind": "fixed"},
    "steps": 2,
    "groups": 2,
    "group_size": 4,
    "optimiser": {"lr": 1e-2},
}
TRAINED = {
    "weights": {},
    "adapter": {"model": {"lora": {"rank": 4}}, "chat": {"schemas": "compact", "reward_tokens": "text"}},
}


def train(lights, url, tmp_path, sync) -> list[float]:
    """Mean |log-prob gap| between server and trainer, per batch."""
    tables = {key: dict(value) for key, value in TRAINED[sync].items()}
    if "model" in tables:
        tables["model"] |= {"path": str(lights / "base"), "device": "cpu"}
    else:
        tables["chat"] = {"schemas": "compact", "reward_tokens": "text"}
    recipe = vllm_recipe(lights, url, tmp_path, sync, {"rl": REINFORCE}, **tables)
    run = RunDirectory(tmp_path / "run")
    run.prepare(recipe, [])
    reinforce(run, recipe, "rl")
    return [metric["mismatch_abs"] for metric in run.stage("rl").metrics()]


@pytest.mark.parametrize("sync", ["weights", "adapter"])
def test_every_batch_is_sampled_from_the_weights_that_are_trained(lights, tmp_path, sync):
    fake = light_server(lights)
    with serving(fake) as url:
        gaps = train(lights, url, tmp_path, sync)
    assert len(gaps) == 2
    assert max(gaps) < 1e-4, gaps
    hand_over = "/v1/load_lora_adapter" if sync == "adapter" else "/collective_rpc"
    order = [path for path in fake.paths() if path in (hand_over, "/v1/completions")]
    assert order == [hand_over, "/v1/completions"] * 2


def test_without_the_hand_over_the_gap_shows(lights, tmp_path, monkeypatch):
    """The negative control of the test above."""
    sync = Player.sync

    def once(self, policy, accelerator=None):
        if self.server.version is None:
            sync(self, policy, accelerator)

    monkeypatch.setattr(Player, "sync", once)
    with serving(light_server(lights)) as url:
        gaps = train(lights, url, tmp_path, "weights")
    assert gaps[0] < 1e-4
    assert gaps[1] > 1e-2, gaps


def test_a_server_that_fails_ends_the_stage(lights, tmp_path):
    fake = light_server(lights)
    fake.fail["/v1/completions"] = 500
    with serving(fake) as url, pytest.raises(ModelFailure, match="answered /v1/completions with 500"):
        train(lights, url, tmp_path, "weights")


def test_without_the_client_the_extra_is_named(lights, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "rcgrpo.policy.vllm_server")
    monkeypatch.setitem(sys.modules, "httpx2", None)
    recipe = vllm_recipe(lights, "http://127.0.0.1:9", tmp_path)
    with pytest.raises(UserError, match=r"needs httpx2: pip install 'rcgrpo\[vllm\]'"):
        player_for(recipe, load_policy(lights / "base", name="base", device="cpu"))


# -- recipes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backend": "engine"}, "give both or neither"),
        ({"vllm": None}, "give both or neither"),
        ({"vllm": {"model": "m", "folder": "relative"}}, "rollout.vllm.folder"),
        ({"vllm": {"model": "m", "folder": "/f", "url": "localhost:8000"}}, "rollout.vllm.url"),
        ({"vllm": {"model": "m", "folder": "/f", "port": 1}}, "rollout.vllm.port: unknown key"),
        ({"vllm": {"model": "m", "folder": "/f", "sync": "adapter"}}, "needs .*lora.* and chat.reward_tokens"),
    ],
)
def test_recipes_that_cannot_work_are_refused(tmp_path, change, message):
    rollout = {"backend": "vllm", "vllm": {"model": "m", "folder": "/f"}}
    with pytest.raises(UserError, match=message):
        light_recipe(tmp_path, rollout=rollout | change)


@pytest.mark.parametrize("where", ["evaluate", "stages"])
def test_a_nucleus_is_refused_with_vllm(tmp_path, where):
    tables = {"evaluate": {"top_p": 0.9}} if where == "evaluate" else {"stages": {"rl": REINFORCE | {"top_p": 0.9}}}
    rollout = {"backend": "vllm", "vllm": {"model": "m", "folder": "/f"}}
    with pytest.raises(UserError, match=rf"{where}.*top_p = 0\.9: with backend = 'vllm' it has to be 1"):
        light_recipe(tmp_path, rollout=rollout, **tables)


def test_where_the_server_is_decides_no_result(tmp_path):
    write_tasks(tmp_path / "tasks.jsonl")

    def digest(**server):
        rollout = {"backend": "vllm", "vllm": {"model": "m", "folder": "/f"} | server}
        return light_recipe(tmp_path, stages={"rl": REINFORCE}, rollout=rollout).digest("rl")

    assert digest() == digest(url="http://10.0.0.1:1", folder="/g")
    assert digest() != light_recipe(tmp_path, stages={"rl": REINFORCE}).digest("rl")
