"""The groups of one batch: their tasks, their reward tokens, and what takes the place of a flat one.

Every group is a coroutine of its own in one session of the engine: the later rollouts of a gated group, and the
fresh group in place of a flat one, start as soon as their own group is ready and wait for no other.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from rcgrpo.algorithm.gating import TokenGate
from rcgrpo.config import ReinforceTable
from rcgrpo.episodes.types import Episode, RewardToken, Sampling, Task
from rcgrpo.stages.rollout import Job, Play
from rcgrpo.stages.setup import seed_of
from rcgrpo.stages.update import flat_groups, training_rewards


class Sampled(NamedTuple):
    """What one place of the batch gave."""

    trained: list[Episode]
    """The group to train on."""
    discarded: list[Episode]
    """The flat groups that were played before it."""


class GroupSampler:
    """Plays groups. Tasks, tokens and seeds depend on (seed, step, group, round), and on the gate, alone."""

    def __init__(self, tasks: Sequence[Task], table: ReinforceTable, seed: int, gate: TokenGate | None = None) -> None:
        self.tasks, self.table, self.seed, self.gate = tasks, table, seed, gate

    def scripts(self, step: int, rank: int, world: int, rounds: int = 0) -> list[Callable[[Play], Awaitable[Sampled]]]:
        """This process's groups of one batch, for :meth:`Player.conduct`; at most ``rounds`` replacements of each."""

        def script(g: int) -> Callable[[Play], Awaitable[Sampled]]:
            return lambda play: self._place(play, step, g, rounds)

        count = self.table.groups
        return [script(g) for g in range(step * count, (step + 1) * count) if g % world == rank]

    def jobs(
        self, step: int, g: int, tokens: Sequence[RewardToken | None], *, start: int = 0, extra: int = 0
    ) -> list[Job]:
        """Rollouts ``start``, ``start + 1``, ... of group ``g``, one per token; ``extra``: number of a replacement."""
        table = self.table
        if extra:
            position, order = (step * table.resample + extra - 1) * table.groups + g % table.groups, "extra/"
        else:
            position, order = g, ""
        task = task_at(self.tasks, position, f"{order}{self.seed}")
        again = [extra] if extra else []
        jobs = []
        for j, token in enumerate(tokens, start):
            seed = seed_of(self.seed, "rollout", step, g, j, *again)
            sampling = Sampling(temperature=table.temperature, top_p=table.top_p, seed=seed)
            name = f"step{step}-group{g}" + (f"-extra{extra}" if extra else "")
            jobs.append(Job(task, group_id=name, index=j, token=token, sampling=sampling))
        return jobs

    async def _place(self, play: Play, step: int, g: int, rounds: int) -> Sampled:
        discarded: list[Episode] = []
        for extra in range(rounds + 1):
            group = await self._group(play, step, g, extra)
            if extra == rounds or not is_flat(group, self.table):
                return Sampled(group, discarded)
            discarded += group
        raise AssertionError

    async def _group(self, play: Play, step: int, g: int, extra: int) -> list[Episode]:
        size, sampler = self.table.group_size, self.table.sampler
        seed = f"{self.seed}/{step}/{g}" + (f"/{extra}" if extra else "")
        if self.gate is None:
            return await play(self.jobs(step, g, sampler.sample(size, seed), extra=extra))
        probes = await play(self.jobs(step, g, [RewardToken.HIGH] * sampler.probes, extra=extra))
        tokens = sampler.after_probes(size, seed)
        low = tokens.count(RewardToken.LOW)
        rewards = training_rewards(probes, self.table).tolist()
        if not self.gate.mixes(rewards, high=len(tokens) - low, low=low):
            tokens = [RewardToken.HIGH] * len(tokens)
        return probes + await play(self.jobs(step, g, tokens, start=len(probes), extra=extra))

    def observe(self, episodes: Sequence[Episode]) -> None:
        """Let the gate learn from all groups that all processes played in a batch."""
        if self.gate is None:
            return
        groups: dict[str, list[Episode]] = {}
        for episode in episodes:
            if episode.error is None:
                groups.setdefault(episode.group_id, []).append(episode)
        seen = []
        for group in groups.values():
            rewards = training_rewards(group, self.table).tolist()
            rows = list(zip(group, rewards, strict=True))
            probes = [r for e, r in rows if e.index < self.table.sampler.probes]
            seen.append((probes, [(e.reward_token, r) for e, r in rows if e.index >= self.table.sampler.probes]))
        self.gate.observe(seen)


def task_at(tasks: Sequence[Task], position: int, seed: str) -> Task:
    """The task at a position of endless shuffled passes."""
    epoch, offset = divmod(position, len(tasks))
    order = list(range(len(tasks)))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return tasks[order[offset]]


def is_flat(group: Sequence[Episode], table: ReinforceTable) -> bool:
    """Whether nothing can be learnt from the rewards of a group; so also where the world failed in all but one."""
    usable = [e for e in group if e.error is None and e.logprobs]
    return not usable or bool(flat_groups(usable, table).all())
