"""Draw docs/map.svg from ToolWorld's files in docs/results: ``python docs/draw_map.py``.

Each point is one stage-1 policy, from which GRPO and RC-GRPO were both run for equal budgets.
"""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np

from rcgrpo.experiments.results import Results, outcomes, read_results
from rcgrpo.experiments.statistics import compare

FOLDER = Path(__file__).with_name("results")
PICTURE = Path(__file__).with_name("map.svg")
MARKERS = "osD^vPX"
MARGIN = 8.0
"""Points beyond the outermost seeds that are drawn."""


class Point(NamedTuple):
    """What sampled tokens changed, from one stage-1 policy on. Percent and points."""

    separation: float
    before: float
    """Success of the stage-1 policy under its own token, greedy."""
    gain: float
    """RC-GRPO minus GRPO."""
    low: float
    high: float
    by_seed: list[float]


def points(results: Results) -> list[Point]:
    """Of every row ``X`` beside which are ``X + GRPO`` and ``X + RC-GRPO``, on the seeds that all three have.

    Seeds whose separation was not measured are left out.
    """
    token = {arm["row"]: arm["token"] for arm in results["plan"]["arms"]}
    found = []
    for start in token:
        rows = (start, f"{start} + RC-GRPO", f"{start} + GRPO")
        if not token.keys() >= set(rows):
            continue
        by_seed = [outcomes(results["cells"], row, token[row]) for row in rows]
        own = [cell for cell in results["cells"] if (cell["row"], cell["token"]) == (start, token[start])]
        separation = {cell["seed"]: cell["separation"] for cell in own if cell["separation"] is not None}
        seeds = sorted(set.intersection(*map(set, by_seed), separation))
        if not seeds:
            continue
        before, *trained = (np.stack([of[seed] for seed in seeds]) for of in by_seed)
        gain = compare(*trained)
        measured = (fmean(separation[seed] for seed in seeds), before.mean(), gain.diff, gain.low, gain.high)
        found.append(Point(*(100 * float(x) for x in measured), [100 * x for x in gain.by_seed]))
    return found


def draw(drawn: dict[str, list[Point]]) -> None:
    """Two panels with one vertical axis: against the separation, and against how good the policy was.

    The axis reaches :data:`MARGIN` beyond the seeds; intervals of two seeds that disagree run out of it.
    """
    seeds = [gain for found in drawn.values() for point in found for gain in point.by_seed]
    figure, panels = plt.subplots(1, 2, figsize=(9, 4.2), sharey=True, layout="constrained")
    for axes, key, label in zip(
        panels,
        ("separation", "before"),
        ("separation after stage 1 (points, sampled)", "success after stage 1 (%, greedy)"),
        strict=True,
    ):
        for (name, found), marker in zip(drawn.items(), cycle(MARKERS)):
            gains = [p.gain for p in found]
            bars = [[p.gain - p.low for p in found], [p.high - p.gain for p in found]]
            at = [getattr(p, key) for p in found]
            [line, *_] = axes.errorbar(at, gains, yerr=bars, fmt=marker, capsize=3, label=name)
            for x, point in zip(at, found, strict=True):
                if len(point.by_seed) > 1:
                    axes.plot([x] * len(point.by_seed), point.by_seed, "o", mfc="none", ms=3, color=line.get_color())
        axes.axhline(0, color="grey", linewidth=0.8)
        axes.set_xlabel(label)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylim(min(seeds) - MARGIN, max(seeds) + MARGIN)
    panels[0].set_ylabel("RC-GRPO minus GRPO\n(points of success, 95%; small: seeds)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(PICTURE, metadata={"Date": None})


if __name__ == "__main__":
    matplotlib.rcParams["svg.hashsalt"] = "map"
    paths = sorted(FOLDER.glob("toolworld*.json"))
    every = {path.stem: points(read_results(path)) for path in paths}
    draw({name: found for name, found in every.items() if found})
