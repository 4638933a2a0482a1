"""Timing in interleaved pairs, and what every benchmark reports about itself."""

from __future__ import annotations

import importlib.metadata
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Timed:
    """One run of one side."""

    wall: float
    """Seconds."""
    cpu: float
    """Seconds of processor time: all threads of the process, none of what other processes took away."""
    work: float = 1.0
    """What was done in it, such as generated tokens; times are compared per unit of it."""


def timed(run: Callable[[], float | None]) -> Timed:
    """Run once. What ``run`` returns is the work done; None is 1."""
    cpu, wall = time.process_time(), time.perf_counter()
    work = run()
    return Timed(time.perf_counter() - wall, time.process_time() - cpu, 1.0 if work is None else float(work))


def interleaved(pairs: int, ours: Callable[[], Timed], peer: Callable[[], Timed]) -> tuple[list[Timed], list[Timed]]:
    """Run both sides ``pairs`` times; who goes first alternates."""
    sides: tuple[list[Timed], list[Timed]] = ([], [])
    for pair in range(pairs):
        for side in (0, 1) if pair % 2 == 0 else (1, 0):
            sides[side].append((ours, peer)[side]())
    return sides


def compare(ours: list[Timed], peer: list[Timed]) -> dict[str, Any]:
    """The keys that all benchmarks share: ``ratio`` is the median of the peer's time over ours, pair by pair.

    ``cpu_ratio`` is the same by processor time, for machines that others use meanwhile.
    """
    wall = [(p.wall / p.work) / (o.wall / o.work) for o, p in zip(ours, peer, strict=True)]
    cpu = [(p.cpu / p.work) / (o.cpu / o.work) for o, p in zip(ours, peer, strict=True)]
    return {
        "ratio": rounded(statistics.median(wall)),
        "ratios": [rounded(r) for r in wall],
        "cpu_ratio": rounded(statistics.median(cpu)),
        "cpu_ratios": [rounded(r) for r in cpu],
        "ours_s": rounded(statistics.median(o.wall for o in ours)),
        "peer_s": rounded(statistics.median(p.wall for p in peer)),
    }


def rounded(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")


def environment(threads: int) -> dict[str, Any]:
    """Set torch's threads; what the figures depend on."""
    torch.set_num_threads(threads)
    versions = {"python": platform.python_version()}
    for package in ("rcgrpo", "torch", "transformers", "trl"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "absent"
    return {"threads": threads, "processor": _processor(), "versions": versions}


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
