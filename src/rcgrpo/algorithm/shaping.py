"""Rewards and advantages beyond the paper: rewards by what the token asks for, entropy in place of a flat group's 0.

Shape suffixes: N episodes of a batch, B episodes of a part of it, L token positions.
"""

from __future__ import annotations

import torch
from torch import Tensor


def conditioned_rewards(rewards_N: Tensor, low_N: Tensor) -> Tensor:
    """The reward for doing what the reward token asks: ``R`` under high or no token, ``1 - R`` under low.

    An episode that was asked to fail is then rewarded for failing, so that the two modes are not pulled together.

    Args:
        rewards_N: shape (N,), in [0, 1].
        low_N: shape (N,), bool: the episodes conditioned on low.

    Raises:
        ValueError: a reward is outside [0, 1].
    """
    if not ((rewards_N >= 0) & (rewards_N <= 1)).all():
        raise ValueError(f"rewards to be inverted must be in [0, 1]; found {rewards_N.min()} to {rewards_N.max()}")
    return torch.where(low_N, 1 - rewards_N, rewards_N)


def entropy_advantages(entropy_BL: Tensor, mask_BL: Tensor, rewards_B: Tensor, scale: float) -> Tensor:
    """Advantages for the tokens of flat groups (RL-ZVP, arXiv 2509.21880, equation 5). Shape (B, L), no gradient.

    ``scale * H_t`` where all episodes of the group are right: all are raised, uncertain tokens most.
    ``-scale * (max_k H_k - H_t)`` where all are wrong: all are lowered, uncertain tokens least; the maximum runs
    over the trained tokens of the episode. 0 for rewards strictly between 0 and 1 (the paper has none).

    Args:
        entropy_BL: of the policy over the whole vocabulary at each position, nats.
        mask_BL: true on trained tokens; the result is 0 elsewhere.
        rewards_B: of each episode (and so of all of its group).
        scale: the paper's alpha.
    """
    trained_BL = mask_BL.bool()
    entropy_BL = entropy_BL.detach().masked_fill(~trained_BL, 0.0)  # entropies are >= 0: never the maximum
    below_top_BL = entropy_BL.amax(-1, keepdim=True) - entropy_BL
    reward_B1 = rewards_B.unsqueeze(-1)
    shaped_BL = torch.where(reward_B1 >= 1, entropy_BL, torch.where(reward_B1 <= 0, -below_top_BL, 0.0))
    return (scale * shaped_BL).masked_fill(~trained_BL, 0.0)
