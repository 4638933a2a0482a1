"""The policy update of stage 2: from a batch of played groups to optimiser steps.

Shape suffixes: B episodes, L token positions.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rcgrpo.algorithm.advantages import group_advantages, zero_variance
from rcgrpo.algorithm.diagnostics import token_diagnostics
from rcgrpo.algorithm.objective import normaliser, rc_grpo_loss
from rcgrpo.algorithm.shaping import conditioned_rewards, entropy_advantages
from rcgrpo.config import ReinforceTable
from rcgrpo.episodes.types import Episode, RewardToken
from rcgrpo.errors import UserError
from rcgrpo.policy.packing import ScoringBatch, microbatches
from rcgrpo.policy.scoring import Scorer, reference_scores
from rcgrpo.stages.replay import Replay
from rcgrpo.stages.training import Trainer

FIGURES = ("kl", "entropy", "clip_fraction", "mismatch_abs", "mismatch_k1", "mismatch_kl")
"""Token diagnostics that are logged per batch, as means over the tokens that were trained on."""

ENTROPY_SCALE = 0.1
"""``entropy_scale`` where the recipe gives none."""


def training_rewards(episodes: Sequence[Episode], table: ReinforceTable) -> Tensor:
    """What the advantages are made of, float32 [B]: the true reward, or its opposite under low."""
    rewards_B = torch.tensor([e.reward for e in episodes])
    if table.low_reward == "same":
        return rewards_B
    return conditioned_rewards(rewards_B, _low(episodes))


def flat_groups(episodes: Sequence[Episode], table: ReinforceTable) -> Tensor:
    """Bool [B]: the episodes of groups whose advantages are all 0 by their rewards."""
    return zero_variance(
        training_rewards(episodes, table), [e.group_id for e in episodes], virtual_reward=virtual_reward(table)
    )


def virtual_reward(table: ReinforceTable) -> float | None:
    """The reward of the member that NGRPO adds to every group."""
    return 1.0 if table.flat_advantage == "ngrpo" else None


def _low(episodes: Sequence[Episode]) -> Tensor:
    return torch.tensor([e.reward_token is RewardToken.LOW for e in episodes])


class Targets(NamedTuple):
    """What the loss takes from each episode beside its tokens. All of shape [B]."""

    advantages: Tensor
    rewards: Tensor
    flat: Tensor
    """bool: of a flat group."""
    kept: Tensor
    """bool: in policy term, KL and denominator; the others are in none of them."""
    beta: Tensor
    """Weight of the KL."""

    def of(self, rows: Sequence[int]) -> Targets:
        """Those of some episodes."""
        return Targets(*(values[list(rows)] for values in self))

    def to(self, device: torch.device) -> Targets:
        """The same on another device."""
        return Targets(*(values.to(device) for values in self))


class PolicyUpdate:
    """Callable on this process's episodes of one batch; takes ``table.updates`` optimiser steps.

    ``reference`` scores under the frozen stage-1 model; None with LoRA (the adapter is switched off instead) or beta 0.
    ``max_length`` is the constant of ``aggregate = "constant"``. ``replay`` adds stage-1 batches.
    """

    def __init__(
        self,
        trainer: Trainer,
        table: ReinforceTable,
        reference: Scorer | None,
        max_length: int,
        replay: Replay | None = None,
    ) -> None:
        self.trainer, self.table, self.reference, self.replay = trainer, table, reference, replay
        self.max_length = max_length if table.aggregate == "constant" else None

    def __call__(self, episodes: Sequence[Episode], batch: int = 0) -> dict[str, float | None]:
        """Update the policy on the ``batch``-th batch; return loss, gradient norm and token diagnostics, its means."""
        started = time.monotonic()
        # a world that failed says nothing about the policy; an episode without a generated token has no gradient
        usable = [e for e in episodes if e.error is None and e.logprobs]
        if not usable:
            first = episodes[0].error
            too_long = "its prompt is longer than rollout.episode_tokens: raise it, or choose chat.schemas = 'compact'"
            why = f"the world failed with {first.type}: {first.message}" if first else too_long
            raise UserError(f"no episode of the batch can be trained on; the first: {why}")
        groups = list(dict.fromkeys(e.group_id for e in usable))
        targets = self._targets(usable)
        per_update = -(-len(groups) // self.table.updates)
        losses, norms, replayed, figures, weights = [], [], [], [], []
        for number in range(self.table.updates):
            chosen = set(groups[number * per_update : (number + 1) * per_update])
            rows = [i for i, e in enumerate(usable) if e.group_id in chosen]
            # what is not trained on is not scored; but every process has to take part in the step
            rows = [i for i in rows if targets.kept[i]]
            part = targets.of(rows) if rows else targets.of([0])._replace(kept=torch.tensor([False]))
            # after the first update the policy is no longer the one that sampled: no mismatch to measure
            if self.replay is not None:
                replayed.append(self.replay.accumulate(self.trainer, batch * self.table.updates + number))
            loss, measured, tokens = self._step([usable[i] for i in rows or [0]], part, on_policy=number == 0)
            losses.append(loss)
            norms.append(self.trainer.step())
            figures += measured
            weights += tokens
        means = {name: self._mean(name, figures, weights) for name in FIGURES}
        return {
            "loss": sum(losses) / len(losses),
            "grad_norm": sum(norms) / len(norms),
            "dropped_episodes": int(self.trainer.total(float(len(episodes) - len(usable)))),
            **means,
            **({"replay_loss": sum(replayed) / len(replayed)} if replayed else {}),
            "update_seconds": round(time.monotonic() - started, 3),
        }

    def _mean(self, name: str, figures: Sequence[dict[str, float | None]], weights: Sequence[float]) -> float | None:
        """Mean of a figure over the trained tokens of all parts and processes; None where it was not measured."""
        known = [(f[name], w) for f, w in zip(figures, weights, strict=True) if f.get(name) is not None]
        weight = self.trainer.total(sum(w for _, w in known))
        total = self.trainer.total(sum((value or 0.0) * w for value, w in known))
        return total / weight if weight else None

    def _targets(self, episodes: Sequence[Episode]) -> Targets:
        """Advantage of each episode inside its group, and how it counts in the loss."""
        table, low_B = self.table, _low(episodes)
        rewards_B = training_rewards(episodes, table)
        flat_B = flat_groups(episodes, table)
        advantages_B = group_advantages(
            rewards_B,
            [e.group_id for e in episodes],
            scale=table.scale,
            baseline=table.baseline,
            tokens=[e.reward_token for e in episodes] if table.baseline == "token" else None,
            virtual_reward=virtual_reward(table),
        )
        kept_B = ~low_B if table.gradient == "high" else torch.ones_like(low_B)
        if table.zero_variance == "drop":
            kept_B &= ~flat_B
        beta_low = table.beta if table.beta_low is None else table.beta_low
        return Targets(advantages_B, rewards_B, flat_B, kept_B, torch.where(low_B, beta_low, table.beta))

    def _step(
        self, episodes: Sequence[Episode], targets: Targets, *, on_policy: bool
    ) -> tuple[float, list[dict[str, float | None]], list[float]]:
        """Accumulate the gradient of one optimiser step: its loss, diagnostics per part, and their token counts."""
        table, trainer = self.table, self.trainer
        ids, masks = [e.token_ids for e in episodes], [e.loss_mask for e in episodes]
        group_ids = [e.group_id for e in episodes]
        parts = microbatches(ids, masks, group_ids, table.batch_tokens)
        denominator = trainer.total(self._denominator(episodes, targets.kept))
        loss_sum, figures, tokens = 0.0, [], []
        for number, rows in enumerate(parts):
            batch = ScoringBatch.pack(
                [ids[i] for i in rows], [masks[i] for i in rows], [group_ids[i] for i in rows]
            ).to(trainer.accelerator.device)
            old_BL = batch.align([episodes[i].logprobs for i in rows])
            ref_BL = None
            if table.regularised:
                scorer = trainer.accelerator.unwrap_model(trainer.scorer)
                ref_BL = reference_scores(scorer, batch, table.temperature, self.reference).logprobs_BL
            with trainer.part(last=number == len(parts) - 1):
                scores = trainer.scorer(batch, table.temperature)
                part = targets.of(rows).to(scores.logprobs_BL.device)
                advantages = part.advantages
                if table.flat_advantage == "zvp":
                    shaped_BL = entropy_advantages(
                        scores.entropy_BL, batch.mask_BL, part.rewards, table.entropy_scale or ENTROPY_SCALE
                    )
                    advantages = torch.where(part.flat.unsqueeze(-1), shaped_BL, advantages.unsqueeze(-1))
                loss = rc_grpo_loss(
                    scores.logprobs_BL,
                    old_BL,
                    ref_BL,
                    advantages,
                    batch.mask_BL,
                    beta=part.beta,
                    clip_low=table.clip_low,
                    clip_high=table.clip_high,
                    aggregation=table.aggregate,
                    max_length=self.max_length,
                    zero_variance="drop",  # what is dropped is decided above
                    flat_B=~part.kept,
                    denominator=denominator,
                )
                trainer.backward(loss.loss)
            loss_sum += float(loss.loss.detach())
            figures.append(
                token_diagnostics(
                    scores.logprobs_BL.detach(),
                    batch.mask_BL,
                    ref_logprobs_BL=ref_BL,
                    sampler_logprobs_BL=old_BL if on_policy else None,
                    entropy_BL=scores.entropy_BL,
                    clipped_BL=loss.clipped,
                )
            )
            tokens.append(float(batch.mask_BL.sum()))
        return trainer.total(loss_sum), figures, tokens

    def _denominator(self, episodes: Sequence[Episode], kept_B: Tensor) -> float:
        """This process's share of the loss's denominator."""
        lengths_B = torch.tensor([sum(e.loss_mask) for e in episodes])
        mask_BL = torch.arange(int(lengths_B.max())) < lengths_B.unsqueeze(-1)
        return float(normaliser(mask_BL, self.table.aggregate, max_length=self.max_length, keep_B=kept_B))
