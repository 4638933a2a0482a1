"""rcgrpo: reward-conditioned GRPO for multi-turn tool-calling agents."""

from rcgrpo.algorithm.advantages import group_advantages
from rcgrpo.algorithm.diagnostics import variance_split
from rcgrpo.algorithm.objective import clipped_objective, kl_k3
from rcgrpo.conditioning import TokenSampler

__version__ = "0.1.0"

__all__ = ["TokenSampler", "__version__", "clipped_objective", "group_advantages", "kl_k3", "variance_split"]
