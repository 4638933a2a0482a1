"""Collect trajectories: experts by playing gold for real, failures and successes by letting a policy explore."""

from __future__ import annotations

from rcgrpo.config import CollectTable, Recipe
from rcgrpo.environments.protocol import tasks_of
from rcgrpo.episodes.store import write_episodes
from rcgrpo.episodes.types import Episode, Sampling, StopReason
from rcgrpo.errors import UserError
from rcgrpo.stages.directory import RunDirectory
from rcgrpo.stages.rollout import GOLD, Job
from rcgrpo.stages.setup import load_for_play, player_for, seed_of


def collect(run: RunDirectory, recipe: Recipe, name: str) -> dict[str, int]:
    """Play the stage's episodes, keep those asked for, write them; return counts."""
    table = recipe.stages[name]
    assert isinstance(table, CollectTable)
    directory = run.stage(name)
    tasks = tasks_of(recipe.suite, run.split(), table.pool, table.limit)
    jobs = [
        Job(
            task,
            group_id=task.id,
            index=i,
            sampling=Sampling(
                temperature=table.temperature, top_p=table.top_p, seed=seed_of(recipe.seed, name, task.id, i)
            ),
        )
        for task in tasks
        for i in range(table.samples)
    ]
    done = 0

    def progress() -> None:
        nonlocal done
        done += 1
        directory.progress(done, len(jobs))

    policy = load_for_play(run, recipe, table.loaded)
    player = player_for(recipe, policy)
    episodes = player.gold(jobs, progress) if table.policy == GOLD else player.policy(policy, jobs, progress)
    oversize = {e.task_id for e in episodes if _cut(e)}
    if table.oversize == "skip":
        episodes = [e for e in episodes if e.task_id not in oversize]
    if table.policy == GOLD:
        _check_gold(episodes)
    wanted = {"all": lambda e: True, "successes": lambda e: e.reward >= 1, "failures": lambda e: e.reward < 1}
    kept = [e for e in episodes if e.error is None and any(e.loss_mask) and wanted[table.keep](e)]
    if not kept:
        raise UserError(f"stage {name!r} kept none of {len(episodes)} episodes (keep = {table.keep!r})")
    write_episodes(directory.episodes, kept)
    counts = {
        "played": len(jobs),
        "kept": len(kept),
        "successes": sum(e.reward >= 1 for e in kept),
        "errors": sum(e.error is not None for e in episodes),
    }
    if table.oversize == "skip":
        counts["oversize"] = len(oversize)
    directory.metric(step=0, **counts, tokens=sum(len(e.token_ids) for e in kept))
    return counts


def _cut(episode: Episode) -> bool:
    """Whether a limit cut the episode, or a message in it."""
    at_limit = episode.stop_reason in (StopReason.LENGTH, StopReason.STEP_LIMIT)
    return at_limit or any(step.truncated for step in episode.steps)


def _check_gold(episodes: list[Episode]) -> None:
    """A gold answer that fails is an error of the task or of a limit, never training data."""
    for episode in episodes:
        if not episode.success or _cut(episode):
            why = episode.error or next((v for v in episode.verdicts if not v.valid), None)
            raise UserError(
                f"the gold answer of {episode.task_id} does not succeed in full ({episode.stop_reason}; {why}); "
                f"if it stopped at a limit, raise rollout.episode_tokens, step_tokens or steps_per_turn, "
                f"or leave such tasks out with oversize = 'skip'"
            )
