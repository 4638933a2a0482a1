"""Give a policy another tokenizer, trained on the world it is about to enter; its layers stay as they are.

A small model's own vocabulary cuts the text of a foreign world into many short pieces. A new one makes episodes
shorter, and each new token starts out meaning what the old tokens of the same text meant.
"""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from rcgrpo.codec.codec import Codec
from rcgrpo.codec.tokenizer import add_reward_tokens, train_tokenizer
from rcgrpo.conditioning import REWARD_TOKENS
from rcgrpo.config import Recipe, RetokeniseTable
from rcgrpo.environments.protocol import tasks_of
from rcgrpo.errors import UserError
from rcgrpo.policy.load import Policy, load_policy, save_policy
from rcgrpo.stages.directory import RunDirectory
from rcgrpo.stages.setup import texts_of


def retokenise(run: RunDirectory, recipe: Recipe, name: str) -> dict[str, int]:
    """Train the tokenizer on the pool's tasks, carry the policy over, save it; return the counts."""
    table = recipe.stages[name]
    assert isinstance(table, RetokeniseTable)
    directory = run.stage(name)
    policy = load_policy(run.checkpoint(recipe, table.start), name=name, dtype=recipe.model.dtype, device="cpu")
    tasks = tasks_of(recipe.suite, run.split(), table.pool, table.limit)
    family = Codec(policy.tokenizer).family
    tokenizer = train_tokenizer(texts_of(recipe.suite, tasks), table.vocabulary, family)
    if any(token in policy.tokenizer.get_added_vocab() for token in REWARD_TOKENS):
        add_reward_tokens(tokenizer)
    shared = replace_tokenizer(policy, tokenizer)
    save_policy(policy, directory.checkpoint)
    return {"vocabulary": len(tokenizer), "shared_tokens": shared}


def replace_tokenizer(policy: Policy, new: PreTrainedTokenizerFast) -> int:
    """Put ``new`` in the place of the policy's tokenizer, in place; return how many tokens both have.

    A token that the old tokenizer has too keeps its row of the embeddings (and of the output matrix, where it is a
    matrix of its own); any other starts at the mean of the rows that the old tokenizer cuts its text into. No other
    weight changes. Raises :class:`UserError` if the old tokenizer is not a byte-level BPE, the kind that can write
    any text.
    """
    model = policy.model
    pieces = _old_pieces(policy.tokenizer.backend_tokenizer, new)
    with torch.no_grad():
        rows = [_means(weight, pieces) for weight in _matrices(model)]
        model.resize_token_embeddings(len(new), mean_resizing=False)
        for weight, values in zip(_matrices(model), rows, strict=True):
            weight.copy_(values)
    for config in (model.config, model.generation_config):
        for role in ("bos_token", "eos_token", "pad_token"):
            text = getattr(new, role)
            setattr(config, f"{role}_id", None if text is None else new.convert_tokens_to_ids(text))
    old_vocabulary = policy.tokenizer.get_vocab()
    policy.tokenizer = new
    return sum(text in old_vocabulary for text in new.get_vocab())


def _old_pieces(old: Tokenizer, new: PreTrainedTokenizerFast) -> list[list[int]]:
    """For each id of ``new``, the old ids that its text is made of: itself, where the old tokenizer has it."""
    vocabulary = old.get_vocab()
    if not isinstance(old.model, models.BPE) or not vocabulary.keys() >= set(pre_tokenizers.ByteLevel.alphabet()):
        raise UserError("retokenise: the start's tokenizer is not a byte-level BPE, so its tokens cannot be compared")
    added = new.get_added_vocab()
    pieces: list[list[int]] = [[] for _ in range(len(new))]
    for text, token in new.get_vocab().items():
        if text in vocabulary:
            pieces[token] = [vocabulary[text]]
        elif text in added:  # plain text
            pieces[token] = old.encode(text, add_special_tokens=False).ids
        else:  # bytes, written in the alphabet that both share
            pieces[token] = [piece.id for piece in old.model.tokenize(text)]
    return pieces


def _matrices(model: PreTrainedModel) -> list[Tensor]:
    """Input embeddings and output matrix, each [V, D]; tied ones are the same matrix twice."""
    layers: Any = (model.get_input_embeddings(), model.get_output_embeddings())
    return [layer.weight for layer in layers]


def _means(weight: Tensor, pieces: list[list[int]]) -> Tensor:
    """Row i: the mean of the rows ``pieces[i]`` of ``weight``, taken in float32; [len(pieces), D]."""
    return torch.stack([weight[ids].float().mean(0) for ids in pieces]).to(weight.dtype)
