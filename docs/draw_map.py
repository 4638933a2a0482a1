"""Draw docs/map.svg from ToolWorld's files in docs/results: ``python docs/draw_map.py``.

Each point is one stage-1 policy, from which GRPO under one token and RC-GRPO were both run.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from rcgrpo.experiments.results import Results, read_results

FOLDER = Path(__file__).with_name("results")
PICTURE = Path(__file__).with_name("map.svg")
MARKERS = "osD^vPX"


class Point(NamedTuple):
    """What sampled tokens changed, from one stage-1 policy on. Percent and points."""

    separation: float
    before: float
    """Success of the stage-1 policy under high, greedy."""
    gain: float
    """RC-GRPO minus GRPO."""
    low: float
    high: float


def points(results: Results) -> list[Point]:
    """Of all pairs of rows ``X + RC-GRPO`` and ``X + GRPO`` that the file compares and whose ``X`` it holds."""
    cells = [cell for cell in results["cells"] if cell["token"] == "high"]
    found = []
    for pair in results["comparisons"]:
        start = pair["a"].removesuffix(" + RC-GRPO")
        first = [cell for cell in cells if cell["row"] == start]
        if not first or pair["diff"] is None or pair["a"] == start or pair["b"] != f"{start} + GRPO":
            continue
        means = [100 * fmean(cell[key] for cell in first) for key in ("separation", "success")]
        found.append(Point(*means, *(100 * pair[key] for key in ("diff", "low", "high"))))
    return found


def draw(drawn: dict[str, list[Point]]) -> None:
    """Two panels with one vertical axis: against the separation, and against how good the policy was."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 4.2), sharey=True, layout="constrained")
    for axes, key, label in zip(
        panels,
        ("separation", "before"),
        ("separation after stage 1 (points, sampled)", "success after stage 1 (%, under high)"),
        strict=True,
    ):
        for (name, found), marker in zip(drawn.items(), MARKERS, strict=False):
            gains = [p.gain for p in found]
            bars = [[p.gain - p.low for p in found], [p.high - p.gain for p in found]]
            at = [getattr(p, key) for p in found]
            axes.errorbar(at, gains, yerr=bars, fmt=marker, capsize=3, label=name)
        axes.axhline(0, color="grey", linewidth=0.8)
        axes.set_xlabel(label)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("RC-GRPO minus GRPO\n(points of success, 95%)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(PICTURE, metadata={"Date": None})


if __name__ == "__main__":
    matplotlib.rcParams["svg.hashsalt"] = "map"
    paths = sorted(FOLDER.glob("toolworld*.json"))
    every = {path.stem: points(read_results(path)) for path in paths}
    draw({name: found for name, found in every.items() if found})
