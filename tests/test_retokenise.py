"""A policy that gets another tokenizer keeps its layers, and its tokens keep what they mean."""

import hashlib
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from rcgrpo.codec.tokenizer import add_reward_tokens, train_tokenizer
from rcgrpo.conditioning import REWARD_TOKENS
from rcgrpo.config import parse_recipe
from rcgrpo.errors import UserError
from rcgrpo.policy.load import Policy, save_policy
from rcgrpo.stages.directory import RunDirectory
from rcgrpo.stages.retokenise import replace_tokenizer
from rcgrpo.stages.run import run_stage
from tiny_models import tiny_model

OLD_TEXTS = ["the old world has a cat and a catalogue", "cat the catalogue, then move the cat"] * 3
NEW_TEXTS = ["the new world has a category: catapults", "Zürich → catapult ☃ the category"] * 3


def policy_with(tokenizer: PreTrainedTokenizerFast, *, tied: bool) -> Policy:
    model = tiny_model("qwen3", torch.float32, vocab_size=len(tokenizer), tie_word_embeddings=tied)
    return Policy("old", model, tokenizer)


def matrices(policy: Policy) -> list[torch.Tensor]:
    return [policy.model.get_input_embeddings().weight, policy.model.get_output_embeddings().weight]


@pytest.fixture
def old() -> PreTrainedTokenizerFast:
    return train_tokenizer(OLD_TEXTS, 300)


@pytest.fixture
def new() -> PreTrainedTokenizerFast:
    return train_tokenizer(NEW_TEXTS, 330)


@pytest.mark.parametrize("tied", [True, False])
def test_layers_stay_and_rows_follow_the_text_of_their_token(old, new, tied):
    policy = policy_with(old, tied=tied)
    before = {name: weight.clone() for name, weight in policy.model.state_dict().items()}
    embedded, head = (matrix.detach().clone() for matrix in matrices(policy))
    shared = replace_tokenizer(policy, new)

    embeddings = {"model.embed_tokens.weight", "lm_head.weight"}
    after = policy.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before.keys() - embeddings)
    assert policy.tokenizer is new
    assert policy.model.config.vocab_size == len(new) == after["model.embed_tokens.weight"].shape[0]
    assert policy.model.config.eos_token_id == new.convert_tokens_to_ids("<|im_end|>")

    old_ids, new_ids = old.get_vocab(), new.get_vocab()
    common = old_ids.keys() & new_ids.keys()
    assert shared == len(common) > 256
    for was, now in zip((embedded, head), matrices(policy), strict=True):
        assert all(torch.equal(was[old_ids[text]], now[new_ids[text]]) for text in common)
    # an independent oracle for a token only the new one has: the old tokenizer's own encoding of that text
    text = " category"
    (token,) = new.encode(text, add_special_tokens=False)
    pieces = old.encode(text, add_special_tokens=False)
    assert len(pieces) > 1
    torch.testing.assert_close(matrices(policy)[0][token], embedded[pieces].mean(0))
    torch.testing.assert_close(matrices(policy)[1][token], head[pieces].mean(0))


def test_the_negative_control_a_plain_resize_gives_shared_tokens_foreign_rows(old, new):
    policy = policy_with(old, tied=True)
    embedded = matrices(policy)[0].detach().clone()
    policy.model.resize_token_embeddings(len(new), mean_resizing=False)
    old_ids, new_ids = old.get_vocab(), new.get_vocab()
    common = old_ids.keys() & new_ids.keys()
    assert not all(torch.equal(embedded[old_ids[t]], matrices(policy)[0][new_ids[t]]) for t in common)


def test_a_text_of_shared_tokens_is_predicted_as_before(old, new):
    policy = policy_with(old, tied=True)
    text = "<|im_start|>: 0 9<tool_call>"
    was_ids, now_ids = old.encode(text), new.encode(text)
    shared = sorted(old.get_vocab().keys() & new.get_vocab().keys())
    assert old.convert_ids_to_tokens(was_ids) == new.convert_ids_to_tokens(now_ids)
    with torch.no_grad():
        was = policy.model(torch.tensor([was_ids])).logits[..., old.convert_tokens_to_ids(shared)]
        replace_tokenizer(policy, new)
        now = policy.model(torch.tensor([now_ids])).logits[..., new.convert_tokens_to_ids(shared)]
    torch.testing.assert_close(was, now)


def test_a_tokenizer_that_is_not_byte_level_is_refused(old, new):
    policy = policy_with(old, tied=True)
    policy.tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a")))
    with pytest.raises(UserError, match="not a byte-level BPE"):
        replace_tokenizer(policy, new)


def recipe(base: Path, **stages):
    content = {
        "name": "retokenise",
        "toolworld": {"experts": 4, "train": 8, "test": 4},
        "model": {"path": str(base), "device": "cpu"},
        "stages": {"adapted": {"kind": "retokenise", "vocabulary": 340}, **stages},
    }
    return parse_recipe(content, "test")


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_the_stage_writes_a_loadable_checkpoint_the_same_each_time(tmp_path, old):
    add_reward_tokens(old)
    save_policy(policy_with(old, tied=True), tmp_path / "base")
    folders = []
    for attempt in ("first", "second"):
        run = RunDirectory(tmp_path / attempt)
        run.prepare(recipe(tmp_path / "base"), [])
        result = run_stage(run, "adapted")
        folders.append(run.stage("adapted").checkpoint)
    assert hashes(folders[0]) == hashes(folders[1])
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folders[0]), AutoTokenizer.from_pretrained(folders[0])
    assert result["vocabulary"] == len(tokenizer) == model.config.vocab_size == 342
    assert all(len(tokenizer.encode(token, add_special_tokens=False)) == 1 for token in REWARD_TOKENS)


def test_training_data_rendered_with_another_tokenizer_is_refused(tmp_path):
    sft = {
        "kind": "finetune",
        "start": "adapted",
        "data": ["experts"],
        "conditioned": False,
        "batch": 2,
        "steps": 1,
        "optimiser": {"lr": 1e-3},
    }
    gold = {"kind": "collect", "policy": "gold"}
    with pytest.raises(UserError, match=r"tokenizer of 'adapted'.*that of 'base'"):
        recipe(tmp_path, experts=gold, sft=sft)
    sound = recipe(tmp_path, experts={**gold, "tokenizer": "adapted"}, sft=sft)
    assert sound.needs("experts") == ["adapted"]
    with pytest.raises(UserError, match="plays with its own"):
        recipe(tmp_path, experts={"kind": "collect", "policy": "base", "tokenizer": "adapted"})
