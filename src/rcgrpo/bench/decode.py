"""Decoding alone: our engine against ``model.generate`` with dynamic and static caches, and against the machine."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import torch
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from rcgrpo.bench.measure import Timed, compare, rounded
from rcgrpo.bench.workloads import random_model
from rcgrpo.episodes.types import Sampling
from rcgrpo.policy import engine
from rcgrpo.policy.engine import Engine
from rcgrpo.policy.sampling import draw

VOCABULARY = 1024
PROMPT = 256
GROUP = 8
"""So many rows have the same prompt, as rollouts do (``unshared``: none do)."""


class _Clock(LogitsProcessor):
    """Notes when each token of ``generate`` is drawn."""

    def __init__(self) -> None:
        self.times: list[Timed] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # pyright: ignore
        self.times.append(_now())
        return scores


def _now() -> Timed:
    return Timed(time.perf_counter(), time.process_time())


def _step(times: list[Timed]) -> Timed:
    """One decode step: the median interval, so that what others take from the machine matters little."""
    wall = statistics.median(b.wall - a.wall for a, b in pairwise(times))
    return Timed(wall, statistics.median(b.cpu - a.cpu for a, b in pairwise(times)))


def _ours(model: PreTrainedModel, prompts: list[list[int]], new: int) -> Timed:
    times: list[Timed] = []

    def clocked(*args: Any) -> Any:
        if len(args[1]) == len(prompts):  # all rows decode: prefill, in parts, is over
            times.append(_now())
        return draw(*args)

    async def generate() -> None:
        length = len(prompts[0]) + new
        async with Engine(model, stop_ids=[], slots=len(prompts), max_length=length) as running:

            async def one(seed: int, prompt: list[int]) -> None:
                async with running.row(prompt, Sampling(seed=seed)) as row:
                    await row.generate(new)

            await asyncio.gather(*(one(i, prompt) for i, prompt in enumerate(prompts)))

    with patch.object(engine, "draw", clocked):
        asyncio.run(generate())
    return _step(times)


def _generate(model: PreTrainedModel, prompts: list[list[int]], new: int, cache: str) -> Timed:
    clock = _Clock()
    ids = torch.tensor(prompts)
    with torch.inference_mode():
        model.generate(  # pyright: ignore[reportCallIssue]
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=True,
            top_k=0,
            cache_implementation=cache,
            disable_compile=True,
            logits_processor=LogitsProcessorList([clock]),
        )
    return _step(clock.times)


def _prompts(batch: int, group: int, length: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(batch)
    distinct = torch.randint(2, VOCABULARY, (-(-batch // group), length), generator=generator).tolist()
    return [distinct[i // group] for i in range(batch)]


def _best(run: Callable[[], Any], times: int = 5) -> float:
    run()
    best = float("inf")
    for _ in range(times):
        started = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - started)
    return best


def peaks() -> tuple[float, float]:
    """What this machine does at best with torch's present threads: FLOP/s of a matmul, bytes/s of a copy."""
    a, b = torch.rand(1024, 1024), torch.rand(1024, 1024)
    source = torch.rand(32 * 2**20)
    target = torch.empty_like(source)
    copied = 2 * source.numel() * 4  # read and written
    return 2 * 1024**3 / _best(lambda: a @ b), copied / _best(lambda: target.copy_(source))


def _least_work(model: PreTrainedModel, batch: int, group: int, context: int) -> tuple[float, float]:
    """(FLOPs, bytes) that one decode step cannot do without: weights once, shared prompts once, own tokens."""
    config = model.config
    weights = sum(p.numel() for p in model.parameters())  # the tied embedding is the head
    width = config.num_attention_heads * config.head_dim
    flops = batch * (2 * weights + 4 * config.num_hidden_layers * width * context)
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    cached = -(-batch // group) * PROMPT + batch * (context - PROMPT)
    return flops, weights * 4 + cached * per_token


def bench_decode(batches: list[int], pairs: int, new: int) -> dict[str, Any]:
    """Per batch size: milliseconds per step of each side, interleaved, and the share of the machine's peaks."""
    model = random_model(VOCABULARY, 1, 0)
    flops_peak, bytes_peak = peaks()
    rows = []
    for batch in batches:
        row: dict[str, Any] = {"batch": batch}
        for name, group in (("", GROUP), ("unshared_", 1)) if batch > 1 else (("", 1),):
            prompts = _prompts(batch, group, PROMPT)
            times: dict[str, list[Timed]] = {"ours": [], "dynamic": [], "static": []}
            for _ in range(pairs):
                times["ours"].append(_ours(model, prompts, new))
                times["dynamic"].append(_generate(model, prompts, new, "dynamic"))
                times["static"].append(_generate(model, prompts, new, "static"))
            row |= _figures(name, times)
            if not name:
                flops, moved = _least_work(model, batch, group, PROMPT + new // 2)
                seconds = statistics.median(t.cpu for t in times["ours"])
                row["matmul_share"] = rounded(flops / seconds / flops_peak)
                row["copy_share"] = rounded(moved / seconds / bytes_peak)
        rows.append(row)
    main = max(rows, key=lambda row: (row["batch"] == 64, row["batch"]))
    return {
        "ratio": main["ratio"],
        "ratios": main["ratios"],
        "cpu_ratio": main["cpu_ratio"],
        "ours_s": main["ours_ms"] / 1000,
        "peer_s": main["dynamic_ms"] / 1000,
        "batches": rows,
        "matmul_flops": rounded(flops_peak),
        "copy_bytes": rounded(bytes_peak),
        "shape": {"name": "decode", "prompt": PROMPT, "new_tokens": new, "group": GROUP, "vocabulary": VOCABULARY},
    }


def _figures(prefix: str, times: dict[str, list[Timed]]) -> dict[str, Any]:
    """``ratio``: dynamic over ours; ``static_ratio``: static over ours; medians over the pairs.

    By the clock, and as ``cpu_*`` by processor time, which other processes on the machine cannot take away.
    """
    figures: dict[str, Any] = {}
    for name, peer in (("ratio", "dynamic"), ("static_ratio", "static")):
        compared = compare(times["ours"], times[peer])
        figures |= {f"{prefix}{name}": compared["ratio"], f"{prefix}cpu_{name}": compared["cpu_ratio"]}
        if peer == "dynamic":
            figures |= {f"{prefix}ratios": compared["ratios"], f"{prefix}cpu_ratios": compared["cpu_ratios"]}
    for side, values in times.items():
        figures[f"{prefix}{side}_ms"] = rounded(1000 * statistics.median(t.wall for t in values))
        figures[f"{prefix}{side}_cpu_ms"] = rounded(1000 * statistics.median(t.cpu for t in values))
    return figures
