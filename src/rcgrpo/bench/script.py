"""Make random weights play a given pattern of turns, by the same rule on both sides.

A message has a fixed number of tokens. The last ones are given: a tool call and the end, or the end alone. All others
are sampled, with control tokens barred, so that no message ends or calls a tool before its time.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from rcgrpo.bench.workloads import Script
from rcgrpo.codec.codec import Codec
from rcgrpo.episodes.types import Message, Sampling
from rcgrpo.policy import engine
from rcgrpo.policy.sampling import Dice, draw


def endings(script: Script, codec: Codec) -> list[list[int | None]]:
    """Per message, its tokens: None where it is sampled."""
    rows = []
    for count, calls in zip(script.tokens, script.calls, strict=True):
        message = Message(role="assistant", calls=[script.call] if calls else [])
        tail: list[int | None] = list(codec.assistant(message))
        rows.append([None] * (count - len(tail)) + tail)
    return rows


def barred(codec: Codec) -> Tensor:
    """Ids of all control tokens."""
    return torch.tensor(sorted(codec.tokenizer.get_added_vocab().values()))


@contextmanager
def scripted_engine(script: Script, codec: Codec) -> Iterator[None]:
    """Within: our engine draws by the script (its sampler does its usual work first)."""
    tokens = [token for message in endings(script, codec) for token in message]
    control = barred(codec)
    drawn: dict[Dice, int] = {}

    def scripted(logits_NV: Tensor, sampling: list[Sampling], dice: list[Dice]) -> tuple[Tensor, Tensor]:
        logits_NV = logits_NV.index_fill(1, control, float("-inf"))
        ids_N, logprobs_N = draw(logits_NV, sampling, dice)
        for row, die in enumerate(dice):
            position = drawn[die] = drawn.get(die, -1) + 1
            token = tokens[position]
            if token is not None:  # far from what the model would say: score it as if it had been certain
                ids_N[row], logprobs_N[row] = token, 0.0
        return ids_N, logprobs_N

    with patch.object(engine, "draw", scripted):
        yield


class _Scripted(LogitsProcessor):
    def __init__(self, tokens: list[int | None], start: int, control: Tensor) -> None:
        self.tokens, self.start, self.control = tokens, start, control

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        token = self.tokens[input_ids.shape[1] - self.start]
        if token is None:
            return scores.index_fill(1, self.control, float("-inf"))
        return torch.full_like(scores, float("-inf")).index_fill_(1, torch.tensor([token]), 0.0)


def script_generate(model: nn.Module, script: Script, codec: Codec) -> None:
    """Let ``model.generate`` write the script's messages, one per call, over and over."""
    rows, control, original = endings(script, codec), barred(codec), model.generate
    calls = 0

    def generate(generation_config: GenerationConfig, **kwargs: Any) -> Tensor:
        nonlocal calls
        tokens = rows[calls % len(rows)]
        calls += 1
        config = copy.copy(generation_config)
        config.max_new_tokens = len(tokens)
        processors = LogitsProcessorList([_Scripted(tokens, kwargs["input_ids"].shape[1], control)])
        return original(generation_config=config, logits_processor=processors, **kwargs)  # pyright: ignore

    model.generate = generate  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
