"""Stage 1: RCTP-FT and the SFT baseline, by the same code.

The loss is the paper's ``-sum_t log pi(a_t | h_t, r)``: cross-entropy on the tokens of assistant messages,
given the history and (if conditioned) the trajectory's reward token; averaged over the batch's trained tokens.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import torch

from rcgrpo.codec.codec import Codec
from rcgrpo.conditioning import label
from rcgrpo.config import FinetuneTable, Recipe
from rcgrpo.episodes.store import read_episodes
from rcgrpo.episodes.types import Episode
from rcgrpo.errors import UserError
from rcgrpo.policy.load import load_policy
from rcgrpo.policy.packing import ScoringBatch, microbatches
from rcgrpo.policy.scoring import Scorer
from rcgrpo.stages.directory import RunDirectory
from rcgrpo.stages.rollout import recondition
from rcgrpo.stages.training import Trainer, adapt


def finetune(run: RunDirectory, recipe: Recipe, name: str) -> dict[str, float]:
    """Train the stage from its start checkpoint on its collected episodes; return the final losses."""
    table = recipe.stages[name]
    assert isinstance(table, FinetuneTable)
    directory = run.stage(name)
    policy = load_policy(
        run.checkpoint(recipe, table.start), name=name, dtype=recipe.model.dtype, device=recipe.model.device
    )
    adapt(policy, recipe.model, recipe.chat, recipe.seed)
    codec = Codec(policy.tokenizer, detail=recipe.chat.schemas, thinking=recipe.chat.thinking)
    prepared = labelled_episodes(
        run,
        recipe,
        codec,
        table.data,
        conditioned=table.conditioned,
        balance=table.balance,
        permuted=table.labels == "permuted",
    )
    held_out_size = int(table.validation * len(prepared))
    train, held_out = prepared[held_out_size:], prepared[:held_out_size]
    steps = table.steps or math.ceil((table.epochs or 0) * len(train) / table.batch)

    scorer = Scorer(policy.model, checkpoint=recipe.model.gradient_checkpointing)
    trainer = Trainer(policy, scorer, table.optimiser, steps, directory)
    if table.batch < trainer.world:
        raise UserError(f"stages.{name}.batch = {table.batch} is less than the {trainer.world} processes: raise it")
    with trainer.interruptible():
        for step in range(trainer.resume(), steps):
            batch = draw(train, table.batch, step, recipe.seed)
            loss, count = train_step(trainer, batch, table.batch_tokens)
            norm = trainer.step()
            if trainer.accelerator.is_main_process:
                directory.metric(
                    step=step + 1, loss=loss, grad_norm=norm, lr=trainer.schedule.get_last_lr()[0], tokens=count
                )
                directory.progress(step + 1, steps)
            trainer.checkpoint_if_asked(step + 1, steps, table.checkpoint_every)
    policy.model.eval()
    validation = mean_loss(trainer, held_out, table.batch_tokens) if held_out else None
    trainer.finish(directory.checkpoint)
    trained = sum(m["tokens"] for m in directory.metrics())
    result: dict[str, float] = {"steps": steps, "episodes": len(train), "trained_tokens": trained}
    return result if validation is None else {**result, "validation_loss": validation}


def labelled_episodes(
    run: RunDirectory,
    recipe: Recipe,
    codec: Codec,
    data: Sequence[str],
    *,
    conditioned: bool,
    balance: bool,
    permuted: bool = False,
) -> list[Episode]:
    """The episodes of some collect stages: balanced, conditioned on the token of their reward, shuffled.

    ``permuted``: the same tokens dealt out at random, a control that separates the token's meaning from its presence.
    """
    rng = random.Random(recipe.seed)
    episodes = [e for source in data for e in read_episodes(run.stage(source).episodes)]
    good = [e for e in episodes if e.reward >= 1]
    bad = [e for e in episodes if e.reward < 1]
    if balance:
        size = min(len(good), len(bad))
        if size == 0:
            raise UserError(f"balance needs both outcomes; the data holds {len(good)} successes, {len(bad)} failures")
        good, bad = rng.sample(good, size), rng.sample(bad, size)
    chosen = [*good, *bad]
    tokens = [label(e.reward) if conditioned else None for e in chosen]
    if permuted:
        rng.shuffle(tokens)
    prepared = [recondition(e, recipe.suite, codec, token) for e, token in zip(chosen, tokens, strict=True)]
    rng.shuffle(prepared)
    return prepared


def draw(episodes: Sequence[Episode], size: int, step: int, seed: int) -> list[Episode]:
    """The ``step``-th batch of endless shuffled passes; a function of (seed, step)."""
    batch: list[Episode] = []
    position = step * size
    while len(batch) < size:
        epoch, offset = divmod(position, len(episodes))
        order = list(range(len(episodes)))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        taken = order[offset : offset + size - len(batch)]
        batch += [episodes[i] for i in taken]
        position += len(taken)
    return batch


def train_step(
    trainer: Trainer, batch: Sequence[Episode], batch_tokens: int, *, weight: float = 1.0, last: bool = True
) -> tuple[float, int]:
    """Gradient of ``weight`` times the batch's mean token loss; returns the loss and the number of trained tokens.

    ``last``: nothing more is added to the gradient before the optimiser's step, so processes exchange it now.
    """
    mine = batch[trainer.rank :: trainer.world]
    count = sum(sum(e.loss_mask) for e in batch)
    total = 0.0
    parts = _parts(mine, batch_tokens)
    for i, part in enumerate(parts):
        with trainer.part(last=last and i == len(parts) - 1):
            loss = -trainer.scorer(_pack(part, trainer), 1.0).logprobs_BL.sum() / count
            trainer.backward(weight * loss)
        total += float(loss.detach())
    return trainer.total(total), count


@torch.no_grad()
def mean_loss(trainer: Trainer, episodes: Sequence[Episode], batch_tokens: int) -> float:
    """Mean token loss of held-out episodes. Processes may have different numbers of them, or none."""
    scorer = trainer.accelerator.unwrap_model(trainer.scorer)  # the wrapper's forward may wait for the others'
    mine = episodes[trainer.rank :: trainer.world]
    total = sum(-float(scorer(_pack(part, trainer), 1.0).logprobs_BL.sum()) for part in _parts(mine, batch_tokens))
    return trainer.total(total) / sum(sum(e.loss_mask) for e in episodes)


def _parts(episodes: Sequence[Episode], batch_tokens: int) -> list[list[Episode]]:
    if not episodes:
        return []
    ids, masks = [e.token_ids for e in episodes], [e.loss_mask for e in episodes]
    return [[episodes[i] for i in part] for part in microbatches(ids, masks, range(len(ids)), batch_tokens)]


def _pack(episodes: Sequence[Episode], trainer: Trainer) -> ScoringBatch:
    batch = ScoringBatch.pack([e.token_ids for e in episodes], [e.loss_mask for e in episodes], range(len(episodes)))
    return batch.to(trainer.accelerator.device)
