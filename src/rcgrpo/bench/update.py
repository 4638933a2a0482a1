"""The policy update alone: shared-prefix against our ordinary forward and against TRL's, each in fresh processes.

Run as ``python -m rcgrpo.bench.update SIDE SHAPE THREADS`` it does one update of one side and prints its seconds and
how far the process's peak memory grew in it.
"""

from __future__ import annotations

import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rcgrpo.bench.measure import Timed, compare, rounded, timed
from rcgrpo.bench.peer import require_trl
from rcgrpo.bench.workloads import random_model
from rcgrpo.codec.tokenizer import train_tokenizer
from rcgrpo.conditioning import TokenSampler
from rcgrpo.config import OptimiserTable, ReinforceTable
from rcgrpo.episodes.types import Episode, StopReason, Verdict
from rcgrpo.errors import UserError
from rcgrpo.policy.load import Policy
from rcgrpo.policy.scoring import Scorer
from rcgrpo.stages.directory import StageDirectory
from rcgrpo.stages.training import Trainer
from rcgrpo.stages.update import PolicyUpdate

SHAPES = {"bfcl": (1, 8, 6000, 600), "small": (8, 8, 400, 160), "tiny": (1, 2, 48, 16)}
"""Groups, G, prompt, completion."""
VOCABULARY = 2866
SIDES = ("shared", "ordinary", "trl")


def batch(shape: str) -> list[Episode]:
    """Random episodes: the reward token near the prompt's end differs inside a group, three in four tokens are ours."""
    groups, size, prompt, completion = SHAPES[shape]
    rng = random.Random(0)

    def ids(count: int) -> list[int]:
        return [rng.randrange(20, VOCABULARY) for _ in range(count)]

    episodes = []
    for g in range(groups):
        common = ids(prompt - 6)
        for j in range(size):
            mask = [0] * prompt + [int(i % 200 < 150) for i in range(completion)]
            episodes.append(
                Episode(
                    task_id=str(g),
                    category="",
                    scenario="",
                    group_id=str(g),
                    index=j,
                    policy="bench",
                    messages=[],
                    token_ids=[*common, 10 + j % 2, *common[:5], *ids(completion)],
                    loss_mask=mask,
                    logprobs=[-8.0] * sum(mask),
                    verdicts=[Verdict(valid=j % 2 == 0)],
                    stop_reason=StopReason.COMPLETED,
                    reward=float(j % 2),
                )
            )
    return episodes


def our_update(shared_prefix: bool, folder: Path) -> Callable[[list[Episode]], object]:
    """Stage 2's update of a random policy as the bench sets up TRL's: no KL, AdamW, a group in one forward."""
    model = random_model(VOCABULARY, 1, 0)
    policy = Policy("bench", model, None)  # pyright: ignore[reportArgumentType] - nothing here speaks
    table = ReinforceTable(
        kind="reinforce",
        start="base",
        sampler=TokenSampler.iid(),
        steps=1,
        groups=1,
        beta=0.0,
        shared_prefix=shared_prefix,
        optimiser=OptimiserTable(lr=1e-6),
    )
    trainer = Trainer(policy, Scorer(model, shared_prefix=shared_prefix), table.optimiser, 10, StageDirectory(folder))
    return PolicyUpdate(trainer, table, None, 8192)


def trl_update(folder: Path, rows: int) -> Callable[[list[Episode]], object]:
    """TRL's loss, backward, clipping and AdamW on given completions; a group in one forward."""
    trl = require_trl()
    from datasets import Dataset

    config = trl.GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=rows,
        num_generations=2,
        beta=0.0,
        loss_type="grpo",
        learning_rate=1e-6,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    trainer = trl.GRPOTrainer(
        model=random_model(VOCABULARY, 1, 0),
        args=config,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        train_dataset=Dataset.from_list([{"prompt": "a"}]),
        processing_class=train_tokenizer(["text"], 300),
    )
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()

    def update(episodes: list[Episode]) -> None:
        prompt = episodes[0].loss_mask.index(1)
        ids_BS = torch.tensor([e.token_ids for e in episodes])
        mask_BS = torch.tensor([e.loss_mask for e in episodes])
        ones_BS = torch.ones_like(ids_BS)
        inputs = {
            "prompt_ids": ids_BS[:, :prompt],
            "prompt_mask": ones_BS[:, :prompt],
            "completion_ids": ids_BS[:, prompt:],
            "completion_mask": ones_BS[:, prompt:],
            "tool_mask": mask_BS[:, prompt:],
            "advantages": torch.tensor([e.reward - 0.5 for e in episodes]),
            "num_items_in_batch": mask_BS.sum(),
        }
        loss = trainer.compute_loss(trainer.model, inputs)
        trainer.accelerator.backward(loss)
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    return update


def one_update(side: str, shape: str, threads: int) -> dict[str, float]:
    """A small update first, whose cost does not count; then the shape's own."""
    torch.set_num_threads(threads)
    episodes = batch(shape)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = trl_update(folder, len(episodes)) if side == "trl" else our_update(side == "shared", folder)
        run(batch("tiny"))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        time = timed(lambda: (run(episodes), None)[1])
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"wall": time.wall, "cpu": time.cpu, "mib": grown / 1024}


def _fresh(side: str, shape: str, threads: int) -> dict[str, float]:
    command = [sys.executable, "-m", "rcgrpo.bench.update", side, shape, str(threads)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)}, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def bench_update(shape: str, pairs: int, threads: int) -> dict[str, Any]:
    """``ratio``, ``memory_ratio`` (ours over the peer's): against our ordinary forward; ``trl_*``: against TRL's."""
    if shape not in SHAPES:
        raise UserError(f"--shape {shape}: choose {', '.join(SHAPES)}")
    require_trl()
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for pair in range(pairs):
        for side in SIDES if pair % 2 == 0 else SIDES[::-1]:
            runs[side].append(_fresh(side, shape, threads))
    times = {side: [Timed(run["wall"], run["cpu"]) for run in runs[side]] for side in SIDES}
    memory = {side: statistics.median(run["mib"] for run in runs[side]) for side in SIDES}
    groups, size, prompt, completion = SHAPES[shape]
    return {
        **compare(times["shared"], times["ordinary"]),
        "memory_ratio": rounded(memory["shared"] / memory["ordinary"]) if memory["ordinary"] else None,
        **{f"trl_{key}": value for key, value in compare(times["shared"], times["trl"]).items() if key != "ours_s"},
        "trl_memory_ratio": rounded(memory["shared"] / memory["trl"]) if memory["trl"] else None,
        "peak_mib": {side: rounded(value) for side, value in memory.items()},
        "shape": {"name": shape, "groups": groups, "group": size, "prompt": prompt, "completion": completion},
    }


if __name__ == "__main__":
    print(json.dumps(one_update(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
