"""Group-relative advantages: who did better than the rest of the group.

Shape suffixes: N episodes of a batch, K groups. Groups are formed by explicit ids and by nothing else: under
reward conditioning the prompts of one group differ on purpose (each names its own token).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

Labels = Tensor | Sequence[Hashable]
"""One label per episode: a 1-D integer or bool tensor, or a sequence of strings, ints or enum members."""

Scale = Literal["std", "none"]
Baseline = Literal["group", "token", "leave_one_out"]


def group_advantages(
    rewards: Tensor,
    group_ids: Labels,
    *,
    eps: float = 1e-6,
    scale: Scale = "std",
    baseline: Baseline = "group",
    tokens: Labels | None = None,
    virtual_reward: float | None = None,
) -> Tensor:
    """The advantage of every episode over its group (paper, section 3): ``A_j = (R_j - mean) / (std + eps)``.

    ``mean`` and the POPULATION ``std`` run over the whole group, whichever tokens its episodes were
    conditioned on. A group whose rewards are all equal gets exactly 0, whatever the rounding of its mean.

    Args:
        rewards: shape (N,), any real dtype, finite.
        group_ids: N labels; equal label, same group. Order and adjacency do not matter.
        eps: added to the standard deviation.
        scale: ``std`` divides by ``std + eps``; ``none`` does not (Dr. GRPO).
        baseline: what is subtracted. ``group``: the mean of the group (the paper). ``token``: the mean of the
            episodes of the group with the same reward token, which takes out the part of the advantage that
            only says "high beats low"; the scale remains the group's. ``leave_one_out``: the mean of the other
            episodes of the group (RLOO), 0 for a group of one.
        tokens: N labels; needed by, and only by, ``baseline="token"``.
        virtual_reward: count one more episode with this reward in mean and standard deviation of every group
            (NGRPO, arXiv 2509.18851, with the largest reward, 1): a group of failures then gets ``-1 / sqrt(G)``
            each. NGRPO's code takes the sample standard deviation; here it is the population one, as everywhere.

    Returns:
        Shape (N,), without gradient; float64 for float64 rewards, else float32.

    Raises:
        ValueError: lengths differ, a reward is not finite, or ``tokens`` and ``baseline`` do not fit.
    """
    if virtual_reward is not None and baseline == "token":
        raise ValueError("virtual_reward has no token, so it does not go with baseline='token'")
    if scale not in get_args(Scale):
        raise ValueError(f"scale must be one of {get_args(Scale)}, not {scale!r}")
    if baseline not in get_args(Baseline):
        raise ValueError(f"baseline must be one of {get_args(Baseline)}, not {baseline!r}")
    if (tokens is not None) != (baseline == "token"):
        raise ValueError(f"tokens go with baseline='token'; baseline is {baseline!r}, tokens are {tokens!r}")
    rewards_N = _checked(rewards)
    index_N, size = group_index(group_ids, rewards_N)
    real = len(rewards_N)
    rewards_N, index_N = _with_virtual(rewards_N, index_N, size, virtual_reward)
    centred_N = _centred(rewards_N, index_N, size)
    std_N = segment_mean(centred_N.square(), index_N, size).sqrt()[index_N]
    if tokens is not None:
        centred_N = _centred(rewards_N, *pair_index(index_N, size, tokens))
    elif baseline == "leave_one_out":
        members_N = torch.bincount(index_N, minlength=size)[index_N]
        centred_N = centred_N * members_N / (members_N - 1).clamp(min=1)
    return (centred_N / (std_N + eps) if scale == "std" else centred_N)[:real]


def zero_variance(rewards: Tensor, group_ids: Labels, *, virtual_reward: float | None = None) -> Tensor:
    """Mark the episodes of flat groups, those whose rewards are all equal. Shape (N,), bool.

    Such a group has no policy gradient (paper, proposition 4.2): all its advantages are 0. ``virtual_reward``: as
    in :func:`group_advantages`, one more member of every group.
    """
    rewards_N = _checked(rewards)
    index_N, size = group_index(group_ids, rewards_N)
    all_N, all_index_N = _with_virtual(rewards_N, index_N, size, virtual_reward)
    return _flat(all_N, all_index_N, size)[index_N]


def _with_virtual(rewards_N: Tensor, index_N: Tensor, size: int, virtual_reward: float | None) -> tuple[Tensor, Tensor]:
    """One more member per group at the end, if there is a virtual reward."""
    if virtual_reward is None:
        return rewards_N, index_N
    virtual_K = rewards_N.new_full((size,), virtual_reward)
    return torch.cat([rewards_N, virtual_K]), torch.cat([index_N, torch.arange(size, device=index_N.device)])


def group_index(labels: Labels, rewards_N: Tensor) -> tuple[Tensor, int]:
    """Number the labels 0..K-1: an int64 tensor of shape (N,) on the device of ``rewards_N``, and K."""
    if isinstance(labels, Tensor):
        if labels.dim() != 1 or labels.is_floating_point():
            raise ValueError(f"labels must be 1-D and integer or bool, not {labels.dtype} of shape {labels.shape}")
        labels = labels.tolist()
    if len(labels) != len(rewards_N):
        raise ValueError(f"{len(rewards_N)} rewards but {len(labels)} labels")
    numbers: dict[Hashable, int] = {}
    index = [numbers.setdefault(label, len(numbers)) for label in labels]
    return torch.tensor(index, dtype=torch.int64, device=rewards_N.device), len(numbers)


def pair_index(index_N: Tensor, size: int, tokens: Labels) -> tuple[Tensor, int]:
    """Number the (group, token) cells; empty cells are possible."""
    token_N, kinds = group_index(tokens, index_N)
    return index_N * kinds + token_N, size * kinds


def segment_mean(values_N: Tensor, index_N: Tensor, size: int) -> Tensor:
    """The mean of the values of each segment, shape (size,); 0 for an empty one."""
    sums = values_N.new_zeros(size).index_add_(0, index_N, values_N)
    return sums / torch.bincount(index_N, minlength=size).clamp(min=1)


def _flat(values_N: Tensor, index_N: Tensor, size: int) -> Tensor:
    """Whether all values of a segment are equal, by comparison and not by arithmetic. Shape (size,), bool."""
    low = values_N.new_full((size,), torch.inf).scatter_reduce_(0, index_N, values_N, "amin")
    high = values_N.new_full((size,), -torch.inf).scatter_reduce_(0, index_N, values_N, "amax")
    return low >= high


def _centred(values_N: Tensor, index_N: Tensor, size: int) -> Tensor:
    """Each value minus the mean of its segment; exactly 0 in a flat segment."""
    centred_N = values_N - segment_mean(values_N, index_N, size)[index_N]
    return centred_N.masked_fill(_flat(values_N, index_N, size)[index_N], 0.0)


def _checked(rewards: Tensor) -> Tensor:
    if rewards.dim() != 1:
        raise ValueError(f"rewards must be 1-D, one per episode, not of shape {tuple(rewards.shape)}")
    rewards_N = rewards.detach().to(torch.promote_types(rewards.dtype, torch.float32))
    if not rewards_N.isfinite().all():
        bad = int((~rewards_N.isfinite()).nonzero()[0])
        raise ValueError(f"rewards must be finite; rewards[{bad}] is {float(rewards_N[bad])}")
    return rewards_N
