"""Weights held in bfloat16 train as float32 ones do: the optimiser steps on float32 copies."""

from pathlib import Path

import pytest
import torch
from torch import nn

from rcgrpo.codec.tokenizer import train_tokenizer
from rcgrpo.config import ChatTable, LoraTable, ModelTable, OptimiserTable
from rcgrpo.policy.load import Policy
from rcgrpo.stages.directory import StageDirectory
from rcgrpo.stages.training import Trainer, adapt
from tiny_models import tiny_model

LR, STEPS = 1e-6, 200


class Idle(nn.Module):
    """A scorer that is never called: the tests set gradients themselves."""


def trainer_of(model, path: Path) -> Trainer:
    policy = Policy("tiny", model, train_tokenizer(["some text"], 300))
    return Trainer(policy, Idle(), OptimiserTable(lr=LR), STEPS, StageDirectory(path))


def bfloat16_model():
    return tiny_model("qwen3", torch.bfloat16)


def fixed_gradients(model) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    noise = [torch.randn(p.shape, generator=generator) for p in model.parameters()]
    return [(g.sign() + g).to(torch.bfloat16) for g in noise]  # none near zero, where Adam's epsilon counts


def descend(model, step, steps: int = STEPS) -> None:
    gradients = fixed_gradients(model)
    for _ in range(steps):
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient.to(parameter.dtype)
        step()


def flat(tensors) -> torch.Tensor:
    return torch.cat([t.detach().float().flatten() for t in tensors])


def test_bfloat16_weights_follow_a_float32_model(tmp_path):
    low, high = bfloat16_model(), bfloat16_model().float()
    start = flat(low.parameters())
    assert torch.equal(start, flat(high.parameters()))
    trainer = trainer_of(low, tmp_path / "low")
    descend(low, trainer.step)
    descend(high, trainer_of(high, tmp_path / "high").step)

    moved = flat(trainer.masters) - start
    assert torch.equal(flat(trainer.masters), flat(high.parameters()))
    # Adam moves each weight by lr a step, against its gradient: 200 x 1e-6
    expected = -STEPS * LR * flat(fixed_gradients(low)).sign()
    torch.testing.assert_close(moved, expected, rtol=0.05, atol=1e-6)
    assert all(p.dtype == torch.bfloat16 for p in low.parameters())
    assert torch.equal(flat(low.parameters()), flat(trainer.masters).bfloat16().float())
    assert (flat(low.parameters()) != start).float().mean() > 0.05


def test_the_negative_control_without_copies_the_weights_stay_put():
    model = bfloat16_model()
    start = flat(model.parameters())
    optimiser = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0)
    descend(model, optimiser.step)
    visible = start.abs() > 1e-2  # nearly all of them
    assert visible.float().mean() > 0.9
    assert torch.equal(flat(model.parameters())[visible], start[visible])


def test_a_resume_point_holds_the_copies_and_not_the_rounded_weights(tmp_path):
    whole = trainer_of(bfloat16_model(), tmp_path / "whole")
    descend(whole.policy.model, whole.step, 60)
    first = trainer_of(bfloat16_model(), tmp_path / "parts")
    descend(first.policy.model, first.step, 40)
    first.save(40)
    second = trainer_of(bfloat16_model(), tmp_path / "parts")
    assert second.resume() == 40
    assert torch.equal(flat(second.masters), flat(first.masters))
    assert torch.equal(flat(second.parameters), flat(first.parameters))
    assert not torch.equal(flat(second.masters), flat(second.parameters))
    descend(second.policy.model, second.step, 20)
    assert torch.equal(flat(second.masters), flat(whole.masters))


def test_float32_weights_have_no_copies(tmp_path):
    trainer = trainer_of(tiny_model("qwen3", torch.float32), tmp_path)
    assert all(master is parameter for master, parameter in zip(trainer.masters, trainer.parameters, strict=True))


@pytest.mark.parametrize("reward_tokens", ["special", "text"])
def test_adapters_of_a_bfloat16_model_are_float32_themselves(tmp_path, reward_tokens):
    tokenizer = train_tokenizer(["some text"], 300)
    policy = Policy("tiny", tiny_model("qwen3", torch.bfloat16, vocab_size=len(tokenizer)), tokenizer)
    adapt(policy, ModelTable(dtype="bfloat16", lora=LoraTable(rank=2)), ChatTable(reward_tokens=reward_tokens), seed=0)
    trained = {name: p for name, p in policy.model.named_parameters() if p.requires_grad}
    assert any("lora_A" in name for name in trained)
    assert any("token_adapter" in name for name in trained) == (reward_tokens == "special")
    assert {p.dtype for p in trained.values()} == {torch.float32}
