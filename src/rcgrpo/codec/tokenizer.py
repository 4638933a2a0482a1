"""Small tokenizers of our own in the chat and tool format of the large models, and the reward tokens."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files
from typing import Any, Literal

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rcgrpo.conditioning import REWARD_TOKENS
from rcgrpo.errors import UserError

Family = Literal["qwen", "llama"]

_CONTROL = {
    "qwen": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    "llama": (
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|python_tag|>",
    ),
}
_TAGS = tuple(f"<{slash}{name}>" for name in ("tool_call", "tool_response", "tools", "think") for slash in ("", "/"))
"""One id each, but not special: decoding keeps them, as in Qwen2.5 and Qwen3."""

_DIGITS = {"qwen": r"\p{N}", "llama": r"\p{N}{1,3}"}
"""Qwen writes numbers digit by digit, Llama in groups of three; else they split text in the same way."""


def chat_template(family: Family) -> str:
    """Our own chat template in a family's format (``templates/*.jinja``)."""
    return (files("rcgrpo.codec") / "templates" / f"{family}.jinja").read_text(encoding="utf-8")


def train_tokenizer(texts: Iterable[str], vocab_size: int, family: Family = "qwen") -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with the family's control tokens and chat template attached.

    ``vocab_size`` counts everything: 256 bytes, merges and control tokens. It has fewer only if the texts hold
    too few pairs. Any text can be encoded. Raises :class:`UserError` if the size leaves no room for bytes.
    """
    tokenizer = Tokenizer(models.BPE())
    if family == "qwen":
        tokenizer.normalizer = normalizers.NFC()  # pyright: ignore[reportAttributeAccessIssue]
    pieces = pre_tokenizers.Split(Regex(_split_pattern(family)), behavior="isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pieces, as_bytes])  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]

    control = [AddedToken(text, special=True, normalized=False) for text in _CONTROL[family]]
    tags = [AddedToken(text, special=False, normalized=False) for text in _TAGS] if family == "qwen" else []
    room = vocab_size - len(control) - len(tags)
    if room < 256:
        raise UserError(f"vocab_size is {vocab_size}; bytes and control tokens alone need {vocab_size - room + 256}")
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=room, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(control)
    tokenizer.add_tokens(tags)

    end = {"qwen": "<|im_end|>", "llama": "<|eot_id|>"}[family]
    names = {"eos_token": end, "pad_token": {"qwen": "<|endoftext|>", "llama": "<|end_of_text|>"}[family]}
    if family == "llama":
        names["bos_token"] = "<|begin_of_text|>"
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    wrapped.chat_template = chat_template(family)
    return wrapped


def add_reward_tokens(tokenizer: PreTrainedTokenizerFast) -> int:
    """Make ``<|high_reward|>`` and ``<|low_reward|>`` special tokens; returns how many were new.

    The model's embeddings must then have at least ``len(tokenizer)`` rows.
    """
    new = [text for text in REWARD_TOKENS if text not in tokenizer.get_added_vocab()]
    for text in new:
        token: Any = AddedToken(text, special=True, normalized=False)
        tokenizer.add_tokens(token, special_tokens=True)
    return len(new)


def _split_pattern(family: Family) -> str:
    """The published pre-tokenisation rule of Qwen2 and Llama 3, its alternatives by name."""
    contraction = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    word = r"[^\r\n\p{L}\p{N}]?\p{L}+"
    symbols = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
    line_breaks, trailing_space, space = r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"
    return "|".join((contraction, word, _DIGITS[family], symbols, line_breaks, trailing_space, space))
