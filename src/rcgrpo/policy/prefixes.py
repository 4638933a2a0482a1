"""Which row computes which part of the prompts: every common prefix once.

Sorted prompts are a depth-first walk of their trie: what a prompt shares with any earlier one it shares with the one
right before it. So a row takes its prefix from the row that computes that trie node, and a node's depth is its wave.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


class Prefill(NamedTuple):
    """New prompt ``row`` starts with ``length`` tokens of ``source`` or ``slot``, once the waves before it have run."""

    row: int
    wave: int
    length: int
    source: int | None
    """Index of another new prompt, or None with ``length`` 0 or where ``slot`` is given."""
    slot: int | None
    """A slot of the cache that holds the prefix already."""


def common_length(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the longest common prefix of two id arrays [len a], [len b]."""
    n = min(len(a), len(b))
    differs = a[:n] != b[:n]
    first = int(differs.argmax()) if n else 0
    return first if n and differs[first] else n


def plan(prompts: list[np.ndarray], slots: list[int], residents: Mapping[int, np.ndarray]) -> list[Prefill]:
    """Plan the prefill of new ``prompts`` (non-empty id arrays) in ``slots``.

    ``residents`` says which ids a slot holds already, be its row alive or gone. What a prompt's own slot holds is
    used in place, and only by that prompt, which overwrites the rest. At least the last token of each prompt is left
    to compute: its logits are needed. Waves count from 0; the result is in the order of the prompts.
    """
    order = sorted(range(len(prompts)), key=lambda i: prompts[i].tolist())
    plans: dict[int, Prefill] = {}
    before: int | None = None
    for i in order:
        prompt, most = prompts[i], len(prompts[i]) - 1
        usable = (slot for slot in residents if slot == slots[i] or slot not in slots)
        stored = max(((min(common_length(prompt, residents[slot]), most), -slot) for slot in usable), default=(0, 0))
        shared = 0 if before is None else min(common_length(prompt, prompts[before]), most)
        source = before
        while source is not None and plans[source].length >= shared and plans[source].source is not None:
            source = plans[source].source
        if shared > stored[0] and source is not None:
            plans[i] = Prefill(i, plans[source].wave + 1, shared, source, None)
        elif stored[0]:
            plans[i] = Prefill(i, 0, stored[0], None, -stored[1])
        else:
            plans[i] = Prefill(i, 0, 0, None, None)
        before = i
    return [plans[i] for i in range(len(prompts))]
