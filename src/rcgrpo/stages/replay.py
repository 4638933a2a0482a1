"""Stage-1 batches during stage 2."""

from __future__ import annotations

from rcgrpo.codec.codec import Codec
from rcgrpo.config import Recipe, ReplayTable
from rcgrpo.errors import UserError
from rcgrpo.stages.directory import RunDirectory
from rcgrpo.stages.finetune import draw, labelled_episodes, train_step
from rcgrpo.stages.training import Trainer


class Replay:
    """Adds the gradient of stage 1's loss to that of stage 2; which batch is a function of seed and step alone."""

    def __init__(self, run: RunDirectory, recipe: Recipe, codec: Codec, table: ReplayTable, batch_tokens: int) -> None:
        self.table, self.seed, self.batch_tokens = table, recipe.seed, batch_tokens
        self.episodes = labelled_episodes(
            run, recipe, codec, table.data, conditioned=table.conditioned, balance=table.balance
        )
        if not self.episodes:
            raise UserError(f"replay.data: {', '.join(table.data)}: no episode was kept there")

    def accumulate(self, trainer: Trainer, step: int) -> float:
        """Accumulate the gradient of optimiser step ``step``; return the mean token loss, without its weight."""
        batch = draw(self.episodes, self.table.batch, step, self.seed)
        loss, _ = train_step(trainer, batch, self.batch_tokens, weight=self.table.weight, last=False)
        return loss
