"""Load and save policies: a causal language model and its tokenizer, as Hugging Face checkpoints."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging

from rcgrpo.codec.tokenizer import add_reward_tokens
from rcgrpo.conditioning import REWARD_TOKENS
from rcgrpo.episodes.types import RewardToken
from rcgrpo.errors import UserError

logging.disable_progress_bar()  # the run shows its own progress

EMBEDDED = {"toolworld-base": "rcgrpo.environments.toolworld", "bfcl-base": "rcgrpo.environments.bfcl"}
"""The small base models that ship with the package, made by the recipes of these names; each in its world's folder."""


@dataclass
class Policy:
    """A named model with its tokenizer. ``model`` may be wrapped by peft while it trains."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast


def pick_device(device: str) -> torch.device:
    """``auto``: the process's GPU where there is one, else the CPU."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("model.device = 'cuda', but this machine has no GPU that torch can use; take 'auto' or 'cpu'")
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def load_policy(path: str | Path, *, name: str, dtype: str = "float32", device: str = "auto") -> Policy:
    """Load a checkpoint folder, a hub name, or one of :data:`EMBEDDED`."""
    source = str(files(EMBEDDED[str(path)]) / "base") if str(path) in EMBEDDED else str(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, dtype), attn_implementation="sdpa")
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"model.path = {str(path)!r} cannot be loaded as a causal language model: {first}") from error
    return Policy(name, model.to(pick_device(device)).eval(), tokenizer)  # pyright: ignore[reportArgumentType]


def teach_reward_tokens(policy: Policy) -> list[int]:
    """Make the reward tokens special tokens of tokenizer and embeddings; return their ids.

    A model whose tokenizer has them already is left as it is. Each new row starts as the word that the token names:
    the mean embedding of the pieces of ``" high"`` or ``" low"``, so that what the model knows of these words carries
    over. From random rows a small model learns nothing of them in a few hundred steps (LOG.md).
    """
    if not add_reward_tokens(policy.tokenizer):
        return reward_token_ids(policy.tokenizer)
    ids = reward_token_ids(policy.tokenizer)
    words = [policy.tokenizer.encode(f" {token.value}", add_special_tokens=False) for token in RewardToken]
    if len(policy.tokenizer) > _embeddings(policy)[0].shape[0]:
        policy.model.resize_token_embeddings(len(policy.tokenizer), mean_resizing=False)
    with torch.no_grad():
        for weight in _embeddings(policy):
            for id, pieces in zip(ids, words, strict=True):
                weight[id] = weight[pieces].float().mean(0).to(weight.dtype)
    return ids


def _embeddings(policy: Policy) -> list[torch.Tensor]:
    """Input and output embedding matrices; one where they are tied."""
    layers = (policy.model.get_input_embeddings(), policy.model.get_output_embeddings())
    weights: list[Any] = [layer.weight for layer in layers if layer is not None]
    return weights[:1] if len(weights) == 2 and weights[0] is weights[1] else weights


def reward_token_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Ids of ``<|high_reward|>`` and ``<|low_reward|>`` in a tokenizer that has them as special tokens."""
    ids: Any = tokenizer.convert_tokens_to_ids(list(REWARD_TOKENS))
    return list(ids)


def save_policy(policy: Policy, folder: Path) -> None:
    """Write a checkpoint that ``AutoModelForCausalLM.from_pretrained`` loads; complete or not at all."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    policy.model.save_pretrained(partial)
    policy.tokenizer.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
