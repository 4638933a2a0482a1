"""The peer: TRL's ``GRPOTrainer`` with ``environment_factory``, given the same worlds, prompts and tokens."""

from __future__ import annotations

import copy
import inspect
import logging
import os
import re
import time
import warnings
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast, PrinterCallback, TrainerCallback

from rcgrpo.bench.measure import Timed
from rcgrpo.bench.script import script_generate
from rcgrpo.bench.workloads import Workload
from rcgrpo.episodes.types import Call, RewardToken
from rcgrpo.errors import UserError

MICROBATCHES = 4
"""Into so many parts TRL splits the rollouts of a step for its update."""


def require_trl() -> Any:
    """The ``trl`` package; a UserError that names the cure where it is absent."""
    try:
        import trl
    except ImportError as error:
        raise UserError("this benchmark compares with TRL, which is not installed: pip install 'trl>=1.10'") from error
    return trl


def _finish(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise RuntimeError("a tool of a benchmark's world waited")


def environment_class(load: Workload) -> type:
    """TRL's idea of an environment: a class with ``reset``, ``get_reward`` and the tools as methods.

    What ``reset`` returns is put at the end of the prompt: the reward token, which so can differ inside a group. The
    schemas of the tools stand in the prompt already; TRL's own copies of them are empty and cost it little.
    """
    tokens = list(RewardToken)
    resets = 0

    class World:
        def reset(self, index: int, **_: Any) -> str:
            nonlocal resets
            token = tokens[resets % 2]
            resets += 1
            self._environment = load.suite.environment(load.peer_tasks[index])
            self._environment.open_turn()
            return f"\n[Reward Goal: {token.text}]"

        def get_reward(self) -> float:
            self._environment.close_turn()
            return self._environment.rewards()["success"]

    def tool(name: str) -> Callable[..., str]:
        def run(self: World, **arguments: Any) -> str:
            return _finish(self._environment.call(Call(name=name, arguments=arguments))).result

        run.__name__, run.__doc__ = name, "A tool of the world."
        run.__annotations__ = {}
        run.__signature__ = inspect.Signature(  # pyright: ignore[reportFunctionMemberAccess]
            [inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)]
        )
        return run

    for task in load.peer_tasks:
        for schema in load.suite.environment(task).visible():
            name = schema["function"]["name"]
            setattr(World, name, tool(name))
    return World


def chat(load: Workload, index: int) -> list[dict[str, str]]:
    """The messages that a template without tools renders to exactly our unconditioned prompt of a task."""
    job = load.jobs(load.peer_tasks, 0)[index * load.group]
    job = type(job)(job.task, job.group_id)
    text = str(load.codec.tokenizer.decode(load.prompt(job)))
    found = re.findall(r"<\|im_start\|>(system|user)\n(.*?)<\|im_end\|>", text, re.DOTALL)
    return [{"role": role, "content": content} for role, content in found]


def peer_tokenizer(load: Workload) -> PreTrainedTokenizerFast:
    """The same tokenizer; its template leaves the tools out, its answers are read by TRL's rules for Qwen."""
    from trl.chat_template_utils import add_response_schema, qwen3_chat_template

    tokenizer = copy.deepcopy(load.codec.tokenizer)
    own = str(tokenizer.chat_template)
    tokenizer.chat_template = qwen3_chat_template  # TRL tells formats apart by their template
    add_response_schema(tokenizer)
    tokenizer.chat_template = "{%- set tools = none -%}" + own
    return tokenizer


class _Pairs(TrainerCallback):
    """Times each step of TRL and runs ours after it: so the two are interleaved."""

    def __init__(self, between: Callable[[], Timed]) -> None:
        self.between = between
        self.ours: list[Timed] = []
        self.peer: list[Timed] = []
        self.trainer: Any = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._started = time.perf_counter(), time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        wall, cpu = time.perf_counter() - self._started[0], time.process_time() - self._started[1]
        mean = self.trainer._metrics["train"]["completions/mean_length"][-1]
        tokens = mean * self.trainer.args.generation_batch_size
        self.peer.append(Timed(wall, cpu, tokens))
        self.ours.append(self.between())
        self.trainer.model.train()


def peer_trainer(load: Workload, folder: Path, steps: int, **options: Any) -> Any:
    """A GRPOTrainer on a copy of the workload's model: same sampling, loss, clipping, learning rate; no KL."""
    trl = require_trl()
    from datasets import Dataset

    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    warnings.filterwarnings("ignore", module="trl|transformers")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    rows = len(load.peer_tasks) * load.group
    config = trl.GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=rows // MICROBATCHES,
        gradient_accumulation_steps=MICROBATCHES,
        num_generations=load.group,
        max_completion_length=load.completion,
        max_tool_calling_iterations=load.limits.steps_per_turn - 1,
        temperature=1.0,
        top_k=0,
        beta=0.0,
        loss_type="grpo",
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_steps=steps,
        shuffle_dataset=False,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        **options,
    )
    data = Dataset.from_list([{"prompt": chat(load, i), "index": i} for i in range(len(load.peer_tasks))])
    model = copy.deepcopy(load.policy.model)
    if load.peer_script:
        script_generate(model, load.peer_script, load.codec)
    return trl.GRPOTrainer(
        model=model,
        args=config,
        train_dataset=data,
        processing_class=peer_tokenizer(load),
        environment_factory=environment_class(load),
    )


def interleaved_steps(
    load: Workload, folder: Path, between: Callable[[], Timed], pairs: int, warmup: int
) -> tuple[list[Timed], list[Timed]]:
    """Steps of ours (``between``) and of TRL, in turn; the first ``warmup`` of both are left out."""
    callback = _Pairs(between)
    trainer = peer_trainer(load, folder, pairs + warmup)
    callback.trainer = trainer
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(callback)
    trainer.train()
    return callback.ours[warmup:], callback.peer[warmup:]
