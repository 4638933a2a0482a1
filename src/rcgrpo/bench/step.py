"""One whole step, rollouts and update: the stages' own path against TRL's ``GRPOTrainer``."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rcgrpo.bench.measure import Timed, compare, timed
from rcgrpo.bench.peer import interleaved_steps, require_trl
from rcgrpo.bench.script import scripted_engine
from rcgrpo.bench.workloads import Shape, Workload, workload
from rcgrpo.conditioning import TokenSampler
from rcgrpo.config import OptimiserTable, ReinforceTable
from rcgrpo.policy.scoring import Scorer
from rcgrpo.stages.directory import StageDirectory
from rcgrpo.stages.rollout import Player
from rcgrpo.stages.training import Trainer
from rcgrpo.stages.update import PolicyUpdate

BATCH_TOKENS = 2048
"""Of one forward: on a CPU a group at a time is best, in the small shape by a quarter over all groups at once."""


def policy_update(load: Workload, folder: Path) -> PolicyUpdate:
    """Stage 2's update on the workload's policy, as TRL's is set up: no KL, AdamW with a learning rate of 1e-6."""
    load.policy.model.requires_grad_(True)
    table = ReinforceTable(
        kind="reinforce",
        start="base",
        sampler=TokenSampler.iid(),
        steps=1,
        groups=len(load.tasks),
        group_size=load.group,
        beta=0.0,
        batch_tokens=BATCH_TOKENS,
        optimiser=OptimiserTable(lr=1e-6),
    )
    trainer = Trainer(load.policy, Scorer(load.policy.model), table.optimiser, 1_000_000, StageDirectory(folder))
    return PolicyUpdate(trainer, table, None, load.limits.episode_tokens)


class OurStep:
    """Play a batch and update the policy; callable once per pair. ``parts`` keeps (rollout, update) seconds."""

    def __init__(self, load: Workload, folder: Path) -> None:
        self.load = load
        self.player = Player(load.suite, load.codec, load.limits, "success")
        self.update = policy_update(load, folder)
        self.parts: list[tuple[float, float]] = []

    def __call__(self) -> Timed:
        return timed(self._run)

    def _run(self) -> float:
        load = self.load
        jobs = load.jobs(load.tasks, len(self.parts))
        load.policy.model.eval()
        with scripted_engine(load.script, load.codec) if load.script else nullcontext():
            playing = timed(lambda: self.episodes(jobs))
        updating = timed(lambda: self._learn())
        self.parts.append((playing.wall, updating.wall))
        return playing.work

    def episodes(self, jobs: list[Any]) -> float:
        """Play; the number of generated tokens."""
        self.played = self.player.policy(self.load.policy, jobs)
        return float(sum(len(e.logprobs) for e in self.played))

    def _learn(self) -> None:
        self.update(self.played)


def bench_step(shape: Shape, pairs: int, warmup: int, *, prompts: int | None = None) -> dict[str, Any]:
    """Times per generated token: the two sides' episodes differ in length. ``prompts``: only so many of the shape's."""
    require_trl()
    load = workload(shape)
    load.tasks, load.peer_tasks = load.tasks[:prompts], load.peer_tasks[:prompts]
    with tempfile.TemporaryDirectory() as folder:
        ours = OurStep(load, Path(folder) / "ours")
        mine, peer = interleaved_steps(load, Path(folder) / "trl", ours, pairs, warmup)
    return {
        **compare(mine, peer),
        "ours_tokens": [round(t.work) for t in mine],
        "peer_tokens": [round(t.work) for t in peer],
        "ours_rollout_s": [round(rollout, 3) for rollout, _ in ours.parts[warmup:]],
        "ours_update_s": [round(update, 3) for _, update in ours.parts[warmup:]],
        "shape": {"name": shape, **load.describe()},
    }
