"""Scoring: the shared-prefix forward against ordinary forwards, in values and in gradients."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from rcgrpo.errors import UserError
from rcgrpo.policy import branching, scoring
from rcgrpo.policy.packing import ScoringBatch, microbatches
from rcgrpo.policy.scoring import Scorer, reference_scores
from tiny_models import ARCHITECTURES, full_forward_logprobs, random_ids, tiny_model, with_exact_norms


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def episodes() -> tuple[list[list[int]], list[list[int]], list[str]]:
    """Ragged groups, interleaved, one of them a single episode and one with nothing in common."""
    generator = torch.Generator().manual_seed(1)
    sequences, masks, groups = [], [], []
    for name, common, members in (("a", 30, 3), ("b", 12, 2), ("c", 7, 1), ("d", 0, 2)):
        prefix = random_ids(generator, common)
        for j in range(members):
            n = 5 + 3 * j
            sequences.append(prefix + random_ids(generator, 3 + n + 2 + 4))
            masks.append([0] * (common + 3) + [1] * n + [0] * 2 + [1] * 3 + [0])
            groups.append(name)
    order = [3, 0, 5, 1, 7, 2, 6, 4]
    return tuple([values[i] for i in order] for values in (sequences, masks, groups))


def test_prefixes_end_before_the_first_trained_token():
    same = [1, 2, 3, 4, 5, 6]
    batch = ScoringBatch.pack([same, same, [9, 8]], [[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1], [0, 1]], ["x", "x", "y"])
    assert batch.prefix_length_N.tolist() == [2, 0]
    assert batch.ids_BL.tolist() == [[3, 4, 5, 6], [3, 4, 5, 6], [9, 8, 0, 0]]
    assert batch.mask_BL.int().tolist() == [[0, 1, 1, 1], [0, 0, 1, 1], [0, 1, 0, 0]]
    assert batch.align([[1, 2, 3], [4, 5], [6]]).tolist() == [[0, 1, 2, 3], [0, 0, 4, 5], [0, 6, 0, 0]]
    with pytest.raises(UserError, match="2 values for 3"):
        batch.align([[1, 2], [4, 5], [6]])
    with pytest.raises(UserError, match="first token"):
        ScoringBatch.pack([[1, 2]], [[1, 1]], ["x"])


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 1), min_size=1, max_size=9)), min_size=1, max_size=9)
)
def test_packed_sequences_unpack_to_what_they_were(rows):
    groups, sequences = zip(*rows, strict=True)
    masks = [[0] + [token % 2 for token in ids[1:]] for ids in sequences]
    batch = ScoringBatch.pack(sequences, masks, groups)
    whole_BS, start_B = batch.whole()
    for i, (ids, mask) in enumerate(zip(sequences, masks, strict=True)):
        assert whole_BS[i, : len(ids)].tolist() == ids
        start = int(start_B[i])
        assert [0] * start + batch.mask_BL[i, : len(ids) - start].int().tolist() == mask
        assert int(batch.mask_BL[i].sum()) == sum(mask)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_scores_equal_plain_forwards_of_each_sequence(name, attention):
    model = tiny_model(name, attn_implementation=attention)
    sequences, masks, groups = episodes()
    batch = ScoringBatch.pack(sequences, masks, groups)
    for options in ({}, {"packed": False}, {"shared_prefix": False}):
        scores = Scorer(model, **options)(batch, temperature=0.7)
        assert scores.logprobs_BL[~batch.mask_BL].abs().sum() == 0 == scores.entropy_BL[~batch.mask_BL].abs().sum()
        assert not scores.entropy_BL.requires_grad
        for row, (ids, mask) in enumerate(zip(sequences, masks, strict=True)):
            oracle = full_forward_logprobs(model, ids, 0.7)
            trained = [t for t, m in enumerate(mask) if m]
            expected = torch.stack([oracle[t - 1, ids[t]] for t in trained])
            entropy = torch.stack([-(oracle[t - 1].exp() * oracle[t - 1]).sum() for t in trained])
            # eager attention takes its softmax in float32
            tolerance = 1e-10 if attention == "sdpa" else 1e-4
            assert (scores.logprobs_BL[row][batch.mask_BL[row]] - expected).abs().max() < tolerance
            assert (scores.entropy_BL[row][batch.mask_BL[row]] - entropy).abs().max() < tolerance


def gradients(model, batch, **options) -> list[torch.Tensor]:
    """Gradients of a weighted sum of log-probs, each scaled like a mean over tokens."""
    model.zero_grad()
    weights_BL = torch.randn(batch.mask_BL.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    scores = Scorer(model, **options)(batch, temperature=0.7)
    ((scores.logprobs_BL * weights_BL).sum() / batch.mask_BL.sum()).backward()
    return [p.grad.clone() for p in model.parameters() if p.requires_grad]


def largest_difference(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    return max((x - y).abs().max().item() for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradients_equal_those_of_the_ordinary_forward(name, monkeypatch):
    model = with_exact_norms(tiny_model(name))
    batch = ScoringBatch.pack(*episodes())
    ordinary = gradients(model, batch, shared_prefix=False)
    assert max(g.abs().max().item() for g in ordinary) > 0.1
    whole = {"shared_prefix": False, "checkpoint": True}
    two_passes = ({"packed": False}, {"packed": False, "checkpoint": True})
    for options in ({}, {"checkpoint": True}, {"logits_chunk": 7}, *two_passes, whole):
        assert largest_difference(ordinary, gradients(model, batch, **options)) < 1e-12, options

    kept = scoring._Prefixes.update

    def detached(self, key_states, value_states, layer_idx, *args, **kwargs):
        return kept(self, key_states.detach(), value_states.detach(), layer_idx, *args, **kwargs)

    monkeypatch.setattr(scoring._Prefixes, "update", detached)
    assert largest_difference(ordinary, gradients(model, batch, packed=False)) > 1e-3

    backward = branching._backward

    def without_prefix(*args, **kwargs):
        d_query, d_key, d_value = backward(*args, **kwargs)
        causal = args[6]
        return (d_query, d_key, d_value) if causal else (d_query, d_key.zero_(), d_value.zero_())

    monkeypatch.setattr(branching, "_backward", without_prefix)
    assert largest_difference(ordinary, gradients(model, batch)) > 1e-3


def sparsely_trained() -> ScoringBatch:
    """A group with an untrained gap, an untrained member and a member of one trained token; a single; a group unread.

    Prefixes of 20, 0 and 9.
    """
    generator = torch.Generator().manual_seed(2)
    common = {"a": random_ids(generator, 20), "b": [], "c": random_ids(generator, 9)}
    rows = [
        ("a", [0, 0, 1, 1, 0, 0, 1, 0]),
        ("b", [0] * 8 + [1, 1, 0]),
        ("a", [0] * 6),
        ("c", [0] * 4),
        ("a", [0, 1, 0]),
        ("c", [0] * 3),
    ]
    sequences = [common[name] + [j] + random_ids(generator, len(own) - 1) for j, (name, own) in enumerate(rows)]
    masks = [[0] * len(common[name]) + own for name, own in rows]
    return ScoringBatch.pack(sequences, masks, [name for name, _ in rows])


@pytest.mark.parametrize("name", [*ARCHITECTURES, "lora"])
def test_what_the_last_layer_leaves_out_changes_nothing(name):
    model = with_exact_norms(tiny_model() if name == "lora" else tiny_model(name))
    model = lora(model) if name == "lora" else model
    batch = sparsely_trained()
    ordinary = gradients(model, batch, shared_prefix=False)
    expected = Scorer(model, shared_prefix=False)(batch, 0.7)
    assert max(g.abs().max().item() for g in ordinary) > 0.1
    for options in ({}, {"checkpoint": True}):
        scores = Scorer(model, **options)(batch, 0.7)
        assert (scores.logprobs_BL - expected.logprobs_BL).abs().max() < 1e-12
        assert (scores.entropy_BL - expected.entropy_BL).abs().max() < 1e-12
        assert largest_difference(ordinary, gradients(model, batch, **options)) < 1e-12, options


def test_queries_that_nothing_reads_meet_no_keys_in_the_last_layer(monkeypatch):
    rows: dict[str, list[int]] = {"flash": [], "_backward": []}

    def count(name: str, place: int):
        kernel = getattr(branching, name)

        def counted(*args):
            rows[name].append(args[place][..., 0].numel() // 4)  # heads
            return kernel(*args)

        monkeypatch.setattr(branching, name, counted)

    count("flash", place=0)
    count("_backward", place=1)
    batch = sparsely_trained()
    assert batch.prefix_length_N.tolist() == [20, 0, 9]
    gradients(tiny_model(), batch)
    whole = [20, 8, 6, 3, 17, 11, 9, 4, 3, 7]
    # of a: own spans from first to last wanted, a token before them, the prefix; of b: own, then what stands before it
    read = [5, 3, 1, 4, 2, 2]
    assert rows == {"flash": whole + read, "_backward": read + whole}


def test_a_packed_row_holds_every_token_once():
    sequences, masks, groups = episodes()
    batch = ScoringBatch.pack(sequences, masks, groups)
    packed, columns_BL, ids_S, positions_S = batch.in_one_row()
    assert [group.prefix for group in packed] == batch.prefix_length_N.tolist()
    assert len(ids_S) == batch.prefix_length_N.sum() + batch.length_B.sum() < sum(map(len, sequences))
    for row, (ids, group) in enumerate(zip(sequences, batch.group_B, strict=True)):
        start = len(ids) - int(batch.length_B[row])
        columns = columns_BL[row, : int(batch.length_B[row])]
        assert ids_S[columns].tolist() == ids[start:]
        assert positions_S[columns].tolist() == list(range(start, len(ids)))
        assert start == batch.prefix_length_N[group]


def test_checkpointing_recomputes_the_layers_and_leaves_them_as_they_were():
    model = tiny_model()
    calls = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    batch = ScoringBatch.pack(*episodes())
    for packed, passes in ((True, 1), (False, 2)):
        calls.clear()
        gradients(model, batch, packed=packed)
        plain = len(calls)
        gradients(model, batch, packed=packed, checkpoint=True)
        assert (plain, len(calls) - plain) == (passes, 2 * passes)
        assert "forward" not in vars(model.model.layers[0])
        assert model.config._attn_implementation == "sdpa"


def lora(model):
    torch.manual_seed(1)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"]))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter) * 0.2
    return adapted


def test_the_reference_of_lora_is_the_base_model():
    base = tiny_model()
    batch = ScoringBatch.pack(*episodes())
    alone = Scorer(copy.deepcopy(base))
    scorer = Scorer(lora(base))
    expected = alone(batch, 1.0).logprobs_BL.detach()
    reference = reference_scores(scorer, batch, 1.0)
    assert (reference.logprobs_BL - expected).abs().max() < 1e-10
    assert not reference.logprobs_BL.requires_grad
    assert (scorer(batch, 1.0).logprobs_BL - expected).abs().max() > 0.1
    assert (reference_scores(alone, batch, 1.0, reference=scorer).logprobs_BL - expected).abs().max() > 0.1
    with pytest.raises(UserError, match="second model"):
        reference_scores(alone, batch, 1.0)


def test_lora_gradients_equal_those_of_the_ordinary_forward():
    model = lora(with_exact_norms(tiny_model()))
    batch = ScoringBatch.pack(*episodes())
    ordinary = gradients(model, batch, shared_prefix=False)
    assert max(g.abs().max().item() for g in ordinary) > 1e-2
    assert largest_difference(ordinary, gradients(model, batch, checkpoint=True)) < 1e-12


def test_dropout_and_temperature_zero_are_refused():
    with pytest.raises(UserError, match="attention_dropout"):
        Scorer(tiny_model(attention_dropout=0.1))
    with pytest.raises(UserError, match="dropout must be 0"):
        Scorer(get_peft_model(tiny_model(), LoraConfig(r=2, lora_dropout=0.1, target_modules=["q_proj"])))
    with pytest.raises(UserError, match="temperature=0"):
        Scorer(tiny_model())(ScoringBatch.pack(*episodes()), 0)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(1, 5), st.integers(2, 20)), min_size=1, max_size=12),
    st.integers(1, 200),
)
def test_microbatches_keep_groups_together_within_the_budget(shapes, budget):
    sequences, masks, groups = [], [], []
    costs = {}
    for name, (common, members, length) in enumerate(shapes):
        for j in range(members):
            sequences.append([7] * common + [20 + j] * length)  # members differ from the first token after the prefix
            masks.append([0] * (common + length - 1) + [1])
            groups.append(name)
        costs[name] = common + members * length if members > 1 else common + length
    parts = microbatches(sequences, masks, groups, budget)
    assert sorted(i for part in parts for i in part) == list(range(len(groups)))
    homes = [{groups[i] for i in part} for part in parts]
    assert sum(map(len, homes)) == len(shapes)
    loads = [sum(costs[g] for g in home) for home in homes]
    assert all(load <= budget or len(home) == 1 for load, home in zip(loads, homes, strict=True))
    assert max(loads) - min(loads) <= max(costs.values())
