"""Results of an ablation that never ran: arms whose curves and outcomes follow a simple law."""

import math
import random
from typing import Any

from rcgrpo.experiments.results import with_cells

ARMS = [
    # row, policy, token, final success, separation at the end, flat groups at the end
    ("base", "base", "none", 0.30, 0.0, 0.3),
    ("SFT", "sft", "none", 0.55, 0.0, 0.6),
    ("RCTP", "rctp", "high", 0.58, 0.45, 0.4),
    ("SFT + GRPO", "grpo", "none", 0.70, 0.0, 0.75),
    ("SFT + RC-GRPO", "sft_rcgrpo", "high", 0.69, 0.0, 0.74),
    ("RCTP + GRPO", "rctp_grpo", "high", 0.72, 0.3, 0.6),
    ("RCTP + RC-GRPO", "rcgrpo", "high", 0.74, 0.02, 0.55),
    ("RCTP, permuted labels + RC-GRPO", "permuted", "high", 0.69, 0.0, 0.7),
    ("DAPO", "dapo", "none", 0.73, 0.0, 0.1),
    ("RCTP + RC-GRPO, low rollouts only in the baseline", "baseline_only", "high", 0.79, 0.3, 0.3),
]
PAIRS = [
    ("RCTP + RC-GRPO", "SFT + GRPO"), ("RCTP + RC-GRPO", "RCTP + GRPO"), ("RCTP + RC-GRPO", "DAPO"),
    ("RCTP + GRPO", "SFT + GRPO"), ("RCTP + RC-GRPO, low rollouts only in the baseline", "RCTP + RC-GRPO"),
    ("RCTP + RC-GRPO, low rollouts only in the baseline", "SFT + GRPO"),
]  # fmt: skip


def synthetic_results(seeds: int = 5, tasks: int = 120, *, commit: str | None = "0123abcd" * 5) -> dict[str, Any]:
    """Ten arms, each with a cell per seed and token."""
    plan = {
        "name": "synthetic",
        "description": "Arms that never ran",
        "tasks": {
            "pool": "test", "n": tasks, "ids_sha256": "1" * 64, "split": "seed 0", "split_sha256": "2" * 64,
            "temperature": 0.0, "probe_tasks": min(32, tasks), "probe_group": 8,
        },
        "seeds": list(range(seeds)),
        "tokens": ["none", "high", "low"],
        "arms": [
            {
                "row": row, "policy": policy, "token": token,
                "unmatched": "it resamples flat groups, at most twice." if row == "DAPO" else None,
                "budget": {
                    "stage1_episodes": 0 if row == "base" else 8320,
                    "rollouts": 0 if policy in ("base", "sft", "rctp") else 12800,
                    "gradient_steps": 0 if policy in ("base", "sft", "rctp") else 100,
                },
            }
            for row, policy, token, *_ in ARMS
        ],
        "comparisons": [list(pair) for pair in PAIRS],
        "settings_sha256": "3" * 64, "digest": "4" * 64, "command": "rcgrpo ablate recipes/synthetic.toml",
        "commit": commit, "started": "2026-01-01T00:00:00+00:00",
        "categories": {"plain": "10" * (tasks // 2), "missing": "01" * (tasks // 2)},
    }  # fmt: skip
    cells = [
        cell(arm, seed, token, tasks) for arm in ARMS for seed in range(seeds) for token in ("none", "high", "low")
    ]
    return with_cells({"plan": plan, "cells": [], "comparisons": []}, cells)


def cell(arm: tuple, seed: int, token: str, tasks: int) -> dict[str, Any]:
    row, policy, own, success, separation, flat = arm
    rng = random.Random(f"{row}/{seed}/{token}")
    luck = random.Random(f"{row}/{seed}").gauss(0, 0.02)
    rate = success + luck - (separation if token == "low" else separation / 4 if token == "none" != own else 0)
    hard = [random.Random(f"task {i}").gauss(0, 0.25) for i in range(tasks)]
    outcomes = "".join(str(int(rng.random() < min(0.98, max(0.02, rate + h)))) for h in hard)
    trained = policy not in ("base", "sft", "rctp")
    stages = {} if row == "base" else {"experts": 20.0, "sft" if own == "none" else "rctp": 160.0}
    stages |= {policy: 420.0 + 60 * rng.random()} if trained else {}
    return {
        "row": row, "seed": seed, "token": token, "success": outcomes.count("1") / tasks, "n": tasks,
        "success_sampled": rate - 0.05, "zero_variance_share": flat, "separation": separation,
        "rollouts": (25600 if row == "DAPO" else 12800) if trained else 0, "gradient_steps": 100 if trained else 0,
        "tokens": 1_450_000 if trained else 0, "stage1_tokens": 0 if row == "base" else 512_000,
        "seconds": sum(stages.values()), "stages": stages, "commit": "89abcdef0123",
        "evaluate_seconds": 21.0, "outcomes": outcomes,
        "probe_means": [sum(rng.random() < rate - 0.05 for _ in range(8)) / 8 for _ in range(min(32, tasks))],
        "curves": curves(arm, seed) if trained and token == own else None,
    }  # fmt: skip


def curves(arm: tuple, seed: int, points: int = 50) -> dict[str, list[float | None]]:
    row, _, _, success, separation, flat = arm
    rng = random.Random(f"curves {row}/{seed}")
    mixed = "RC-GRPO" in row
    shares = [1 - math.exp(-3 * i / points) for i in range(points)]

    def path(start: float, end: float, noise: float) -> list[float]:
        return [round(start + (end - start) * share + rng.gauss(0, noise), 4) for share in shares]

    reward = path(0.45, success - 0.05, 0.03)
    gap = path(0.45, separation, 0.04) if mixed else [None] * points
    return {
        "step": [2.0 * i + 1.5 for i in range(points)],
        "reward_mean": reward,
        "zero_variance_share": path(0.35, flat, 0.05),
        "separation": gap,
        "success_high": [r + g / 2 for r, g in zip(reward, gap, strict=True)] if mixed else [None] * points,
        "success_low": [r - g / 2 for r, g in zip(reward, gap, strict=True)] if mixed else [None] * points,
        "between_variance": [max(0.0, g) ** 2 / 4 for g in gap] if mixed else [0.0] * points,
        "within_variance": path(0.15, 0.06, 0.01),
        "entropy": path(0.3, 0.1, 0.01),
        "kl": path(0.0, 0.08, 0.003),
    }
