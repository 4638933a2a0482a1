"""The variants of stage 2 against plain loops: who counts, with which advantage, and what a run of them keeps."""

import math

import pytest
import torch

from light_world import light_recipe
from rcgrpo.config import Recipe, ReinforceTable, parse_recipe
from rcgrpo.episodes.types import Episode, RewardToken, Sampling
from rcgrpo.errors import UserError
from rcgrpo.policy.load import Policy, load_policy
from rcgrpo.policy.scoring import Scorer
from rcgrpo.stages.directory import RunDirectory
from rcgrpo.stages.finetune import draw
from rcgrpo.stages.reinforce import describe, reinforce
from rcgrpo.stages.replay import Replay
from rcgrpo.stages.rollout import Job
from rcgrpo.stages.run import run_stage
from rcgrpo.stages.setup import player_for
from rcgrpo.stages.training import Interrupted, Trainer
from rcgrpo.stages.update import PolicyUpdate
from test_stages import EXPERTS, EXPLORED, close, identical, in_processes, interrupt_after, prepared, weights

HIGH, LOW = RewardToken.HIGH, RewardToken.LOW
STAGE = {
    "kind": "reinforce",
    "start": "base",
    "sampler": {"kind": "stratified", "p": 0.5},
    "steps": 3,
    "groups": 4,
    "group_size": 4,
    "optimiser": {"lr": 1e-3, "max_grad_norm": 1e9},
}


def table(folder, **options) -> ReinforceTable:
    stage = light_recipe(folder, stages={"x": {**STAGE, **options}}).stages["x"]
    assert isinstance(stage, ReinforceTable)
    return stage


# -- the update


@pytest.fixture(scope="module")
def groups(lights) -> list[Episode]:
    """Three groups of four with tokens high, high, low, low: a mixed one, failures alone, successes alone."""
    recipe = light_recipe(lights)
    base = load_policy(lights / "base", name="base", device="cpu")
    task = recipe.suite.task("hall-on")
    jobs = [Job(task, group_id="g", sampling=Sampling(seed=seed)) for seed in range(12)]
    episodes = player_for(recipe, base).policy(base, jobs)
    rewards = [1.0, 0.0, 0.0, 1.0] + [0.0] * 4 + [1.0] * 4
    return [
        e.model_copy(update={"reward": r, "group_id": f"g{i // 4}", "reward_token": HIGH if i % 4 < 2 else LOW})
        for i, (e, r) in enumerate(zip(episodes, rewards, strict=True))
    ]


def moved(lights) -> Policy:
    """A policy that is no longer the one that sampled."""
    policy = load_policy(lights / "base", name="x", device="cpu")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter += 0.03 * torch.randn(parameter.shape, generator=generator)
    return policy


def measured_gradient(lights, tmp_path, monkeypatch, episodes, settings: ReinforceTable, replay=None, batch=0):
    """Gradient by parameter, and what the update reports."""
    policy = moved(lights)
    reference = Scorer(load_policy(lights / "base", name="r", device="cpu").model.requires_grad_(False))
    trainer = Trainer(policy, Scorer(policy.model), settings.optimiser, 1, RunDirectory(tmp_path).stage("x"))
    gradients = {}

    def capture(self):
        gradients.update({n: p.grad.clone() for n, p in policy.model.named_parameters()})
        return 0.0

    monkeypatch.setattr(Trainer, "step", capture)
    return gradients, PolicyUpdate(trainer, settings, reference, 320, replay)(episodes, batch)


def expected_gradient(lights, episodes, advantages, betas, shaped=lambda entropies, i: None):
    """The same by a float64 loop over the given episodes: mean over episodes of means over tokens.

    ``advantages``: a number per episode; ``shaped`` may give one per token instead, from their entropies.
    """
    model, reference = moved(lights).model.double(), load_policy(lights / "base", name="r", device="cpu").model.double()
    total = torch.zeros((), dtype=torch.float64)
    for i, episode in enumerate(episodes):
        ids = torch.tensor([episode.token_ids])
        ours, theirs = (m(input_ids=ids).logits[0].log_softmax(-1) for m in (model, reference))
        theirs = theirs.detach()
        at = [t for t, trained in enumerate(episode.loss_mask) if trained]
        entropies = [float(-(ours[t - 1].exp() * ours[t - 1]).sum().detach()) for t in at]
        signal = shaped(entropies, i) or [advantages[i]] * len(at)
        terms = []
        for t, old, advantage in zip(at, episode.logprobs, signal, strict=True):
            lp, ref = ours[t - 1, episode.token_ids[t]], theirs[t - 1, episode.token_ids[t]]
            ratio = (lp - old).exp()
            surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
            terms.append(surrogate - betas[i] * ((ref - lp).exp() - (ref - lp) - 1))
        total = total - torch.stack(terms).mean() / len(episodes)
    total.backward()
    return {n: p.grad.float() for n, p in model.named_parameters()}, float(total.detach())


def agree(ours, expected) -> bool:
    return all(torch.allclose(ours[n], g, rtol=1e-2, atol=1e-4 * float(g.abs().max())) for n, g in expected.items())


MIXED = [1.0, -1.0, -1.0, 1.0]
"""Advantages of the first group: mean and std are 1/2."""
FLAT = [0.0] * 8


def test_low_rollouts_count_in_the_baseline_alone(lights, groups, tmp_path, monkeypatch):
    settings = table(lights, gradient="high")
    ours, report = measured_gradient(lights, tmp_path, monkeypatch, groups, settings)
    high = [e for e in groups if e.reward_token is HIGH]
    expected, loss = expected_gradient(lights, high, [1.0, -1.0] + [0.0] * 4, [0.1] * 6)
    assert agree(ours, expected) and report["loss"] == pytest.approx(loss, rel=1e-4, abs=1e-6)
    # the control: as if the low rollouts had their gradient
    other, _ = expected_gradient(lights, groups, MIXED + FLAT, [0.1] * 12)
    assert not agree(ours, other)


def test_low_rollouts_without_gradient_are_not_scored(lights, groups, tmp_path, monkeypatch):
    scored = []
    forward = Scorer.forward

    def counting(self, batch, temperature):
        scored.append(len(batch.length_B))
        return forward(self, batch, temperature)

    monkeypatch.setattr(Scorer, "forward", counting)
    measured_gradient(lights, tmp_path, monkeypatch, groups, table(lights, gradient="high"))
    assert sum(scored) == 2 * 6  # policy and reference, six rollouts under high
    low = [e for e in groups if e.reward_token is LOW]
    ours, report = measured_gradient(lights, tmp_path, monkeypatch, low, table(lights, gradient="high"))
    assert report["loss"] == 0 and all(not g.any() for g in ours.values())  # a batch of low alone changes nothing


def test_the_kl_may_weigh_more_under_low(lights, groups, tmp_path, monkeypatch):
    ours, _ = measured_gradient(lights, tmp_path, monkeypatch, groups, table(lights, beta=0.1, beta_low=0.7))
    betas = [0.7 if e.reward_token is LOW else 0.1 for e in groups]
    assert agree(ours, expected_gradient(lights, groups, MIXED + FLAT, betas)[0])
    assert not agree(ours, expected_gradient(lights, groups, MIXED + FLAT, [0.1] * 12)[0])


def test_failure_may_be_what_low_is_rewarded_for(lights, groups, tmp_path, monkeypatch):
    """1 0 | 0 1 becomes 1 0 | 1 0; the flat groups become 0 0 | 1 1 and 1 1 | 0 0."""
    settings = table(lights, low_reward="inverted")
    ours, _ = measured_gradient(lights, tmp_path, monkeypatch, groups, settings)
    advantages = [1.0, -1, 1, -1, -1, -1, 1, 1, 1, 1, -1, -1]
    assert agree(ours, expected_gradient(lights, groups, advantages, [0.1] * 12)[0])
    figures = describe(groups, settings)
    assert figures["zero_variance_share"] == 0  # of what is trained on
    assert (figures["success_high"], figures["success_low"], figures["reward_mean"]) == (0.5, 0.5, 0.5)
    plain = describe(groups, table(lights))
    assert plain["zero_variance_share"] == pytest.approx(2 / 3)
    assert plain["success_low"] == 0.5 and plain["rollouts"] == 12


def test_a_virtual_success_trains_on_failures_alone(lights, groups, tmp_path, monkeypatch):
    ours, _ = measured_gradient(
        lights, tmp_path, monkeypatch, groups, table(lights, flat_advantage="ngrpo", zero_variance="drop")
    )
    mixed = [(r - 0.6) / math.sqrt(0.24) for r in (1, 0, 0, 1)]  # with the virtual one: mean 3/5, variance 6/25
    expected, _ = expected_gradient(lights, groups[:8], mixed + [-0.5] * 4, [0.1] * 8)  # successes alone: dropped
    assert agree(ours, expected)


def test_flat_groups_may_be_shaped_by_entropy(lights, groups, tmp_path, monkeypatch):
    ours, _ = measured_gradient(
        lights, tmp_path, monkeypatch, groups, table(lights, flat_advantage="zvp", entropy_scale=0.5)
    )

    def shaped(entropies, i):
        if i < 4:
            return None
        return [0.5 * h if i >= 8 else -0.5 * (max(entropies) - h) for h in entropies]

    assert agree(ours, expected_gradient(lights, groups, MIXED + FLAT, [0.1] * 12, shaped)[0])
    assert not agree(ours, expected_gradient(lights, groups, MIXED + FLAT, [0.1] * 12)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta_low": 0.2, "sampler": {"kind": "fixed"}}, "this sampler draws none"),
        ({"low_reward": "inverted", "sampler": {"kind": "fixed", "token": "high"}}, "this sampler draws none"),
        ({"gradient": "high", "sampler": {"kind": "fixed", "token": "low"}}, "draws both tokens"),
        ({"gradient": "high", "beta_low": 0.2}, "beta_low has no meaning"),
        ({"gradient": "high", "baseline": "token"}, "take another than 'token'"),
        ({"flat_advantage": "ngrpo", "baseline": "token"}, "its member has no token"),
        ({"flat_advantage": "zvp", "zero_variance": "drop"}, "remove zero_variance"),
        ({"entropy_scale": 0.2}, "entropy_scale is for"),
    ],
)
def test_options_that_contradict_each_other_are_refused(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        table(tmp_path, **options)


# -- replay


@pytest.fixture(scope="module")
def played(lights, tmp_path_factory) -> RunDirectory:
    """A run whose collect stages are done, and whose stage ``x`` replays them."""
    replay = {"data": ["experts", "explored"], "batch": 3, "weight": 0.5, "balance": True}
    stages = {"experts": EXPERTS, "explored": EXPLORED, "x": {**STAGE, "replay": replay}}
    run = prepared(tmp_path_factory.mktemp("played"), light_recipe(lights, stages=stages))
    for name in ("experts", "explored"):
        run_stage(run, name)
    return run


def test_replay_adds_the_gradient_of_stage_one(lights, played, groups, tmp_path, monkeypatch):
    recipe = played.recipe()
    settings, base = recipe.stages["x"], load_policy(lights / "base", name="base", device="cpu")
    replay = Replay(played, recipe, player_for(recipe, base).codec, settings.replay, 200)
    together, report = measured_gradient(lights, tmp_path, monkeypatch, groups, settings, replay, batch=2)
    alone, _ = measured_gradient(lights, tmp_path, monkeypatch, groups, settings)

    tokens = [(e.reward >= 1, e.reward_token) for e in replay.episodes]
    assert tokens.count((True, HIGH)) == tokens.count((False, LOW)) == len(tokens) / 2  # balanced and labelled
    batch = draw(replay.episodes, 3, 2, recipe.seed)
    model, total, count = moved(lights).model.double(), torch.zeros((), dtype=torch.float64), 0
    for episode in batch:
        logprobs = model(input_ids=torch.tensor([episode.token_ids])).logits[0].log_softmax(-1)
        at = [t for t, trained in enumerate(episode.loss_mask) if trained]
        total = total - sum(logprobs[t - 1, episode.token_ids[t]] for t in at)
        count += len(at)
    (0.5 * total / count).backward()
    expected = {n: alone[n] + p.grad.float() for n, p in model.named_parameters()}
    assert agree(together, expected) and not agree(together, alone)
    assert report["replay_loss"] == pytest.approx(float(total.detach()) / count, rel=1e-4)


def test_a_recipe_knows_what_replay_needs(lights, played):
    recipe = played.recipe()
    assert recipe.needs("x") == ["experts", "explored"]
    assert recipe.order() == ["experts", "explored", "x"] and "x" in recipe.with_followers(["explored"])
    with pytest.raises(UserError, match=r"stages\.x\.replay\.data: 'x' is not a collect stage"):
        table(lights, replay={"data": ["x"], "batch": 1})


# -- stopping and going on


def finished(path, recipe: Recipe, episodes_of: RunDirectory | None = None, stop=None) -> RunDirectory:
    """Stage ``x`` done; ``stop``: a monkeypatch with which it is stopped after its second batch and taken up again."""
    run = prepared(path, recipe)
    for name in ("experts", "explored") if episodes_of else ():
        run.stage(name).path.mkdir(parents=True)
        run.stage(name).episodes.write_bytes(episodes_of.stage(name).episodes.read_bytes())
    if stop is not None:
        with stop.context() as patch:
            interrupt_after(patch, 2)
            with pytest.raises(Interrupted):
                reinforce(run, recipe, "x")
    reinforce(run, recipe, "x")
    return run


def same_run(a: RunDirectory, b: RunDirectory) -> bool:
    """The same weights to the bit, and the same figures but for the time they took."""
    figures = [
        [{k: v for k, v in m.items() if not k.endswith("seconds")} for m in run.stage("x").metrics()] for run in (a, b)
    ]
    return figures[0] == figures[1] and identical(*(weights(run.stage("x").checkpoint) for run in (a, b)))


def test_a_stopped_stage_with_replay_goes_on_to_the_very_same_weights(played, tmp_path, monkeypatch):
    whole = finished(tmp_path / "whole", played.recipe(), played)
    assert same_run(whole, finished(tmp_path / "stopped", played.recipe(), played, monkeypatch))
    assert all(m["replay_loss"] > 0 for m in whole.stage("x").metrics())


def test_two_processes_do_all_variants_like_one(played, tmp_path):
    """Groups that one process has no gradient for, unequal numbers of replacements, replayed batches shared out."""
    replay = {"data": ["experts", "explored"], "batch": 3, "weight": 0.5}
    options = {
        "sampler": {"kind": "gated"},
        "gradient": "high",
        "resample": 1,
        "replay": replay,
        "optimiser": {"lr": 1e-5},
    }
    content = played.recipe().model_dump(mode="json")
    recipe = parse_recipe({**content, "stages": {**content["stages"], "x": {**STAGE, **options}}}, "test")
    one = finished(tmp_path / "one", recipe, played)
    two = prepared(tmp_path / "two", recipe)
    for name in ("experts", "explored"):
        two.stage(name).path.mkdir(parents=True)
        two.stage(name).episodes.write_bytes(played.stage(name).episodes.read_bytes())
    in_processes(two, "x", 2)
    a, b = one.stage("x").metrics(), two.stage("x").metrics()
    for name in ("rollouts_total", "low_share", "reward_mean"):
        assert [m[name] for m in a] == [m[name] for m in b]
    for name in ("grad_norm", "replay_loss"):
        assert [m[name] for m in a] == pytest.approx([m[name] for m in b], rel=1e-3)
    assert close(*(weights(run.stage("x").checkpoint) for run in (one, two)))
