"""Rollouts by a vLLM server, behind the same interface as ``Engine``: token ids in, token ids out.

One request per generated message, with one prompt (n = 1: reward tokens differ inside a group) that holds the whole
episode so far; the server's prefix cache finds what it has computed before.

What is asked of ``logprobs``: log-probs of the whole vocabulary at the sampling temperature. vLLM's
``raw_logprobs`` ignores the temperature; ``processed_logprobs`` applies it, and top-p too. So the latter is required,
and top-p below 1 is refused.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from pydantic import BaseModel, Field

from rcgrpo.episodes.types import Sampling
from rcgrpo.errors import UserError
from rcgrpo.policy.engine import Completion
from rcgrpo.policy.vllm_server import Connection, Models, ServerFailure, ServerInfo, VllmServer

_IMPOSSIBLE = -9999.0
"""What vLLM writes for minus infinity."""
_ROUNDING = 1e-3
"""How far above 0 a log-probability may be rounded."""


class _Logprobs(BaseModel):
    token_logprobs: list[float]
    tokens: list[str]


class _Span(BaseModel):
    version: str
    start: int
    end: int


class _Choice(BaseModel):
    finish_reason: str
    prompt_token_ids: list[int]
    token_ids: list[int]
    logprobs: _Logprobs
    weight_versions: list[_Span]


class _Answer(BaseModel):
    """POST /v1/completions."""

    model: str
    choices: list[_Choice] = Field(min_length=1, max_length=1)


def turn_seed(seed: int, turn: int) -> int:
    """Seed of an episode's ``turn``-th generate: 63 bits that depend on the episode's seed and the turn alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{turn}".encode()).digest()[:8], "big") >> 1


class VllmRow:
    """One episode. Made by ``VllmEngine.row``; used by one coroutine."""

    def __init__(self, engine: VllmEngine, prompt_ids: list[int], sampling: Sampling) -> None:
        self.ids = list(prompt_ids)
        """All token ids so far: prompt, generated, appended."""
        self.sampling = sampling
        self._engine = engine
        self._turn = 0
        self._busy = False
        self._closed = False

    @property
    def room(self) -> int:
        """How many more tokens fit."""
        return self._engine.max_length - len(self.ids)

    def append(self, ids: Iterable[int]) -> None:
        """Add given tokens (a tool result, a user turn)."""
        new = list(ids)
        if self._busy or self._closed:
            raise RuntimeError("append to a row that is generating or closed")
        if len(new) > self.room:
            raise UserError(f"{len(new)} tokens appended to a row with room for {self.room}: raise max_length")
        self.ids.extend(new)

    async def generate(self, max_new_tokens: int) -> Completion:
        """Sample until a stop id, ``max_new_tokens`` or the end of the row; a full row gives an empty completion.

        Raises :class:`ServerFailure` where the server fails or its answer does not fit the request.
        """
        if self._busy or self._closed:
            raise RuntimeError("generate on a row that is generating or closed")
        limit = min(max_new_tokens, self.room)
        if limit <= 0:
            return Completion([], [], stopped=False)
        self._busy = True
        try:
            completion = await self._engine._complete(self.ids, self.sampling, self._turn, limit)
        finally:
            self._busy = False
        self._turn += 1
        self.ids += completion.ids
        return completion


class VllmEngine:
    """Generates for many episodes at once through a server, under the weights last handed over to it.

    ``slots``: rows that live at once; more episodes wait. ``max_length``: tokens per row. Seeds make a rollout
    repeatable up to the server's rounding, which depends on what it batches together.
    """

    def __init__(self, server: VllmServer, *, stop_ids: Iterable[int], slots: int = 64, max_length: int = 8192) -> None:
        for name, value in (("slots", slots), ("max_length", max_length)):
            if value < 1:
                raise UserError(f"{name}={value}: must be at least 1")
        if server.version is None:
            raise RuntimeError("hand the policy's weights over first: VllmServer.load")
        self.stop_ids = frozenset(stop_ids)
        self.slots, self.max_length = slots, max_length
        self._server, self._version = server, server.version
        self._connection: Connection | None = None

    async def __aenter__(self) -> VllmEngine:
        if self._connection is not None:
            raise RuntimeError("the engine is already running")
        self._vacancy = asyncio.Semaphore(self.slots)
        self._connection = self._server.connect()
        try:
            await self._check(self._connection)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._connection is not None
        connection, self._connection = self._connection, None
        await connection.__aexit__(None, None, None)

    @asynccontextmanager
    async def row(self, prompt_ids: list[int], sampling: Sampling) -> AsyncIterator[VllmRow]:
        """A row for one episode, as soon as fewer than ``slots`` are held."""
        if not 0 < len(prompt_ids) < self.max_length:
            raise UserError(f"prompt of {len(prompt_ids)} tokens: needs 1 to {self.max_length - 1}; raise max_length")
        if sampling.top_p < 1 and sampling.temperature > 0:
            raise UserError(
                f"top_p = {sampling.top_p}: vLLM gives log-probabilities over the nucleus only, training needs them "
                f"over the whole vocabulary; set top_p = 1, or rollout.backend = 'engine'"
            )
        if self._connection is None:
            raise RuntimeError("rows exist inside 'async with engine' only")
        async with self._vacancy:
            row = VllmRow(self, prompt_ids, sampling)
            try:
                yield row
            finally:
                row._closed = True

    async def _check(self, connection: Connection) -> None:
        """That the server is the one that the recipe means, started as it must be."""
        cards = {card.id: card for card in (await connection.get("/v1/models", Models)).data}
        base = cards.get(self._server.model)
        if base is None:
            raise UserError(
                f"rollout.vllm.model = {self._server.model!r}: the server at {self._server.url} serves "
                f"{', '.join(cards)}; name that, or start the server with --served-model-name"
            )
        if base.max_model_len is None or base.max_model_len < self.max_length:
            raise UserError(
                f"rollout.episode_tokens = {self.max_length}: the vLLM server takes {base.max_model_len}; "
                f"start it with --max-model-len {self.max_length}, or lower episode_tokens"
            )
        info = await connection.get("/server_info", ServerInfo, config_format="json")
        mode = info.setting("model_config", "logprobs_mode")
        if mode != "processed_logprobs":
            raise UserError(
                f"the vLLM server gives {mode!r}: start it with --logprobs-mode processed_logprobs, "
                f"so that log-probabilities are those of the sampling temperature"
            )
        if info.setting("cache_config", "enable_prefix_caching") is not True:
            raise UserError("the vLLM server does not cache prefixes: start it with --enable-prefix-caching")
        # an adapter is served under its version's name, whole weights under the model's own
        self._model = self._version if self._version in cards else self._server.model

    async def _complete(self, ids: list[int], sampling: Sampling, turn: int, limit: int) -> Completion:
        if self._connection is None:
            raise RuntimeError("the engine is not running")
        body = self._body(ids, sampling, turn, limit)
        answer = await self._connection.post("/v1/completions", _Answer, body)
        choice = answer.choices[0]
        if problem := self._problem(answer.model, choice, ids, limit):
            raise ServerFailure(f"the vLLM server at {self._server.url}: {problem}")
        return Completion(choice.token_ids, choice.logprobs.token_logprobs, choice.token_ids[-1] in self.stop_ids)

    def _body(self, ids: list[int], sampling: Sampling, turn: int, limit: int) -> dict[str, Any]:
        """All that decides what is sampled is said: the server would fill gaps from generation_config.json."""
        return {
            "model": self._model,
            "prompt": ids,
            "n": 1,
            "max_tokens": limit,
            "temperature": sampling.temperature,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": turn_seed(sampling.seed, turn),
            "stop_token_ids": sorted(self.stop_ids),
            "ignore_eos": True,  # only our stop ids stop
            "logprobs": 0,  # of the sampled tokens, no others
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "return_weight_versions": True,
            "add_special_tokens": False,
            "skip_special_tokens": False,
            "stream": False,
        }

    def _problem(self, model: str, choice: _Choice, ids: list[int], limit: int) -> str | None:
        """Why an answer cannot be used; None where it fits the request."""
        new, logprobs = choice.token_ids, choice.logprobs.token_logprobs
        versions = {span.version for span in choice.weight_versions}
        covered = sum(span.end - span.start for span in choice.weight_versions)
        if model != self._model:
            return f"the model {model!r} answered instead of {self._model!r}"
        if versions != {self._version} or covered != len(new):
            return (
                f"sampled from the weights {sorted(versions)} instead of {self._version!r}: "
                f"the server was restarted, or another run uses it; give each its own, and run with --jobs 1"
            )
        if choice.prompt_token_ids != ids:
            return "changed the prompt's token ids"
        if choice.finish_reason not in ("stop", "length"):
            return f"gave up a completion (finish_reason {choice.finish_reason!r})"
        if len(logprobs) != len(new) or choice.logprobs.tokens != [f"token_id:{token}" for token in new]:
            return f"{len(logprobs)} log-probabilities for {len(new)} tokens, or of other tokens"
        if not all(_IMPOSSIBLE < logprob <= _ROUNDING for logprob in logprobs):
            return "a log-probability is not a finite number at most 0: the weights have diverged, or dtype overflowed"
        stops = [i for i, token in enumerate(new) if token in self.stop_ids]
        ended = stops == [len(new) - 1] or (not stops and len(new) == limit)
        if not ended or len(new) > limit:
            return f"ended after {len(new)} of at most {limit} tokens, with stop ids at {stops}"
        return None
