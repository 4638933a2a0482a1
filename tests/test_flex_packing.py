"""Packed groups by flex attention against whole sequences: log-probs and gradients in float64."""

import pytest
import torch

from rcgrpo.policy import flex_packing
from rcgrpo.policy.flex_packing import FlexScorer
from rcgrpo.policy.packing import ScoringBatch
from rcgrpo.policy.scoring import Scorer
from tiny_models import ARCHITECTURES, random_ids, tiny_model


@pytest.fixture(autouse=True)
def short_rows(monkeypatch):
    monkeypatch.setattr(flex_packing, "MULTIPLE", 32)


def batch() -> ScoringBatch:
    generator = torch.Generator().manual_seed(4)
    sequences, masks, groups = [], [], []
    for group, (prefix, lengths) in enumerate([(30, (9, 14, 5)), (17, (6, 7)), (0, (12,))]):
        common = random_ids(generator, prefix)
        for length in lengths:
            sequences.append(common + random_ids(generator, length))
            masks.append([0] * (prefix + 2) + [int(i % 4 < 3) for i in range(length - 2)])
            groups.append(group)
    return ScoringBatch.pack(sequences, masks, groups)


def scores_and_gradients(scorer, model):
    model.zero_grad()
    packed = batch()
    logprobs = scorer(packed, 0.8).logprobs_BL
    (logprobs * torch.linspace(0.5, 1.5, logprobs.shape[1])).sum().backward()
    return logprobs.detach(), [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("checkpoint", [False, True])
def test_log_probs_and_gradients_equal_those_of_whole_sequences(name, checkpoint):
    model = tiny_model(name, initializer_range=0.1)
    expected = scores_and_gradients(Scorer(model, shared_prefix=False), model)
    ours = scores_and_gradients(FlexScorer(model, checkpoint=checkpoint), model)
    torch.testing.assert_close(ours[0], expected[0], atol=1e-8, rtol=0)
    for gradient, oracle in zip(ours[1], expected[1], strict=True):
        torch.testing.assert_close(gradient, oracle, atol=1e-6, rtol=1e-6)
    assert model.config._attn_implementation == "sdpa"


def test_a_completion_that_sees_its_sibling_is_noticed(monkeypatch):
    honest = flex_packing.pattern_of
    joined = lambda groups, *rest: honest([g._replace(completions=[sum(g.completions)]) for g in groups], *rest)  # noqa: E731
    model = tiny_model()
    expected, _ = scores_and_gradients(Scorer(model, shared_prefix=False), model)
    monkeypatch.setattr(flex_packing, "pattern_of", joined)
    ours, _ = scores_and_gradients(FlexScorer(model), model)
    assert (ours - expected).abs().max() > 1e-3
