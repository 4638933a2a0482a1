"""Figures of an ablation: training curves with bands over seeds, and what goes with success."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from rcgrpo.report.figures import DASHES, INK, QUANTITIES, SHARES, Colours, Panel, canvas, smooth, smoothing_window

DRAWN = (
    "reward_mean", "zero_variance_share", "separation", "success_high", "success_low", "between_variance",
    "within_variance", "entropy", "kl",
)  # fmt: skip
"""Curves of a cell that get a panel."""
LAST = 0.2
"""Share of the training steps that "the end of training" means."""


@dataclass(frozen=True)
class Trained:
    """An arm that ends in stage 2: its cells under its own token, one per seed."""

    row: str
    colour: str
    dash: int
    cells: Sequence[Mapping[str, Any]]

    @property
    def gid(self) -> str:
        """Marks what is drawn of this arm, so that the page can hide it."""
        return f"arm-{self.dash}-{self.colour}"


@dataclass(frozen=True)
class Band:
    """A quantity over the steps of an arm: the mean over its seeds, and the least and greatest of them."""

    steps: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


def band(cells: Sequence[Mapping[str, Any]], key: str) -> Band | None:
    """Mean and range over the seeds, each smoothed first; None where no seed has the quantity.

    Points of a curve stand for as many steps as the run was long, so the others are read at the steps of the longest.
    A run that was shorter ends its line earlier: each point needs only the seeds that reach it.
    """
    curves = [cell["curves"] for cell in cells if any(v is not None for v in cell["curves"][key])]
    if not curves:
        return None
    longest = max(curves, key=lambda curve: curve["step"][-1])
    smoothed = [smooth(curve[key], smoothing_window(len(curve[key]))) for curve in curves]
    values_SP = np.array(
        [
            np.interp(longest["step"], curve["step"], values, left=math.nan, right=math.nan)
            for curve, values in zip(curves, smoothed, strict=True)
        ]
    )
    known_P = np.isfinite(values_SP).max(axis=0)
    picked_SP = np.ma.masked_invalid(values_SP[:, known_P])
    lines = [stat(picked_SP, axis=0).tolist() for stat in (np.ma.mean, np.ma.min, np.ma.max)]
    return Band(np.array(longest["step"])[known_P].tolist(), *lines)


def curve_panels(arms: Sequence[Trained]) -> list[Panel]:
    """One panel per quantity that some arm reports."""
    panels = []
    for key in DRAWN:
        drawn = [(arm, found) for arm in arms if (found := band(arm.cells, key)) is not None]
        if drawn:
            title, caption = QUANTITIES[key]
            panels.append(Panel(title, caption, _curves(f"{title}: {caption}", key, drawn)))
    return panels


def _curves(label: str, key: str, drawn: Sequence[tuple[Trained, Band]]):
    def paint(axes: Axes, colours: Colours) -> None:
        for arm, found in drawn:
            colour = colours(arm.colour)
            if len(arm.cells) > 1:
                area = axes.fill_between(found.steps, found.low, found.high, color=colour, alpha=0.14, linewidth=0)
                area.set_gid(f"band-{arm.gid}")
            [line] = axes.plot(found.steps, found.mean, color=colour, linewidth=1.7, linestyle=DASHES[arm.dash])
            line.set_gid(f"line-{arm.gid}")
        if key in SHARES:
            axes.set_ylim(-0.03, 1.03)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel("step", color=INK)

    return canvas(label, f"curve-{key}", paint)


def end_of_training(cell: Mapping[str, Any], key: str) -> float | None:
    """Mean of a curve over the last :data:`LAST` of the training; None where it is unknown there."""
    values = cell["curves"][key]
    known = [v for v in values[-max(1, round(LAST * len(values))) :] if v is not None] if values else []
    return sum(known) / len(known) if known else None


AGAINST = {
    "zero_variance_share": ("Flat groups and success", "share of flat groups at the end of training"),
    "separation": ("Separation and success", "separation at the end of training"),
}
"""Quantities that success is drawn against: title and axis."""


def success_panels(arms: Sequence[Trained]) -> list[Panel]:
    """Success of every seed against a quantity at the end of its training; the mean of an arm is larger."""
    panels = []
    for key, (title, axis) in AGAINST.items():
        points = [
            (arm, [(x, cell["success"]) for cell in arm.cells if (x := end_of_training(cell, key)) is not None])
            for arm in arms
        ]
        if any(found for _, found in points):
            caption = f"success at evaluation over the {axis}; small: a seed, large: the mean of an arm"
            panels.append(Panel(title, caption, _scatter(f"{title}: {caption}", key, axis, points)))
    return panels


def _scatter(label: str, key: str, axis: str, points: Sequence[tuple[Trained, list[tuple[float, float]]]]):
    def paint(axes: Axes, colours: Colours) -> None:
        for arm, found in points:
            if not found:
                continue
            colour = colours(arm.colour)
            xy = np.array(found)
            marker = MARKERS[arm.dash]
            for name, (x, y), size, alpha in (("seeds", xy.T, 11, 0.5), ("mean", xy.mean(axis=0)[:, None], 52, 1.0)):
                dots = axes.scatter(x, y, s=size, color=colour, alpha=alpha, linewidths=0, marker=marker)
                dots.set_gid(f"{name}-{arm.gid}")
        axes.set_xlabel(axis, color=INK)
        axes.set_ylabel("success", color=INK)

    return canvas(label, f"against-{key}", paint, size=(5.2, 3.0))


MARKERS = ["o", "s", "^", "D", "v", "P"]
"""One per dash: arms that share a colour differ in both."""
