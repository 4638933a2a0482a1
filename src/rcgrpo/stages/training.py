"""What stage 1 and stage 2 share: adapters, optimiser, processes, resume points, interruption."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import get_scheduler

from rcgrpo.config import ChatTable, ModelTable, OptimiserTable
from rcgrpo.errors import UserError
from rcgrpo.policy.load import Policy, save_policy, teach_reward_tokens
from rcgrpo.stages.directory import StageDirectory


class Interrupted(Exception):
    """The user stopped the run; a resume point was written."""


def adapt(policy: Policy, model: ModelTable, chat: ChatTable, seed: int) -> None:
    """Teach the reward tokens and wrap the model in LoRA adapters, as the recipe says."""
    token_ids = teach_reward_tokens(policy) if chat.reward_tokens == "special" else []
    if model.lora is None:
        policy.model.requires_grad_(True)
        return
    # the rows of new tokens have to be learnt even where the embedding matrix is frozen
    torch.manual_seed(seed)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=model.lora.rank,
        lora_alpha=model.lora.alpha,
        target_modules=model.lora.targets,
        trainable_token_indices=token_ids or None,
    )
    policy.model = get_peft_model(policy.model, config)  # pyright: ignore[reportAttributeAccessIssue]


def merged(policy: Policy) -> Policy:
    """The policy as a plain model: adapters folded into the weights."""
    if isinstance(policy.model, PeftModel):
        return Policy(policy.name, policy.model.merge_and_unload(), policy.tokenizer)  # pyright: ignore
    return policy


class Trainer:
    """Optimiser, schedule and resume points around a scoring module.

    ``steps`` is the number of optimiser steps of the whole stage. Under several processes the module is
    wrapped by accelerate; losses handed to :meth:`backward` are each process's share of one sum.
    ``masters`` are what the optimiser steps on: each trained parameter itself, or its float32 copy where it is
    held in less (bfloat16): a small step would be rounded away there. After each step the copies are rounded back.
    """

    def __init__(
        self, policy: Policy, scorer: nn.Module, table: OptimiserTable, steps: int, directory: StageDirectory
    ) -> None:
        self.accelerator = Accelerator(cpu=policy.model.device.type == "cpu")
        expected = int(os.environ.get("WORLD_SIZE", "1"))
        if self.accelerator.num_processes != expected:
            raise UserError(f"{expected} processes were launched but accelerate runs {self.accelerator.num_processes}")
        self.policy, self.table, self.directory = policy, table, directory
        self.parameters = [p for p in policy.model.parameters() if p.requires_grad]
        self.masters = [p if p.dtype.itemsize >= 4 else p.detach().float().requires_grad_() for p in self.parameters]
        optimiser = torch.optim.AdamW(self.masters, lr=table.lr, betas=table.betas, weight_decay=table.weight_decay)
        self.scorer, self.optimiser = self.accelerator.prepare(scorer, optimiser)
        # transformers' plain "constant" takes no warm-up
        schedule = "constant_with_warmup" if table.schedule == "constant" else table.schedule
        self.schedule = get_scheduler(schedule, optimiser, table.warmup, steps)
        self.carried: dict[str, Any] = {}
        """What else the stage carries over a resume point: numbers, texts, lists and dicts of them."""
        self._stop = False

    @property
    def rank(self) -> int:
        return self.accelerator.process_index

    @property
    def world(self) -> int:
        return self.accelerator.num_processes

    def part(self, *, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of a part: gradients are exchanged in the ``last`` one.

        Processes may have different numbers of parts, so none but the last may wait for the others.
        """
        return nullcontext() if last else self.accelerator.no_sync(self.scorer)

    def backward(self, loss: torch.Tensor) -> None:
        """Accumulate the gradient of this process's share of the loss."""
        # wrapped modules average over processes, but the shares are to be summed
        self.accelerator.backward(loss * self.world)

    def total(self, value: float) -> float:
        """Sum of a number over all processes."""
        tensor = torch.tensor(value, dtype=torch.float64, device=self.accelerator.device)
        return float(self.accelerator.reduce(tensor, "sum"))  # pyright: ignore[reportArgumentType]

    def step(self) -> float:
        """Clip, update, and return the gradient's norm before clipping. A norm that is not finite is an error."""
        for parameter, master in self._copies():
            if parameter.grad is not None:
                master.grad, parameter.grad = parameter.grad.float(), None
        norm = float(self.accelerator.clip_grad_norm_(self.masters, self.table.max_grad_norm))  # pyright: ignore
        if not torch.isfinite(torch.tensor(norm)):
            raise FloatingPointError(f"gradient norm is {norm}: lower the learning rate (now {self.table.lr})")
        self.optimiser.step()
        self.schedule.step()
        self.optimiser.zero_grad(set_to_none=True)
        self._round_back()
        return norm

    def _copies(self) -> list[tuple[nn.Parameter, torch.Tensor]]:
        """Parameters held in less than float32, each with its copy."""
        return [(p, m) for p, m in zip(self.parameters, self.masters, strict=True) if m is not p]

    @torch.no_grad()
    def _round_back(self) -> None:
        for parameter, master in self._copies():
            parameter.copy_(master)

    # -- resume points

    def resume(self) -> int:
        """Load the last resume point; return the number of batches already done."""
        path = self.directory.resume / "state.pt"
        if not path.is_file():
            self._rewind(0)
            return 0
        state = torch.load(path, map_location=self.accelerator.device, weights_only=True)
        with torch.no_grad():
            for master, saved in zip(self.masters, state["masters"], strict=True):
                master.copy_(saved)
        self._round_back()
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.carried = state["carried"]
        self._rewind(state["done"])
        return state["done"]

    def _rewind(self, done: int) -> None:
        if self.accelerator.is_main_process:
            self.directory.rewind(done)

    def save(self, done: int) -> None:
        """Write a resume point after ``done`` batches."""
        if self.accelerator.is_main_process:
            folder = self.directory.resume
            folder.mkdir(parents=True, exist_ok=True)
            state = {
                "done": done,
                "masters": [m.detach() for m in self.masters],
                "optimiser": self.optimiser.state_dict(),
                "schedule": self.schedule.state_dict(),
                "carried": self.carried,
            }
            torch.save(state, folder / "state.partial")
            os.replace(folder / "state.partial", folder / "state.pt")
        self.accelerator.wait_for_everyone()

    def checkpoint_if_asked(self, done: int, total: int, every: int) -> None:
        """After batch ``done``: write a resume point where due; raise :class:`Interrupted` after Ctrl-C."""
        stopping = bool(self.total(float(self._stop)))
        if done < total and (stopping or done % every == 0):
            self.save(done)
        if stopping and done < total:
            raise Interrupted

    def finish(self, folder: Path) -> None:
        """Save the trained policy as a plain checkpoint and drop the resume point."""
        if self.accelerator.is_main_process:
            save_policy(merged(self.policy), folder)
            shutil.rmtree(self.directory.resume, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Within: the first Ctrl-C asks to stop after the current batch, a second one stops at once."""

        def ask(signum: int, frame: FrameType | None) -> None:
            self._stop = True
            signal.signal(signal.SIGINT, signal.default_int_handler)

        previous = signal.signal(signal.SIGINT, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)


def sums_to_floats(totals: dict[str, Any]) -> dict[str, float]:
    """Tensors to Python floats, rounded to what is worth logging."""
    return {name: float(f"{float(value):.6g}") for name, value in totals.items()}
