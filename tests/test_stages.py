"""The stages on a small world: what is played, what is learnt, and that a run can be stopped and gone on with."""

import asyncio
import math
import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from light_world import ROOMS, Light, drawn_jobs, light_recipe, light_task
from rcgrpo.config import Recipe, parse_recipe
from rcgrpo.episodes.store import read_episodes, write_episodes
from rcgrpo.episodes.types import Call, Message, RewardToken, Sampling, StopReason, Verdict
from rcgrpo.errors import UserError
from rcgrpo.policy.load import load_policy
from rcgrpo.policy.scoring import Scorer
from rcgrpo.stages.collect import collect
from rcgrpo.stages.directory import RunDirectory, StageDirectory, source_commit
from rcgrpo.stages.evaluate import evaluate_row, evaluation_jobs, replay, row_digest, summarise
from rcgrpo.stages.finetune import finetune
from rcgrpo.stages.pretrain import pretrain
from rcgrpo.stages.reinforce import reinforce, reinforced
from rcgrpo.stages.rollout import Job, ModelFailure
from rcgrpo.stages.run import run_stage
from rcgrpo.stages.setup import player_for
from rcgrpo.stages.training import Interrupted, Trainer, adapt
from rcgrpo.stages.update import PolicyUpdate

EXPERTS = {"kind": "collect", "policy": "gold"}
EXPLORED = {"kind": "collect", "policy": "base", "samples": 4}
RCTP = {
    "kind": "finetune",
    "data": ["experts", "explored"],
    "conditioned": True,
    "batch": 8,
    "steps": 6,
    "optimiser": {"lr": 3e-3, "warmup": 2},
    "checkpoint_every": 100,
}
RCGRPO = {
    "kind": "reinforce",
    "start": "base",
    "sampler": {"kind": "iid", "p": 0.5},
    "steps": 3,
    "groups": 4,
    "group_size": 4,
    "optimiser": {"lr": 1e-3},
    "checkpoint_every": 100,
}


def prepared(path, recipe: Recipe) -> RunDirectory:
    run = RunDirectory(path)
    run.prepare(recipe, [])
    return run


def weights(folder) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def identical(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def base(lights):
    return load_policy(lights / "base", name="base", device="cpu")


@pytest.fixture(scope="module")
def collected(lights, tmp_path_factory) -> RunDirectory:
    """A run with experts and explored episodes."""
    recipe = light_recipe(lights, stages={"experts": EXPERTS, "explored": EXPLORED})
    run = prepared(tmp_path_factory.mktemp("collected"), recipe)
    for name in recipe.stages:
        run_stage(run, name)
    return run


def with_data(path, collected: RunDirectory, recipe: Recipe) -> RunDirectory:
    """A new run directory that has the collected episodes already."""
    run = prepared(path, recipe)
    for name in ("experts", "explored"):
        write_episodes(run.stage(name).episodes, read_episodes(collected.stage(name).episodes))
    return run


# -- playing


def test_gold_succeeds_and_its_trained_tokens_are_the_assistants_messages(lights, base, collected):
    episodes = list(read_episodes(collected.stage("experts").episodes))
    assert len(episodes) == 12 and all(e.success and e.reward == 1 and e.error is None for e in episodes)
    for episode in episodes:
        runs, ids = [], []
        for token, trained, after in zip(
            episode.token_ids, episode.loss_mask, [*episode.loss_mask[1:], 0], strict=True
        ):
            ids += [token] * trained
            if trained and not after:
                runs.append(base.tokenizer.decode(ids))
                ids = []
        action = episode.category
        assert runs == [
            f'<tool_call>\n{{"name": "{action}", "arguments": {{}}}}\n</tool_call><|im_end|>',
            "Done.<|im_end|>",
        ]
        given = base.tokenizer.decode([t for t, m in zip(episode.token_ids, episode.loss_mask, strict=True) if not m])
        assert "<tool_response>\nok\n</tool_response>" in given and "Done." not in given


def test_a_policy_is_scored_on_what_it_sampled(base, collected):
    """Sampling log-probs against a plain forward of the whole episode; the mask shifted by one fails."""
    episode = next(e for e in read_episodes(collected.stage("explored").episodes) if len(e.steps) > 1)
    with torch.no_grad():
        logprobs = base.model(input_ids=torch.tensor([episode.token_ids])).logits[0].double().log_softmax(-1)
    at = [t for t, trained in enumerate(episode.loss_mask) if trained]
    expected = torch.stack([logprobs[t - 1, episode.token_ids[t]] for t in at])
    assert torch.allclose(torch.tensor(episode.logprobs, dtype=torch.float64), expected, atol=1e-4)
    shifted = torch.stack([logprobs[t, episode.token_ids[t]] for t in at])
    assert not torch.allclose(shifted, expected, atol=1e-1)


def scripted(lights, base, task, *answers: Message, **limits):
    recipe = light_recipe(lights, rollout={"steps_per_turn": 3, "step_tokens": 64, "episode_tokens": 320, **limits})
    player = player_for(recipe, base)

    class OneTask:
        def environment(self, task):
            return Light(task)

    player = type(player)(OneTask(), player.codec, player.limits, player.reward)
    (episode,) = player.scripted([Job(task, group_id="g")], [iter(answers)])
    return episode


def says(content: str = "", *calls: str) -> Message:
    return Message(role="assistant", content=content, calls=[Call(name=name) for name in calls])


MALFORMED = says('<tool_call>\n{"name": "on", "arguments": \n</tool_call>')


def test_a_malformed_call_is_reported_and_the_episode_goes_on(lights, base, monkeypatch):
    monkeypatch.setattr("rcgrpo.codec.codec.guard", lambda value, reserved: value)  # let the script write raw tags
    episode = scripted(lights, base, light_task("hall", "on"), MALFORMED, says("", "on"), says("Done."))
    assert [bool(step.failures) for step in episode.steps] == [True, False, False]
    assert episode.messages[2].role == "tool" and "Malformed tool call" in episode.messages[2].content
    assert episode.success
    ended = scripted(lights, base, light_task("hall", "on"), MALFORMED, malformed_call="end_turn")
    assert len(ended.steps) == 1 and ended.steps[0].failures and not ended.success
    assert ended.stop_reason == StopReason.COMPLETED


def test_a_turn_that_uses_up_its_steps_ends_the_episode_and_is_judged(lights, base):
    episode = scripted(lights, base, light_task("hall", "on"), *[says("", "on")] * 3)
    assert episode.stop_reason == StopReason.STEP_LIMIT
    assert len(episode.steps) == 3 and episode.success


def test_an_episode_that_runs_out_of_tokens_stops_for_length(lights, base):
    task = light_task("hall", "on")
    whole = scripted(lights, base, task, says("", "on"), says("Done."))
    prompt = whole.loss_mask.index(1)
    short = scripted(lights, base, task, says("", "on"), episode_tokens=prompt + 5)
    assert short.stop_reason == StopReason.LENGTH and short.steps[0].truncated
    assert len(short.token_ids) == prompt + 5 and short.token_ids == whole.token_ids[: prompt + 5]
    assert not short.success
    none = scripted(lights, base, task, episode_tokens=prompt)
    assert none.stop_reason == StopReason.LENGTH and not any(none.loss_mask) and not none.success


@pytest.mark.parametrize("where", ["start", "check"])
def test_a_world_that_fails_is_data(lights, base, where):
    episode = scripted(lights, base, light_task("hall", "on", broken=where), says("", "on"), says("Done."))
    assert episode.stop_reason == StopReason.ERROR and not episode.success
    assert episode.error.type == "OSError" and episode.error.message in ("no power", "the lamp exploded")
    assert [v.reason for v in episode.verdicts] == ["unreached"]
    assert len(episode.loss_mask) == len(episode.token_ids)
    assert any(episode.loss_mask) == (where == "check")


def test_a_model_that_fails_is_not_data(lights, base, monkeypatch):
    """A zero in the table has to be the policy's, never the machine's."""
    recipe = light_recipe(lights)

    def broken(*args, **kwargs):
        raise MemoryError("out of memory")

    monkeypatch.setattr(base.model.model, "forward", broken)
    with pytest.raises((ModelFailure, MemoryError), match="out of memory"):
        player_for(recipe, base).policy(base, [Job(recipe.suite.task("hall-on"), group_id="g")])


# -- stage 1


def test_collect_keeps_what_is_asked_for(lights, tmp_path, collected):
    everything = list(read_episodes(collected.stage("explored").episodes))
    assert len(everything) == 48 and 0 < sum(e.success for e in everything) < 48
    assert all(e.policy == "base" and len(e.logprobs) == sum(e.loss_mask) for e in everything)
    for keep, wanted in (("failures", False), ("successes", True)):
        recipe = light_recipe(lights, stages={"explored": {**EXPLORED, "keep": keep}})
        run = prepared(tmp_path / keep, recipe)
        counts = collect(run, recipe, "explored")
        kept = list(read_episodes(run.stage("explored").episodes))
        assert [e.token_ids for e in kept] == [e.token_ids for e in everything if e.success == wanted]
        assert counts["played"] == 48 and counts["kept"] == len(kept)


def test_gold_that_is_cut_at_the_end_is_no_training_data(lights, tmp_path, collected):
    """Even where all calls were made: nothing would teach the policy to end."""
    length = min(len(e.token_ids) for e in read_episodes(collected.stage("experts").episodes))
    recipe = light_recipe(lights, stages={"experts": EXPERTS}, rollout={"episode_tokens": length - 1})
    with pytest.raises(UserError, match=r"does not succeed in full .*raise rollout\.episode_tokens"):
        collect(prepared(tmp_path, recipe), recipe, "experts")


def test_gold_that_fits_no_episode_is_left_out_and_counted_where_asked(lights, tmp_path):
    tasks = [light_task(room * (1 + 300 * (room > "d")), "on") for room in ROOMS]
    (tmp_path / "tasks.jsonl").write_text("".join(task.model_dump_json() + "\n" for task in tasks))
    world = {"environment": "light_world:Light", "tasks": str(tmp_path / "tasks.jsonl"), "test_share": 0.25}
    recipe = light_recipe(lights, stages={"experts": {**EXPERTS, "oversize": "skip"}}, custom=world)
    run = prepared(tmp_path / "run", recipe)
    counts = collect(run, recipe, "experts")
    pool = run.split().pools["experts"]
    kept = [e.task_id for e in read_episodes(run.stage("experts").episodes)]
    assert kept == [i for i in pool if len(i) < 20] and 0 < len(kept) < len(pool)
    assert (counts["played"], counts["kept"], counts["oversize"]) == (len(pool), len(kept), len(pool) - len(kept))
    with pytest.raises(UserError, match="oversize is for policy = 'gold'"):
        light_recipe(lights, stages={"explored": {**EXPLORED, "oversize": "skip"}})


@pytest.fixture(scope="module")
def rctp(lights, collected, tmp_path_factory) -> RunDirectory:
    recipe = light_recipe(lights, stages={"experts": EXPERTS, "explored": EXPLORED, "rctp": RCTP})
    run = with_data(tmp_path_factory.mktemp("rctp"), collected, recipe)
    run_stage(run, "rctp")
    return run


def test_finetuning_lowers_the_loss_and_teaches_the_tokens(rctp, lights):
    losses = [m["loss"] for m in rctp.stage("rctp").metrics()]
    assert len(losses) == 6 and losses[-1] < 0.8 * losses[0]
    # the rate after the step, halfway through two steps of warm-up
    assert rctp.stage("rctp").metrics()[0]["lr"] == pytest.approx(1.5e-3)
    policy = load_policy(rctp.stage("rctp").checkpoint, name="rctp", device="cpu")
    for token in RewardToken:
        assert len(policy.tokenizer.encode(token.text, add_special_tokens=False)) == 1
    assert policy.model.get_input_embeddings().num_embeddings == len(policy.tokenizer)


def interrupt_after(monkeypatch, step: int) -> None:
    original = Trainer.checkpoint_if_asked

    def stopping(self, done, total, every):
        self._stop = done == step
        original(self, done, total, every)

    monkeypatch.setattr(Trainer, "checkpoint_if_asked", stopping)


def test_a_stopped_finetune_goes_on_to_the_very_same_weights(rctp, collected, tmp_path, monkeypatch):
    recipe = rctp.recipe()
    run = with_data(tmp_path, collected, recipe)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        with pytest.raises(Interrupted):
            finetune(run, recipe, "rctp")
    assert run.stage("rctp").record is None and [m["step"] for m in run.stage("rctp").metrics()] == [1, 2, 3]
    run.stage("rctp").metric(step=4, loss=0.0, tokens=0)  # of a step after the resume point: dropped
    result = finetune(run, recipe, "rctp")
    assert identical(weights(run.stage("rctp").checkpoint), weights(rctp.stage("rctp").checkpoint))
    assert run.stage("rctp").metrics() == rctp.stage("rctp").metrics()
    assert result == rctp.stage("rctp").record["result"]
    assert not run.stage("rctp").resume.exists()


# -- stage 2


@pytest.fixture(scope="module")
def rcgrpo(lights, tmp_path_factory) -> RunDirectory:
    run = prepared(tmp_path_factory.mktemp("rcgrpo"), light_recipe(lights, stages={"rcgrpo": RCGRPO}))
    run_stage(run, "rcgrpo")
    return run


def test_a_stopped_reinforce_goes_on_to_the_very_same_weights(rcgrpo, lights, tmp_path, monkeypatch):
    recipe = rcgrpo.recipe()
    run = prepared(tmp_path, recipe)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        with pytest.raises(Interrupted):
            reinforce(run, recipe, "rcgrpo")
    reinforce(run, recipe, "rcgrpo")
    trained = weights(rcgrpo.stage("rcgrpo").checkpoint)
    assert identical(weights(run.stage("rcgrpo").checkpoint), trained)
    assert any(m["zero_variance_share"] < 1 for m in run.stage("rcgrpo").metrics())  # something was learnt
    start = weights(lights / "base")
    assert not torch.equal(trained["model.norm.weight"], start["model.norm.weight"])


def test_the_samplers_differ_in_tokens_alone(lights):
    both = {}
    for kind in ("iid", "fixed"):
        sampler = {"kind": kind, **({"p": 0.5} if kind == "iid" else {})}
        recipe = light_recipe(lights, stages={"grpo": {**RCGRPO, "sampler": sampler}})
        tasks = [recipe.suite.task(i) for i in recipe.suite.split().pools["train"]]
        both[kind] = [job for step in range(2) for job in drawn_jobs(tasks, recipe.stages["grpo"], step, 0, 0, 1)]
    strip = lambda jobs: [(j.task.id, j.group_id, j.index, j.sampling) for j in jobs]  # noqa: E731
    assert strip(both["iid"]) == strip(both["fixed"])
    assert {j.token for j in both["fixed"]} == {None}
    assert {j.token for j in both["iid"]} == set(RewardToken)
    assert len({j.sampling.seed for j in both["iid"]}) == 2 * 4 * 4


def test_processes_share_out_the_groups_of_one_batch(lights):
    recipe = light_recipe(lights, stages={"grpo": RCGRPO})
    tasks = [recipe.suite.task(i) for i in recipe.suite.split().pools["train"]]
    key = lambda j: (j.group_id, j.index, j.token, j.sampling.seed, j.task.id)  # noqa: E731
    alone = [key(j) for j in drawn_jobs(tasks, recipe.stages["grpo"], 5, 7, 0, 1)]
    shared = [key(j) for rank in range(2) for j in drawn_jobs(tasks, recipe.stages["grpo"], 5, 7, rank, 2)]
    assert sorted(map(str, alone)) == sorted(map(str, shared))


def oracle_loss(model, reference, episodes, table) -> torch.Tensor:
    """The paper's objective by a plain loop: ``-(1/N) sum_j 1/|o_j| sum_t [min(rho A, clip(rho) A) - beta k3]``."""
    groups: dict[str, list[float]] = {}
    for episode in episodes:
        groups.setdefault(episode.group_id, []).append(episode.reward)
    total = torch.zeros((), dtype=torch.float64)
    for episode in episodes:
        rewards = groups[episode.group_id]
        mean = sum(rewards) / len(rewards)
        std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / len(rewards))
        advantage = (episode.reward - mean) / (std + 1e-6) if std else 0.0
        ids = torch.tensor([episode.token_ids])
        ours = model(input_ids=ids).logits[0].log_softmax(-1)
        with torch.no_grad():
            theirs = reference(input_ids=ids).logits[0].log_softmax(-1)
        old = iter(episode.logprobs)
        terms = []
        for t, trained in enumerate(episode.loss_mask):
            if not trained:
                continue
            lp, ref = ours[t - 1, episode.token_ids[t]], theirs[t - 1, episode.token_ids[t]]
            ratio = (lp - next(old)).exp()
            clipped = ratio.clamp(1 - table.clip_low, 1 + table.clip_high)
            kl = (ref - lp).exp() - (ref - lp) - 1
            terms.append(torch.minimum(ratio * advantage, clipped * advantage) - table.beta * kl)
        total = total - torch.stack(terms).mean() / len(episodes)
    return total


def test_an_update_is_the_gradient_of_the_papers_objective(lights, collected, base, tmp_path, monkeypatch):
    """Against a float64 loop over tokens, with a policy that has moved away from reference and sampler."""
    stage = {**RCGRPO, "optimiser": {"lr": 1e-3, "max_grad_norm": 1e9}, "batch_tokens": 700}
    table = light_recipe(lights, stages={"grpo": stage}).stages["grpo"]
    explored = list(read_episodes(collected.stage("explored").episodes))
    mixed = [e for e in explored if len({o.success for o in explored if o.group_id == e.group_id}) == 2][:8]
    assert len({e.group_id for e in mixed}) == 2

    def moved():
        policy = load_policy(lights / "base", name="x", device="cpu")
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for p in policy.model.parameters():
                p += 0.05 * torch.randn(p.shape, generator=generator)
        return policy

    policy = moved()
    reference = Scorer(load_policy(lights / "base", name="r", device="cpu").model.requires_grad_(False))
    directory = RunDirectory(tmp_path).stage("grpo")
    trainer = Trainer(policy, Scorer(policy.model), table.optimiser, 1, directory)
    gradients = {}

    def capture(self):
        gradients.update({n: p.grad.clone() for n, p in policy.model.named_parameters()})
        return 0.0

    monkeypatch.setattr(Trainer, "step", capture)
    measured = PolicyUpdate(trainer, table, reference, 320)(mixed)

    oracle = moved().model.double()
    loss = oracle_loss(oracle, load_policy(lights / "base", name="r", device="cpu").model.double(), mixed, table)
    loss.backward()
    assert measured["loss"] == pytest.approx(float(loss.detach()), rel=1e-5, abs=1e-6)
    assert measured["clip_fraction"] > 0 and measured["kl"] > 0
    for name, parameter in oracle.named_parameters():
        expected = parameter.grad.float()
        assert torch.allclose(gradients[name], expected, rtol=1e-2, atol=1e-4 * float(expected.abs().max())), name
    # the control: without the KL the gradient is another one
    other = moved().model.double()
    oracle_loss(other, oracle, mixed, table.model_copy(update={"beta": 0.0})).backward()
    name, parameter = next(iter(other.named_parameters()))
    assert not torch.allclose(gradients[name], parameter.grad.float(), rtol=1e-2, atol=1e-6)


def test_a_batch_that_the_world_spoilt_altogether_says_so(lights, tmp_path, base, collected):
    table = light_recipe(lights, stages={"grpo": RCGRPO}).stages["grpo"]
    episode = next(read_episodes(collected.stage("experts").episodes))
    failed = episode.model_copy(update={"error": {"type": "OSError", "message": "no power"}})
    failed = type(episode).model_validate(failed.model_dump(warnings=False))
    directory = RunDirectory(tmp_path).stage("grpo")
    trainer = Trainer(base, Scorer(base.model), table.optimiser, 1, directory)
    with pytest.raises(UserError, match="the world failed with OSError: no power"):
        PolicyUpdate(trainer, table, None, 320)([failed])


# -- LoRA


def test_lora_trains_adapters_and_reward_tokens_and_is_saved_merged(lights, collected, tmp_path):
    model = {"path": str(lights / "base"), "device": "cpu", "lora": {"rank": 4, "alpha": 8}}
    grpo = {**RCGRPO, "start": "rctp", "steps": 1}
    stages = {"experts": EXPERTS, "explored": EXPLORED, "rctp": RCTP, "rcgrpo": grpo}
    recipe = light_recipe(lights, stages=stages, model=model)
    run = with_data(tmp_path, collected, recipe)

    policy = load_policy(lights / "base", name="x", device="cpu")
    adapt(policy, recipe.model, recipe.chat, recipe.seed)
    trained = {n for n, p in policy.model.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in n or "trainable_tokens" in n for n in trained)
    adapted = policy.model.get_base_model()

    run_stage(run, "rctp")
    before, after = weights(lights / "base"), weights(run.stage("rctp").checkpoint)
    assert after.keys() == before.keys()
    known = len(before["model.embed_tokens.weight"])
    embeddings = after["model.embed_tokens.weight"]
    assert torch.equal(embeddings[:known], before["model.embed_tokens.weight"])
    assert torch.equal(embeddings, after["lm_head.weight"])  # tied, also after merging
    fresh = next(p for n, p in adapted.named_parameters() if "embed_tokens" in n and len(p) == len(embeddings))
    assert not torch.allclose(embeddings[known:], fresh.detach()[known:], atol=1e-6)
    projection = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(after[projection], before[projection])
    assert torch.equal(after["model.norm.weight"], before["model.norm.weight"])

    run_stage(run, "rcgrpo")
    assert run.stage("rcgrpo").metrics()[0]["kl"] == pytest.approx(0, abs=1e-6)  # the reference is the start
    assert AutoModelForCausalLM.from_pretrained(run.stage("rcgrpo").checkpoint) is not None


# -- evaluation


def test_rows_are_compared_on_the_same_tasks_and_seeds(lights):
    recipe = light_recipe(lights, evaluate={"temperature": 1.0, "seeds": 3})
    tasks = [recipe.suite.task(i) for i in recipe.suite.split().pools["test"]]
    seeds = lambda token: [  # noqa: E731
        (j.task.id, j.sampling) for j in evaluation_jobs(tasks, recipe.evaluate, token, recipe.seed)
    ]
    assert seeds(None) == seeds(RewardToken.HIGH) == seeds(RewardToken.LOW)
    assert len(set(map(str, seeds(None)))) == 3 * len(tasks)


def test_a_greedy_episode_does_not_depend_on_its_company(lights, base):
    recipe = light_recipe(lights)
    jobs = [Job(recipe.suite.task(i), group_id=i, sampling=Sampling(temperature=0)) for i in ("hall-on", "bath-off")]
    player = player_for(recipe, base)
    together = player.policy(base, jobs)
    alone = player.policy(base, jobs[1:])
    assert together[1].token_ids == alone[0].token_ids


def test_saved_episodes_are_scored_again_without_a_model(lights, collected, tmp_path):
    suite = light_recipe(lights).suite
    path = collected.stage("explored").episodes
    rescored, changed = asyncio.run(replay(suite, path))
    episodes = list(read_episodes(path))
    assert not changed and summarise(rescored) == summarise(episodes)
    won = next(i for i, e in enumerate(episodes) if e.success)
    lost = next(i for i, e in enumerate(episodes) if not e.success)
    forged = [e.model_copy(deep=True) for e in episodes]
    forged[lost].verdicts[0].valid = True
    forged[won].rewards["success"] = 0.5
    write_episodes(tmp_path / "forged.jsonl", forged)
    rescored, changed = asyncio.run(replay(suite, tmp_path / "forged.jsonl"))
    assert {e.task_id + str(e.index) for e in changed} == {
        episodes[i].task_id + str(episodes[i].index) for i in (won, lost)
    }
    assert summarise(rescored)["success"] == summarise(episodes)["success"]
    forged[lost].steps[0].turn = 9
    write_episodes(tmp_path / "forged.jsonl", forged)
    with pytest.raises(UserError, match="a step of turn 10, but the task has 1"):
        asyncio.run(replay(suite, tmp_path / "forged.jsonl"))


# -- several processes


def in_processes(run: RunDirectory, name: str, count: int) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    done = subprocess.run(
        [*command, "-m", "rcgrpo", "stage", str(run.path), name],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.allclose(a[k], b[k], rtol=0, atol=1e-6) for k in a)


def test_two_processes_finetune_like_one(lights, collected, tmp_path):
    """With parts of unequal number: 2 tokens' worth of budget puts each of a process's episodes in its own."""
    plain = {**RCTP, "batch": 5, "steps": 3, "optimiser": {"lr": 1e-4}, "batch_tokens": 200, "validation": 0.05}
    recipe = light_recipe(lights, stages={"experts": EXPERTS, "explored": EXPLORED, "rctp": plain})
    one, two = (with_data(tmp_path / str(n), collected, recipe) for n in (1, 2))
    run_stage(one, "rctp")
    in_processes(two, "rctp", 2)
    assert len(two.stage("rctp").metrics()) == 3
    for a, b in zip(one.stage("rctp").metrics(), two.stage("rctp").metrics(), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
    assert close(weights(one.stage("rctp").checkpoint), weights(two.stage("rctp").checkpoint))
    assert one.stage("rctp").record["result"]["validation_loss"] == pytest.approx(
        two.stage("rctp").record["result"]["validation_loss"], rel=1e-5
    )


def test_two_processes_pretrain_like_one(tmp_path):
    content = {
        "name": "p",
        "model": {"device": "cpu"},
        "toolworld": {"pretrain": 40, "max_turns": 1, "tools": 4},
        "chat": {"schemas": "names"},
        "rollout": {"episode_tokens": 1000},
        "stages": {
            "first": {
                "kind": "pretrain",
                "shape": {"vocabulary": 500, "hidden": 16, "layers": 1, "heads": 2, "kv_heads": 1},
                "batch": 5,
                "batch_tokens": 400,
                "steps": 3,
                "optimiser": {"lr": 1e-3},
            }
        },
    }
    recipe = parse_recipe(content, "test")
    one, two = (prepared(tmp_path / str(n), recipe) for n in (1, 2))
    run_stage(one, "first")
    in_processes(two, "first", 2)
    a, b = one.stage("first"), two.stage("first")
    assert [m["step"] for m in b.metrics()] == [1, 2, 3]
    assert [m["loss"] for m in a.metrics()] == pytest.approx([m["loss"] for m in b.metrics()], rel=1e-5)
    assert close(weights(a.checkpoint), weights(b.checkpoint))
    assert a.record["result"] == pytest.approx(b.record["result"], rel=1e-5)


def test_a_pretraining_batch_smaller_than_the_processes_is_refused_before_anything_is_played(tmp_path, monkeypatch):
    content = {
        "name": "p",
        "toolworld": {"pretrain": 4},
        "stages": {
            "first": {"kind": "pretrain", "shape": {}, "batch": 2, "steps": 1, "optimiser": {"lr": 1e-3}},
        },
    }
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr("rcgrpo.stages.pretrain.train_tokenizer", lambda *_: pytest.fail("it went on"))
    with pytest.raises(UserError, match=r"stages.first.batch = 2 is less than the 3 processes"):
        pretrain(prepared(tmp_path, parse_recipe(content, "test")), parse_recipe(content, "test"), "first")


def test_two_processes_reinforce_like_one(lights, tmp_path):
    stage = {**RCGRPO, "steps": 2, "optimiser": {"lr": 1e-5}, "batch_tokens": 400}
    recipe = light_recipe(lights, stages={"rcgrpo": stage})
    one, two = (prepared(tmp_path / str(n), recipe) for n in (1, 2))
    run_stage(one, "rcgrpo")
    in_processes(two, "rcgrpo", 2)
    a, b = one.stage("rcgrpo").metrics(), two.stage("rcgrpo").metrics()
    assert [m["reward_mean"] for m in a] == [m["reward_mean"] for m in b]
    assert any(m["zero_variance_share"] < 1 for m in a)
    assert [m["grad_norm"] for m in a] == pytest.approx([m["grad_norm"] for m in b], rel=1e-3)
    assert close(weights(one.stage("rcgrpo").checkpoint), weights(two.stage("rcgrpo").checkpoint))


def test_launched_processes_that_do_not_find_each_other_are_noticed(lights, tmp_path, monkeypatch):
    """The defect to catch: every process trains alone, on its share, and reports the whole."""
    recipe = light_recipe(lights, stages={"rcgrpo": RCGRPO})
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("rcgrpo.stages.training.Accelerator", lambda cpu: type("Alone", (), {"num_processes": 1})())
    with pytest.raises(UserError, match="2 processes were launched but accelerate runs 1"):
        reinforce(prepared(tmp_path, recipe), recipe, "rcgrpo")


def test_the_commit_is_that_of_the_code_and_not_of_the_folder_it_is_installed_in(tmp_path):
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    package, installed, notes = tmp_path / "src", tmp_path / ".venv" / "pack", tmp_path / "results.json"
    for folder in (package, installed):
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
    (tmp_path / ".gitignore").write_text(".venv")
    notes.touch()
    assert source_commit(package) is None
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "all")
    commit = git("rev-parse", "--short=12", "HEAD").strip()
    notes.write_text("figures")  # results grow while the code stays
    assert source_commit(package) == commit and source_commit(installed) is None
    (package / "__init__.py").write_text("changed = True")
    assert source_commit(package) == f"{commit}-dirty"


def test_a_resume_point_belongs_to_the_settings_that_it_was_begun_with(lights, tmp_path):
    def recipe(lr: float, **more) -> Recipe:
        rl = {**RCGRPO, "optimiser": {"lr": lr}}
        return light_recipe(lights, stages={**more, "rl": rl} if lr else more)

    run, extra = RunDirectory(tmp_path / "run"), {"explored": EXPLORED}
    run.prepare(recipe(1e-3, **extra), [])
    stage = run.stage("rl")
    stage.begin(recipe(1e-3, **extra).digest("rl"))
    stage.resume.mkdir()
    (stage.resume / "state.pt").touch()
    stage.begin("another")  # going on is no new beginning
    run.prepare(recipe(0, **extra), [])  # a session without the stage
    run.prepare(recipe(1e-3, **extra), [])
    with pytest.raises(UserError, match="'rl' was done or begun with another configuration"):
        run.prepare(recipe(1e-2, **extra), [])
    run.prepare(recipe(1e-2, **extra), ["rl"])
    assert not stage.path.exists()


def test_what_the_base_solved_in_another_world_is_not_taken_over():
    def digest(**world) -> str:
        rows = [{"row": "base", "policy": "base"}]
        content = {"name": "a", "toolworld": world, "evaluate": {"rows": rows}, "model": {"path": "toolworld-base"}}
        recipe = parse_recipe(content, "test")
        return row_digest(recipe, recipe.evaluate.rows[0])

    assert digest(hardness=0.5) == digest(hardness=0.5) != digest(hardness=1.0)


def test_episodes_of_one_task_are_no_independent_draws(collected):
    [episode] = list(read_episodes(collected.stage("experts").episodes))[:1]
    failed = episode.model_copy(update={"verdicts": [Verdict(valid=False, reason="state")]})
    assert episode.success and not failed.success
    tasks = [(episode, 8)] * 5 + [(failed, 8)] * 5
    played = [
        e.model_copy(update={"task_id": str(i)}) for i, (e, n) in enumerate(tasks) for _ in range(n)
    ]  # fmt: skip
    found, once = summarise(played), summarise(played[::8])
    assert found["success"] == once["success"] == 0.5 and (found["n"], once["n"]) == (80, 10)
    assert found["low"] < 0.25 and found["high"] > 0.75  # as wide as ten episodes, not as eighty
    cut = episode.model_copy(update={"stop_reason": StopReason.LENGTH})
    assert found["truncated"] == 0 and summarise([episode, cut])["truncated"] == 1
    assert summarise(played[:8])["low"] == 0.0 and summarise(played[:1])["low"] > 0.1


def test_a_stage_that_goes_on_after_another_plays_other_batches(lights, tmp_path):
    stages = {"a": RCGRPO, "b": {**RCGRPO, "start": "a"}, "c": {**RCGRPO, "start": "a"}, "d": {**RCGRPO, "start": "c"}}
    recipe = light_recipe(lights, stages=stages)
    assert [reinforced(recipe, name) for name in "abcd"] == [0, 1, 1, 2]

    once = {**RCGRPO, "steps": 1, "groups": 2, "group_size": 2}
    recipe = light_recipe(lights, stages={"a": once, "b": {**once, "start": "a"}, "c": {**once, "start": "a"}})
    run, drawn = prepared(tmp_path, recipe), {}
    for name in "abc":
        run_stage(run, name)
        [batch] = run.stage(name).rollouts.iterdir()
        drawn[name] = [(e.task_id, e.reward_token, e.sampling.seed) for e in read_episodes(batch)]
    assert drawn["b"] == drawn["c"] != drawn["a"]  # those beside each other are paired


def test_metrics_that_were_cut_off_while_being_written_are_left_out(tmp_path):
    stage = StageDirectory(tmp_path)
    stage.metric(step=1, loss=0.5)
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 2, "lo')
    assert stage.metrics() == [{"step": 1, "loss": 0.5}]
    stage.rewind(1)
    stage.metric(step=2, loss=0.4)
    assert [m["step"] for m in stage.metrics()] == [1, 2]


def test_an_evaluation_whose_prompts_fit_no_episode_says_so(lights, tmp_path):
    rows = [{"row": "base", "policy": "base"}]
    recipe = light_recipe(
        lights, evaluate={"rows": rows, "probe_tasks": 0}, rollout={"episode_tokens": 16, "step_tokens": 8}
    )
    run = prepared(tmp_path / "run", recipe)
    with pytest.raises(UserError, match=r"'base': no episode has a generated token.*episode_tokens = 16: raise it"):
        evaluate_row(run, recipe, recipe.evaluate.rows[0])
