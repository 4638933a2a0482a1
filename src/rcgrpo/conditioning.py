"""Reward conditioning: label a trajectory, place its token in the prompt, sample tokens for a group.

This module alone decides where a reward token stands. Stage 1, rollouts, scoring and evaluation all call
:func:`condition`, so a policy is never scored in another context than the one it was sampled in.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rcgrpo.episodes.types import Message, RewardToken

REWARD_TOKENS = tuple(token.text for token in RewardToken)
"""The texts that become special tokens: ``<|high_reward|>`` and ``<|low_reward|>``."""


def label(reward: float, threshold: float = 1.0) -> RewardToken:
    """The token that marks a trajectory in stage 1: high if ``R(tau) = 1``, else low (paper, section 4.1)."""
    return RewardToken.HIGH if reward >= threshold else RewardToken.LOW


def condition(messages: Sequence[Message], token: RewardToken | None) -> list[Message]:
    """Append ``[Reward Goal: <|...|>]`` to the end of the FIRST user message, and nowhere else.

    The tool schemas stand before it, so the prompts of a group share all but their last few tokens. With
    ``token=None`` the messages are returned as they are (a policy without conditioning).
    """
    conditioned = list(messages)
    if token is None:
        return conditioned
    for i, message in enumerate(conditioned):
        if message.role == "user":
            goal = f"{message.content}\n[Reward Goal: {token.text}]"
            conditioned[i] = message.model_copy(update={"content": goal})
            return conditioned
    raise ValueError("no user message to place the reward token in")


class TokenSampler(BaseModel):
    """Draws the reward token of every rollout of a group.

    Three ways have a constructor: :meth:`iid` (the paper), :meth:`stratified`, :meth:`fixed`. The fourth, ``gated``,
    starts each group with probes under high and mixes tokens after them only where that makes a flat group less
    likely, by the success measured so far (``rcgrpo.algorithm.gating``).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    kind: Literal["iid", "stratified", "fixed", "gated"]
    p: float | None = Field(default=None, ge=0, le=1)
    """``iid``: probability of high (the paper: 0.5). ``stratified``: share of high, ``round(p * G)`` of G.
    ``gated``: the same share, probes included, in the groups that mix."""
    probe: int | None = Field(default=None, ge=1)
    """``gated``: rollouts under high that each group begins with; absent: 2."""
    token: RewardToken | None = None
    """``fixed``: the token of every rollout; none is plain GRPO."""

    @model_validator(mode="after")
    def _no_idle_option(self) -> TokenSampler:
        if self.kind == "fixed" and self.p is not None:
            raise ValueError("p has no meaning for kind = 'fixed': remove it")
        if self.kind != "fixed" and self.token is not None:
            raise ValueError(f"token has no meaning for kind = '{self.kind}': remove it")
        if self.kind != "gated" and self.probe is not None:
            raise ValueError(f"probe has no meaning for kind = '{self.kind}': remove it")
        return self

    @classmethod
    def iid(cls, p: float = 0.5) -> TokenSampler:
        """Independently per rollout, high with probability ``p`` (paper, section 4.2)."""
        return cls(kind="iid", p=p)

    @classmethod
    def stratified(cls, p: float = 0.5) -> TokenSampler:
        """A fixed count of each per group, in random order: ``round(p * G)`` high, the rest low."""
        return cls(kind="stratified", p=p)

    @classmethod
    def fixed(cls, token: RewardToken | str | None = None) -> TokenSampler:
        """The same token (or none) for all: plain GRPO."""
        return cls(kind="fixed", token=RewardToken(token) if token is not None else None)

    @property
    def draws_low(self) -> bool:
        """Whether any rollout may be conditioned on low."""
        return self.kind != "fixed" or self.token is RewardToken.LOW

    def sample(self, group_size: int, seed: int | str) -> list[RewardToken | None]:
        """Tokens of one group, a function of ``seed`` alone (the caller mixes in step and group id)."""
        if group_size < 1:
            raise ValueError(f"group_size must be at least 1, not {group_size}")
        if self.kind == "gated":
            raise ValueError("the tokens of a gated group depend on its probes: use after_probes")
        rng = random.Random(seed)
        p = 0.5 if self.p is None else self.p
        if self.kind == "fixed":
            return [self.token] * group_size
        if self.kind == "iid":
            return [RewardToken.HIGH if rng.random() < p else RewardToken.LOW for _ in range(group_size)]
        high = int(p * group_size + 0.5)
        return _shuffled(high, group_size - high, rng)

    @property
    def probes(self) -> int:
        """``gated``: rollouts under high that a group begins with."""
        return 2 if self.probe is None else self.probe

    def after_probes(self, group_size: int, seed: int | str) -> list[RewardToken | None]:
        """``gated``: tokens of the rollouts after the probes in a group that mixes; at least one is low."""
        high = int((0.5 if self.p is None else self.p) * group_size + 0.5)
        if not self.probes <= high < group_size:
            raise ValueError(
                f"a gated group of {group_size} that mixes has {high} rollouts under high; choose p, probe and the "
                f"group's size so that the {self.probes} probes are among them and one rollout is left for low"
            )
        return _shuffled(high - self.probes, group_size - high, random.Random(seed))


def _shuffled(high: int, low: int, rng: random.Random) -> list[RewardToken | None]:
    tokens: list[RewardToken | None] = [*[RewardToken.HIGH] * high, *[RewardToken.LOW] * low]
    rng.shuffle(tokens)
    return tokens
