"""A world of two tools, small enough that a random model learns its format in seconds; the recipes of stage tests."""

import asyncio
import json
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from rcgrpo.codec.codec import Codec
from rcgrpo.codec.tokenizer import train_tokenizer
from rcgrpo.config import Recipe, parse_recipe
from rcgrpo.environments.protocol import Environment
from rcgrpo.episodes.types import Call, Message, Task, Turn, Verdict
from rcgrpo.policy.load import Policy, save_policy
from rcgrpo.policy.packing import ScoringBatch
from rcgrpo.policy.scoring import Scorer
from rcgrpo.stages.groups import GroupSampler
from rcgrpo.stages.rollout import Job, Player

ROOMS = ("hall", "attic", "cellar", "kitchen", "garage", "study", "porch", "bath")


class Light(Environment):
    """One lamp. A turn is valid if the lamp ends as gold leaves it."""

    def start(self, data):
        if data.get("broken") == "start":
            raise OSError("no power")
        self._on = None

    def on(self) -> str:
        """Switch on."""
        self._on = True
        return "ok"

    def off(self) -> str:
        """Switch off."""
        self._on = False
        return "ok"

    def check(self, turn):
        if self.task.data.get("broken") == "check":
            raise OSError("the lamp exploded")
        wanted = self.task.turns[turn].gold[-1].name == "on"
        return Verdict(valid=self._on == wanted, reason="" if self._on == wanted else "state")


def light_task(room: str, action: str, **data) -> Task:
    gold = [Call(name=action)]
    turn = Turn(messages=[Message(role="user", content=f"{room} {action}?")], gold=gold)
    return Task(id=f"{room}-{action}", category=action, scenario=room, block="lights", turns=[turn], data=data)


def write_tasks(path: Path) -> Path:
    tasks = [light_task(room, action) for room in ROOMS for action in ("on", "off")]
    path.write_text("".join(task.model_dump_json() + "\n" for task in tasks))
    return path


def drawn_jobs(tasks, table, step: int, seed: int, rank: int = 0, world: int = 1) -> list[Job]:
    """The rollouts of one batch that a process would play."""
    jobs: list[Job] = []

    async def play(some):
        jobs.extend(some)
        return []

    async def all_groups():
        for script in GroupSampler(tasks, table, seed).scripts(step, rank, world):
            await script(play)

    asyncio.run(all_groups())
    return jobs


def light_recipe(folder: Path, *, stages: dict | None = None, evaluate: dict | None = None, **tables) -> Recipe:
    """A recipe over the lights; ``folder`` holds what :func:`make_light_base` wrote."""
    content = {
        "name": "lights",
        "custom": {"environment": "light_world:Light", "tasks": str(folder / "tasks.jsonl"), "test_share": 0.25},
        "model": {"path": str(folder / "base"), "device": "cpu"},
        "chat": {"schemas": "compact"},
        "rollout": {"steps_per_turn": 3, "step_tokens": 24, "episode_tokens": 320},
        "stages": stages or {},
        "evaluate": evaluate or {},
    }
    return parse_recipe({**content, **tables}, "test")


def tiny_qwen3(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """Two layers of width 32 with random weights."""
    torch.manual_seed(0)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            intermediate_size=96,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def make_light_base(folder: Path) -> None:
    """Write tasks and a base model that calls one of the two tools at random: half of its episodes succeed."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tasks(folder / "tasks.jsonl")
    recipe = light_recipe(folder)
    suite = recipe.suite
    tasks = [suite.task(i) for pool in ("train", "test") for i in suite.split().pools[pool]]
    rough = train_tokenizer(["x"], 400)  # spells the prompts; the real one then has words for them
    prompts = [
        Codec(rough, detail="compact").prompt(t.turns[0].messages, suite.environment(t).visible()) for t in tasks
    ]
    calls = [json.dumps({"name": name, "arguments": {}}) for name in ("on", "off")]
    tokenizer = train_tokenizer([*map(rough.decode, prompts), *calls, "Done."] * 4, 420)
    policy = Policy("base", tiny_qwen3(tokenizer), tokenizer)
    player = Player(suite, Codec(tokenizer, detail="compact"), recipe.rollout, "success")
    jobs = [Job(task, group_id=task.id) for task in tasks for _ in range(2)]
    closing = Message(role="assistant", content="Done.")
    streams = [
        iter([Message(role="assistant", calls=[Call(name=("on", "off")[i % 2])]), closing]) for i in range(len(jobs))
    ]
    episodes = player.scripted(jobs, streams)
    scorer = Scorer(policy.model, shared_prefix=False)
    optimiser = torch.optim.AdamW(policy.model.parameters(), lr=1e-2)
    for step in range(80):
        part = [episodes[(step * 8 + i) % len(episodes)] for i in range(8)]
        batch = ScoringBatch.pack([e.token_ids for e in part], [e.loss_mask for e in part], range(8))
        loss = -scorer(batch, 1.0).logprobs_BL.sum() / batch.mask_BL.sum()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    save_policy(policy, folder / "base")
