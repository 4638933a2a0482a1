"""Draw docs/decay.svg from docs/results/toolworld-decay.json: ``python docs/draw_decay.py``.

Left: the separation of the tokens in the batches of training. Right: what is left of it at the end.
"""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np

from rcgrpo.experiments.results import Results, read_results
from rcgrpo.report.rows import token_effects

RESULTS = Path(__file__).with_name("results") / "toolworld-decay.json"
PICTURE = Path(__file__).with_name("decay.svg")
STRETCH = 5
"""Steps that a point of the curves averages."""


def curve(results: Results, row: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Steps and separation in points, each stretch and all seeds averaged; None where the batches held one token."""
    curves = [cell["curves"] for cell in results["cells"] if cell["row"] == row and cell["curves"]]
    steps, values = (np.array([x for c in curves for x in c[key]], dtype=float) for key in ("step", "separation"))
    steps, values = steps[np.isfinite(values)], values[np.isfinite(values)]
    if not len(values):
        return None
    stretch = ((steps - 0.5) // STRETCH).astype(int)
    shown = np.unique(stretch)
    at, separation = (np.array([of[stretch == one].mean() for one in shown]) for of in (steps, values))
    return at, 100 * separation


def draw(results: Results) -> None:
    """Two panels; an arm has one colour in both."""
    effects = [effect for effect in token_effects(results) if effect.sampled]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.0), layout="constrained")
    for y, (effect, colour) in enumerate(zip(effects, cycle(plt.get_cmap("tab10").colors))):
        if effect.sampled is None:
            continue
        if found := curve(results, effect.row):
            left.plot(*found, color=colour, marker="o", markersize=3)
        value, low, high = (100 * x for x in effect.sampled[:3])
        right.errorbar(value, y, xerr=[[value - low], [high - value]], fmt="o", color=colour, capsize=3)
        right.plot([100 * x for x in effect.sampled.by_seed], [y] * len(effect.sampled.by_seed), "|", color=colour)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    left.axhline(0, color="grey", linewidth=0.8)
    left.set(xlabel="step", ylabel=f"separation in training\n(points, means of {STRETCH} steps)")
    right.axvline(0, color="grey", linewidth=0.8)
    right.set_yticks(range(len(effects)), [effect.row for effect in effects])
    right.invert_yaxis()
    right.set_xlabel("separation afterwards (points, sampled, 95%)")
    figure.savefig(PICTURE, metadata={"Date": None})


if __name__ == "__main__":
    matplotlib.rcParams["svg.hashsalt"] = "decay"
    draw(read_results(RESULTS))
