"""The engine for a GPU: decode steps in static shapes, captured as CUDA graphs, examined one step late.

Rows, prompts and turns are those of :class:`Engine`; only the decode step differs. All it needs lies in tensors of
fixed address and bucketed size, and the token it draws is the next step's input without passing through the host. The
host copies tokens to pinned memory asynchronously and reads them while the next step runs. A row that turns out to have
stopped has drawn one token too many; it is dropped, and so is the number it was drawn by. On a CPU the same code runs
with direct calls in place of graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rcgrpo.errors import UserError
from rcgrpo.policy.engine import Completion, Engine, Row, _Request
from rcgrpo.policy.static_attention import ATTENTION, CHUNK, Prefixes, Step, shared_prefixes
from rcgrpo.policy.static_sampling import draw_static

_NUMBERS = 256
"""Random numbers per row uploaded at once: so many steps go by before the host has to speak again."""


class Shape(NamedTuple):
    """The sizes of a decode step, all bucketed. One captured graph each."""

    slots: int
    start: int
    """The slots' own positions are read from here ..."""
    stop: int
    """... to here."""
    clusters: int
    """0: prefixes are not read apart."""
    seats: int
    nucleus: bool


@dataclass
class _Seating:
    """The rows that decode together, as the device knows them."""

    rows: list[Row]
    requests: list[_Request]
    shape: Shape
    reach: int
    """Positions that the next step reads."""
    left: int
    """Steps until some row is full, or the uploaded numbers are used up."""

    def serves(self, rows: list[Row]) -> bool:
        known = {id(row): request for row, request in zip(self.rows, self.requests, strict=True)}
        return len(rows) == len(known) and all(known.get(id(row)) is row._request for row in rows)


class _Flight(NamedTuple):
    """A step that was launched and not yet looked at."""

    rows: list[Row]
    requests: list[_Request]
    slots: list[int]
    tokens: Tensor
    logprobs: Tensor
    landed: Any
    """The event after which the host may read; None on a CPU."""


@dataclass
class Buffers:
    """Tensors of fixed address: what the host tells a step, and what the step tells the host and the next one."""

    ids: Tensor
    positions: Tensor
    busy: Tensor
    temperature: Tensor
    top_p: Tensor
    uniforms: Tensor
    drawn: Tensor
    prefix: Tensor
    home: Tensor
    members: Tensor
    length: Tensor
    tokens: Tensor
    logprobs: Tensor

    @classmethod
    def make(cls, slots: int, dtype: torch.dtype, device: torch.device) -> Buffers:
        def zeros(*shape: int, kind: torch.dtype = torch.long) -> Tensor:
            return torch.zeros(*shape, dtype=kind, device=device)

        return cls(
            ids=zeros(slots),
            positions=zeros(slots),
            busy=zeros(slots, kind=torch.bool),
            temperature=zeros(slots, kind=torch.float64),
            top_p=zeros(slots, kind=torch.float64),
            uniforms=zeros(slots, _NUMBERS, kind=torch.float64),
            drawn=zeros(slots),
            prefix=zeros(slots),
            home=zeros(slots),
            members=zeros(4 * slots),
            length=zeros(slots),
            tokens=zeros(slots),
            logprobs=zeros(slots, kind=torch.promote_types(dtype, torch.float32)),
        )

    def state(self) -> list[Tensor]:
        """What a step changes and the next one reads."""
        return [self.ids, self.positions, self.drawn]


@dataclass
class Graphs:
    """Runs a step by replaying its graph; a shape seen for the first time is warmed up and captured."""

    buffers: Buffers
    captured: dict[Shape, Any] = field(default_factory=dict)
    captures: int = 0
    _pool: Any = None

    def __call__(self, shape: Shape, step: Callable[[], None]) -> None:
        graph = self.captured.get(shape)
        if graph is None:
            graph = self.captured[shape] = self._capture(step)
        graph.replay()

    def _capture(self, step: Callable[[], None]) -> Any:
        """Two steps on a side stream, undone, and the capture, which computes nothing."""
        before = [t.clone() for t in self.buffers.state()]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                step()
                self._restore(before)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            step()
        self._pool = self._pool or graph.pool()
        self.captures += 1
        return graph

    def _restore(self, before: list[Tensor]) -> None:
        for tensor, saved in zip(self.buffers.state(), before, strict=True):
            tensor.copy_(saved)

    def forget(self) -> None:
        """The addresses have changed: nothing captured holds any more."""
        self.captured.clear()


@dataclass
class Direct:
    """Runs a step by calling it. Where there is no CUDA, and to compare with."""

    captures: int = 0

    def __call__(self, shape: Shape, step: Callable[[], None]) -> None:
        step()

    def forget(self) -> None:
        """Nothing is kept."""


class StaticEngine(Engine):
    """An :class:`Engine` with static decode steps. The model must have sdpa attention.

    ``graphs``: capture the steps (CUDA only); None: wherever there is CUDA. ``prefixes``: how shared prefixes are
    read; None: ``flash`` on CUDA in half precision, else ``matmul``. ``late``: look at a step's tokens after the next
    one is launched. ``window``: sizes are rounded up to it; larger means fewer graphs and more positions read in vain.
    ``reserve``: allocate all of slots x max_length at the start, so that addresses last; None: on CUDA.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        graphs: bool | None = None,
        prefixes: Prefixes | None = None,
        late: bool = True,
        window: int = 256,
        reserve: bool | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, **options)
        parameter = next(self._arch.causal_lm.parameters())
        cuda = parameter.device.type == "cuda"
        if self._arch.config._attn_implementation != "sdpa":
            raise UserError("the static engine needs a model loaded with attn_implementation='sdpa'")
        if graphs and not cuda:
            raise UserError("graphs=True: CUDA graphs need a GPU; leave it out")
        if prefixes == "flash" and cuda and parameter.dtype.itemsize != 2:
            raise UserError(f"prefixes='flash' with {parameter.dtype}: the kernel is for half precision; take 'matmul'")
        self.graphs = cuda if graphs is None else graphs
        self.prefixes: Prefixes = prefixes or ("flash" if cuda and parameter.dtype.itemsize == 2 else "matmul")
        self.captures = 0
        """Graphs captured in the last session."""
        self.late, self.window, self.reserve = late, window, cuda if reserve is None else reserve

    async def __aenter__(self) -> StaticEngine:
        await super().__aenter__()
        self._cascading = self.share_prefixes
        self._arch.causal_lm.set_attn_implementation(ATTENTION)
        most = _bucket(self.slots)
        if self.reserve:
            self._cache.reserve(most, self.max_length + 1)
        self._buffers = Buffers.make(most, self._dtype, self._device)
        self._runner = Graphs(self._buffers) if self.graphs else Direct()
        self._banks: list[Tensor] = []
        self._seating: _Seating | None = None
        self._flights: list[_Flight] = []
        self._spare: list[tuple[Tensor, Tensor]] = []
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._cascading = True  # the attention is to be put back in any case
        await super().__aexit__(*exc)
        self.captures = self._runner.captures
        del self._buffers, self._runner, self._banks, self._seating, self._flights, self._spare

    # What Engine calls

    @torch.inference_mode()
    def _step(self) -> None:
        rows = [row for row in self._waiting.values() if row._request is not None and not row._request.future.done()]
        extending = [row for row in rows if len(row.ids) - row._cached > 1]
        decoding = [row for row in rows if len(row.ids) - row._cached == 1]
        self._debt += len(extending)
        if extending and self._debt > len(decoding):
            self._debt = 0
            self._land(leave=0)
            self._seating = None
            self._extend(extending)
        elif decoding:
            self._decode(decoding)

    def _decode(self, rows: list[Row]) -> None:
        """Launch a step for these rows; look at the step before."""
        if self._seating is None or not self._seating.left or not self._seating.serves(rows):
            self._land(leave=0)
            rows = [row for row in rows if row._request is not None and not row._request.future.done()]
            if not rows:
                return
            self._seating = self._seat(rows)
        self._launch(self._seating)
        self._land(leave=int(self.late))

    def _stacked(self, slots: list[int], length: int) -> list[Tensor]:
        """Copy the prefixes to where captured steps read them."""
        count, reach = _bucket(len(slots)), -(-length // CHUNK) * CHUNK if self._chunked else _rounded(length, 64)
        shape = (2, count, self._cache.kv_heads, reach, self._cache.head_dim)
        old = self._banks[0].shape if self._banks else shape
        if not self._banks or old[1] < count or old[3] < reach:
            shape = (2, max(count, old[1]), shape[2], max(reach, old[3]), shape[4])
            self._banks = []
            self._runner.forget()
            self._banks = [torch.zeros(shape, dtype=self._dtype, device=self._device) for _ in self._arch.layers]
        for bank, buffer in zip(self._banks, self._cache._buffers, strict=True):
            bank[:, : len(slots), :, :length] = buffer[:, slots, :, :length]
        return self._banks

    def _plan(self, slots: list[int], places: list[int], ends: list[int], seen_TLS: Tensor) -> None:
        """Prompts and tool results read every row in full; decode steps are planned by :meth:`_share`."""

    @property
    def _chunked(self) -> bool:
        return self.prefixes == "flash"

    # Seating

    def _seat(self, rows: list[Row]) -> _Seating:
        """Tell the device who decodes from where, with which numbers to draw by."""
        rows = self._compacted(rows)
        requests = [row._request for row in rows]
        top = rows[-1]._slot + 1
        slots = _bucket(top)
        reach = max(row._cached for row in rows) + 1
        left = min(_NUMBERS, *(r.limit - len(r.ids) for r in requests if r is not None))
        size = self._cache.slots, self._cache.capacity
        self._cache.reserve(slots, reach + left + 1)  # the last position takes what idle slots write
        if size != (self._cache.slots, self._cache.capacity):
            self._runner.forget()
        sampled = [row for row in rows if row.sampling.temperature]
        b = self._buffers
        ids, positions, busy = [0] * slots, [0] * slots, [False] * slots
        temperature, top_p = [0.0] * slots, [1.0] * slots
        for row in rows:
            s = row._slot
            ids[s], positions[s], busy[s] = row.ids[-1], row._cached, True
            temperature[s], top_p[s] = row.sampling.temperature, row.sampling.top_p
        for tensor, values in (
            (b.ids, ids),
            (b.positions, positions),
            (b.busy, busy),
            (b.temperature, temperature),
            (b.top_p, top_p),
        ):
            _tell(tensor, values)
        if sampled:
            numbers = torch.zeros(slots, _NUMBERS, dtype=torch.float64)
            for row in sampled:
                numbers[row._slot, :left] = torch.tensor(row._dice.ahead(left), dtype=torch.float64)
            b.uniforms[:slots].copy_(numbers)
        b.drawn.zero_()
        clusters, seats, start = self._share(rows, slots, reach)
        nucleus = any(row.sampling.top_p < 1 for row in sampled)
        shape = Shape(slots, start, 0, clusters, seats, nucleus)
        return _Seating(rows, [r for r in requests if r is not None], shape, reach, left)

    def _share(self, rows: list[Row], slots: int, reach: int) -> tuple[int, int, int]:
        """Seat the rows at their clusters' prefixes: (clusters, seats of each, start of own positions)."""
        none = 0, 0, 0
        if self._clusters is not None and self._deserted(self._clusters):
            self._find_clusters()  # most of them have no row left
        clusters = self._clusters
        if clusters is None:
            return none
        members: list[list[int]] = [[] for _ in clusters.lengths]
        for row in rows:
            members[row._cluster].append(row._slot)
        count, seats = _bucket(len(members)), _bucket(max(map(len, members)))
        start = min(clusters.lengths[row._cluster] for row in rows) // 64 * 64
        saves = count * self._banks[0].shape[3] + slots * (reach - start) <= 0.7 * slots * reach
        if not saves or count * seats > 4 * slots or count * seats > len(self._buffers.members):
            return none
        home, prefix = [0] * slots, [1] * slots  # passengers see one position, and nobody reads what they get
        for c, taken in enumerate(members):
            for seat, slot in enumerate(taken):
                home[slot], prefix[slot] = c * seats + seat, clusters.lengths[c]
        flat = [slot for taken in members for slot in taken + [0] * (seats - len(taken))]
        b = self._buffers
        _tell(b.home, home)
        _tell(b.prefix, prefix)
        _tell(b.members, flat + [0] * (count * seats - len(flat)))
        _tell(b.length, clusters.lengths + [1] * (count - len(members)))
        return count, seats, start

    # Flying

    def _launch(self, seating: _Seating) -> None:
        stop = min(_rounded(seating.reach, self.window), self._cache.capacity)
        shape = seating.shape._replace(stop=stop)
        self._runner(shape, partial(self._device_step, shape))
        self.forwards["decode"] += 1
        self.forwards["cascade"] += shape.clusters > 0
        seating.reach += 1
        seating.left -= 1
        slots = [row._slot for row in seating.rows]
        tokens, logprobs = self._buffers.tokens, self._buffers.logprobs
        event = None
        if self._device.type == "cuda":
            pinned = self._spare.pop() if self._spare else _pinned(tokens, logprobs)
            pinned[0].copy_(tokens, non_blocking=True)
            pinned[1].copy_(logprobs, non_blocking=True)
            tokens, logprobs = pinned
            event = torch.cuda.Event()
            event.record()
        else:
            tokens, logprobs = tokens.clone(), logprobs.clone()
        self._flights.append(_Flight(seating.rows, seating.requests, slots, tokens, logprobs, event))

    def _device_step(self, shape: Shape) -> None:
        """One decode step of all slots; reads and writes fixed addresses only, and never asks the host."""
        b, n = self._buffers, shape.slots
        positions_B, busy_B = b.positions[:n], b.busy[:n]
        waste = self._cache.capacity - 1
        targets_B1 = torch.where(busy_B, positions_B, waste)[:, None]
        self._cache.aim(slice(n), torch.arange(n, device=self._device), targets_B1, None)
        self._cache.look(slice(shape.start, shape.stop))
        columns_S = torch.arange(shape.start, shape.stop, device=self._device)
        seen_BS = columns_S <= positions_B[:, None]
        step = Step(seen_BS)
        if shape.clusters:
            own_BS = seen_BS & (columns_S >= b.prefix[:n, None])
            banks = [bank[:, : shape.clusters] for bank in self._banks]
            members_K = b.members[: shape.clusters * shape.seats]
            length_C = b.length[: shape.clusters]
            step = Step(own_BS, shared_prefixes(self.prefixes, banks, length_C, members_K, b.home[:n], own_BS))
        logits_BV = self._arch.causal_lm(
            input_ids=b.ids[:n, None],
            position_ids=positions_B[:, None],
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
            static=step,
        ).logits[:, -1]
        uniform_B = b.uniforms[:n].gather(1, b.drawn[:n, None])[:, 0]
        tokens_B, logprobs_B = draw_static(logits_BV, b.temperature[:n], b.top_p[:n], uniform_B, nucleus=shape.nucleus)
        b.tokens[:n].copy_(tokens_B)
        b.logprobs[:n].copy_(logprobs_B)
        b.ids[:n].copy_(tokens_B)
        b.positions[:n] += busy_B
        b.drawn[:n].add_(1).clamp_(max=_NUMBERS - 1)

    def _land(self, leave: int) -> None:
        """Look at the oldest steps until ``leave`` of them are left in the air."""
        while len(self._flights) > leave:
            flight = self._flights.pop(0)
            if flight.landed is not None:
                flight.landed.synchronize()
            tokens, logprobs = flight.tokens.tolist(), flight.logprobs.tolist()
            if flight.landed is not None:
                self._spare.append((flight.tokens, flight.logprobs))
            for row, request, slot in zip(flight.rows, flight.requests, flight.slots, strict=True):
                if not request.future.done():  # else it had stopped: the token is one too many
                    self._accept(row, request, tokens[slot], logprobs[slot])

    def _accept(self, row: Row, request: _Request, token: int, logprob: float) -> None:
        if logprob != logprob:
            raise FloatingPointError("the model's logits are NaN: the weights have diverged or dtype overflowed")
        row._cached += 1
        if row.sampling.temperature:
            row._dice.roll()
        row.ids.append(token)
        request.ids.append(token)
        request.logprobs.append(logprob)
        self.tokens["generated"] += 1
        stopped = token in self.stop_ids
        if stopped or len(request.ids) == request.limit:
            self._waiting.pop(row._slot, None)
            request.future.set_result(Completion(request.ids, request.logprobs, stopped))


def rollout_engine(model: nn.Module, **options: Any) -> Engine:
    """The engine for the model's device: static decode steps on CUDA, the plain ones elsewhere (faster there)."""
    if next(model.parameters()).device.type == "cuda":
        return StaticEngine(model, **options)
    return Engine(model, **options)


def _bucket(count: int) -> int:
    """Powers of two, from 24 on also one and a half times them: 1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, ..."""
    size = 1
    while size < count:
        size *= 2
    return size * 3 // 4 if size >= 32 and count <= size * 3 // 4 else size


def _rounded(value: int, step: int) -> int:
    return -(-value // step) * step


def _tell(tensor: Tensor, values: list[Any]) -> None:
    tensor[: len(values)].copy_(torch.tensor(values, dtype=tensor.dtype))


def _pinned(*tensors: Tensor) -> Any:
    return tuple(torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in tensors)
