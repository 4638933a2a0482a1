"""The results table in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table


def percent(share: float | None) -> str:
    """A share in percent; a hyphen where it was not measured."""
    return "-" if share is None else f"{100 * share:.1f}"


def signed(difference: float | None) -> str:
    """A difference of shares in percentage points, with its sign; a hyphen where it was not measured."""
    return "-" if difference is None else f"{round(100 * difference, 1) + 0.0:+.1f}"  # + 0.0: no "-0.0"


def span(low: float | None, high: float | None) -> str:
    """An interval of differences in percentage points."""
    return f"{signed(low)} to {signed(high)}"


def print_table(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Print rows of ``table.json``; keys ``row``, ``success``, ``low``, ``high``, ``n``, rates in [0, 1].

    The optional keys ``zero_variance_share``, ``separation`` and ``by_category`` get columns where some row has
    them; categories only on a terminal of at least 110 columns.
    """
    table = Table(caption="percent; 95% intervals", caption_justify="left")
    table.add_column("row", overflow="fold")
    for heading in ("success", "95% interval", "n"):
        table.add_column(heading, justify="right", no_wrap=True)
    extra = {"zero_variance_share": ("flat groups", percent), "separation": ("separation", signed)}
    shown = {key: how for key, how in extra.items() if any(row.get(key) is not None for row in rows)}
    named = {name for row in rows for name in row.get("by_category") or {}}
    categories = sorted(named) if console.width >= 110 else []
    for heading in (*(heading for heading, _ in shown.values()), *categories):
        table.add_column(heading, justify="right")
    for row in rows:
        by_category = row.get("by_category") or {}
        table.add_row(
            escape(str(row["row"])),
            percent(row["success"]),
            f"{percent(row['low'])} - {percent(row['high'])}",
            str(row["n"]),
            *(show(row.get(key)) for key, (_, show) in shown.items()),
            *(percent(by_category.get(name, {}).get("success")) for name in categories),
        )
    console.print(table)
