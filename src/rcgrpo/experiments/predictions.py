"""What rollouts of some prompts under each token say about groups: schemes, separation, variance. No model, no IO."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rcgrpo.algorithm.flatness import (
    Flatness,
    Gate,
    fit_beta,
    fit_betas,
    fixed_counts,
    fixed_groups,
    gated_groups,
    high_count,
    iid_counts,
    iid_groups,
    settled_gate,
    stratified_groups,
    token_variances,
)
from rcgrpo.algorithm.resampling import Estimate, PromptBootstrap

TOKENS = ("none", "high", "low")
Scheme = Literal["none", "high", "low", "iid", "stratified", "gated"]
"""How the tokens of a group are chosen; the first three give every rollout the same one (or none)."""

FACTORS = (1, 2, 4)
"""Group sizes that are predicted, as multiples of the stage's."""


FITS = 500
"""Resamples to which the Beta distribution is fitted."""


@dataclass(frozen=True)
class Counts:
    """Successes of n rollouts of every prompt under each token, each an integer array of shape (K,)."""

    n: int
    none: np.ndarray
    high: np.ndarray
    low: np.ndarray

    def __getitem__(self, token: str) -> np.ndarray:
        return {"none": self.none, "high": self.high, "low": self.low}[token]


@dataclass(frozen=True)
class Prediction:
    """Groups of one scheme and size: shares of them that would be flat, and of what kind."""

    scheme: Scheme
    group_size: int
    basis: Literal["subsets", "beta"]
    """``subsets``: unbiased. ``beta``: extrapolated by a Beta distribution over prompts."""
    flat: Estimate
    all_zero: Estimate
    all_one: Estimate
    token_only: Estimate | None
    """Groups that differ between tokens only; None where the model cannot tell."""
    groups: Flatness | None
    """Per prompt; None for ``beta``."""

    def record(self) -> dict[str, Any]:
        """As JSON."""
        kinds = ("flat", "all_zero", "all_one", "token_only")
        shares = {kind: figures(getattr(self, kind)) for kind in kinds}
        return {"scheme": self.scheme, "group_size": self.group_size, "basis": self.basis, **shares}


@dataclass(frozen=True)
class Reading:
    """All that the rollouts at one temperature say."""

    temperature: float
    success: Mapping[str, Estimate]
    """By token."""
    separation: Estimate
    """Success under high minus success under low, paired per prompt."""
    against_none: Estimate
    """Success under high minus success without a token, paired per prompt."""
    explained: Estimate | None
    """Share of the reward variance inside mixed groups that the token explains; None where there is no variance."""
    between: float
    within: float
    """The two parts of that variance, in squared reward."""
    gate: Gate | None
    """What a gated sampler would come to do; None where its groups have no room for probes and a low rollout."""
    predictions: tuple[Prediction, ...]

    def find(self, scheme: str, group_size: int) -> Prediction | None:
        """The prediction of a scheme at a size, if it was made."""
        found = (p for p in self.predictions if (p.scheme, p.group_size) == (scheme, group_size))
        return next(found, None)

    def __getitem__(self, key: tuple[str, int]) -> Prediction:
        """The prediction of a scheme and size that :func:`read` always makes: a fixed one."""
        return next(p for p in self.predictions if (p.scheme, p.group_size) == key)

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "temperature": self.temperature,
            "success": {token: figures(share) for token, share in self.success.items()},
            "separation": figures(self.separation),
            "high_against_none": figures(self.against_none),
            "token_explains": figures(self.explained),
            "between_variance": self.between,
            "within_variance": self.within,
            "gate": None if self.gate is None else self.gate._asdict(),
            "predictions": [p.record() for p in self.predictions],
        }


def figures(estimate: Estimate | None) -> dict[str, float] | None:
    """An estimate as JSON."""
    return None if estimate is None else estimate._asdict()


def read(
    counts: Counts, temperature: float, group_size: int, p: float, bootstrap: PromptBootstrap, probes: int = 2
) -> Reading:
    """Estimate everything that one temperature's rollouts allow.

    ``group_size`` is the stage's G, which needs ``counts.n >= G``; ``p`` the share of high tokens in mixed groups;
    ``probes`` how many rollouts under high a gated group begins with.
    """
    between_K, within_K = token_variances(counts.high, counts.low, counts.n, p)
    high = high_count(group_size, p)
    gate = None
    if probes <= high < group_size:
        gate = settled_gate(counts.high, counts.low, counts.n, group_size, p, probes)
    return Reading(
        temperature=temperature,
        success={token: bootstrap.mean(counts[token] / counts.n) for token in TOKENS},
        separation=bootstrap.mean((counts.high - counts.low) / counts.n, least=-1.0),
        against_none=bootstrap.mean((counts.high - counts.none) / counts.n, least=-1.0),
        explained=bootstrap.ratio(between_K, between_K + within_K),
        between=float(between_K.mean()),
        within=float(within_K.mean()),
        gate=gate,
        predictions=tuple(_predict(counts, group_size, p, gate, bootstrap)),
    )


def _predict(
    counts: Counts, group_size: int, p: float, gate: Gate | None, bootstrap: PromptBootstrap
) -> Iterator[Prediction]:
    n, high_K, low_K = counts.n, counts.high, counts.low
    if gate is not None:
        yield _of_subsets("gated", group_size, gated_groups(high_K, low_K, n, group_size, p, gate), bootstrap)
    for size in (group_size * factor for factor in FACTORS):
        for token in TOKENS:
            if size <= n:
                yield _of_subsets(token, size, fixed_groups(counts[token], n, size), bootstrap)
            else:
                yield _of_beta(token, size, fixed_counts(counts[token], n), bootstrap)
        if size <= n:
            yield _of_subsets("iid", size, iid_groups(high_K, low_K, n, size, p), bootstrap)
        else:
            yield _of_beta("iid", size, iid_counts(high_K, low_K, n, p), bootstrap)
        most = max(high_count(size, p), size - high_count(size, p))
        if most <= n:  # beyond, the Beta model of one rate has nothing to say about two
            yield _of_subsets("stratified", size, stratified_groups(high_K, low_K, n, size, p), bootstrap)


def _of_subsets(scheme: Scheme, size: int, groups: Flatness, bootstrap: PromptBootstrap) -> Prediction:
    flat, zero, one = (bootstrap.mean(part) for part in (groups.flat, groups.all_zero, groups.all_one))
    only = NEVER if scheme in TOKENS else bootstrap.mean(groups.token_only)
    return Prediction(scheme, size, "subsets", flat, zero, one, only, groups)


def _of_beta(scheme: Scheme, size: int, counts_KC: np.ndarray, bootstrap: PromptBootstrap) -> Prediction:
    value = fit_beta(counts_KC.mean(0)).alike(size)
    resampled = fit_betas(bootstrap.weights_RK[:FITS] @ counts_KC).alike(size)
    zero, one = (bootstrap.of_resamples(float(v), v_R) for v, v_R in zip(value, resampled, strict=True))
    flat = bootstrap.of_resamples(float(value[0] + value[1]), resampled[0] + resampled[1])
    return Prediction(scheme, size, "beta", flat, zero, one, NEVER if scheme in TOKENS else None, None)


NEVER = Estimate(0.0, 0.0, 0.0)
"""Groups of one token cannot differ between tokens."""
