"""The pieces that the GPU benchmark times and checks: playing rollouts, updating, measuring ceilings."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from rcgrpo.algorithm.diagnostics import token_diagnostics
from rcgrpo.algorithm.objective import rc_grpo_loss
from rcgrpo.bench.gpu_shapes import Load
from rcgrpo.bench.measure import rounded
from rcgrpo.episodes.types import Sampling
from rcgrpo.policy.engine import Engine
from rcgrpo.policy.flex_packing import FlexScorer
from rcgrpo.policy.lean_adamw import LeanAdamW
from rcgrpo.policy.packing import ScoringBatch
from rcgrpo.policy.scoring import Scorer, reference_scores
from rcgrpo.policy.static_engine import StaticEngine

ATTENTIONS = ("flash", "flex", "padded")
"""The ways to attend in the shared-prefix update; ``padded`` is the two-pass one of ``Scorer``."""


@dataclass(frozen=True)
class Played:
    """One row."""

    ids: list[int]
    mask: list[int]
    logprobs: list[float]


@dataclass
class Rollouts:
    """What :func:`play` gives."""

    rows: list[Played]
    seconds: float
    decode_seconds: float
    """Seconds after every row had its first token."""
    engine: Engine


def wait(device: torch.device) -> None:
    """Until the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clocked(run: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Seconds until the device is done, and what ``run`` returned."""
    wait(device)
    started = time.perf_counter()
    result = run()
    wait(device)
    return time.perf_counter() - started, result


def lora(model: nn.Module, rank: int = 16) -> nn.Module:
    """Adapters of this rank on all linear layers; B starts away from 0, so that they count."""
    torch.manual_seed(1)
    wrapped = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=rank, target_modules="all-linear"))  # pyright: ignore
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=1e-3)
    return wrapped


def play(
    model: nn.Module, load: Load, *, seed: int = 0, ragged: bool = False, temperature: float = 1.0, **options: Any
) -> Rollouts:
    """Play ``load`` with the static engine. ``ragged``: rows end their messages at different steps (same total)."""
    config: Any = model.config
    prompts = load.prompt_ids(config.vocab_size, seed)
    device = next(model.parameters()).device
    first: list[float] = []

    def lengths(row: int) -> list[int]:
        shift = [(row * 7 + i * 11) % 21 - 10 for i in range(len(load.messages))] if ragged else [0]
        most = min(load.messages) // 2
        shift = [max(-most, min(most, s)) for s in shift]
        out = [n + shift[i % len(shift)] for i, n in enumerate(load.messages)]
        out[0] += load.generated - sum(out)
        return out

    async def episode(engine: Engine, number: int, prompt: list[int]) -> Played:
        mask, logprobs = [0] * len(prompt), []
        async with engine.row(prompt, Sampling(seed=seed * 100_000 + number, temperature=temperature)) as row:
            for turn, count in enumerate(lengths(number)):
                if turn:
                    given = [(10 + 13 * turn + i) % config.vocab_size for i in range(load.given)]
                    row.append(given)
                    mask += [0] * len(given)
                else:
                    one = await row.generate(1)
                    first.append(time.perf_counter())
                    mask += [1]
                    logprobs += one.logprobs
                    count -= 1
                done = await row.generate(count)
                mask += [1] * len(done.ids)
                logprobs += done.logprobs
            return Played(row.ids, mask, logprobs)

    async def everything() -> tuple[list[Played], Engine]:
        length = max(map(len, prompts)) + load.completion + 1
        settings = {"slots": load.rows, "max_length": length, "prefill_tokens": 16384, **options}
        async with StaticEngine(model, stop_ids=[], **settings) as engine:
            jobs = (episode(engine, i, prompt) for i, prompt in enumerate(prompts))
            return await asyncio.gather(*jobs), engine

    wait(device)
    started = time.perf_counter()
    rows, engine = asyncio.run(everything())
    wait(device)
    ended = time.perf_counter()
    return Rollouts(rows, ended - started, ended - max(first), engine)


def scorer_of(model: nn.Module, attention: str, *, checkpoint: bool = True) -> Scorer:
    """By name: one of ``ATTENTIONS``, or ``whole`` for the ordinary forward."""
    if attention == "flex":
        return FlexScorer(model, checkpoint=checkpoint)
    return Scorer(model, shared_prefix=attention != "whole", packed=attention == "flash", checkpoint=checkpoint)


def batches(rows: Sequence[Played], group: int, device: torch.device) -> list[tuple[ScoringBatch, Tensor]]:
    """One micro-batch per group, and the sampler's log-probs laid out like it."""
    out = []
    for start in range(0, len(rows), group):
        part = rows[start : start + group]
        batch = ScoringBatch.pack([r.ids for r in part], [r.mask for r in part], [0] * len(part)).to(device)
        out.append((batch, batch.align([r.logprobs for r in part])))
    return out


def update(
    scorer: Scorer, optimiser: LeanAdamW | None, rows: Sequence[Played], group: int, *, reference: bool = False
) -> dict[str, float | None]:
    """Loss, gradient and optimiser step over all groups, one group at a time; the mismatch, over all tokens.

    ``reference``: with a KL of weight 0.1 to the model with its LoRA off.
    """
    device = next(scorer.model.parameters()).device
    parts = batches(rows, group, device)
    total = sum(float(b.mask_BL.sum()) for b, _ in parts)
    loss_sum, figures = torch.zeros((), device=device), []
    for batch, old_BL in parts:
        ref_BL = reference_scores(scorer, batch, 1.0).logprobs_BL if reference else None
        scores = scorer(batch, 1.0)
        advantages = torch.linspace(-1, 1, len(batch.ids_BL), device=device)
        loss = rc_grpo_loss(
            scores.logprobs_BL,
            old_BL,
            ref_BL,
            advantages,
            batch.mask_BL,
            beta=0.1 if reference else 0.0,
            aggregation="token",
            denominator=total,
        )
        loss.loss.backward()
        loss_sum += loss.loss.detach()
        found = token_diagnostics(scores.logprobs_BL.detach(), batch.mask_BL, sampler_logprobs_BL=old_BL)
        figures.append((float(batch.mask_BL.sum()), found))
    norm = optimiser.step() if optimiser else float("nan")
    means = {
        name: sum(weight * float(f[name] or 0) for weight, f in figures) / total
        for name in ("mismatch_abs", "mismatch_k1", "mismatch_kl")
    }
    return {"loss": float(loss_sum), "grad_norm": norm, **means}


@torch.no_grad()
def agreement(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> dict[str, float]:
    """Two sets of log-probs of the same tokens: their differences and what these do to the ratio exp(difference)."""
    d = torch.cat([(a - b).double().flatten() for a, b in zip(ours, theirs, strict=True)])
    ratio = d.exp()
    return {
        "mean_abs_difference": float(d.abs().mean()),
        "max_abs_difference": float(d.abs().max()),
        "mean_ratio": float(ratio.mean()),
        "mean_abs_ratio_error": float((ratio - 1).abs().mean()),
        "share_outside_clip_0.2": float(((ratio - 1).abs() > 0.2).double().mean()),
        "kl_k3": float((torch.expm1(-d) + d).mean()),
    }


def ceilings(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Best of five, random data: FLOP/s of a square matrix product, bytes/s (read and written) of a copy."""
    size, copied = (8192, 2**32) if device.type == "cuda" else (256, 2**22)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    source = torch.ones(copied // dtype.itemsize, device=device, dtype=dtype)
    target = torch.empty_like(source)

    def best(run: Callable[[], Any]) -> float:
        run()
        repeats = 10 if device.type == "cuda" else 1

        def several() -> None:
            for _ in range(repeats):
                run()

        return min(clocked(several, device)[0] for _ in range(5)) / repeats

    flops = 2 * size**3 / best(lambda: torch.mm(a, b))
    moved = 2 * copied / best(lambda: target.copy_(source))
    return {"matmul_flops": rounded(flops), "copy_bytes": rounded(moved)}


def median(values: Sequence[float]) -> float:
    """Four digits."""
    return rounded(statistics.median(values))
