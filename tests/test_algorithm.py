"""The equations against hand calculations, float64 loops written from the paper, scipy, and TRL's loss."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rcgrpo
from rcgrpo import clipped_objective, group_advantages, kl_k3, variance_split
from rcgrpo.algorithm.advantages import zero_variance
from rcgrpo.algorithm.diagnostics import (
    flat_group_probability,
    group_diagnostics,
    mixed_variance_bound,
    token_diagnostics,
)
from rcgrpo.algorithm.objective import aggregate, normaliser, rc_grpo_loss
from rcgrpo.algorithm.shaping import conditioned_rewards, entropy_advantages
from rcgrpo.algorithm.statistics import wilson
from rcgrpo.episodes.types import RewardToken

HIGH, LOW = RewardToken.HIGH, RewardToken.LOW


def reference_advantages(rewards: list[float], ids: list, eps: float = 1e-6, sample_std: bool = False) -> list[float]:
    """The paper's formula in plain Python floats."""
    groups = defaultdict(list)
    for reward, group in zip(rewards, ids, strict=True):
        groups[group].append(reward)
    out = []
    for reward, group in zip(rewards, ids, strict=True):
        members = groups[group]
        mean = math.fsum(members) / len(members)
        squares = math.fsum((r - mean) ** 2 for r in members)
        std = math.sqrt(squares / (len(members) - sample_std))
        out.append((reward - mean) / (std + eps))
    return out


# --- advantages -------------------------------------------------------------------------------------------------------


def test_advantages_of_one_group_by_hand():
    # mean 1/4, population std sqrt(3)/4: successes get sqrt(3), failures -1/sqrt(3)
    advantages = group_advantages(torch.tensor([1.0, 0, 0, 0], dtype=torch.float64), ["g"] * 4, eps=0.0)
    assert advantages.tolist() == pytest.approx([3**0.5, -(3**-0.5), -(3**-0.5), -(3**-0.5)], abs=1e-12)


def test_the_std_is_the_population_one():
    rewards, ids = [1.0, 0.0, 0.0, 1.0, 0.5], ["a"] * 5
    ours = group_advantages(torch.tensor(rewards, dtype=torch.float64), ids).tolist()
    assert ours == pytest.approx(reference_advantages(rewards, ids), abs=1e-12)
    assert ours != pytest.approx(reference_advantages(rewards, ids, sample_std=True), abs=1e-2)


def test_groups_are_formed_by_id_and_not_by_prompt():
    # two tokens give two prompts in one group; grouping by prompt would leave no signal at all
    rewards = torch.tensor([1.0, 1, 0, 0])
    prompts = ["do it [high]", "do it [high]", "do it [low]", "do it [low]"]
    assert group_advantages(rewards, ["task-1"] * 4).tolist() == pytest.approx([1, 1, -1, -1], abs=1e-5)
    assert group_advantages(rewards, prompts).tolist() == [0, 0, 0, 0]


groups_of_rewards = st.lists(
    st.tuples(st.floats(-3, 3), st.integers(0, 4)), min_size=1, max_size=24
).map(lambda rows: ([r for r, _ in rows], [g for _, g in rows]))  # fmt: skip


@given(groups_of_rewards)
def test_advantages_equal_the_plain_python_reference(rows):
    rewards, ids = rows
    ours = group_advantages(torch.tensor(rewards, dtype=torch.float64), ids, eps=1e-3)
    assert ours.tolist() == pytest.approx(reference_advantages(rewards, ids, eps=1e-3), abs=1e-9)


@given(groups_of_rewards, st.randoms(use_true_random=False), st.floats(-5, 5))
def test_advantages_ignore_row_order_shifts_and_other_groups(rows, rng: random.Random, shift: float):
    rewards, ids = rows
    rewards_N = torch.tensor(rewards, dtype=torch.float64)
    kwargs = {"eps": 1e-3}
    ours = group_advantages(rewards_N, ids, **kwargs)

    order = rng.sample(range(len(ids)), len(ids))
    permuted = group_advantages(rewards_N[order], [f"task-{ids[i]}" for i in order], **kwargs)
    assert torch.allclose(permuted, ours[order], atol=1e-9)

    shifted = rewards_N + shift * torch.tensor([float(i) for i in ids], dtype=torch.float64)  # per group
    assert torch.allclose(group_advantages(shifted, torch.tensor(ids), **kwargs), ours, atol=1e-9)

    alone = [i for i, group in enumerate(ids) if group == ids[0]]
    assert torch.allclose(group_advantages(rewards_N[alone], [0] * len(alone), **kwargs), ours[alone], atol=1e-9)


@given(st.floats(-1e6, 1e6), st.integers(1, 9), st.sampled_from(["group", "leave_one_out"]))
def test_a_flat_group_gets_exactly_zero(reward: float, size: int, baseline):
    rewards = torch.cat([torch.full((size,), reward), torch.tensor([0.0, 1.0])])
    ids = ["flat"] * size + ["mixed"] * 2
    assert (group_advantages(rewards, ids, baseline=baseline)[:size] == 0).all()
    assert zero_variance(rewards, ids).tolist() == [True] * size + [False, False]


def test_token_and_leave_one_out_baselines_by_hand():
    rewards, ids = torch.tensor([1.0, 1, 0, 1, 0, 0], dtype=torch.float64), ["g"] * 6
    tokens = [HIGH, HIGH, HIGH, LOW, LOW, LOW]
    by_token = group_advantages(rewards, ids, scale="none", baseline="token", tokens=tokens)
    assert by_token.tolist() == pytest.approx([1 / 3, 1 / 3, -2 / 3, 2 / 3, -1 / 3, -1 / 3])
    # scaled by the std of the whole group, 1/2
    scaled = group_advantages(rewards, ids, eps=0.0, baseline="token", tokens=tokens)
    assert scaled.tolist() == pytest.approx([2 * a for a in by_token.tolist()])
    others = group_advantages(rewards, ids, scale="none", baseline="leave_one_out")
    assert others.tolist() == pytest.approx([1 - 2 / 5] * 2 + [-3 / 5, 1 - 2 / 5] + [-3 / 5] * 2)
    # all the variance lies between the tokens: nothing is left to learn about the task
    explained = group_advantages(torch.tensor([0.1, 0.1, 0.7, 0.7, 0.7, 0.1]), ids, baseline="token",
                                 tokens=[LOW, LOW, HIGH, HIGH, HIGH, LOW])  # fmt: skip
    assert explained.tolist() == [0] * 6


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"group_ids": ["a"]}, "2 rewards but 1 labels"),
        ({"rewards": torch.tensor([1.0, math.nan])}, r"rewards\[1\] is nan"),
        ({"rewards": torch.zeros(1, 2)}, "1-D"),
        ({"baseline": "token"}, "tokens go with"),
        ({"tokens": ["high", "low"]}, "tokens go with"),
        ({"scale": "sample"}, "scale must be one of"),
        ({"baseline": "mean"}, "baseline must be one of"),
        ({"group_ids": torch.tensor([0.5, 1.5])}, "integer"),
    ],
)
def test_unusable_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        group_advantages(**{"rewards": torch.tensor([1.0, 0.0]), "group_ids": ["a", "a"], **kwargs})


# --- objective --------------------------------------------------------------------------------------------------------


def batch(seed: int = 0, rows: int = 6, length: int = 9) -> dict[str, torch.Tensor]:
    """Log-probabilities whose ratios leave the clip range on both sides, and ragged masks with holes."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    old = -normal(rows, length).abs()
    mask = torch.rand(rows, length, generator=rng) < 0.7
    mask[:, 0] = True
    return {
        "logprobs_BL": old + 0.3 * normal(rows, length),
        "old_logprobs_BL": old,
        "ref_logprobs_BL": old + 0.2 * normal(rows, length),
        "advantages_B": group_advantages(torch.tensor([1.0, 0, 1, 1, 1, 0], dtype=torch.float64), [0, 0, 1, 1, 2, 2]),
        "mask_BL": mask,
    }


def loss_and_gradient(data: dict, **kwargs):
    logprobs = data["logprobs_BL"].clone().requires_grad_()
    loss = rc_grpo_loss(**{**data, "logprobs_BL": logprobs}, **kwargs).loss
    (gradient,) = torch.autograd.grad(loss, logprobs)
    return loss.detach(), gradient


def test_k3_is_never_negative_and_estimates_the_kl():
    p, q = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.1, 0.4]], dtype=torch.float64)
    k3 = kl_k3(p.log(), q.log())
    assert (k3 >= 0).all() and (kl_k3(p.log(), p.log()) == 0).all()
    # its mean over samples of p is the KL: exact over a finite alphabet, since sum(q) = sum(p) = 1
    assert float((p * k3).sum()) == pytest.approx(float((p * (p / q).log()).sum()), abs=1e-12)
    # and not of the reversed arguments
    assert float((p * kl_k3(q.log(), p.log())).sum()) != pytest.approx(float((p * (p / q).log()).sum()), abs=1e-2)


def test_clipping_by_hand():
    ratios = torch.tensor([[1.5, 0.5, 1.1], [1.5, 0.5, 0.9]], dtype=torch.float64)
    result = clipped_objective(ratios.log(), torch.zeros(2, 3).double(), torch.tensor([2.0, -2.0]).double())
    assert result.surrogate.flatten().tolist() == pytest.approx([2.4, 1.0, 2.2, -3.0, -1.6, -1.8])
    assert result.clipped.tolist() == [[True, False, False], [False, True, False]]
    wider = clipped_objective(ratios.log(), torch.zeros(2, 3).double(), torch.tensor([2.0, -2.0]), clip_high=0.28)
    assert float(wider.surrogate[0, 0]) == pytest.approx(2.56)


def test_no_gradient_flows_where_the_clip_binds():
    logprobs = torch.tensor([[math.log(1.5), math.log(0.5), 0.0]], dtype=torch.float64, requires_grad=True)
    result = clipped_objective(logprobs, torch.zeros(1, 3).double(), torch.tensor([1.0]).double())
    result.surrogate.sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist()[0] == pytest.approx([0.0, 0.5, 1.0])


def test_one_step_raises_the_odds_of_the_better_episode():
    logits = torch.zeros(2, requires_grad=True)  # a bandit with two arms; arm 0 earned the reward
    logprobs_BL = torch.log_softmax(logits, -1)[torch.tensor([[0], [1]])]
    advantages = group_advantages(torch.tensor([1.0, 0.0]), ["g", "g"])
    loss = rc_grpo_loss(logprobs_BL, logprobs_BL.detach(), None, advantages, torch.ones(2, 1), beta=0.0).loss
    (gradient,) = torch.autograd.grad(loss, logits)
    assert float(gradient[0]) < 0 < float(gradient[1])


def test_aggregations_by_hand():
    values = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert float(aggregate(values, mask, "token")) == pytest.approx(7 / 3)
    assert float(aggregate(values, mask, "sequence")) == pytest.approx((1.5 + 4) / 2)
    assert float(aggregate(values, mask, "constant", max_length=10)) == pytest.approx(7 / 20)
    with pytest.raises(ValueError, match="max_length goes with"):
        aggregate(values, mask, "token", max_length=10)
    with pytest.raises(ValueError, match="max_length goes with"):
        aggregate(values, mask, "constant")


@pytest.mark.parametrize("zero", ["keep", "drop"])
@pytest.mark.parametrize("mode", ["token", "sequence", "constant"])
def test_micro_batches_with_the_global_denominator_give_the_full_batch(mode, zero):
    data = batch()
    options = {"aggregation": mode, "max_length": 9 if mode == "constant" else None, "zero_variance": zero}
    flat = torch.tensor([False, False, True, True, False, False])
    whole, gradient = loss_and_gradient(data, flat_B=flat, **options)
    keep = ~flat if zero == "drop" else None
    denominator = normaliser(data["mask_BL"], mode, max_length=options["max_length"], keep_B=keep)
    parts = [slice(0, 1), slice(1, 2), slice(2, 4), slice(4, 6)]  # dropping leaves nothing of the third
    counts = [
        normaliser(data["mask_BL"][p], mode, max_length=options["max_length"], keep_B=None if keep is None else keep[p])
        for p in parts
    ]
    assert float(sum(counts)) == float(denominator)
    cut = [{name: value[part] for name, value in data.items()} for part in parts]
    pieces = [
        loss_and_gradient(piece, flat_B=flat[part], denominator=denominator, **options)
        for piece, part in zip(cut, parts, strict=True)
    ]
    assert float(sum(loss for loss, _ in pieces)) == pytest.approx(float(whole), abs=1e-12)
    assert torch.allclose(torch.cat([g for _, g in pieces]), gradient, atol=1e-12)
    # control: with each part's own denominator the gradient is another one
    own = torch.cat([loss_and_gradient(p, flat_B=flat[s], **options)[1] for p, s in zip(cut, parts, strict=True)])
    assert not torch.allclose(own / len(parts), gradient, atol=1e-4)


def test_flat_groups_keep_their_kl_or_leave_without_a_trace():
    data, flat = batch(), torch.tensor([False, False, True, True, False, False])
    assert (data["advantages_B"][flat] == 0).all()
    _, kept = loss_and_gradient(data, beta=0.1)
    _, without_kl = loss_and_gradient(data, beta=0.0)
    assert (without_kl[flat] == 0).all() and (kept[flat] != 0).any()
    for mode in ("token", "sequence"):
        loss, dropped = loss_and_gradient(data, zero_variance="drop", flat_B=flat, aggregation=mode)
        rest = {name: value[~flat] for name, value in data.items()}
        expected_loss, expected = loss_and_gradient(rest, aggregation=mode)
        assert float(loss) == pytest.approx(float(expected_loss), abs=1e-12)
        assert (dropped[flat] == 0).all() and torch.allclose(dropped[~flat], expected, atol=1e-12)
    loss, nothing = loss_and_gradient(data, zero_variance="drop", flat_B=torch.ones(6, dtype=torch.bool))
    assert float(loss) == 0 and (nothing == 0).all()
    with pytest.raises(ValueError, match="needs flat_B"):
        rc_grpo_loss(**data, zero_variance="drop")
    with pytest.raises(ValueError, match="needs ref_logprobs_BL"):
        rc_grpo_loss(**{**data, "ref_logprobs_BL": None})


def test_what_stands_outside_the_mask_is_never_read():
    data = batch()
    clean = loss_and_gradient(data)
    poisoned = {
        name: value.masked_fill(~data["mask_BL"], math.nan) if name.endswith("logprobs_BL") else value
        for name, value in data.items()
    }
    loss, gradient = loss_and_gradient(poisoned)
    assert float(loss) == float(clean[0]) and torch.equal(gradient, clean[1])


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize(("loss_type", "mode"), [("grpo", "sequence"), ("dapo", "token"), ("dr_grpo", "constant")])
def test_loss_and_gradient_equal_trls(loss_type: str, mode, beta: float):
    data = batch(seed=3)
    ours, gradient = loss_and_gradient(
        data, beta=beta, clip_low=0.2, clip_high=0.28, aggregation=mode, max_length=12 if mode == "constant" else None
    )
    logprobs = data["logprobs_BL"].clone().requires_grad_()
    theirs = trl_loss(logprobs, data, loss_type, beta)
    (their_gradient,) = torch.autograd.grad(theirs, logprobs)
    assert float(ours) == pytest.approx(theirs.item(), abs=1e-6)
    assert torch.allclose(gradient, their_gradient, atol=1e-6)
    assert gradient.abs().max() > 1e-3
    # control: the sign of the advantage reaches the comparison
    flipped = loss_and_gradient({**data, "advantages_B": -data["advantages_B"]}, beta=beta, aggregation="token")
    assert not torch.allclose(flipped[1], their_gradient, atol=1e-3)


def trl_loss(logprobs: torch.Tensor, data: dict, loss_type: str, beta: float) -> torch.Tensor:
    """TRL's own ``GRPOTrainer._compute_loss`` on given log-probabilities: a trainer without model or data."""
    import trl  # slow to import, needed here only

    trainer = object.__new__(trl.GRPOTrainer)
    settings_of_trl = {
        "loss_type": loss_type,
        "beta": beta,
        "epsilon_low": 0.2,
        "epsilon_high": 0.28,
        "max_completion_length": 12,
        "importance_sampling_level": "token",
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "use_vllm": False,
        "aux_loss_enabled": False,
        "_entropy_bonus_enabled": False,
        "current_gradient_accumulation_steps": 1,
        "model": SimpleNamespace(training=True),
        "args": SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        "accelerator": SimpleNamespace(
            num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x, sync_gradients=True
        ),
        "_metrics": {"train": defaultdict(list)},
        "_get_per_token_logps_and_entropies": lambda *_, **__: (logprobs, torch.zeros_like(logprobs), None),
    }
    for name, value in settings_of_trl.items():
        setattr(trainer, name, value)
    mask = data["mask_BL"].long()
    return trainer._compute_loss(
        None,
        {
            "prompt_ids": torch.zeros(len(mask), 1, dtype=torch.long),
            "prompt_mask": torch.ones(len(mask), 1, dtype=torch.long),
            "completion_ids": torch.zeros_like(mask),
            "completion_mask": torch.ones_like(mask),
            "tool_mask": mask,
            "advantages": data["advantages_B"],
            "old_per_token_logps": data["old_logprobs_BL"],
            "ref_per_token_logps": data["ref_logprobs_BL"],
            "num_items_in_batch": mask.sum(),
        },
    )


# --- diagnostics ------------------------------------------------------------------------------------------------------


def test_variance_split_by_hand():
    # group a: tokens explain everything (means 1 and 0); group b: they explain nothing (1/2 and 1/2)
    rewards = torch.tensor([1.0, 1, 0, 0, 1, 0, 1, 0])
    split = variance_split(rewards, ["a"] * 4 + ["b"] * 4, [HIGH, HIGH, LOW, LOW] * 2)
    assert [float(part) for part in split] == pytest.approx([0.125, 0.125, 0.25])


@given(st.lists(st.tuples(st.floats(-2, 2), st.integers(0, 3), st.sampled_from([HIGH, LOW, None])), min_size=1))
def test_the_parts_of_the_variance_add_up_to_numpys(rows):
    rewards = torch.tensor([r for r, _, _ in rows], dtype=torch.float64)
    ids = [g for _, g, _ in rows]
    between, within, total = variance_split(rewards, ids, [t for _, _, t in rows])
    members = [rewards[[i for i, g in enumerate(ids) if g == group]].numpy() for group in set(ids)]
    assert float(total) == pytest.approx(sum(m.var() for m in members) / len(members), abs=1e-9)
    assert float(between + within) == pytest.approx(float(total), abs=1e-9)
    assert float(between) >= 0 and float(within) >= 0


def test_group_figures_by_hand():
    rewards = torch.tensor([1.0, 1, 0, 0, 1, 0])
    ids, tokens = torch.tensor([0, 0, 1, 1, 2, 2]), [HIGH, LOW, HIGH, LOW, HIGH, LOW]
    figures = group_diagnostics(rewards, ids, tokens)
    expected = {
        "zero_variance_share": 2 / 3, "all_zero_share": 1 / 3, "all_one_share": 1 / 3,
        "success_high": 2 / 3, "success_low": 1 / 3, "separation": 1 / 3,
        "between_variance": 1 / 12, "within_variance": 0.0, "reward_mean": 0.5, "reward_std": 0.5,
    }  # fmt: skip
    assert figures == pytest.approx(expected, abs=1e-6)
    assert group_diagnostics(rewards, ids, torch.tensor([1, 0, 1, 0, 1, 0])) == pytest.approx(expected, abs=1e-6)


def test_an_absent_token_gives_none_and_not_nan():
    rewards = torch.tensor([1.0, 0.0])
    only_high = group_diagnostics(rewards, [0, 0], [HIGH, HIGH])
    assert (only_high["success_high"], only_high["success_low"], only_high["separation"]) == (0.5, None, None)
    unconditioned = group_diagnostics(rewards, [0, 0])
    assert unconditioned["success_high"] is None and unconditioned["within_variance"] == 0.25


def test_token_figures_on_a_known_alphabet():
    logprobs = torch.tensor([[0.5, 0.25, 0.1], [0.5, 0.1, 0.1]]).log()
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    figures = token_diagnostics(
        logprobs,
        mask,
        old_logprobs_BL=torch.tensor([[0.5, 0.125, 1e-9], [0.5, 1.0, 1.0]]).log(),
        ref_logprobs_BL=logprobs,
        sampler_logprobs_BL=logprobs + torch.tensor([0.3, 0.0, 9.0]),
        entropy_BL=torch.tensor([[1.0, 2.0, 9.0], [3.0, 9.0, 9.0]]),
        clipped_BL=torch.tensor([[True, False, True], [False, True, True]]),
    )
    k3 = 2 * (math.exp(-0.3) + 0.3 - 1) / 3  # two of the three trained tokens are off by 0.3
    expected = {
        "response_length": 1.5, "response_length_max": 2.0, "ratio_max": 2.0, "kl": 0.0, "entropy": 2.0,
        "clip_fraction": 1 / 3, "mismatch_abs": 0.2, "mismatch_k1": 0.2, "mismatch_kl": k3,
    }  # fmt: skip
    assert figures == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("high", "low", "p", "expected"),
    [(0.9, 0.1, 1.0, 0.59), (0.9, 0.1, 0.5, 0.0625), (0.85, 0.85, 0.5, 0.44), (0.5, 0.05, 0.5, 0.20),
     (0.5, 0.05, 1.0, 0.0625)],
)  # fmt: skip
def test_when_mixing_helps_and_when_it_hurts(high: float, low: float, p: float, expected: float):
    assert flat_group_probability(high, low, p, 5) == pytest.approx(expected, abs=5e-3)


@settings(max_examples=5, deadline=None)
@given(st.floats(0, 1), st.floats(0, 1), st.sampled_from(["iid", "stratified"]), st.integers(0, 99))
def test_closed_forms_agree_with_simulated_groups(high: float, low: float, sampler, seed: int):
    groups, size, p = 4000, 5, 0.5
    draw = getattr(rcgrpo.TokenSampler, sampler)(p)
    rng = random.Random(seed)
    tokens = [token for g in range(groups) for token in draw.sample(size, f"{seed}/{g}")]
    rewards = torch.tensor([float(rng.random() < (high if token == HIGH else low)) for token in tokens])
    ids = torch.arange(groups).repeat_interleave(size)
    measured = group_diagnostics(rewards, ids, tokens)["zero_variance_share"]
    assert measured == pytest.approx(flat_group_probability(high, low, p, size, sampler), abs=0.04)
    if sampler == "iid":
        total = float(variance_split(rewards, ids, tokens).total)
        assert total >= mixed_variance_bound(size, p, high - low) - 0.01


def test_the_variance_bound_is_tight_for_a_deterministic_policy():
    # success 1 under high, 0 under low: E[population variance] of G coin flips is (G-1)/G * 1/4
    exact = sum(math.comb(5, k) / 32 * (k / 5) * (1 - k / 5) for k in range(6))
    assert mixed_variance_bound(5, 0.5, 1.0) == pytest.approx(exact)


# --- statistics -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (3, 10), (10, 10), (68, 80), (59, 80)])
def test_wilson_equals_its_textbook_formula(successes: int, n: int):
    z, p = 1.959963984540054, successes / n
    centre, width = (p + z * z / (2 * n)), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    expected = [(centre - width) / (1 + z * z / n), (centre + width) / (1 + z * z / n)]
    assert list(wilson(successes, n)) == pytest.approx(expected, abs=1e-9)
    assert wilson(successes, n, level=0.5)[1] - wilson(successes, n, level=0.5)[0] < expected[1] - expected[0]


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_wilson_refuses_impossible_counts(successes: int, n: int):
    with pytest.raises(ValueError, match="trial"):
        wilson(successes, n)


# --- beyond the paper -------------------------------------------------------------------------------------------------


def test_a_virtual_success_lowers_failures_alone_and_leaves_successes_alone():
    """NGRPO by hand: G = 3 failures and a virtual 1 have mean 1/4 and std sqrt(3)/4, so each gets -1/sqrt(3)."""
    rewards = torch.tensor([0.0, 0, 0, 1, 1, 1, 1, 0], dtype=torch.float64)
    ids = ["wrong"] * 3 + ["right"] * 3 + ["mixed"] * 2
    ours = group_advantages(rewards, ids, eps=0.0, virtual_reward=1.0).tolist()
    mixed = [0.5**0.5, -(2**0.5)]  # mean 2/3 and std sqrt(2)/3 of 1, 0 and the virtual 1
    assert ours == pytest.approx([-(3**-0.5)] * 3 + [math.nan] * 3 + mixed, abs=1e-12, nan_ok=True)
    ours = group_advantages(rewards, ids, virtual_reward=1.0)
    assert (ours[3:6] == 0).all()
    assert (group_advantages(rewards, ids)[:3] == 0).all()  # the control: without it failures have none
    assert zero_variance(rewards, ids, virtual_reward=1.0).tolist() == [False] * 3 + [True] * 3 + [False] * 2
    with pytest.raises(ValueError, match="virtual_reward has no token"):
        group_advantages(rewards, ids, baseline="token", tokens=ids, virtual_reward=1.0)


def test_rewards_are_inverted_under_low_alone():
    rewards, low = torch.tensor([1.0, 0.0, 0.25, 1.0]), torch.tensor([False, False, True, True])
    assert conditioned_rewards(rewards, low).tolist() == [1.0, 0.0, 0.75, 0.0]
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        conditioned_rewards(torch.tensor([2.0]), torch.tensor([True]))


def test_entropy_takes_the_place_of_a_flat_groups_advantage():
    """RL-ZVP, equation 5, by hand; what stands outside the mask is not read."""
    entropy = torch.tensor([[1.0, 3.0, 9.0], [1.0, 3.0, 9.0], [1.0, 3.0, 9.0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 0], [1, 1, 1]])
    ours = entropy_advantages(entropy, mask, torch.tensor([1.0, 0.0, 0.5]), scale=0.5)
    assert ours.tolist() == [[0.5, 1.5, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


def test_each_episode_may_have_its_own_weight_of_the_kl():
    data = batch()
    for mode in ("token", "sequence"):
        same, gradient = loss_and_gradient(data, beta=torch.full((6,), 0.125), aggregation=mode)
        expected, expected_gradient = loss_and_gradient(data, beta=0.125, aggregation=mode)
        assert float(same) == pytest.approx(float(expected), abs=1e-12)
        assert torch.allclose(gradient, expected_gradient, atol=1e-12)
    # linear in beta: the gradient of episodes at 0.375 is that of three times the KL
    mixed = torch.tensor([0.125, 0.375, 0.125, 0.375, 0.125, 0.375])
    without, low, high = (loss_and_gradient(data, beta=b)[1] for b in (0.0, 0.125, mixed))
    assert torch.allclose(high[1::2] - without[1::2], 3 * (low[1::2] - without[1::2]), atol=1e-12)
    assert torch.allclose(high[::2], low[::2], atol=1e-12)
    assert float(loss_and_gradient({**data, "ref_logprobs_BL": None}, beta=torch.zeros(6))[0]) == pytest.approx(
        float(loss_and_gradient(data, beta=0.0)[0])
    )
