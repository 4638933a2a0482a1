"""What ``rcgrpo diagnose`` found: in the terminal, and as one self-contained page with its JSON beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rcgrpo.files import write_text
from rcgrpo.report.figures import INK, Colours, Panel, canvas
from rcgrpo.report.table import percent
from rcgrpo.stages.directory import write_json

SCHEMES = {
    "none": "no token",
    "high": "all high",
    "low": "all low",
    "iid": "iid",
    "stratified": "stratified",
    "gated": "gated",
}
"""How groups choose their tokens, in words; the last three mix them."""

SIZE_COLOURS = ("3", "6", "5")
"""Of the group sizes, from the smallest."""
KINDS = {
    "all_zero": ("all fail", "1"),
    "all_one": ("all succeed", "2"),
    "token_only": ("differs between tokens only", "4"),
    "rest": ("differs within a token", "0"),
}
"""What a group can be like, with the colour of its part."""

Reading = Mapping[str, Any]


def interval(figure: Mapping[str, float] | None, *, sign: bool = False) -> str:
    """An estimate in percent (or points) with its interval; a hyphen where there is none."""
    if figure is None:
        return "-"
    mark, to = ("+", " to ") if sign else ("", "\u2013")
    value, low, high = (f"{100 * figure[key]:{mark}.0f}" for key in ("value", "low", "high"))
    return f"{value} ({low}{to}{high})"


def sizes(found: Mapping[str, Any]) -> list[int]:
    """Group sizes that were predicted."""
    return sorted({p["group_size"] for p in found["readings"][0]["predictions"]})


def prediction(reading: Reading, scheme: str, size: int) -> Mapping[str, Any] | None:
    """The prediction of a scheme and size, if there is one."""
    found = (p for p in reading["predictions"] if (p["scheme"], p["group_size"]) == (scheme, size))
    return next(found, None)


def facts(reading: Reading) -> dict[str, str]:
    """The figures of one temperature that do not depend on groups, by their name."""
    success = reading["success"]
    named = {f"success, {SCHEMES[token]}": f"{interval(success[token])} %" for token in ("none", "high", "low")}
    named["separation (high - low)"] = f"{interval(reading['separation'], sign=True)} points"
    named["reward variance that the token explains"] = f"{interval(reading['token_explains'])} %"
    gate = reading["gate"]
    if gate is not None:
        after = [word for key, word in (("after_solved", "solved"), ("after_failed", "failed")) if gate[key]]
        named["a gated sampler would mix"] = f"after {' and '.join(after)} probes" if after else "nowhere"
    return named


def cell(found: Mapping[str, Any] | None, kind: str) -> str:
    """One figure of a prediction for a table; ``~`` before what the Beta model extrapolates."""
    if found is None or found[kind] is None:
        return "-"
    return ("~" if found["basis"] == "beta" else "") + interval(found[kind])


def print_diagnosis(found: Mapping[str, Any], console: Console) -> None:
    """Print the diagnosis: for each temperature the facts and a table of schemes, then what to do next."""
    small, *larger = sizes(found)
    rollouts = f"{found['rollouts_per_token']} rollouts under each token"
    console.print(f"{found['checkpoint']}: {found['tasks']} tasks of pool {found['pool']!r}, {rollouts}", markup=False)
    for reading in found["readings"]:
        console.print(f"\n[bold]temperature {reading['temperature']:g}[/bold]")
        for name, text in facts(reading).items():
            console.print(f"  {name:<42}{text}", highlight=False)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), collapse_padding=True)
        table.add_column("tokens", no_wrap=True)
        headings = (f"flat G={small}", "fail", "solved", "token", *(f"flat G={size}" for size in larger))
        for heading in headings:
            table.add_column(heading, justify="right", no_wrap=True)
        for scheme, name in SCHEMES.items():
            now = prediction(reading, scheme, small)
            if now is None:
                continue
            parts = (now[kind] for kind in ("all_zero", "all_one", "token_only"))
            values = [cell(now, "flat"), *(f"{100 * part['value']:.0f}" for part in parts)]
            values += [cell(prediction(reading, scheme, size), "flat") for size in larger]
            table.add_row(escape(name) + (" *" if scheme == found["sampler"] else ""), *values)
        console.print(table)
    console.print(LEGEND, style="dim", highlight=False)
    console.print("\n[bold]What to do next[/bold]")
    for advice in found["advice"]:
        console.print(f"  [bold]{advice['action']}[/bold]: {escape(advice['why'])}", highlight=False)
    if found["errors"]:
        console.print(f"  {found['errors']} of {found['episodes']} rollouts ended in an error of the world (reward 0)")


LEGEND = (
    "Percent of groups, 95% intervals over prompts. Flat: all fail or all solved. Token: not flat, but only because "
    "high and low differ. Gated: stratified where that pays, else all high. *: the recipe's. ~: extrapolated (Beta)."
)


def write_diagnosis(found: Mapping[str, Any], folder: Path) -> Path:
    """Write ``diagnose.json`` and ``diagnose.html`` into ``folder`` (through renames); returns the page's path."""
    write_json(folder / "diagnose.json", found)
    path = folder / "diagnose.html"
    write_text(path, render(found))
    return path


def render(found: Mapping[str, Any]) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("rcgrpo.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["percent"] = percent
    first, *larger = sizes(found)
    return environment.get_template("diagnosis.html.jinja").render(
        found=found,
        first=first,
        larger=larger,
        schemes=SCHEMES,
        kinds=KINDS,
        size_colours=dict(zip([first, *larger], SIZE_COLOURS, strict=False)),
        facts=facts,
        prediction=prediction,
        cell=cell,
        panels=[panel for i, reading in enumerate(found["readings"]) for panel in panels(found, reading, i)],
        legend=LEGEND,
        style=files("rcgrpo.report").joinpath("templates", "report.css").read_text(),
    )


def panels(found: Mapping[str, Any], reading: Reading, number: int) -> list[Panel]:
    """The three figures of one temperature."""
    at = f"temperature {reading['temperature']:g}"
    titles = {
        f"Success per prompt, {at}": (
            "one dot per prompt, larger for several; below the line high beats low",
            _scatter,
        ),
        f"Kinds of group, {at}": (f"shares of groups of {sizes(found)[0]}", _parts),
        f"Flat groups, {at}": ("percent of groups, 95% intervals over prompts", _whiskers),
    }
    return [Panel(title, caption, draw(found, reading, number, title)) for title, (caption, draw) in titles.items()]


def _scatter(found: Mapping[str, Any], reading: Reading, number: int, label: str) -> Markup:
    n = found["rollouts_per_token"]
    pairs = Counter((prompt["high"][number], prompt["low"][number]) for prompt in found["prompts"])

    def paint(axes: Axes, colours: Colours) -> None:
        axes.plot([0, 100], [0, 100], color=INK, linewidth=0.8, linestyle=(0, (2, 3)), alpha=0.6)
        x, y = ([100 * pair[i] / n for pair in pairs] for i in (0, 1))
        axes.scatter(x, y, s=[26 * many for many in pairs.values()], color=colours("0"), alpha=0.65, linewidths=0)
        axes.set(xlim=(-6, 106), ylim=(-6, 106))
        axes.set_xlabel("success under high, %", color=INK)
        axes.set_ylabel("under low, %", color=INK)

    return canvas(label, f"scatter-{number}", paint, size=(3.6, 2.7))


def _rows(axes: Axes, reading: Reading, size: int) -> list[str]:
    """Schemes with a prediction of this size, named on the axis from the top down."""
    names = [scheme for scheme in SCHEMES if prediction(reading, scheme, size) is not None]
    axes.set_yticks(range(len(names)), [SCHEMES[name] for name in names])
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.grid(visible=False, axis="y")
    axes.set_xlim(-2, 102)
    return names


def _parts(found: Mapping[str, Any], reading: Reading, number: int, label: str) -> Markup:
    size = sizes(found)[0]

    def paint(axes: Axes, colours: Colours) -> None:
        for row, scheme in enumerate(_rows(axes, reading, size)):
            known = prediction(reading, scheme, size)
            assert known is not None
            left = 0.0
            for kind, (_, colour) in KINDS.items():
                width = 100 - left if kind == "rest" else 100 * known[kind]["value"]
                axes.barh(row, width, 0.62, left=left, color=colours(colour), alpha=0.85, linewidth=0)
                left += width
        axes.set_xlabel("percent of groups", color=INK)

    return canvas(label, f"parts-{number}", paint, size=(3.6, 2.7))


def _whiskers(found: Mapping[str, Any], reading: Reading, number: int, label: str) -> Markup:
    def paint(axes: Axes, colours: Colours) -> None:
        for row, scheme in enumerate(_rows(axes, reading, sizes(found)[0])):
            for i, size in enumerate(sizes(found)):
                known = prediction(reading, scheme, size)
                if known is None:
                    continue
                y, colour = row + 0.22 * (i - 1), colours(SIZE_COLOURS[i])
                flat = known["flat"]
                axes.plot([100 * flat["low"], 100 * flat["high"]], [y, y], color=colour, linewidth=1.6)
                face = colour if known["basis"] == "subsets" else "none"
                axes.plot(100 * flat["value"], y, "o", markersize=4.5, color=colour, markerfacecolor=face)
        axes.set_xlabel("flat groups, %", color=INK)

    return canvas(label, f"flat-{number}", paint, size=(3.6, 2.7))
