"""The rollout engine: token ids in, token ids out. It knows nothing of text, chat, tools or tasks.

Every episode is a coroutine that holds one row of the cache. One pump task serves them all: it lets every episode
that is ready submit, then runs ONE forward: either the new tokens of several rows (prompts, tool results) or one
decode step of all the rows that generate. A row whose tool is slow just does not ask; it holds up nobody.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from rcgrpo.episodes.types import Sampling
from rcgrpo.errors import UserError
from rcgrpo.policy.architecture import additive_mask, architecture
from rcgrpo.policy.cache import RaggedCache
from rcgrpo.policy.cascade import ATTENTION, Cascade, Clusters, Seat, bands, cluster, plan_cascade
from rcgrpo.policy.prefixes import plan
from rcgrpo.policy.sampling import Dice, draw

_HEADROOM = 256
"""Tokens reserved beyond a prompt: growing the cache copies it."""


_SCORES = 1 << 26
"""Attention scores of one layer that may live at once where shared prefixes are read once."""


class Completion(NamedTuple):
    """What one ``generate`` gave."""

    ids: list[int]
    logprobs: list[float]
    """Sampling log-probability of each id, nats: whole vocabulary, at the row's temperature (1 for greedy)."""
    stopped: bool
    """Ended with a stop id (the last of ``ids``). False: the limit of new tokens or of the row was hit."""


class _Request:
    """A ``generate`` under way."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()


class Row:
    """One episode's place in the engine. Made by ``Engine.row``; used by one coroutine."""

    def __init__(self, engine: Engine, prompt_ids: list[int], sampling: Sampling, slot: int) -> None:
        self.ids = list(prompt_ids)
        """All token ids so far: prompt, generated, appended."""
        self.sampling = sampling
        self._engine = engine
        self._slot = slot
        self._prompt_length = len(self.ids)
        self._cached = 0  # the first so many ids have their keys and values in the cache
        self._dice = Dice(sampling.seed)
        self._request: _Request | None = None
        self._cluster = -1  # among the engine's clusters; -1: came after they were found
        self._closed = False

    @property
    def room(self) -> int:
        """How many more tokens fit."""
        return self._engine.max_length - len(self.ids)

    def append(self, ids: Iterable[int]) -> None:
        """Add given tokens (a tool result, a user turn); they enter the live cache with the next ``generate``."""
        new = list(ids)
        if self._request is not None or self._closed:
            raise RuntimeError("append to a row that is generating or closed")
        if len(new) > self.room:
            raise UserError(f"{len(new)} tokens appended to a row with room for {self.room}: raise max_length")
        self.ids.extend(new)

    async def generate(self, max_new_tokens: int) -> Completion:
        """Sample until a stop id, ``max_new_tokens`` or the end of the row; a full row gives an empty completion."""
        if self._request is not None or self._closed:
            raise RuntimeError("generate on a row that is generating or closed")
        limit = min(max_new_tokens, self.room)
        if limit <= 0:
            return Completion([], [], stopped=False)
        self._request = _Request(limit)
        self._engine._submit(self)
        try:
            return await self._request.future
        finally:
            self._request = None
            self._engine._waiting.pop(self._slot, None)


class Engine:
    """Generates for many episodes at once from one model, on the model's device and in its dtype.

    ``slots``: rows that live at once; more episodes wait for a free one. ``max_length``: tokens per row.
    ``prefill_tokens``: padded tokens of one forward, which bounds its memory. ``share_prefixes``: compute what
    prompts have in common once. The weights must not change inside ``async with engine``; each such session starts
    with an empty cache and frees it at the end.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        stop_ids: Iterable[int],
        slots: int = 64,
        max_length: int = 8192,
        prefill_tokens: int = 4096,
        share_prefixes: bool = True,
    ) -> None:
        self._arch = architecture(model)
        positions = self._arch.config.max_position_embeddings
        if max_length > positions:
            raise UserError(f"max_length={max_length}: the model has {positions} positions; lower max_length")
        for name, value in (("slots", slots), ("max_length", max_length), ("prefill_tokens", prefill_tokens)):
            if value < 1:
                raise UserError(f"{name}={value}: must be at least 1")
        self.stop_ids = frozenset(stop_ids)
        self.slots, self.max_length = slots, max_length
        self.prefill_tokens, self.share_prefixes = prefill_tokens, share_prefixes
        self._pump_task: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self.forwards = {"decode": 0, "cascade": 0, "extend": 0}
        """Forwards run, by kind; ``cascade``: those of the decode steps that read shared prefixes once."""
        self.tokens = {"generated": 0, "computed": 0, "shared": 0}
        """Tokens sampled; prompt and appended tokens put through the model; prompt tokens copied instead."""

    async def __aenter__(self) -> Engine:
        if self._pump_task is not None:
            raise RuntimeError("the engine is already running")
        parameter = next(self._arch.causal_lm.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype
        self._was_training = self._arch.causal_lm.training
        self._arch.causal_lm.eval()
        self._cascading = self.share_prefixes and self._arch.config._attn_implementation == "sdpa"
        if self._cascading:
            self._arch.causal_lm.set_attn_implementation(ATTENTION)
        self._cache = RaggedCache(self._arch, self._dtype, self._device)
        self._free = list(range(self.slots))
        self._vacancy = asyncio.Semaphore(self.slots)
        self._rows: dict[int, Row] = {}
        self._waiting: dict[int, Row] = {}  # rows with a request, by slot
        self._residents: dict[int, np.ndarray] = {}  # prompt ids whose keys and values lie at a slot's beginning
        self._clusters: Clusters | None = None
        self._debt = 0
        self._submissions = 0
        self._wake = asyncio.Event()
        self._failure = None
        self._pump_task = asyncio.create_task(self._pump())
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._pump_task is not None
        self._pump_task.cancel()
        with suppress(asyncio.CancelledError):
            await self._pump_task
        self._pump_task = None
        for row in list(self._waiting.values()):
            if row._request is not None:
                row._request.future.cancel()
        del self._cache, self._clusters
        if self._cascading:
            self._arch.causal_lm.set_attn_implementation("sdpa")
        self._arch.causal_lm.train(self._was_training)

    @asynccontextmanager
    async def row(self, prompt_ids: list[int], sampling: Sampling) -> AsyncIterator[Row]:
        """A row for one episode, as soon as a slot is free; left, it is free again.

        Do not wait for a second row while holding one: with all slots held that way nobody could go on.
        """
        if not 0 < len(prompt_ids) < self.max_length:
            raise UserError(f"prompt of {len(prompt_ids)} tokens: needs 1 to {self.max_length - 1}; raise max_length")
        if self._pump_task is None:
            raise RuntimeError("rows exist inside 'async with engine' only")
        async with self._vacancy:
            row = Row(self, prompt_ids, sampling, heapq.heappop(self._free))
            self._rows[row._slot] = row
            try:
                yield row
            finally:
                row._closed = True
                del self._rows[row._slot]
                heapq.heappush(self._free, row._slot)

    # The pump

    def _submit(self, row: Row) -> None:
        if self._failure is not None:
            raise RuntimeError("the engine has failed") from self._failure
        if self._pump_task is None:
            raise RuntimeError("the engine is not running")
        self._waiting[row._slot] = row
        self._submissions += 1
        self._wake.set()

    async def _pump(self) -> None:
        try:
            while True:
                await self._listen()
                self._step()
        except Exception as error:  # noqa: BLE001 - whatever it is, every waiting episode gets it
            self._failure = error
            for row in self._waiting.values():
                if row._request is not None and not row._request.future.done():
                    row._request.future.set_exception(error)

    async def _listen(self) -> None:
        """Let the episodes run until none of them submits any more; with nothing to do, wait for one that does."""
        for _ in range(2):
            await asyncio.sleep(0)
        heard = -1
        while heard != self._submissions:
            heard = self._submissions
            await asyncio.sleep(0)
        while not self._waiting:
            self._wake.clear()
            await self._wake.wait()
            await asyncio.sleep(0)

    @torch.inference_mode()
    def _step(self) -> None:
        """One decode step, or the new tokens of the rows that wait.

        New tokens wait to be joined by others while the rest decodes, until the steps they lost add up to what
        their forward costs the decoding rows: then neither waiting nor interrupting is ever far from the best.
        """
        rows = [row for row in self._waiting.values() if row._request is not None and not row._request.future.done()]
        extending = [row for row in rows if len(row.ids) - row._cached > 1]
        decoding = [row for row in rows if len(row.ids) - row._cached == 1]
        self._debt += len(extending)
        if extending and self._debt > len(decoding):
            self._debt = 0
            self._extend(extending)
        elif decoding:
            self._decode(decoding)

    def _deliver(self, rows: list[Row], logits_NV: Tensor) -> None:
        """Sample one token for each of N rows and finish the requests that end with it."""
        tokens_N, logprobs_N = draw(logits_NV, [row.sampling for row in rows], [row._dice for row in rows])
        self.tokens["generated"] += len(rows)
        for row, token, logprob in zip(rows, tokens_N.tolist(), logprobs_N.tolist(), strict=True):
            request = row._request
            assert request is not None
            if math.isnan(logprob):
                raise FloatingPointError("the model's logits are NaN: the weights have diverged or dtype overflowed")
            row.ids.append(token)
            request.ids.append(token)
            request.logprobs.append(logprob)
            stopped = token in self.stop_ids
            if stopped or len(request.ids) == request.limit:
                del self._waiting[row._slot]
                request.future.set_result(Completion(request.ids, request.logprobs, stopped))

    # Forwards

    def _forward(self, slots: list[int], new: list[list[int]], starts: list[int]) -> Tensor:
        """Run the new ids of M slots after the ``starts`` tokens they hold; logits [M, V] of the last ones.

        Shorter rows are padded on the left, so that the last column is every row's last token. Padding sees something
        finite, and is never stored.
        """
        length = max(map(len, new))
        reach = max(start + len(ids) for start, ids in zip(starts, new, strict=True))
        self._cache.reserve(max(slots) + 1, reach)
        device = self._device
        ids_ML = torch.tensor([[0] * (length - len(ids)) + ids for ids in new], device=device)
        slots_M, starts_M, lengths_M = torch.tensor([slots, starts, [len(ids) for ids in new]], device=device)
        offset_ML = torch.arange(-length, 0, device=device) + lengths_M[:, None]
        positions_ML = (starts_M[:, None] + offset_ML).clamp_(min=0)
        padded = any(len(ids) != length for ids in new)
        self._cache.aim(slots_M, slots_M, positions_ML, offset_ML >= 0 if padded else None)
        if not padded and not any(starts):  # plain causal attention, whose kernels skip what lies above the diagonal
            self._cache.look(slice(0, reach))
            return self._logits(ids_ML, positions_ML, None)
        seen_MLS = torch.arange(reach, device=device) <= positions_ML[:, :, None]
        ends = [start + len(ids) for start, ids in zip(starts, new, strict=True)]
        return self._attending(ids_ML, positions_ML, seen_MLS, slots, list(range(len(slots))), ends)[0]

    def _attending(
        self,
        ids_TL: Tensor,
        positions_TL: Tensor,
        seen_TLS: Tensor,
        slots: list[int],
        places: list[int],
        ends: list[int],
    ) -> tuple[Tensor, bool]:
        """Logits [T, V] of the last new token of every row; whether shared prefixes were read once.

        ``slots``: whose rows these are, each at its place among the T and with its end; other places are passengers.
        """
        plan = self._plan(slots, places, ends, seen_TLS)
        if plan is not None:
            start, cascades = plan
            self._cache.look(slice(start, seen_TLS.shape[2]))
            return self._logits(ids_TL, positions_TL, None, cascades), True
        count, length, reach = seen_TLS.shape
        self._cache.look(slice(0, reach))
        alike = length == 1 and len(ends) == count and min(ends) == reach  # every row sees all
        mask_T1LS = None if alike else additive_mask(seen_TLS[:, None], self._dtype)
        return self._logits(ids_TL, positions_TL, mask_T1LS), False

    def _plan(
        self, slots: list[int], places: list[int], ends: list[int], seen_TLS: Tensor
    ) -> tuple[int, list[Cascade]] | None:
        """How shared prefixes are read once; None: every row is read in full."""
        owners = [self._rows[slot] for slot in slots]
        if self._clusters is None or any(row._cluster < 0 for row in owners):
            return None
        if seen_TLS.numel() * self._arch.config.num_attention_heads > _SCORES:
            return None
        seats = [Seat(at, row._cluster, end) for at, row, end in zip(places, owners, ends, strict=True)]
        return plan_cascade(self._clusters, seats, seen_TLS, self._dtype)

    def _logits(
        self, ids_TL: Tensor, positions_TL: Tensor, mask_T1LS: Tensor | None, cascades: Sequence[Cascade] = ()
    ) -> Tensor:
        return self._arch.causal_lm(
            input_ids=ids_TL,
            position_ids=positions_TL,
            attention_mask=mask_T1LS,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
            cascades=cascades,
        ).logits[:, -1]

    def _decode(self, rows: list[Row]) -> None:
        """One token for every row. Attention reads the slots below the highest; the idle ones among them ride along."""
        rows = self._compacted(rows)
        slots = [row._slot for row in rows]
        top = slots[-1] + 1
        ids, positions, busy = [0] * top, [0] * top, [False] * top
        for row in rows:
            ids[row._slot], positions[row._slot], busy[row._slot] = row.ids[-1], row._cached, True
        reach = max(positions) + 1
        self._cache.reserve(top, reach)
        ids_T, positions_T, slots_T = torch.tensor([ids, positions, list(range(top))], device=self._device)
        valid_T1 = None if len(rows) == top else torch.tensor(busy, device=self._device)[:, None]
        self._cache.aim(slice(top), slots_T, positions_T[:, None], valid_T1)
        seen_T1S = torch.arange(reach, device=self._device) <= positions_T[:, None, None]
        if self._clusters is not None and self._deserted(self._clusters):
            self._find_clusters()  # most of them have no row left
        ends = [row._cached + 1 for row in rows]
        logits_TV, once = self._attending(ids_T[:, None], positions_T[:, None], seen_T1S, slots, slots, ends)
        self.forwards["decode"] += 1
        self.forwards["cascade"] += once
        for row in rows:
            row._cached += 1
        self._deliver(rows, logits_TV if len(rows) == top else logits_TV[slots])

    def _deserted(self, clusters: Clusters) -> bool:
        return 2 * len({row._cluster for row in self._rows.values()} - {-1}) <= len(clusters.lengths)

    def _find_clusters(self) -> None:
        """Group the rows by what their prompts share; done when new ones arrive."""
        self._clusters = None
        rows = [row for row in self._rows.values() if row._cached]
        if not self._cascading or len(rows) < 2:
            return
        groups = cluster([self._residents[row._slot] for row in rows])
        band = bands([length for _, length in groups])
        order = sorted(range(len(groups)), key=lambda g: (band[g], min(rows[i]._slot for i in groups[g][0])))
        groups, band = [groups[g] for g in order], [band[g] for g in order]
        for c, (members, _) in enumerate(groups):
            for i in members:
                rows[i]._cluster = c
        lengths = [length for _, length in groups]
        if len(groups) < len(rows):
            first = [rows[members[0]]._slot for members, _ in groups]
            self._clusters = Clusters(self._stacked(first, max(lengths)), lengths, band)

    def _stacked(self, slots: list[int], length: int) -> list[Tensor]:
        """Where decode steps read the prefixes that begin these slots."""
        return self._cache.stacked(slots, length)

    def _compacted(self, rows: list[Row]) -> list[Row]:
        """Sort by slot; where too many idle slots lie among the decoding ones, move the highest rows into them."""
        rows = sorted(rows, key=lambda row: row._slot)
        if rows[-1]._slot + 1 - len(rows) <= len(rows) // 8:
            return rows
        taken = {row._slot for row in rows}
        holes = [slot for slot in range(len(rows)) if slot not in taken]
        for row, hole in zip(reversed(rows), holes, strict=False):
            self._move(row, hole)
        return sorted(rows, key=lambda row: row._slot)

    def _move(self, row: Row, target: int) -> None:
        """Put ``row`` into slot ``target``; whoever holds that slot gets the row's."""
        old, other = row._slot, self._rows.get(target)
        if other is None:
            self._cache.copy([(old, target, row._cached)])
            self._free[self._free.index(target)] = old
            heapq.heapify(self._free)
            self._residents.pop(target, None)
            del self._rows[old]
        else:
            if not other._cached:  # what its slot still holds of an earlier row is not worth moving
                self._residents.pop(target, None)
            self._cache.swap(old, target, max(row._cached, other._cached))
            other._slot = old
            self._rows[old] = other
        row._slot = target
        self._rows[target] = row
        for table in (self._waiting, self._residents):
            a, b = table.pop(old, None), table.pop(target, None)
            if a is not None:
                table[target] = a  # type: ignore[assignment]
            if b is not None:
                table[old] = b  # type: ignore[assignment]

    def _extend(self, rows: list[Row]) -> None:
        """Compute the new tokens of ``rows`` and sample the token after them."""
        longest = max(len(row.ids) for row in rows)
        self._cache.reserve(max(row._slot for row in rows) + 1, min(longest + _HEADROOM, self.max_length))
        self._run_wave([row for row in rows if row._cached])
        waves: list[list[Row]] = [[]]
        arrived = [row for row in rows if not row._cached]
        prompts = [np.array(row.ids[: row._prompt_length]) for row in arrived]
        copies: dict[int, list[tuple[Row, int, int]]] = {}
        if self.share_prefixes:
            for step in plan(prompts, [row._slot for row in arrived], self._residents):
                row = arrived[step.row]
                while len(waves) <= step.wave:
                    waves.append([])
                waves[step.wave].append(row)
                slot = step.slot if step.source is None else arrived[step.source]._slot
                if slot is not None:
                    copies.setdefault(step.wave, []).append((row, slot, step.length))
        else:
            waves[0] += arrived
        for row, prompt in zip(arrived, prompts, strict=True):
            self._residents[row._slot] = prompt
        for wave, members in enumerate(waves):
            self._take_prefixes(copies.get(wave, []))
            self._run_wave(members)
        if arrived:
            self._find_clusters()

    def _take_prefixes(self, copies: list[tuple[Row, int, int]]) -> None:
        if copies:
            self._cache.reserve(max(row._slot for row, _, _ in copies) + 1, 0)
            self._cache.copy([(slot, row._slot, length) for row, slot, length in copies if slot != row._slot])
        for row, _, length in copies:
            row._cached = length
            self.tokens["shared"] += length

    def _run_wave(self, rows: list[Row]) -> None:
        """Ragged forwards of at most ``prefill_tokens`` padded tokens; a longer row goes in pieces, alone."""
        rows = sorted(rows, key=lambda row: len(row.ids) - row._cached)
        batch: list[Row] = []
        for row in rows:
            while len(row.ids) - row._cached > self.prefill_tokens:
                self._compute([row], self.prefill_tokens)
            if (len(batch) + 1) * (len(row.ids) - row._cached) > self.prefill_tokens:
                self._finish(batch)
                batch = []
            batch.append(row)
        self._finish(batch)

    def _finish(self, rows: list[Row]) -> None:
        rows = sorted(rows, key=lambda row: (row._cluster, row._slot))
        if rows:
            self._deliver(rows, self._compute(rows, self.prefill_tokens))

    def _compute(self, rows: list[Row], limit: int) -> Tensor:
        new = [row.ids[row._cached : row._cached + limit] for row in rows]
        logits_MV = self._forward([row._slot for row in rows], new, [row._cached for row in rows])
        self.forwards["extend"] += 1
        for row, ids in zip(rows, new, strict=True):
            row._cached += len(ids)
            self.tokens["computed"] += len(ids)
        return logits_MV
