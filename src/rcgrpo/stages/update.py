"""The policy update of stage 2: from a batch of played groups to optimiser steps.

Shape suffixes: B episodes, L token positions.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from rcgrpo.algorithm.advantages import group_advantages, zero_variance
from rcgrpo.algorithm.diagnostics import token_diagnostics
from rcgrpo.algorithm.objective import normaliser, rc_grpo_loss
from rcgrpo.config import ReinforceTable
from rcgrpo.episodes.types import Episode
from rcgrpo.policy.packing import ScoringBatch, microbatches
from rcgrpo.policy.scoring import Scorer, reference_scores
from rcgrpo.stages.training import Trainer

FIGURES = ("kl", "entropy", "clip_fraction", "mismatch_abs", "mismatch_k1", "mismatch_kl")
"""Token diagnostics that are logged per batch, as means over its trained tokens."""


class PolicyUpdate:
    """Callable on this process's episodes of one batch; takes ``table.updates`` optimiser steps.

    ``reference`` scores under the frozen stage-1 model; None with LoRA (the adapter is switched off instead) or beta 0.
    ``max_length`` is the constant of ``aggregate = "constant"``.
    """

    def __init__(self, trainer: Trainer, table: ReinforceTable, reference: Scorer | None, max_length: int) -> None:
        self.trainer, self.table, self.reference = trainer, table, reference
        self.max_length = max_length if table.aggregate == "constant" else None

    def __call__(self, episodes: Sequence[Episode]) -> dict[str, float | None]:
        """Update the policy; return loss, gradient norm and the token diagnostics, means over the batch."""
        started = time.monotonic()
        # a world that failed says nothing about the policy; an episode without a generated token has no gradient
        usable = [e for e in episodes if e.error is None and e.logprobs]
        if not usable:
            first = episodes[0].error
            why = f"{first.type}: {first.message}" if first else "its prompt is longer than rollout.episode_tokens"
            raise RuntimeError(f"no episode of the batch has a generated token; the first: {why}")
        groups = list(dict.fromkeys(e.group_id for e in usable))
        advantages_B = self._advantages(usable)
        flat_B = zero_variance(torch.tensor([e.reward for e in usable]), [e.group_id for e in usable])
        per_update = -(-len(groups) // self.table.updates)
        losses, norms, figures, weights = [], [], [], []
        for start in range(0, self.table.updates * per_update, per_update):
            chosen = set(groups[start : start + per_update])
            rows = [i for i, e in enumerate(usable) if e.group_id in chosen]
            part = [usable[i] for i in rows]
            # after the first update the policy is no longer the one that sampled: no mismatch to measure
            loss, measured, tokens = self._step(part, advantages_B[rows], flat_B[rows], on_policy=start == 0)
            losses.append(loss)
            norms.append(self.trainer.step())
            figures += measured
            weights += tokens
        means = {name: self._mean(name, figures, weights) for name in FIGURES}
        return {
            "loss": sum(losses) / len(losses),
            "grad_norm": sum(norms) / len(norms),
            "dropped_episodes": len(episodes) - len(usable),
            **means,
            "update_seconds": round(time.monotonic() - started, 3),
        }

    def _mean(self, name: str, figures: Sequence[dict[str, float | None]], weights: Sequence[float]) -> float | None:
        """Mean of a figure over the trained tokens of all parts and processes; None where it was not measured."""
        known = [(f[name], w) for f, w in zip(figures, weights, strict=True) if f.get(name) is not None]
        weight = self.trainer.total(sum(w for _, w in known))
        total = self.trainer.total(sum((value or 0.0) * w for value, w in known))
        return total / weight if weight else None

    def _advantages(self, episodes: Sequence[Episode]) -> Tensor:
        """Advantage of each episode inside its group; float32 [B]."""
        return group_advantages(
            torch.tensor([e.reward for e in episodes]),
            [e.group_id for e in episodes],
            scale=self.table.scale,
            baseline=self.table.baseline,
            tokens=[e.reward_token for e in episodes] if self.table.baseline == "token" else None,
        )

    def _step(
        self, episodes: Sequence[Episode], advantages_B: Tensor, flat_B: Tensor, *, on_policy: bool
    ) -> tuple[float, list[dict[str, float | None]], list[float]]:
        """Accumulate the gradient of one optimiser step: its loss, diagnostics per part, and their token counts."""
        table, trainer = self.table, self.trainer
        ids, masks = [e.token_ids for e in episodes], [e.loss_mask for e in episodes]
        group_ids = [e.group_id for e in episodes]
        parts = microbatches(ids, masks, group_ids, table.batch_tokens)
        denominator = trainer.total(self._denominator(episodes, flat_B))
        loss_sum, figures, tokens = 0.0, [], []
        for number, rows in enumerate(parts):
            batch = ScoringBatch.pack(
                [ids[i] for i in rows], [masks[i] for i in rows], [group_ids[i] for i in rows]
            ).to(trainer.accelerator.device)
            old_BL = batch.align([episodes[i].logprobs for i in rows])
            ref_BL = None
            if table.beta:
                scorer = trainer.accelerator.unwrap_model(trainer.scorer)
                ref_BL = reference_scores(scorer, batch, table.temperature, self.reference).logprobs_BL
            with trainer.part(last=number == len(parts) - 1):
                scores = trainer.scorer(batch, table.temperature)
                device = scores.logprobs_BL.device
                loss = rc_grpo_loss(
                    scores.logprobs_BL,
                    old_BL,
                    ref_BL,
                    advantages_B[rows].to(device),
                    batch.mask_BL,
                    beta=table.beta,
                    clip_low=table.clip_low,
                    clip_high=table.clip_high,
                    aggregation=table.aggregate,
                    max_length=self.max_length,
                    zero_variance=table.zero_variance,
                    flat_B=flat_B[rows].to(device),
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

    def _denominator(self, episodes: Sequence[Episode], flat_B: Tensor) -> float:
        """This process's share of the loss's denominator."""
        lengths_B = torch.tensor([sum(e.loss_mask) for e in episodes])
        mask_BL = torch.arange(int(lengths_B.max())) < lengths_B.unsqueeze(-1)
        keep_B = ~flat_B if self.table.zero_variance == "drop" else None
        if keep_B is not None and not keep_B.any():
            return 0.0 if self.trainer.world > 1 else 1.0
        return float(normaliser(mask_BL, self.table.aggregate, max_length=self.max_length, keep_B=keep_B))
