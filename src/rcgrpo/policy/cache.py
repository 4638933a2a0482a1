"""A K/V cache of ragged rows: one preallocated buffer per layer, every row with its own length.

``model(...)`` of transformers calls ``update`` once per layer. Where the new keys go and which slice attention reads
is the same for all layers, so the caller says it once per forward, with ``aim``.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor
from transformers import Cache

from rcgrpo.policy.architecture import Architecture


class RaggedCache(Cache):
    """Per layer a tensor [2 (key, value), slots, kv_heads, capacity, head_dim], zeros where nothing was written.

    Zeros and not ``empty``: attention multiplies masked values by 0, and 0 * NaN would be NaN.
    """

    def __init__(self, arch: Architecture, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(layers=[])  # the layers of transformers are not used: `update` is overridden
        self.kv_heads, self.head_dim = arch.kv_heads, arch.head_dim
        self.slots = self.capacity = 0
        self._buffers = [
            torch.zeros(2, 0, self.kv_heads, 0, self.head_dim, dtype=dtype, device=device) for _ in arch.layers
        ]
        self._heads = torch.arange(self.kv_heads, device=device)
        self._rows: slice | Tensor = slice(0)
        self._window = slice(0)
        self._source: Tensor | None = None
        self._target = torch.empty(0, dtype=torch.long, device=device)

    def reserve(self, slots: int, length: int) -> None:
        """Make room for ``slots`` rows of ``length`` tokens; grows geometrically and keeps what is stored."""
        if slots <= self.slots and length <= self.capacity:
            return
        grown_slots = self.slots if slots <= self.slots else max(slots, 2 * self.slots)
        grown = self.capacity if length <= self.capacity else max(-(-length // 64) * 64, self.capacity * 3 // 2)
        for layer, old in enumerate(self._buffers):
            new = old.new_zeros(2, grown_slots, self.kv_heads, grown, self.head_dim)
            new[:, : self.slots, :, : self.capacity] = old
            self._buffers[layer] = new
        self.slots, self.capacity = grown_slots, grown

    def copy(self, copies: list[tuple[int, int, int]]) -> None:
        """For each (source slot, target slot, length) copy the first ``length`` tokens. Sources are not targets."""
        targets: dict[tuple[int, int], list[int]] = defaultdict(list)
        for source, target, length in copies:
            targets[source, length].append(target)
        for (source, length), rows in targets.items():
            for buffer in self._buffers:
                buffer[:, rows, :, :length] = buffer[:, source : source + 1, :, :length]

    def swap(self, a: int, b: int, length: int) -> None:
        """Exchange the first ``length`` tokens of two slots."""
        for buffer in self._buffers:
            held = buffer[:, a, :, :length].clone()
            buffer[:, a, :, :length] = buffer[:, b, :, :length]
            buffer[:, b, :, :length] = held

    def aim(self, rows: slice | Tensor, slots_M: Tensor, positions_ML: Tensor, valid_ML: Tensor | None) -> None:
        """Say where the next forward's M x L new tokens go. Attention reads ``rows``.

        ``valid_ML`` (bool; None: all) marks the tokens to store; the others are padding and leave no trace.
        """
        rows_MH1 = (slots_M[:, None] * self.kv_heads + self._heads)[:, :, None]
        target = (rows_MH1 * self.capacity + positions_ML[:, None, :]).flatten()
        self._rows, self._source = rows, None
        if valid_ML is not None:
            self._source = valid_ML[:, None, :].expand(-1, self.kv_heads, -1).flatten().nonzero()[:, 0]
            target = target[self._source]
        self._target = target

    def look(self, window: slice) -> None:
        """Attention of the next forward reads these positions."""
        self._window = window

    def stacked(self, slots: list[int], length: int) -> list[Tensor]:
        """Copies of the first ``length`` tokens of C slots, per layer [2, C, kv_heads, length, head_dim]."""
        return [buffer[:, slots, :, :length] for buffer in self._buffers]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Store the new keys and values [M, kv_heads, L, head_dim]; return those of the aimed rows, all positions."""
        buffer = self._buffers[layer_idx]
        for half, states in zip(buffer, (key_states, value_states), strict=True):
            new = states.reshape(-1, self.head_dim)
            if self._source is not None:
                new = new[self._source]
            half.view(-1, self.head_dim).index_copy_(0, self._target, new)
        keys, values = buffer[:, self._rows, :, self._window]
        return keys, values
