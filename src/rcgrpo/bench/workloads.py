"""What is played and trained on: tasks, models and limits of the two shapes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from rcgrpo.codec.codec import Codec
from rcgrpo.codec.tokenizer import add_reward_tokens, train_tokenizer
from rcgrpo.config import RolloutTable
from rcgrpo.environments.bfcl.data import merged
from rcgrpo.environments.bfcl.suite import BfclSuite
from rcgrpo.environments.protocol import Suite, tasks_of
from rcgrpo.environments.toolworld.suite import ToolWorldConfig, ToolWorldSuite
from rcgrpo.episodes.types import Call, Message, RewardToken, Sampling, Task
from rcgrpo.policy.load import Policy, load_policy, teach_reward_tokens
from rcgrpo.stages.rollout import Job, opening

Shape = Literal["small", "bfcl", "tiny"]
"""``tiny`` is for tests: the same code on toy sizes."""

VOCABULARY = 8192
"""At most, of the tokenizer trained on BFCL's documents (their words fill about 2,800): their prompts then have
about as many tokens as with Qwen's own."""


@dataclass(frozen=True)
class Script:
    """What random weights are made to write: so many sampled tokens per message, ending in a tool call or not."""

    tokens: tuple[int, ...]
    """Tokens of each assistant message, all included."""
    calls: tuple[bool, ...]
    """Whether it ends in a call of ``call``."""
    call: Call


@dataclass
class Workload:
    """One step's rollouts and how they are limited."""

    shape: Shape
    suite: Suite
    policy: Policy
    codec: Codec
    limits: RolloutTable
    tasks: list[Task]
    peer_tasks: list[Task]
    """The same for a loop that knows one user turn only."""
    group: int
    completion: int
    """Most tokens after the prompt."""
    script: Script | None = None
    """None: the policy decides itself when to call a tool and when to stop."""
    peer_script: Script | None = None

    def jobs(self, tasks: list[Task], seed: int) -> list[Job]:
        """Groups of alternating reward tokens."""
        tokens = list(RewardToken)
        return [
            Job(task, f"group{g}", j, tokens[j % 2], Sampling(seed=seed * 1_000_000 + g * 1000 + j))
            for g, task in enumerate(tasks)
            for j in range(self.group)
        ]

    def prompt(self, job: Job) -> list[int]:
        """Ids of a job's conditioned prompt."""
        environment = self.suite.environment(job.task)
        return opening(environment, environment.open_turn(), self.codec, job.token)

    def describe(self) -> dict[str, object]:
        """Sizes, for the report."""
        lengths = [len(self.prompt(job)) for job in self.jobs(self.tasks, 0)[:: self.group]]
        return {
            "prompts": len(self.tasks),
            "group": self.group,
            "prompt_tokens": lengths,
            "peer_prompt_tokens": [len(self.prompt(job)) for job in self.jobs(self.peer_tasks, 0)[:: self.group]],
            "parameters": sum(p.numel() for p in self.policy.model.parameters()),
            "vocabulary": self.policy.model.config.vocab_size,
        }


def workload(shape: Shape) -> Workload:
    """Build a shape. ``bfcl`` needs BFCL installed (UserError otherwise)."""
    if shape == "bfcl":
        return _bfcl()
    prompts, group, about = (8, 8, 400) if shape == "small" else (2, 2, 250)
    suite = ToolWorldSuite(ToolWorldConfig(tools=32, two_domains=1.0))
    policy = load_policy("toolworld-base", name="bench", device="cpu")
    teach_reward_tokens(policy)
    codec = Codec(policy.tokenizer, detail="compact")
    drawn = [_first_turn(task) for task in tasks_of(suite, suite.split(), "train", 4 * prompts)]

    def distance(task: Task) -> int:
        environment = suite.environment(task)
        return abs(len(opening(environment, environment.open_turn(), codec, RewardToken.HIGH)) - about)

    tasks = sorted(drawn, key=distance)[:prompts]
    completion = 384
    limits = RolloutTable(steps_per_turn=4, step_tokens=completion, episode_tokens=1536, slots=64)
    return Workload(shape, suite, policy, codec, limits, tasks, tasks, group, completion)


def _first_turn(task: Task) -> Task:
    """The task with its first request only: what a loop without further user turns can play."""
    return task.model_copy(update={"turns": task.turns[:1]})


def _bfcl() -> Workload:
    """Three user turns and a call in each: 3 x (150 tokens with a call, then 50 in closing) for us. The peer gets
    the merged request, and 3 messages with a call of 150 tokens and one in closing of 150: 600 tokens as well."""
    suite = BfclSuite()
    ids = [f"multi_turn_base_{number}" for number in range(50)]
    tasks = [task for task in map(suite.task, ids) if len(task.turns) >= 3 and len(task.data["classes"]) == 2][:2]
    tasks = [task.model_copy(update={"turns": task.turns[:3]}) for task in tasks]
    policy = bfcl_policy(suite, tasks)
    call = Call(name="pwd")
    return Workload(
        shape="bfcl",
        suite=suite,
        policy=policy,
        codec=Codec(policy.tokenizer),
        limits=RolloutTable(steps_per_turn=4, step_tokens=150, episode_tokens=9216, slots=64),
        tasks=tasks,
        peer_tasks=[_one_message(task) for task in tasks],
        group=8,
        completion=1536,
        script=Script((150, 50) * 3, (True, False) * 3, call),
        peer_script=Script((150,) * 4, (True, True, True, False), call),
    )


def _one_message(task: Task) -> Task:
    """All requests in one user message, without the ``done`` tool of the paper's protocol."""
    turn = merged(task).turns[0]
    content = turn.messages[0].content.replace(", then call done().", ".")
    turn = turn.model_copy(update={"messages": [Message(role="user", content=content)], "gold": turn.gold[:-1]})
    return task.model_copy(update={"turns": [turn]})


def bfcl_policy(suite: Suite, tasks: list[Task]) -> Policy:
    """A random Qwen3 of the small shape's layers, and a tokenizer trained on BFCL's documents and requests."""
    texts = [json.dumps(suite.environment(suite.task(f"multi_turn_base_{n}")).visible()) for n in range(0, 200, 5)]
    texts += [message.content for task in tasks for turn in task.turns for message in turn.messages]
    tokenizer = train_tokenizer(texts, VOCABULARY)
    add_reward_tokens(tokenizer)
    return Policy("bench", random_model(len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id), tokenizer)  # pyright: ignore


def random_model(vocabulary: int, end: int, padding: int, positions: int = 16384) -> Qwen3ForCausalLM:
    """The Qwen3 of the embedded base model, with random weights and a vocabulary of its own size."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        eos_token_id=end,
        pad_token_id=padding,
        attn_implementation="sdpa",  # pyright: ignore[reportCallIssue]  passed on to the base config
    )
    return Qwen3ForCausalLM(config).eval()
