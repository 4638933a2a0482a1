"""Demonstrations for a base model: near misses, ratings, excerpts; and the control that deals labels at random."""

import random
from collections import Counter

import pytest

from rcgrpo.codec.codec import Codec
from rcgrpo.config import RolloutTable, parse_recipe
from rcgrpo.environments.protocol import tasks_of
from rcgrpo.environments.toolworld.config import ToolWorldConfig
from rcgrpo.environments.toolworld.suite import ToolWorldSuite
from rcgrpo.episodes.types import RewardToken
from rcgrpo.policy.load import load_policy
from rcgrpo.stages.collect import collect
from rcgrpo.stages.directory import RunDirectory
from rcgrpo.stages.finetune import labelled_episodes
from rcgrpo.stages.pretrain import demonstration, first_turn, rate
from rcgrpo.stages.rollout import Job, Player

LIMITS = RolloutTable(steps_per_turn=10, step_tokens=96, episode_tokens=2048)


@pytest.fixture(scope="module")
def suite():
    return ToolWorldSuite(ToolWorldConfig(pretrain=60, max_turns=2))


@pytest.fixture(scope="module")
def codec():
    return Codec(load_policy("toolworld-base", name="base", device="cpu").tokenizer, detail="compact")


def played(suite, codec, tasks, streams):
    jobs = [Job(task, group_id=task.id) for task in tasks]
    return Player(suite, codec, LIMITS, "success").scripted(jobs, streams)


@pytest.mark.parametrize("excerpts", [False, True])
def test_right_demonstrations_succeed_and_wrong_ones_mostly_fail_also_when_cut_after_the_first_turn(
    suite, codec, excerpts
):
    whole = tasks_of(suite, suite.split(), "pretrain")
    tasks = [first_turn(task) for task in whole] if excerpts else whole
    shares = {}
    for share in (0.0, 1.0):
        streams = [
            demonstration(suite, task, len(cut.turns), share, random.Random(task.id))
            for task, cut in zip(whole, tasks, strict=True)
        ]
        episodes = played(suite, codec, tasks, streams)
        shares[share] = sum(e.success for e in episodes) / len(episodes)
    assert shares[0.0] == 1
    assert shares[1.0] < 0.25  # a near miss may be harmless


def test_a_rating_stands_in_the_prompt_alone_and_tells_the_outcome(suite, codec):
    tasks = tasks_of(suite, suite.split(), "pretrain")[:20]
    streams = [demonstration(suite, t, len(t.turns), i % 2, random.Random(i)) for i, t in enumerate(tasks)]
    for episode in played(suite, codec, tasks, streams):
        rated = rate(episode, suite, codec)
        start, rated_start = episode.loss_mask.index(1), rated.loss_mask.index(1)
        assert rated.token_ids[rated_start:] == episode.token_ids[start:]
        text = codec.tokenizer.decode(rated.token_ids[:rated_start])
        assert text.count(f"[Rating: {'high' if episode.success else 'low'}]") == text.count("[Rating:") == 1
        assert text.replace(f"\n[Rating: {'high' if episode.success else 'low'}]", "") == codec.tokenizer.decode(
            episode.token_ids[:start]
        )


def test_permuted_labels_are_the_same_tokens_on_other_episodes(tmp_path):
    table = {"kind": "collect", "policy": "gold", "limit": 24}
    explored = {"kind": "collect", "policy": "base", "keep": "failures", "limit": 24}
    recipe = parse_recipe(
        {
            "name": "permuted",
            "toolworld": {"experts": 24, "max_turns": 1, "tools": 4},
            "model": {"device": "cpu"},
            "chat": {"schemas": "compact"},
            "rollout": {"steps_per_turn": 6, "step_tokens": 64, "episode_tokens": 640},
            "stages": {"experts": table, "explored": explored},
        },
        "test",
    )
    run = RunDirectory(tmp_path)
    run.prepare(recipe, [])
    for name in recipe.stages:
        collect(run, recipe, name)
    codec = Codec(load_policy("toolworld-base", name="base", device="cpu").tokenizer, detail="compact")

    def labelled(permuted):
        return labelled_episodes(
            run, recipe, codec, ["experts", "explored"], conditioned=True, balance=True, permuted=permuted
        )

    true, permuted = labelled(False), labelled(True)
    assert all((e.reward_token is RewardToken.HIGH) == e.success for e in true)
    assert Counter(e.reward_token for e in true) == Counter(e.reward_token for e in permuted)
    right = sum((e.reward_token is RewardToken.HIGH) == e.success for e in permuted) / len(permuted)
    assert 0.2 < right < 0.8
