"""The loss of stage 2: clipped surrogate, KL to the stage-1 policy, and how tokens are averaged.

Shape suffixes: B episodes, L token positions. ``mask_BL`` is true (or 1) on the tokens that the policy
generated; only those are trained. What stands at other positions is never read, not even NaN.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Aggregation = Literal["token", "sequence", "constant"]
ZeroVariance = Literal["keep", "drop"]


class Clipped(NamedTuple):
    """What :func:`clipped_objective` returns; both of the shape of its log-probabilities."""

    surrogate: Tensor
    """To be maximised; 0 outside the mask."""
    clipped: Tensor
    """bool: trained tokens where the clip bounds the objective, so that no gradient flows."""


class Loss(NamedTuple):
    """What :func:`rc_grpo_loss` returns: ``loss = -surrogate + beta * kl``."""

    loss: Tensor
    """Scalar, to be minimised."""
    surrogate: Tensor
    """Scalar, aggregated, without gradient."""
    kl: Tensor
    """Scalar, aggregated like the loss but not weighted by beta, without gradient; 0 where ``beta`` is 0."""
    clipped: Tensor
    """Shape (B, L), bool."""


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Elementwise estimate of ``KL(pi || pi_ref)`` from samples of pi: ``k3 = exp(d) - d - 1``, ``d = ref - lp``.

    The KL of the paper's objective (section 4.2), taken under the SAME reward token in both policies: the
    caller scores the same ids, token included, with both. Never negative, 0 where they agree; same shape and
    dtype as the input, with gradient through both arguments.
    """
    difference = ref_logprobs - logprobs
    return torch.expm1(difference) - difference


def clipped_objective(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor | None = None,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Clipped:
    """The surrogate per token: ``min(rho * A, clip(rho, 1 - clip_low, 1 + clip_high) * A)``.

    ``rho = pi(a_t|h_t, r) / pi_old(a_t|h_t, r)``, where pi_old is the policy that sampled. The paper writes rho
    for the whole trajectory; at token level, as here, its variance does not grow with the length.

    Args:
        logprobs: shape (B, L) (or any), of the policy in training; nats.
        old_logprobs: same shape, of the policy that sampled. No gradient flows into it.
        advantages: shape (B,), one per episode, or the shape of ``logprobs``.
        mask: same shape, true on trained tokens; all of them if None.
        clip_low: lower half-width; the paper's c = 0.2.
        clip_high: upper half-width; larger than ``clip_low`` is DAPO's clip-higher.

    Raises:
        ValueError: shapes that do not fit.
    """
    if advantages.shape != logprobs.shape:
        if logprobs.dim() != 2 or advantages.shape != logprobs.shape[:1]:
            raise ValueError(f"advantages {tuple(advantages.shape)} do not fit logprobs {tuple(logprobs.shape)}")
        advantages = advantages.unsqueeze(-1)
    trained = torch.ones_like(logprobs, dtype=torch.bool) if mask is None else mask.bool()
    _same_shape(logprobs, old_logprobs=old_logprobs, mask=trained)
    # masked before exp: a NaN outside the mask would otherwise reach the gradient through 0 * NaN
    ratio = torch.exp((logprobs - old_logprobs.detach()).masked_fill(~trained, 0.0))
    bounded = ratio.clamp(1 - clip_low, 1 + clip_high)
    surrogate = torch.min(ratio * advantages, bounded * advantages).masked_fill(~trained, 0.0)
    above, below = ratio > 1 + clip_high, ratio < 1 - clip_low
    return Clipped(surrogate, trained & ((above & (advantages > 0)) | (below & (advantages < 0))))


def normaliser(
    mask_BL: Tensor,
    mode: Aggregation,
    *,
    max_length: int | None = None,
    keep_B: Tensor | None = None,
) -> Tensor:
    """The denominator of :func:`aggregate` for a batch, a float scalar on the device of the mask.

    ``token``: trained tokens. ``sequence``: episodes. ``constant``: episodes times ``max_length``. Episodes
    with ``keep_B`` false do not count. Denominators of parts (micro-batches, processes) add up to that of the
    whole; to get the gradient of the whole batch from its parts, give each part the sum. 0 where nothing counts.
    """
    if (max_length is not None) != (mode == "constant"):
        raise ValueError(f"max_length goes with mode='constant'; mode is {mode!r}, max_length is {max_length}")
    rows_BL = mask_BL.bool() if keep_B is None else mask_BL.bool() & keep_B.unsqueeze(-1)
    if mode == "token":
        count = rows_BL.sum()
    else:
        episodes = len(mask_BL) if keep_B is None else keep_B.sum()
        count = torch.as_tensor(episodes * (max_length or 1), device=mask_BL.device)
    return count.float()


def aggregate(
    values_BL: Tensor,
    mask_BL: Tensor,
    mode: Aggregation = "token",
    *,
    max_length: int | None = None,
    denominator: Tensor | float | None = None,
) -> Tensor:
    """One number from per-token values.

    ``token``: their sum over the number of trained tokens of the batch (DAPO): every token weighs the same.
    ``sequence``: the mean over episodes of their means over tokens (the paper's ``1/G sum_j`` with GRPO's
    ``1/|o_j|``): every episode weighs the same; one without trained tokens counts as 0.
    ``constant``: their sum over ``B * max_length`` (Dr. GRPO): no dependence on lengths at all.

    Args:
        values_BL: shape (B, L).
        mask_BL: shape (B, L).
        max_length: tokens; with, and only with, ``constant``.
        denominator: that of the whole batch (see :func:`normaliser`) where this is only a part of it; that of
            this batch if None. Where it is 0 nothing counts, and the result is 0.
    """
    _same_shape(values_BL, mask=mask_BL)
    if denominator is None:
        denominator = normaliser(mask_BL, mode, max_length=max_length)
    denominator = torch.as_tensor(denominator, dtype=values_BL.dtype, device=values_BL.device)
    denominator = torch.where(denominator > 0, denominator, 1.0)
    trained_BL = mask_BL.bool()
    values_BL = values_BL.masked_fill(~trained_BL, 0.0)
    if mode == "sequence":
        return (values_BL.sum(-1) / trained_BL.sum(-1).clamp(min=1)).sum() / denominator
    return values_BL.sum() / denominator


def rc_grpo_loss(
    logprobs_BL: Tensor,
    old_logprobs_BL: Tensor,
    ref_logprobs_BL: Tensor | None,
    advantages_B: Tensor,
    mask_BL: Tensor,
    *,
    beta: float | Tensor = 0.1,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    aggregation: Aggregation = "token",
    max_length: int | None = None,
    zero_variance: ZeroVariance = "keep",
    flat_B: Tensor | None = None,
    denominator: Tensor | float | None = None,
) -> Loss:
    """The objective of stage 2 (paper, section 4.2), to be minimised:

    ``-(1/G) sum_j min(rho_j A_j, clip(rho_j, 1-c, 1+c) A_j) + beta KL(pi(.|h,r) || pi_ref(.|h,r))``

    Args:
        logprobs_BL: of the policy in training.
        old_logprobs_BL: of the policy that sampled.
        ref_logprobs_BL: of the stage-1 policy under the same reward tokens; may be None where ``beta`` is 0.
        advantages_B: see :func:`rcgrpo.algorithm.advantages.group_advantages`; (B, L) is taken too.
        mask_BL: true on trained tokens.
        beta: weight of the KL; a tensor of shape (B,) weighs each episode's own.
        aggregation, max_length: see :func:`aggregate`.
        zero_variance: what flat groups do, whose advantages are 0. ``keep``: they give a KL term and count in
            the denominator. ``drop``: neither; the batch is as if they had not been sampled.
        flat_B: bool, the episodes of flat groups; needed by ``drop``.
        denominator: that of the whole batch where this is a part of it: ``normaliser(mask, aggregation,
            max_length=..., keep_B=~flat)`` over all parts. With processes whose gradients are AVERAGED
            (data parallel), divide it by the number of processes.

    Raises:
        ValueError: shapes that do not fit, or an argument that the options need is missing.
    """
    regularised = bool(beta.any()) if isinstance(beta, Tensor) else beta != 0
    if regularised and ref_logprobs_BL is None:
        raise ValueError(f"beta = {beta} needs ref_logprobs_BL")
    kept_BL, keep_B = mask_BL.bool(), None
    if zero_variance == "drop":
        if flat_B is None:
            raise ValueError("zero_variance='drop' needs flat_B")
        keep_B = ~flat_B.bool()
        kept_BL = kept_BL & keep_B.unsqueeze(-1)
    elif zero_variance != "keep":
        raise ValueError(f"zero_variance must be 'keep' or 'drop', not {zero_variance!r}")
    if denominator is None:
        denominator = normaliser(mask_BL, aggregation, max_length=max_length, keep_B=keep_B)

    surrogate_BL, clipped_BL = clipped_objective(
        logprobs_BL, old_logprobs_BL, advantages_B, kept_BL, clip_low=clip_low, clip_high=clip_high
    )
    surrogate = aggregate(surrogate_BL, kept_BL, aggregation, max_length=max_length, denominator=denominator)
    if not regularised or ref_logprobs_BL is None:
        return Loss(-surrogate, surrogate.detach(), torch.zeros_like(surrogate), clipped_BL)
    _same_shape(logprobs_BL, ref_logprobs=ref_logprobs_BL)
    kl_BL = kl_k3(logprobs_BL.masked_fill(~kept_BL, 0.0), ref_logprobs_BL.detach().masked_fill(~kept_BL, 0.0))
    kl = aggregate(kl_BL, kept_BL, aggregation, max_length=max_length, denominator=denominator)
    penalty = beta * kl
    if isinstance(beta, Tensor):
        weighted_BL = beta.unsqueeze(-1) * kl_BL
        penalty = aggregate(weighted_BL, kept_BL, aggregation, max_length=max_length, denominator=denominator)
    return Loss(penalty - surrogate, surrogate.detach(), kl.detach(), clipped_BL)


def _same_shape(reference: Tensor, **others: Tensor) -> None:
    for name, other in others.items():
        if other.shape != reference.shape:
            raise ValueError(f"{name} has shape {tuple(other.shape)}, the values have {tuple(reference.shape)}")
