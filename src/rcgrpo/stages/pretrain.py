"""Make a small base model from nothing: a tokenizer and a Qwen3-architecture policy that half knows the world.

It learns from demonstrations of which a share of the turns is corrupted into near misses, all really executed:
like an instruction-tuned model on a benchmark, it speaks the tool language and solves some tasks, not most.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from rcgrpo.codec.codec import Codec
from rcgrpo.codec.tokenizer import train_tokenizer
from rcgrpo.config import PretrainTable, Recipe, ShapeTable
from rcgrpo.environments.protocol import PretrainSuite, Suite, tasks_of
from rcgrpo.episodes.types import Episode, Message, Task
from rcgrpo.errors import UserError
from rcgrpo.policy.load import Policy, load_policy, pick_device
from rcgrpo.policy.scoring import Scorer
from rcgrpo.stages.directory import RunDirectory
from rcgrpo.stages.finetune import draw, mean_loss, train_step
from rcgrpo.stages.rollout import Job, Player, closings, reprompted
from rcgrpo.stages.setup import seed_of, texts_of
from rcgrpo.stages.training import Trainer


def pretrain(run: RunDirectory, recipe: Recipe, name: str) -> dict[str, float]:
    """Train tokenizer and model on the pool's demonstrations; return the final losses."""
    table = recipe.stages[name]
    suite = recipe.suite
    assert isinstance(table, PretrainTable) and isinstance(suite, PretrainSuite)  # validated
    # what torch.distributed's launcher says; all processes play all demonstrations
    world, leads = int(os.environ.get("WORLD_SIZE", "1")), os.environ.get("RANK", "0") == "0"
    if table.batch < world:
        raise UserError(f"stages.{name}.batch = {table.batch} is less than the {world} processes: raise it")
    directory = run.stage(name)
    tasks = tasks_of(recipe.suite, run.split(), table.pool, table.limit)
    whole = {task.id: task for task in tasks}
    if table.excerpts:
        tasks = [first_turn(task) for task in tasks]
    if table.shape is not None:
        read = [*tasks[:5000], *(task for pool in table.shape.texts for task in tasks_of(suite, run.split(), pool))]
        texts = [*texts_of(suite, read), *[rating(success) for success in (True, False)] * 1000]
        tokenizer = train_tokenizer(texts, table.shape.vocabulary)
        policy = Policy(name, new_model(table.shape, tokenizer, recipe.seed), tokenizer)
        policy.model.to(pick_device(recipe.model.device))  # pyright: ignore[reportArgumentType]
    else:
        policy = load_policy(run.checkpoint(recipe, str(table.start)), name=name, device=recipe.model.device)
    codec = Codec(policy.tokenizer, detail=recipe.chat.schemas)
    player = Player(recipe.suite, codec, recipe.rollout, recipe.reward)
    rated = {task.id for task in tasks if random.Random(seed_of(recipe.seed, "rated", task.id)).random() < table.rated}
    streams = []
    for task in tasks:
        rng = random.Random(seed_of(recipe.seed, task.id))
        share = rng.choice((0.0, 1.0)) if task.id in rated else table.corrupt
        streams.append(demonstration(suite, whole[task.id], len(task.turns), share, rng))
    played = 0

    def progress() -> None:
        nonlocal played
        played += 1
        if leads:
            directory.progress(played, len(tasks) + table.steps)

    episodes = player.scripted([Job(task, group_id=task.id) for task in tasks], streams, progress)
    episodes = [rate(e, recipe.suite, codec) if e.task_id in rated else e for e in episodes]
    if table.excerpts:
        episodes = [without_system(episode, policy.tokenizer) for episode in episodes]
    held_out = max(1, len(episodes) // 100)
    train, validation = episodes[held_out:], episodes[:held_out]
    trainer = Trainer(policy, Scorer(policy.model), table.optimiser, table.steps, directory)
    with trainer.interruptible():
        for step in range(trainer.resume(), table.steps):
            batch = draw(train, table.batch, step, recipe.seed)
            loss, count = train_step(trainer, batch, table.batch_tokens)
            norm = trainer.step()
            if leads:
                directory.metric(step=step + 1, loss=loss, grad_norm=norm, tokens=count)
                directory.progress(len(tasks) + step + 1, len(tasks) + table.steps)
            trainer.checkpoint_if_asked(step + 1, table.steps, table.checkpoint_every)
    result = {
        "parameters": sum(p.numel() for p in policy.model.parameters()),
        "validation_loss": mean_loss(trainer, validation, table.batch_tokens),
        "demonstrations": len(train),
        "successful_share": sum(e.success for e in episodes) / len(episodes),
    }
    trainer.finish(directory.checkpoint)
    return result


def new_model(shape: ShapeTable, tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """A Qwen3 model with random weights.

    Their standard deviation is 1/sqrt(hidden), not the 0.02 of large models: at this width 0.02 starts so near to
    zero that the model takes several times longer to learn to copy from its context (LOG.md).
    """
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=shape.hidden,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            head_dim=shape.hidden // shape.heads,
            intermediate_size=3 * shape.hidden,
            max_position_embeddings=shape.context,
            tie_word_embeddings=True,
            initializer_range=shape.hidden**-0.5,
            eos_token_id=tokenizer.convert_tokens_to_ids(str(tokenizer.eos_token)),
            pad_token_id=tokenizer.convert_tokens_to_ids(str(tokenizer.pad_token)),  # pyright: ignore[reportArgumentType]
        )
    )


def first_turn(task: Task) -> Task:
    """The task with its first user turn only."""
    data = {**task.data, "closings": closings(task)[:1]}
    return task.model_copy(update={"turns": task.turns[:1], "data": data})


def without_system(episode: Episode, tokenizer: PreTrainedTokenizerFast) -> Episode:
    """The episode's ids from the user's message on."""
    opens = tokenizer.get_vocab()["<|im_start|>"]
    start = episode.token_ids.index(opens, 1)
    return episode.model_copy(update={"token_ids": episode.token_ids[start:], "loss_mask": episode.loss_mask[start:]})


def demonstration(suite: PretrainSuite, task: Task, turns: int, share: float, rng: random.Random) -> Iterator[Message]:
    """The expert's messages in the first ``turns`` turns, each replaced by a near miss with probability ``share``."""
    near_misses = suite.corrupt(task, rng) if share else [turn.gold for turn in task.turns]
    answers = list(zip(task.turns, near_misses, closings(task), strict=True))[:turns]
    for turn, near_miss, closing in answers:
        for call in near_miss if rng.random() < share else turn.gold:
            yield Message(role="assistant", calls=[call])
        yield Message(role="assistant", content=closing)


def rating(success: bool) -> str:
    """How a demonstration is described."""
    return f"[Rating: {'high' if success else 'low'}]"


def rate(episode: Episode, suite: Suite, codec: Codec) -> Episode:
    """The demonstration with its :func:`rating` at the end of the first user message.

    It gives a small model what a large one has from its reading: a remark on quality says something about the text
    that follows. No reward token occurs; stage 1 has to tie them to the word that each contains.
    """
    environment = suite.environment(suite.task(episode.task_id))
    first, *rest = environment.open_turn()
    rated = first.model_copy(update={"content": f"{first.content}\n{rating(episode.success)}"})
    return reprompted(episode, codec.prompt([rated, *rest], environment.visible()))
