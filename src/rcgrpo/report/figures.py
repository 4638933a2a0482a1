"""Curves as inline SVG that follows the page's colours, in light and in dark.

matplotlib draws with placeholder colours; they are then replaced by CSS variables, so that one drawing serves
both colour schemes and a row has the same colour everywhere.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK, FAINT = "#010101", "#020202"
"""Placeholders for text and for axes."""
DASHES = ["-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1))]


@dataclass(frozen=True)
class Curve:
    """One line of a panel."""

    name: str
    steps: Sequence[float]
    values: Sequence[float | None]
    """None and NaN leave a gap."""
    colour: str
    """CSS variable ``--c-<colour>``."""
    dash: int
    """Index into :data:`DASHES`."""


@dataclass(frozen=True)
class Panel:
    """One quantity over the steps of all stages that report it."""

    title: str
    caption: str
    svg: Markup


QUANTITIES: dict[str, tuple[str, str]] = {
    "reward_mean": ("Reward", "mean over the batch of rollouts"),
    "zero_variance_share": ("Flat groups", "share of groups whose rewards are all equal: no policy gradient"),
    "all_zero_share": ("Flat groups, all failed", "share of groups where every reward is 0"),
    "all_one_share": ("Flat groups, all solved", "share of groups where every reward is 1"),
    "success_high": ("Success under high", "rollouts conditioned on <|high_reward|>"),
    "success_low": ("Success under low", "rollouts conditioned on <|low_reward|>"),
    "separation": ("Separation", "mean reward under high minus that under low"),
    "between_variance": (
        "Variance between tokens",
        "part of a group's reward variance that the token explains; one without a meaning explains 1 / (G - 1) of it",
    ),
    "within_variance": ("Variance within tokens", "part that is left among rollouts of one token"),
    "entropy": ("Entropy", "nats per generated token"),
    "kl": ("KL to stage 1", "k3 estimate under the same token, nats per token"),
    "grad_norm": ("Gradient norm", "before clipping"),
    "clip_fraction": ("Clip fraction", "share of tokens where the clip binds"),
    "response_length": ("Response length", "generated tokens per rollout"),
    "mismatch_kl": ("Sampler mismatch", "k3 estimate of KL between sampler and trainer, nats per token"),
}
"""Metrics of a reinforce stage that are drawn, in order: title and caption."""

SHARES = {"reward_mean", "zero_variance_share", "all_zero_share", "all_one_share", "success_high", "success_low"}
"""Drawn on the axis from 0 to 1."""


def reinforce_panels(metrics: Mapping[str, Sequence[dict]], colours: Mapping[str, str]) -> list[Panel]:
    """One panel per quantity that some reinforce stage reports; ``metrics`` and ``colours`` by stage name."""
    panels = []
    for key, (title, caption) in QUANTITIES.items():
        curves = _curves(metrics, colours, key)
        if curves:
            panels.append(Panel(title, caption, draw(f"{title}: {caption}", key, curves, share=key in SHARES)))
    return panels


def finetune_panels(metrics: Mapping[str, Sequence[dict]], colours: Mapping[str, str]) -> list[Panel]:
    """The loss of the supervised stages: pretrain and finetune."""
    title, caption = "Cross-entropy", "on assistant tokens, nats per token"
    curves = _curves(metrics, colours, "loss")
    return [Panel(title, caption, draw(f"{title} {caption}", "finetune", curves))] if curves else []


def _curves(metrics: Mapping[str, Sequence[dict]], colours: Mapping[str, str], key: str) -> list[Curve]:
    curves = []
    for number, (stage, lines) in enumerate(metrics.items()):
        values = [line.get(key) for line in lines]
        if any(value is not None for value in values):
            steps = [line["step"] for line in lines]
            curves.append(Curve(stage, steps, values, colours[stage], number % len(DASHES)))
    return curves


def smooth(values: Sequence[float | None], window: int) -> list[float]:
    """Centred moving average over the known values within ``window`` steps; NaN where there is none."""
    half = window // 2
    averaged = []
    for i in range(len(values)):
        known = [v for v in values[max(0, i - half) : i + half + 1] if v is not None and math.isfinite(v)]
        averaged.append(sum(known) / len(known) if known else math.nan)
    return averaged


def smoothing_window(steps: int) -> int:
    """Steps averaged in a curve of so many: a tenth, odd, at most 15; 1 (none) below 12."""
    return 1 if steps < 12 else min(15, steps // 10 | 1)


def draw(label: str, name: str, curves: Sequence[Curve], *, share: bool = False) -> Markup:
    """Draw a panel: raw values faint, the moving average on top.

    Args:
        label: what a screen reader says.
        name: unique on the page; the ids inside the drawing start with it.
        share: the axis runs from 0 to 1.
    """

    def paint(axes: Axes, colours: Colours) -> None:
        for curve in curves:
            colour = colours(curve.colour)
            window = smoothing_window(len(curve.values))
            if window > 1:
                axes.plot(curve.steps, smooth(curve.values, 1), color=colour, alpha=0.3, linewidth=0.8)
            axes.plot(
                curve.steps, smooth(curve.values, window), color=colour, linewidth=1.8,
                linestyle=DASHES[curve.dash], marker="o" if len(curve.values) == 1 else None, markersize=4,
            )  # fmt: skip
        if share:
            axes.set_ylim(-0.03, 1.03)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel("step", color=INK)

    return canvas(label, name, paint)


Colours = Callable[[str], str]
"""A placeholder for the CSS variable ``--c-<name>``, to draw with."""


def canvas(
    label: str, name: str, paint: Callable[[Axes, Colours], None], size: tuple[float, float] = (3.5, 2.1)
) -> Markup:
    """A figure with one pair of axes in the page's style; ``paint`` draws on them. ``label`` and ``name`` as above."""
    variables = {INK: "currentColor", FAINT: "var(--line)"}

    def colours(variable: str) -> str:
        placeholder = f"#0300{len(variables):02x}"
        variables[placeholder] = f"var(--c-{variable})"
        return placeholder

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9}):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        axes.set_axisbelow(True)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.tick_params(colors=FAINT, labelcolor=INK, length=3)
        axes.grid(axis="y", color=FAINT, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(FAINT)
        paint(axes, colours)
        for text in (axes.xaxis.get_offset_text(), axes.yaxis.get_offset_text()):
            text.set_color(INK)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Markup(_inline(stream.getvalue(), name, label, variables))


def _inline(svg: str, name: str, label: str, variables: Mapping[str, str]) -> str:
    """Make matplotlib's file a part of the page: no prologue, own ids, the page's colours and font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    for placeholder, variable in variables.items():
        svg = svg.replace(placeholder, variable)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font-size: \1", svg)
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', rf'<svg viewBox="\1" role="img" aria-label="{escape(label)}">', svg, count=1, flags=re.DOTALL)  # fmt: skip  # noqa: E501
    return svg
