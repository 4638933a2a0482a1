"""Reward tokens: one function places them, whoever asks; samplers draw what they promise."""

import pytest
import torch
from scipy.stats import binomtest

from light_world import ROOMS, drawn_jobs, light_recipe
from rcgrpo.codec.codec import Codec
from rcgrpo.conditioning import REWARD_TOKENS, TokenSampler, condition, label
from rcgrpo.episodes.types import Message, RewardToken
from rcgrpo.policy.load import load_policy, teach_reward_tokens
from rcgrpo.stages.evaluate import evaluation_jobs
from rcgrpo.stages.finetune import finetune
from rcgrpo.stages.rollout import Job, recondition
from rcgrpo.stages.setup import player_for

HIGH, LOW = RewardToken.HIGH, RewardToken.LOW
TALK = [
    Message(role="system", content="Be brief."),
    Message(role="user", content="first"),
    Message(role="assistant", content="yes"),
    Message(role="user", content="second"),
]


def test_the_token_stands_at_the_end_of_the_first_user_message_and_nowhere_else():
    before = [m.model_copy(deep=True) for m in TALK]
    conditioned = condition(TALK, HIGH)
    assert conditioned[1].content == "first\n[Reward Goal: <|high_reward|>]"
    assert [conditioned[i] for i in (0, 2, 3)] == [before[i] for i in (0, 2, 3)]
    assert before == TALK
    assert condition(TALK, None) == TALK
    with pytest.raises(ValueError, match="no user message"):
        condition(TALK[:1], LOW)


def test_success_alone_is_labelled_high():
    assert [label(r) for r in (0.0, 0.5, 0.999, 1.0)] == [LOW, LOW, LOW, HIGH]


def test_iid_tokens_follow_the_binomial_and_are_independent_of_place():
    groups = [TokenSampler.iid(0.3).sample(5, f"0/{step}") for step in range(2000)]
    highs = [[t is HIGH for t in group] for group in groups]
    assert binomtest(sum(map(sum, highs)), 10_000, 0.3).pvalue > 1e-4
    for place in range(5):
        assert binomtest(sum(group[place] for group in highs), 2000, 0.3).pvalue > 1e-4
    one_token_only = sum(len(set(group)) == 1 for group in groups)
    assert binomtest(one_token_only, 2000, 0.3**5 + 0.7**5).pvalue > 1e-4
    # the control: the same test sees a probability that is off
    assert binomtest(sum(map(sum, highs)), 10_000, 0.35).pvalue < 1e-4


@pytest.mark.parametrize(("p", "size", "high"), [(0.5, 8, 4), (0.5, 5, 3), (0.25, 8, 2), (0.0, 4, 0), (1.0, 4, 4)])
def test_stratified_groups_have_a_fixed_count_in_random_order(p, size, high):
    groups = [TokenSampler.stratified(p).sample(size, seed) for seed in range(400)]
    assert {group.count(HIGH) for group in groups} == {high}
    assert {len(group) for group in groups} == {size}
    for place in range(size):
        assert binomtest(sum(group[place] is HIGH for group in groups), 400, high / size).pvalue > 1e-4


def test_a_fixed_sampler_gives_plain_groups():
    assert TokenSampler.fixed().sample(3, 0) == [None] * 3
    assert TokenSampler.fixed("low").sample(2, 0) == [LOW] * 2


def test_tokens_depend_on_the_seed_and_on_nothing_else():
    import random

    for sampler in (TokenSampler.iid(), TokenSampler.stratified()):
        random.seed(1)
        first = [sampler.sample(6, seed) for seed in range(20)]
        random.seed(2)
        sampler.sample(100, "another group")
        assert [sampler.sample(6, seed) for seed in range(20)] == first
        assert len({tuple(group) for group in first}) > 5


@pytest.mark.parametrize(
    "fields",
    [{"kind": "fixed", "p": 0.5}, {"kind": "iid", "token": "high"}, {"kind": "iid", "p": 1.5}, {"kind": "odd"}],
)
def test_an_option_without_meaning_is_refused(fields):
    with pytest.raises(ValueError):
        TokenSampler(**fields)


# -- everyone asks the one function


@pytest.fixture(scope="module")
def policy(lights):
    return load_policy(lights / "base", name="base", device="cpu")


def gold(recipe, policy, token):
    task = recipe.suite.task("hall-on")
    return player_for(recipe, policy).gold([Job(task, group_id="g", token=token)])[0]


def test_stage_one_rollouts_and_evaluation_see_the_same_prompt(lights, policy):
    recipe = light_recipe(lights)
    suite, codec = recipe.suite, Codec(policy.tokenizer, detail="compact")
    task = suite.task("hall-on")
    for token in (HIGH, LOW, None):
        rollout = gold(recipe, policy, token)
        stage_one = recondition(gold(recipe, policy, None), suite, codec, token)
        assert stage_one.token_ids == rollout.token_ids
        assert stage_one.loss_mask == rollout.loss_mask
        assert stage_one.messages == rollout.messages and stage_one.reward_token == token
        (job,) = evaluation_jobs([task], recipe.evaluate, token, 0)
        (evaluated,) = player_for(recipe, policy).policy(policy, [job])
        prompt = rollout.loss_mask.index(1)
        assert evaluated.token_ids[:prompt] == rollout.token_ids[:prompt]
        text = policy.tokenizer.decode(rollout.token_ids)
        assert [text.count(t) for t in REWARD_TOKENS] == [token is HIGH, token is LOW]
        if token:
            assert f"hall on?\n[Reward Goal: {token.text}]<|im_end|>" in text
    # reconditioning twice is reconditioning once
    again = recondition(recondition(gold(recipe, policy, LOW), suite, codec, HIGH), suite, codec, LOW)
    assert again.token_ids == gold(recipe, policy, LOW).token_ids


def test_no_path_places_tokens_by_itself(lights, policy, monkeypatch):
    """Move the token elsewhere in the one function: all prompts follow."""

    def elsewhere(messages, token):
        marked = [m.model_copy() for m in messages]
        marked[0].content = f"{'MOVED' if token else ''} {marked[0].content}"
        return marked

    monkeypatch.setattr("rcgrpo.stages.rollout.condition", elsewhere)
    recipe = light_recipe(lights)
    codec = Codec(policy.tokenizer, detail="compact")
    stage_one = recondition(gold(recipe, policy, None), recipe.suite, codec, HIGH)
    (job,) = evaluation_jobs([recipe.suite.task("hall-on")], recipe.evaluate, HIGH, 0)
    (evaluated,) = player_for(recipe, policy).policy(policy, [job])
    for episode in (gold(recipe, policy, HIGH), stage_one, evaluated):
        text = policy.tokenizer.decode(episode.token_ids)
        assert text.count("MOVED") == 1 and "Reward Goal" not in text


def test_a_groups_prompts_share_all_but_the_end(lights, policy):
    recipe = light_recipe(lights)
    high, low = gold(recipe, policy, HIGH), gold(recipe, policy, LOW)
    shared = next(i for i, (a, b) in enumerate(zip(high.token_ids, low.token_ids, strict=False)) if a != b)
    assert "[Reward Goal" in policy.tokenizer.decode(high.token_ids[:shared])


# -- special tokens or text


def test_special_tokens_get_rows_of_their_own(lights):
    policy = load_policy(lights / "base", name="x", device="cpu")
    rows = policy.model.get_input_embeddings().num_embeddings
    ids = teach_reward_tokens(policy)
    embeddings = policy.model.get_input_embeddings()
    assert embeddings.num_embeddings == rows + 2 and ids == [rows, rows + 1]
    assert [policy.tokenizer.encode(t, add_special_tokens=False) for t in REWARD_TOKENS] == [[i] for i in ids]
    assert not embeddings.weight[ids[0]].equal(embeddings.weight[ids[1]])
    assert policy.model.get_output_embeddings().weight is embeddings.weight
    assert teach_reward_tokens(policy) == ids  # once is enough
    assert policy.model.get_input_embeddings().num_embeddings == rows + 2


def test_each_token_starts_as_the_word_it_names(lights):
    policy = load_policy(lights / "base", name="x", device="cpu")
    pieces = [policy.tokenizer.encode(word, add_special_tokens=False) for word in (" high", " low")]
    known = policy.model.get_input_embeddings().weight.detach().clone()
    ids = teach_reward_tokens(policy)
    rows = policy.model.get_input_embeddings().weight.detach()[ids]
    assert pieces[0] != pieces[1]
    for row, piece in zip(rows, pieces, strict=True):
        torch.testing.assert_close(row, sum(known[i] for i in piece) / len(piece))


@pytest.mark.parametrize("way", ["special", "text"])
def test_both_ways_train_and_the_policy_reads_the_goal(lights, tmp_path, way):
    from test_stages import EXPERTS, prepared

    stage = {"kind": "finetune", "data": ["experts"], "conditioned": True, "batch": 4, "steps": 2}
    stages = {"experts": EXPERTS, "rctp": {**stage, "optimiser": {"lr": 1e-3}}}
    recipe = light_recipe(lights, stages=stages, chat={"schemas": "compact", "reward_tokens": way})
    run = prepared(tmp_path, recipe)
    from rcgrpo.stages.run import run_stage

    run_stage(run, "experts")
    finetune(run, recipe, "rctp")
    before = load_policy(lights / "base", name="x", device="cpu")
    after = load_policy(run.stage("rctp").checkpoint, name="x", device="cpu")
    assert len(after.tokenizer) - len(before.tokenizer) == (2 if way == "special" else 0)
    lengths = [len(after.tokenizer.encode(t, add_special_tokens=False)) for t in REWARD_TOKENS]
    assert lengths == [1, 1] if way == "special" else min(lengths) > 3
    high, low = gold(recipe, after, HIGH), gold(recipe, after, LOW)
    assert high.token_ids != low.token_ids
    assert "<|high_reward|>" in after.tokenizer.decode(high.token_ids)


def test_rollouts_of_a_group_carry_the_samplers_tokens(lights):
    from test_stages import RCGRPO

    recipe = light_recipe(lights, stages={"grpo": {**RCGRPO, "sampler": {"kind": "stratified", "p": 0.5}}})
    tasks = [recipe.suite.task(f"{room}-on") for room in ROOMS]
    jobs = drawn_jobs(tasks, recipe.stages["grpo"], 0, 0, 0, 1)
    for group in {job.group_id for job in jobs}:
        assert [j.token for j in jobs if j.group_id == group].count(HIGH) == 2
