"""The GPU benchmark: checks, then times, and writes what it has after every piece.

``python -m rcgrpo.bench.gpu --model qwen2.5-7b --part decode`` needs torch, transformers, peft and pydantic, no more.
Each piece is tried on its own: what runs out of memory or fails is written down as such, and the rest goes on.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import math
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rcgrpo.bench.gpu_shapes import BFCL, CONFIGS, Counts, build, load_of
from rcgrpo.bench.gpu_work import (
    ATTENTIONS,
    Rollouts,
    agreement,
    batches,
    ceilings,
    clocked,
    lora,
    median,
    play,
    scorer_of,
    update,
)
from rcgrpo.bench.measure import environment, rounded
from rcgrpo.errors import UserError
from rcgrpo.files import write_text
from rcgrpo.policy.lean_adamw import LeanAdamW

PARTS: tuple[str, ...] = ("correctness", "decode", "update", "step", "peers")
MISMATCH_BAR = 5e-4
"""KL(sampler || trainer), nats per token."""
STEPS = 200
"""Steps without NaN, on the small model."""


class Bench:
    """One run. ``self.result`` is written to ``path`` after every piece."""

    def __init__(self, model: str, path: Path, budget: float, steps: int = STEPS) -> None:
        if model not in CONFIGS:
            raise UserError(f"--model {model}: choose one of {', '.join(CONFIGS)}")
        self.name, self.path, self.steps = model, path, steps
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.device.type == "cpu" and load_of(model) is BFCL:
            raise UserError(f"--model {model} needs a GPU that torch can use; here only --model tiny or small runs")
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.load, self.counts = load_of(model), Counts.of(model)
        self.deadline = time.monotonic() + budget
        self.model: Any = None
        self.result: dict[str, Any] = {
            "model": model,
            "load": vars(self.load),
            "dtype": str(self.dtype),
            "device": self._describe(),
            **environment(torch.get_num_threads()),
        }

    def _describe(self) -> dict[str, Any]:
        if self.device.type == "cpu":
            return {"name": "cpu", "note": "not a GPU: these figures test the code and say nothing of a GPU"}
        found = torch.cuda.get_device_properties(self.device)
        return {"name": found.name, "bytes": found.total_memory, "cuda": torch.version.cuda}

    def piece(self, name: str, run: Callable[[], Any], *, least: float = 10.0) -> Any:
        """Run one piece if ``least`` seconds are left; write its result, or why there is none."""
        left = self.deadline - time.monotonic()
        print(f"[{left:6.0f} s left] {name}", file=sys.stderr, flush=True)
        self._free()
        started, found = time.monotonic(), None
        if left < least:
            self.result[name] = {"skipped": f"{left:.0f} s left, needs {least:.0f}"}
        else:
            try:
                found = run()
                self.result[name] = found
            except torch.OutOfMemoryError as error:
                memory = self.counts.memory(self.load, "lora")
                self.result[name] = {"out_of_memory": str(error).split("\n")[0][:300], "estimate_gb": memory}
            except Exception as error:  # noqa: BLE001 - a failing kernel is a finding; the other pieces go on
                trace = traceback.format_exc().splitlines()[-8:]
                self.result[name] = {"failed": f"{type(error).__name__}: {error}"[:500], "trace": trace}
        if isinstance(self.result[name], dict):
            self.result[name]["piece_s"] = rounded(time.monotonic() - started)
        self.write()
        return found

    def write(self) -> None:
        """Whole or not at all."""
        write_text(self.path, json.dumps(self.result, indent=1) + "\n")

    def _free(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gb(self) -> float | None:
        """Most memory that tensors took since the piece began, in 1e9 bytes; None on a CPU."""
        return rounded(torch.cuda.max_memory_allocated() / 1e9) if self.device.type == "cuda" else None

    def run(self, parts: list[str]) -> dict[str, Any]:
        """The chosen parts, after the ceilings."""
        self.result["ceilings"] = ceilings(self.device, self.dtype)
        self.result["bounds"] = self.bounds(self.result["ceilings"])
        self.write()
        print(json.dumps({"ceilings": self.result["ceilings"], "bounds": self.result["bounds"]}), file=sys.stderr)
        if "correctness" in parts:
            self.small_checks()
        self.model = build(self.name, self.dtype, self.device)
        for part in PARTS:
            if part in parts:
                getattr(self, part)()
        return self.result

    def bounds(self, peaks: dict[str, float]) -> dict[str, Any]:
        """What the measured ceilings allow. A decode step by bytes and by FLOPs; prefill and update by FLOPs."""
        c, load = self.counts, self.load
        moved, flops = c.decode_bytes(load), c.decode_flops(load)
        step = max(moved / peaks["copy_bytes"], flops / peaks["matmul_flops"])
        out: dict[str, Any] = {
            "parameters": c.total,
            "decode_bytes": moved,
            "decode_flops": flops,
            "decode_step_s": step,
            "decode_tokens_per_s": load.rows / step,
            "prefill_flops": c.prefill_flops(load),
            "prefill_s": c.prefill_flops(load) / peaks["matmul_flops"],
        }
        for mode, full in (("lora", False), ("full", True)):
            out[f"update_{mode}_flops"] = c.update_flops(load, full=full)
            out[f"update_{mode}_s"] = c.update_flops(load, full=full) / peaks["matmul_flops"]
            out[f"ordinary_update_{mode}_flops"] = c.update_flops(load, full=full, shared=False)
        return {key: rounded(value) for key, value in out.items()}

    # -- correctness

    def small_checks(self) -> None:
        """Exact equality in float32, and many steps, on the small model."""
        name = "tiny" if self.name == "tiny" else "small"
        self.piece("greedy_equals_generate", lambda: self._greedy(name))
        self.piece("steps_without_nan", lambda: self._steps(name), least=60 if name == "small" else 1)

    def _greedy(self, name: str) -> dict[str, Any]:
        """Ids in float32, each row against ``generate`` alone, with and without graphs."""
        model: Any = build(name, torch.float32, self.device)
        load = load_of(name)
        out: dict[str, Any] = {}
        for graphs in (False, True) if self.device.type == "cuda" else (False,):
            rows = play(model, load, temperature=0, graphs=graphs).rows
            same = []
            for row in rows[:: load.group]:
                start = row.mask.index(1)
                count = row.mask[start:].index(0)
                ids = torch.tensor([row.ids[:start]], device=self.device)
                ones = torch.ones_like(ids)
                expected = model.generate(ids, attention_mask=ones, max_new_tokens=count, do_sample=False)
                same.append(expected[0].tolist() == row.ids[: start + count])
            out["graphs" if graphs else "direct"] = all(same)
        return {"equal": all(out.values()), **out}

    def _steps(self, name: str) -> dict[str, Any]:
        """Rollouts and updates in this run's dtype; the mismatch and loss of every step."""
        model, load = build(name, self.dtype, self.device).requires_grad_(True), load_of(name)
        attention = "flash"
        scorer, optimiser = scorer_of(model, attention), LeanAdamW(model.parameters(), lr=1e-5)
        losses, mismatches, done = [], [], 0
        for step in range(self.steps):
            if time.monotonic() > self.deadline - 5:
                break
            figures = update(scorer, optimiser, play(model, load, seed=step).rows, load.group)
            losses.append(figures["loss"])
            mismatches.append(figures["mismatch_kl"])
            if not all(math.isfinite(float(v)) for v in figures.values() if v is not None):
                break
            done += 1
        return {
            "steps": done,
            "asked": self.steps,
            "finite": done == len(losses),
            "attention": attention,
            "mismatch_kl_max": rounded(max(mismatches)),
            "mismatch_bar": MISMATCH_BAR,
            "model": name,
        }

    def correctness(self) -> None:
        """At full shape: the sampler's log-probs against the trainer's and against float32."""
        kinds = ["flash", "matmul"]
        for kind in kinds:
            self.piece(f"mismatch_{kind}", lambda kind=kind: self._mismatch(kind), least=45)

    def _mismatch(self, kind: str) -> dict[str, Any]:
        played = play(self.model, self.load, prefixes=kind).rows[: 2 * self.load.group]
        out: dict[str, Any] = {"sampler": f"static, {kind}"}
        parts = batches(played, self.load.group, self.device)
        sampler = [old_BL[b.mask_BL] for b, old_BL in parts]
        found: dict[str, Any] = {}
        for attention in ATTENTIONS:
            try:
                with torch.no_grad():
                    scorer = scorer_of(self.model, attention)
                    found[attention] = [scorer(b, 1.0).logprobs_BL[b.mask_BL] for b, _ in parts]
            except Exception as error:  # noqa: BLE001 - a kernel that fails here is named; the others go on
                out[f"trainer_{attention}"] = {"failed": f"{type(error).__name__}: {error}"[:300]}
                continue
            out[f"trainer_{attention}"] = agreement(sampler, found[attention])
        best = [out[f"trainer_{a}"]["kl_k3"] for a in found]
        out["mismatch_kl"], out["bar"] = max(best), MISMATCH_BAR
        out["within_bar"] = max(best) < MISMATCH_BAR
        wide = build(self.name, torch.float32, self.device)
        wide.load_state_dict(self.model.state_dict())
        with torch.no_grad():
            exact = [scorer_of(wide, "whole")(b, 1.0).logprobs_BL[b.mask_BL] for b, _ in parts]
        out["sampler_to_float32"] = agreement(sampler, exact)
        out.update({f"{a}_to_float32": agreement(values, exact) for a, values in found.items()})
        return out

    # -- speed

    def decode(self) -> None:
        """Tokens per second of whole rollouts, by how prefixes are read, with rows in step and ragged."""
        for kind in ("flash", "matmul"):
            for ragged in (False, True):
                name = f"decode_{kind}{'_ragged' if ragged else ''}"
                self.piece(name, lambda k=kind, r=ragged: self._decode(k, r), least=40)
        self.piece("decode_flash_direct", lambda: self._decode("flash", False, graphs=False), least=90)

    def _decode(self, kind: str, ragged: bool, **options: Any) -> dict[str, Any]:
        play(self.model, self.load, seed=9, ragged=ragged, prefixes=kind, **options)
        runs = [play(self.model, self.load, seed=s, ragged=ragged, prefixes=kind, **options) for s in range(3)]
        return {"attention": kind, "graphs": runs[0].engine.graphs, "rows": self.load.rows, **self._speed(runs)}  # pyright: ignore

    def _speed(self, runs: list[Rollouts]) -> dict[str, Any]:
        tokens = self.load.rows * self.load.generated
        steps = [r.decode_seconds / r.engine.forwards["decode"] for r in runs]
        step, bound = median(steps), self.result["bounds"]["decode_step_s"]
        return {
            "tokens_per_s": rounded(tokens / median([r.seconds for r in runs])),
            "tokens_per_s_without_prefill": rounded(tokens / median([r.decode_seconds for r in runs])),
            "seconds": [rounded(r.seconds) for r in runs],
            "step_s": step,
            "share_of_bound": rounded(bound / step),
            "forwards": runs[0].engine.forwards,
            "captures": runs[0].engine.captures,  # pyright: ignore[reportAttributeAccessIssue]
            "peak_gb": self.peak_gb(),
        }

    def update(self) -> None:
        """The update by each way to attend, LoRA then full, with its share of the measured matmul peak."""
        for attention in ATTENTIONS:
            self.piece(f"update_lora_{attention}", lambda a=attention: self._update("lora", a), least=30)
        for mode in ("full", "full-bf16-moments"):
            self.piece(f"update_{mode}", lambda m=mode: self._fitting(m, lambda: self._update(m, "flash")), least=30)

    def _fitting(self, mode: str, run: Callable[[], Any]) -> Any:
        """``run()`` where the sum of its memory fits; the sum where not."""
        memory = self.counts.memory(self.load, mode)
        room = self.result["device"].get("bytes")
        if room and memory["fullest"] * 1e9 > room:
            return {"does_not_fit": {"needs_gb": memory, "device_gb": rounded(room / 1e9)}}
        return {**run(), "estimate_gb": memory}

    def _trained(self, mode: str) -> tuple[Any, LeanAdamW]:
        """The model in this mode, and its optimiser. Undone by :meth:`_restore`."""
        if mode == "lora":
            model: Any = lora(self.model)
            return model, LeanAdamW(model.parameters(), lr=1e-6)
        model = self.model.requires_grad_(True)
        moments = "bfloat16" if mode == "full-bf16-moments" else "float32"
        return model, LeanAdamW(model.parameters(), lr=1e-6, moments=moments)

    def _restore(self, model: Any, mode: str) -> None:
        if mode == "lora":
            self.model = model.unload()
        self.model.requires_grad_(False)
        for parameter in self.model.parameters():
            parameter.grad = None

    def _update(self, mode: str, attention: str, repeats: int = 3) -> dict[str, Any]:
        rows = play(self.model, self.load).rows
        self._free()
        model, optimiser = self._trained(mode)
        try:
            scorer = scorer_of(model, attention)
            run = partial(update, scorer, optimiser, rows, self.load.group)
            first = run()
            seconds = [clocked(run, self.device)[0] for _ in range(repeats)]
        finally:
            self._restore(model, mode)
        full = mode != "lora"
        flops = self.counts.update_flops(self.load, full=full, shared=attention != "whole")
        useful = self.counts.update_flops(self.load, full=full)
        return {
            "attention": attention,
            "seconds": [rounded(s) for s in seconds],
            "useful_flops": rounded(useful),
            "computed_flops": rounded(flops),
            "mfu_of_measured_peak": rounded(useful / median(seconds) / self.result["ceilings"]["matmul_flops"]),
            "mfu_of_989e12": rounded(useful / median(seconds) / 989e12),
            "peak_gb": self.peak_gb(),
            "first": first,
        }

    def step(self) -> None:
        """Whole RC-GRPO steps: rollouts, reference (LoRA: adapter off), update."""
        self.piece("step_lora", lambda: self._step("lora"), least=40)
        for mode in ("full", "full-bf16-moments"):
            self.piece(f"step_{mode}", lambda m=mode: self._fitting(m, lambda: self._step(m)), least=40)

    def _step(self, mode: str, repeats: int = 2) -> dict[str, Any]:
        model, optimiser = self._trained(mode)
        try:
            scorer = scorer_of(model, "flash")
            rollout, learn = [], []
            for seed in range(repeats + 1):
                played = play(model, self.load, seed=seed)
                rollout.append(played.seconds)
                run = partial(update, scorer, optimiser, played.rows, self.load.group, reference=mode == "lora")
                learn.append(clocked(run, self.device)[0])
        finally:
            self._restore(model, mode)
        return {
            "seconds": median([a + b for a, b in zip(rollout[1:], learn[1:], strict=True)]),
            "rollout_s": [rounded(s) for s in rollout],
            "update_s": [rounded(s) for s in learn],
            "first_is_warm_up": True,
            "reference": "adapter off, beta 0.1" if mode == "lora" else "none, beta 0",
            "optimiser": f"AdamW, {mode}, gradients in the weights' dtype, float32 masters of half-precision weights",
            "peak_gb": self.peak_gb(),
        }

    # -- peers

    def peers(self) -> None:
        """On the same card: our ordinary update, ``generate`` with its static cache, TRL's loop."""
        self.piece("peer_ordinary_update", lambda: self._update("lora", "whole", repeats=1), least=90)
        self.piece("peer_generate_static", lambda: self._generate("static"), least=60)
        self.piece("peer_generate_dynamic", lambda: self._generate("dynamic"), least=60)
        absent = importlib.util.find_spec("trl") is None
        why = "trl cannot be imported here" if absent else "the bench has no TRL run at this shape yet"
        self.result["peer_trl"] = {"ran": False, "why": why}
        self.write()

    def _generate(self, cache: str) -> dict[str, Any]:
        """One message of all rows, each with its own prefill; a rollout of n messages costs a loop of generate() n."""
        prompts = self.load.prompt_ids(self.model.config.vocab_size)
        longest, new = max(map(len, prompts)), max(self.load.messages)
        ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=self.device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=self.device)
        options = {"do_sample": True, "top_k": 0, "cache_implementation": cache, "disable_compile": True}

        def ask(count: int) -> float:
            with torch.inference_mode():
                length = {"max_new_tokens": count, "min_new_tokens": count}
                go = partial(self.model.generate, ids, attention_mask=mask, **length, **options)
                return clocked(go, self.device)[0]

        short, whole = ask(2), ask(new)
        return {
            "rows": len(prompts),
            "new_tokens": new,
            "compiled": False,
            "seconds": rounded(whole),
            "step_s": rounded((whole - short) / (new - 2)),
            "tokens_per_s_without_prefill": rounded(len(prompts) * (new - 2) / (whole - short)),
            "peak_gb": self.peak_gb(),
        }


def bench_gpu(model: str, parts: list[str], path: Path, budget: float, steps: int = STEPS) -> dict[str, Any]:
    """Run ``parts`` of the benchmark on ``model`` within about ``budget`` seconds; also written to ``path``."""
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise UserError(f"--part {','.join(unknown)}: choose from {', '.join(PARTS)}")
    return Bench(model, path, budget, steps).run(parts)


def result_path(folder: Path, model: str, parts: list[str]) -> Path:
    """Where a run writes: one file per model and choice of parts."""
    return folder / f"{model}-{'-'.join(parts) if len(parts) < len(PARTS) else 'all'}.json"


def main() -> None:
    """The command line without typer, for machines that lack it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="qwen2.5-7b")
    parser.add_argument("--part", default=",".join(PARTS))
    parser.add_argument("--budget-seconds", type=float, default=540)
    parser.add_argument("--out", type=Path, default=Path("docs/results/gpu"))
    args = parser.parse_args()
    parts = args.part.split(",")
    path = result_path(args.out, args.model, parts)
    try:
        print(json.dumps(bench_gpu(args.model, parts, path, args.budget_seconds)))
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
