"""Play episodes: environment, codec and policy together, one coroutine per episode.

The gold policy goes through the very same code as a sampled one, so experts and failures are rendered
identically: same prompt, same tool results by real execution, same loss mask.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar

from accelerate import Accelerator

from rcgrpo.codec.codec import Codec
from rcgrpo.conditioning import condition
from rcgrpo.config import RolloutTable
from rcgrpo.environments.protocol import Environment, Suite
from rcgrpo.episodes.types import (
    Episode,
    EpisodeError,
    Message,
    RewardToken,
    Sampling,
    Step,
    StopReason,
    Task,
    Verdict,
)
from rcgrpo.errors import UserError
from rcgrpo.policy.engine import Completion, Engine
from rcgrpo.policy.load import Policy
from rcgrpo.policy.static_engine import rollout_engine

if TYPE_CHECKING:
    from rcgrpo.policy.vllm import VllmEngine
    from rcgrpo.policy.vllm_server import VllmServer

GOLD = "gold"
"""Name of the policy that plays a task's gold calls."""


class ModelFailure(Exception):
    """The policy's model failed, not the world: no data to learn from, so it ends the run."""


@dataclass(frozen=True)
class Job:
    """One episode to play."""

    task: Task
    group_id: str
    index: int = 0
    token: RewardToken | None = None
    sampling: Sampling = field(default_factory=Sampling)


class Row(Protocol):
    """A conversation that grows: what an engine's row and the gold policy have in common."""

    ids: list[int]

    @property
    def room(self) -> int: ...
    def append(self, ids: Sequence[int]) -> None: ...
    async def generate(self, max_new_tokens: int) -> Completion: ...


T = TypeVar("T")

Play = Callable[[Sequence[Job]], Awaitable[list[Episode]]]
"""Plays jobs side by side; results in their order."""

OpenRow = Callable[[list[int], Sampling], AbstractAsyncContextManager[Row]]


def opening(environment: Environment, first: Sequence[Message], codec: Codec, token: RewardToken | None) -> list[int]:
    """The conditioned prompt of an episode: ids up to the first generated token."""
    return codec.prompt(condition(first, token), environment.visible())


def recondition(episode: Episode, suite: Suite, codec: Codec, token: RewardToken | None) -> Episode:
    """The same trajectory under another reward token: only the prompt's ids change."""
    task = suite.task(episode.task_id)
    environment = suite.environment(task)
    first = environment.open_turn()
    messages = condition(first, token) + episode.messages[len(first) :]
    again = reprompted(episode, opening(environment, first, codec, token))
    return again.model_copy(update={"reward_token": token, "messages": messages})


def reprompted(episode: Episode, prompt: list[int]) -> Episode:
    """The same generated ids after another prompt."""
    start = episode.loss_mask.index(1)
    return episode.model_copy(
        update={
            "token_ids": prompt + episode.token_ids[start:],
            "loss_mask": [0] * len(prompt) + episode.loss_mask[start:],
        }
    )


def closings(task: Task) -> list[str]:
    """What the expert says at the end of each turn: ``task.data["closings"]``, or a plain word."""
    given = task.data.get("closings")
    if given is not None:
        return given
    refusal = "I cannot do this with the tools and the information that I have."
    return ["Done." if turn.gold else refusal for turn in task.turns]


def gold_messages(task: Task, per_message: int = 1) -> Iterator[Message]:
    """The expert's messages: each turn's gold calls, ``per_message`` at a time, then a closing text."""
    for turn, closing in zip(task.turns, closings(task), strict=True):
        for start in range(0, len(turn.gold), per_message):
            yield Message(role="assistant", calls=turn.gold[start : start + per_message])
        yield Message(role="assistant", content=closing)


class _ScriptedRow:
    def __init__(self, prompt: list[int], messages: Iterator[Message], codec: Codec, limit: int) -> None:
        self.ids = list(prompt)
        self._messages, self._codec, self._limit = messages, codec, limit

    @property
    def room(self) -> int:
        return self._limit - len(self.ids)

    def append(self, ids: Sequence[int]) -> None:
        self.ids += ids

    async def generate(self, max_new_tokens: int) -> Completion:
        ids = self._codec.assistant(next(self._messages))
        stopped = len(ids) <= max_new_tokens
        self.ids += ids[:max_new_tokens]
        return Completion(ids[:max_new_tokens], [], stopped)


async def play(job: Job, suite: Suite, open_row: OpenRow, codec: Codec, limits: RolloutTable) -> Episode:
    """Play one episode to its end. Whatever the policy writes is data; the environment's own failure too."""
    record = _Recorder(job)
    try:
        environment = suite.environment(job.task)
        first = environment.open_turn()
        record.messages = condition(first, job.token)
        prompt = opening(environment, first, codec, job.token)
        if len(prompt) >= limits.episode_tokens:
            record.stop = StopReason.LENGTH
            return record.episode(prompt, environment)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001  the world's failure is kept as data, not raised
        return record.failed([], [], error)
    async with open_row(prompt, job.sampling) as row:
        record.given(len(prompt))
        try:
            await _play_turns(record, row, environment, codec, limits)
            return record.episode(row.ids, environment)
        except (UserError, ModelFailure):
            raise
        except Exception as error:  # noqa: BLE001
            return record.failed(row.ids, environment.verdicts, error)


async def _generate(row: Row, budget: int) -> Completion:
    try:
        return await row.generate(budget)
    except UserError:
        raise
    except Exception as error:
        raise ModelFailure(f"{type(error).__name__}: {error}") from error


async def _play_turns(
    record: _Recorder, row: Row, environment: Environment, codec: Codec, limits: RolloutTable
) -> None:
    closed = True
    while True:
        stop = None
        for step in range(limits.steps_per_turn):
            budget = min(limits.step_tokens, row.room)
            if budget < 1:
                stop = StopReason.LENGTH
                break
            completion = await _generate(row, budget)
            closed = completion.stopped
            parsed = codec.parse(completion.ids)
            record.generated(completion)
            ends_turn = limits.malformed_call == "end_turn" and parsed.failures
            calls = [] if ends_turn else parsed.message.calls
            executed = [await environment.call(call) for call in calls]
            record.step(environment.turn, parsed.message, parsed.failures, executed, truncated=not closed)
            feedback = [Message(role="tool", content=call.result) for call in executed]
            if not ends_turn:
                feedback += [Message(role="tool", content=failure.message) for failure in parsed.failures]
            if not feedback:
                break
            record.messages += feedback
            if step == limits.steps_per_turn - 1:
                stop = StopReason.STEP_LIMIT
                break
            if not record.append(row, codec.extend(feedback, closed=closed)):
                stop = StopReason.LENGTH
                break
        environment.close_turn()
        if stop:
            record.stop = stop
            return
        if environment.turn == len(environment.task.turns) - 1:
            record.stop = StopReason.COMPLETED
            return
        said = announced(environment, codec)
        record.messages += said
        if not record.append(row, codec.extend(said, closed=closed)):
            record.stop = StopReason.LENGTH
            return


def announced(environment: Environment, codec: Codec) -> list[Message]:
    """Open the next turn; documentation of the tools it reveals stands in front of what the user says."""
    before = environment.withheld()
    said = environment.open_turn()
    revealed = before - environment.withheld()
    if not revealed:
        return said
    schemas = [schema for schema in environment.visible() if schema["function"]["name"] in revealed]
    return [said[0].model_copy(update={"content": f"{codec.announce(schemas)}\n\n{said[0].content}"}), *said[1:]]


class _Recorder:
    """Collects an episode while it is played."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.stop = StopReason.ERROR
        self.messages: list[Message] = []
        self.steps: list[Step] = []
        self.mask: list[int] = []
        self.logprobs: list[float] = []

    def given(self, count: int) -> None:
        self.mask += [0] * count

    def generated(self, completion: Completion) -> None:
        self.mask += [1] * len(completion.ids)
        self.logprobs += completion.logprobs

    def append(self, row: Row, ids: list[int]) -> bool:
        """Append given ids; False if the next token would not fit."""
        if len(ids) >= row.room:
            return False
        row.append(ids)
        self.given(len(ids))
        return True

    def step(self, turn: int, message: Message, failures: list, executed: list, *, truncated: bool) -> None:
        self.messages.append(message)
        self.steps.append(Step(turn=turn, message=message, failures=failures, calls=executed, truncated=truncated))

    def failed(self, ids: Sequence[int], verdicts: Sequence[Verdict], error: Exception) -> Episode:
        """The episode up to a failure of the environment."""
        self.stop = StopReason.ERROR
        kept = EpisodeError(type=type(error).__name__, message=str(error))
        return self._episode(ids, verdicts, {}).model_copy(update={"error": kept})

    def episode(self, ids: Sequence[int], environment: Environment) -> Episode:
        """The finished episode."""
        return self._episode(ids, environment.verdicts, environment.rewards())

    def _episode(self, ids: Sequence[int], judged: Sequence[Verdict], rewards: dict[str, float]) -> Episode:
        job, task = self.job, self.job.task
        unreached = [Verdict(valid=False, reason="unreached") for _ in task.turns[len(judged) :]]
        mask = self.mask or [0] * len(ids)
        return Episode(
            task_id=task.id,
            category=task.category,
            scenario=task.scenario,
            group_id=job.group_id,
            index=job.index,
            policy="",
            sampling=job.sampling,
            reward_token=job.token,
            messages=self.messages,
            steps=self.steps,
            token_ids=list(ids),
            loss_mask=mask,
            logprobs=self.logprobs,
            verdicts=[*judged, *unreached],
            stop_reason=self.stop,
            rewards=rewards,
        )


@dataclass(frozen=True)
class Player:
    """Plays jobs of one suite under one set of limits."""

    suite: Suite
    codec: Codec
    limits: RolloutTable
    reward: str
    """Name of the reward term that becomes ``Episode.reward``."""
    server: VllmServer | None = None
    """Generates instead of the embedded engine."""

    def gold(self, jobs: Sequence[Job], done: Callable[[], None] = lambda: None) -> list[Episode]:
        """Play gold answers."""
        return self.scripted(jobs, [gold_messages(job.task) for job in jobs], done)

    def scripted(
        self, jobs: Sequence[Job], streams: Sequence[Iterator[Message]], done: Callable[[], None] = lambda: None
    ) -> list[Episode]:
        """Play given messages instead of a policy's, by the same code; one stream per job."""

        async def play_all() -> list[Episode]:
            pairs = zip(jobs, streams, strict=True)
            return [await self._play(job, self._scripted_rows(stream), GOLD, done) for job, stream in pairs]

        return asyncio.run(play_all())

    def policy(self, policy: Policy, jobs: Iterable[Job], done: Callable[[], None] = lambda: None) -> list[Episode]:
        """Sample the policy on all jobs at once; results in the jobs' order. After an update: :meth:`sync` first."""
        listed = list(jobs)
        return self.conduct(policy, [lambda play: play(listed)], done)[0]

    def conduct(
        self, policy: Policy, scripts: Sequence[Callable[[Play], Awaitable[T]]], done: Callable[[], None] = lambda: None
    ) -> list[T]:
        """Run scripts side by side in one session of the engine; each may play jobs whenever it wants to."""
        if self.server is not None and self.server.version is None:
            self.sync(policy)

        async def run_all() -> list[T]:
            async with self._engine(policy) as engine:

                async def play(jobs: Sequence[Job]) -> list[Episode]:
                    return await asyncio.gather(*(self._play(job, engine.row, policy.name, done) for job in jobs))

                return await asyncio.gather(*(script(play) for script in scripts))

        return asyncio.run(run_all())

    def sync(self, policy: Policy, accelerator: Accelerator | None = None) -> None:
        """Hand the policy's present weights to the server; the embedded engine reads them where they are.

        Under several processes, which share policy and server, the main one does so and the others wait.
        """
        if self.server is None:
            return
        if accelerator is None or accelerator.is_main_process:
            asyncio.run(self.server.load(policy))
        if accelerator is not None and accelerator.num_processes > 1:
            accelerator.wait_for_everyone()
            if not accelerator.is_main_process:
                asyncio.run(self.server.follow())

    def _engine(self, policy: Policy) -> Engine | VllmEngine:
        limits = self.limits
        options = {"stop_ids": self.codec.stop_ids, "slots": limits.slots, "max_length": limits.episode_tokens}
        if self.server is None:
            return rollout_engine(policy.model, **options)
        from rcgrpo.policy.vllm import VllmEngine  # needs the extra rcgrpo[vllm]

        return VllmEngine(self.server, **options)

    async def _play(self, job: Job, open_row: OpenRow, name: str, done: Callable[[], None]) -> Episode:
        episode = await play(job, self.suite, open_row, self.codec, self.limits)
        done()
        if episode.error is None and self.reward not in episode.rewards:
            raise UserError(f"reward = {self.reward!r}: this world has the terms {', '.join(episode.rewards)}")
        return episode.model_copy(update={"policy": name, "reward": episode.rewards.get(self.reward, 0.0)})

    def _scripted_rows(self, messages: Iterator[Message]) -> OpenRow:
        @asynccontextmanager
        async def open_row(prompt: list[int], sampling: Sampling):
            yield _ScriptedRow(prompt, messages, self.codec, self.limits.episode_tokens)

        return open_row
