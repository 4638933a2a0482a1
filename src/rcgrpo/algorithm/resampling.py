"""Intervals over prompts: which prompts were drawn is what an estimate from a few of them is unsure of.

Shape suffixes: K prompts, R resamples.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import norm, t

from rcgrpo.algorithm.statistics import wilson


class Estimate(NamedTuple):
    """A figure with its 95% interval."""

    value: float
    low: float
    high: float


class PromptBootstrap:
    """Resamples prompts with all their rollouts; every figure uses the same resamples, so differences are paired.

    Percentile intervals, stretched about the estimate by ``sqrt(K / (K-1)) t / z``, because the bootstrap of few
    prompts takes their spread for exact. Where all prompts agree there is no spread to resample: then prompts that none
    of the K drawn showed may be as frequent as Wilson's bound says, and at either end of the range of values. Where all
    agree on 0 or on 1 that is the Wilson interval of K trials.
    """

    def __init__(self, prompts: int, seed: int = 0, resamples: int = 2000) -> None:
        if prompts < 2:
            raise ValueError(f"an interval over prompts needs at least 2, not {prompts}")
        rng = np.random.default_rng(seed)
        self.weights_RK = rng.multinomial(prompts, np.full(prompts, 1 / prompts), resamples) / prompts
        self._stretch = np.sqrt(prompts / (prompts - 1)) * t.ppf(0.975, prompts - 1) / norm.ppf(0.975)

    def mean(self, values_K: np.ndarray, least: float = 0.0) -> Estimate:
        """The mean over prompts of values in [least, 1]."""
        value = float(values_K.mean())
        if np.ptp(values_K) < 1e-12:
            _, unseen = wilson(0, len(values_K))
            return Estimate(value, value + unseen * (least - value), value + unseen * (1.0 - value))
        return self._around(value, self.weights_RK @ values_K, least, 1.0)

    def ratio(self, part_K: np.ndarray, whole_K: np.ndarray) -> Estimate | None:
        """Mean of the parts over mean of the wholes, held within [0, 1]; None where the whole is not above 0."""
        whole = float(whole_K.mean())
        if whole <= 0:
            return None
        wholes_R = self.weights_RK @ whole_K
        known_R = wholes_R > 1e-12
        ratios_R = (self.weights_RK @ part_K)[known_R] / wholes_R[known_R]
        return self._around(float(np.clip(part_K.mean() / whole, 0, 1)), ratios_R, 0.0, 1.0)

    def of_resamples(self, value: float, values_R: np.ndarray) -> Estimate:
        """A share and what it is on each of the resamples ``weights_RK``."""
        return self._around(value, values_R, 0.0, 1.0)

    def _around(self, value: float, values_R: np.ndarray, least: float, most: float) -> Estimate:
        bounds = value + self._stretch * (np.quantile(values_R, (0.025, 0.975)) - value)
        low, high = np.clip(bounds, least, most)
        return Estimate(value, min(float(low), value), max(float(high), value))
