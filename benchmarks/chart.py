"""Draw docs/performance.svg from the raw results in docs/results/bench: every figure as a share of its bar."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results" / "bench"
MET, MISSED = "#2a7f62", "#b5533c"


def read(name: str) -> dict:
    """A result by name."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def figures() -> list[tuple[str, float, float, bool]]:
    """(what, measured, bar, whether more is better), top to bottom."""
    update, decode, rollout = read("update-bfcl"), read("decode"), read("rollout")
    rows = {row["batch"]: row for row in decode["batches"]}
    static = min(
        row[key] for row in rows.values() for key in ("cpu_static_ratio", "unshared_cpu_static_ratio") if key in row
    )
    return [
        ("step, small: speed over TRL", read("step-small")["ratio"], 3, True),
        ("step, BFCL: speed over TRL", read("step-bfcl")["ratio"], 8, True),
        ("update, BFCL: speed over our ordinary forward", update["ratio"], 3.5, True),
        ("update, BFCL: peak memory, share of it", update["memory_ratio"], 0.4, False),
        ("rollout: growth of time over growth of tokens", rollout["ratio"], 1.15, False),
        ("env: speed over the official code, known calls", read("env")["ratio"], 20, True),
        ("env: the same, calls never made before", read("env")["cold_ratio"], 20, True),
        ("decode, batch 64: speed over dynamic generate", rows[64]["ratio"], 1.4, True),
        ("decode: processor time of static generate over ours, worst batch", static, 1, True),
    ]


def main() -> None:
    """Write the chart."""
    rows = figures()[::-1]
    shares = [measured / bar if more else bar / measured for _, measured, bar, more in rows]
    figure, axes = plt.subplots(figsize=(9, 0.42 * len(rows) + 1.2))
    axes.barh(range(len(rows)), shares, color=[MET if share >= 1 else MISSED for share in shares], height=0.62)
    axes.axvline(1, color="black", linewidth=1)
    for place, ((_, measured, bar, more), share) in enumerate(zip(rows, shares, strict=True)):
        text = f"{measured:.3g} (bar: {'at least' if more else 'at most'} {bar:g})"
        axes.text(share + 0.03, place, text, va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
    axes.set_xlim(0, max(shares) + 0.85)
    axes.set_xlabel("how far past its bar (1: just met; for growth and memory, bar over measured)")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(ROOT / "docs" / "performance.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
