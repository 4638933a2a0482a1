"""What to do next: rules with fixed thresholds over the figures of a diagnosis, each stating its numbers.

A rule speaks only where a 95% interval, not just an estimate, lies on one side of its threshold; of a fall that is
shown, its estimate decides whether it is worth its cost. Plain groups are those that GRPO would sample: all under high,
or without a token where that is shown to succeed more often.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from rcgrpo.algorithm.resampling import Estimate, PromptBootstrap
from rcgrpo.experiments.predictions import Prediction, Reading

FEW_FLAT = 0.25
"""Below this share of flat groups no cure can save more than a quarter of the rollouts."""
LEAST_SEPARATION = 0.1
"""Below it the token adds at most ``p (1-p) d^2 = 0.0025`` to a reward variance of up to 0.25 (proposition 4.3)."""
WORTH_COSTS = 0.1
"""Fall of the flat share that is worth twice the rollouts per group, or another temperature."""

Action = Literal[
    "train stage 1", "mix", "do not mix", "more tasks", "harder tasks", "easier tasks", "more rollouts", "temperature"
]


class Advice(NamedTuple):
    """One thing to do, and why."""

    action: Action
    why: str


def plain_token(reading: Reading) -> Literal["none", "high"]:
    """Under which token plain GRPO would sample this policy."""
    return "none" if reading.against_none.high < 0 else "high"


def advise(readings: Sequence[Reading], group_size: int, bootstrap: PromptBootstrap) -> list[Advice]:
    """Apply the rules in order. ``readings``: the stage's temperature first; ``group_size``: its G."""
    now = readings[0]
    plain = plain_token(now)
    base = now[plain, group_size]
    found = list(_about_mixing(now, base, bootstrap))
    if base.all_one.low > FEW_FLAT:
        why = f"{share(base.all_one)} of the plain groups are all solved: there is nothing to learn from them"
        found.append(Advice("harder tasks", why))
    if base.all_zero.low > FEW_FLAT:
        why = f"{share(base.all_zero)} of the plain groups fail throughout: easier tasks, or a better start, help them"
        found.append(Advice("easier tasks", why))
    doubled = now.find(plain, 2 * group_size)
    if doubled is not None and doubled.groups is not None:
        fall = _fall(base, doubled, bootstrap)
        if fall.low > 0 and fall.value >= WORTH_COSTS:
            size = f"groups of {doubled.group_size} would be flat in {share(doubled.flat)}"
            found.append(Advice("more rollouts", f"{size}: {points(fall)} points fewer, at twice the cost per group"))
    for hot in readings[1:]:
        fall = _fall(base, hot[plain, group_size], bootstrap)
        if fall.low > 0 and fall.value >= WORTH_COSTS:
            flat = f"at {hot.temperature:g}, {share(hot[plain, group_size].flat)} of the plain groups are flat"
            success = f"success goes from {share(now.success[plain])} to {share(hot.success[plain])}"
            found.append(Advice("temperature", f"{flat}, {points(fall)} points fewer; {success}"))
    return found


def _about_mixing(now: Reading, base: Prediction, bootstrap: PromptBootstrap) -> Iterator[Advice]:
    plain = f"{share(base.flat)} of the plain groups are flat"
    separation = f"separation is {points(now.separation)}"
    if base.flat.high < FEW_FLAT:
        yield Advice("do not mix", f"only {plain}: GRPO has its signal")
        return
    mixed = [m for m in (now.find(scheme, base.group_size) for scheme in ("stratified", "iid")) if m is not None]
    gated = now.find("gated", base.group_size)
    best = min(mixed if gated is None else [*mixed, gated], key=lambda m: m.flat.value)
    fall = _fall(base, best, bootstrap)
    if fall.low <= 0:  # a gate that hardly mixes hides what mixing does
        best = min(mixed, key=lambda m: m.flat.value)
        fall = _fall(base, best, bootstrap)
    numbers = f"{plain}, {share(best.flat)} with {best.scheme} tokens; {separation}"
    if now.separation.low <= 0 or now.separation.high < LEAST_SEPARATION:
        least = "not shown to be above 0" if now.separation.low <= 0 else f"below {100 * LEAST_SEPARATION:.0f}"
        how = "train it longer, or on failures that differ more from the successes"
        yield Advice("train stage 1", f"{separation}, which is {least}: {how}")
        fewer = (
            f". {points(fall)} points fewer are flat, but high is not shown to be better: differences without direction"
        )
        yield Advice("do not mix", numbers + (fewer if fall.low > 0 else ": nothing for mixing to use"))
    elif fall.low > 0:
        assert best.token_only is not None
        only = f"in {share(best.token_only)} of all groups the reward differs between tokens only"
        teaches = "these teach 'high beats low' and not the task"
        yield Advice("mix", f"{numbers}. {points(fall)} points fewer are flat, but {only}: {teaches}")
    elif fall.high < 0:
        yield Advice("do not mix", f"{numbers}: mixing makes more groups flat")
    else:
        yield Advice("do not mix", f"{numbers}: no difference shown ({points(fall)} points fewer)")
        if fall.high > WORTH_COSTS:
            yield Advice("more tasks", "the interval leaves room for a gain that matters: repeat with more --tasks")


def _fall(before: Prediction, after: Prediction, bootstrap: PromptBootstrap) -> Estimate:
    """How much less is flat, paired per prompt."""
    assert before.groups is not None and after.groups is not None
    return bootstrap.mean(before.groups.flat - after.groups.flat, least=-1.0)


def share(estimate: Estimate) -> str:
    """A share in percent with its interval."""
    return f"{100 * estimate.value:.0f}% ({100 * estimate.low:.0f} to {100 * estimate.high:.0f})"


def points(estimate: Estimate) -> str:
    """A difference in percentage points with its interval."""
    return f"{100 * estimate.value:.0f} ({100 * estimate.low:.0f} to {100 * estimate.high:.0f})"
