"""When to mix reward tokens in a group: only where that makes it less likely that all its rewards are equal."""

from __future__ import annotations

from collections.abc import Sequence

from rcgrpo.episodes.types import RewardToken

MEMORY = 0.9
"""Factor by which what was seen in earlier batches counts less with each new one."""

Seen = tuple[RewardToken | None, float]
"""Reward token and reward of one rollout."""


def flat_rest_probability(agree_high: float, agree_low: float, high: int, low: int) -> float:
    """The chance that a group whose probes agreed becomes flat: that all further rollouts earn the probes' reward.

    ``agree_high``, ``agree_low``: the chance of one rollout under each token to do so; ``high``, ``low``: how many
    rollouts there still are under each. Rollouts are taken as independent.
    """
    return agree_high**high * agree_low**low


class TokenGate:
    """Decides after a group's first rollouts, its probes under high, whether the others mix tokens.

    What it measures, over all groups so far: how often a rollout under each token earns the reward that the probes
    of its group agreed on, apart for groups whose probes succeeded and for those whose probes failed. Each is the
    mean of a Beta(1, 1) posterior over counts that fade by :data:`MEMORY` per batch. So at first, and again some
    batches after low was last tried, low looks uncertain and is tried (and measured) where high is not.
    """

    def __init__(self) -> None:
        self.counts = {key: [0.0, 0.0] for key in ("solved/high", "solved/low", "failed/high", "failed/low")}
        """Rollouts that agreed with their group's probes, and all rollouts, by the probes' outcome and by token."""

    def agreement(self, solved: bool, token: RewardToken) -> float:
        """The estimated chance of a rollout under ``token`` to earn what the probes did."""
        agreed, seen = self.counts[_key(solved, token)]
        return (agreed + 1) / (seen + 2)

    def mixes(self, probes: Sequence[float], *, high: int, low: int) -> bool:
        """Whether ``high`` + ``low`` more rollouts under both tokens are less likely to leave the group flat than as
        many under high alone. ``probes``: the rewards so far; where they differ the group is mixed already: False."""
        if len(set(probes)) > 1:
            return False
        agree_high, agree_low = (self.agreement(probes[0] >= 1, token) for token in RewardToken)
        mixed = flat_rest_probability(agree_high, agree_low, high, low)
        return mixed <= flat_rest_probability(agree_high, agree_low, high + low, 0)

    def observe(self, groups: Sequence[tuple[Sequence[float], Sequence[Seen]]]) -> None:
        """Take in a batch: for each group the rewards of its probes, then the rollouts after them."""
        self.counts = {key: [MEMORY * value for value in pair] for key, pair in self.counts.items()}
        for probes, rest in groups:
            if len(set(probes)) != 1:
                continue
            for token, reward in rest:
                pair = self.counts[_key(probes[0] >= 1, token)]
                pair[0] += reward == probes[0]
                pair[1] += 1


def _key(solved: bool, token: RewardToken | None) -> str:
    return f"{'solved' if solved else 'failed'}/{token}"
