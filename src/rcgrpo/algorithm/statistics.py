"""Intervals for success rates."""

from __future__ import annotations

from scipy.stats import binomtest


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a success rate, as ``(low, high)`` in [0, 1].

    Raises:
        ValueError: no trials, or more successes than trials.
    """
    if n < 1:
        raise ValueError("an interval needs at least one trial; n is 0")
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} trials")
    interval = binomtest(successes, n).proportion_ci(confidence_level=level, method="wilson")
    return float(interval.low), float(interval.high)
