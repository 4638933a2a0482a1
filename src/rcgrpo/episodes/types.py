"""The nouns of the project: task, turn, call, message, episode, group.

Everything that flows from one station to the next is one of these. They are pydantic models (``ExecutedCall``, made
for every call, a dataclass inside them), so each of them validates on reading, and
``model_validate_json(model_dump_json())`` is the identity.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator


class Record(BaseModel):
    """Base of all saved types: unknown fields are errors, infinities and NaN survive JSON."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")


class RewardToken(StrEnum):
    """The reward that a rollout is asked for (the paper's r in {high, low})."""

    HIGH = "high"
    """``<|high_reward|>``: marks successful trajectories in stage 1; the only token used at inference."""
    LOW = "low"
    """``<|low_reward|>``: marks failed trajectories."""

    @property
    def text(self) -> str:
        """The token as the tokenizer sees it."""
        return f"<|{self.value}_reward|>"


class Call(Record):
    """One tool call: a name and JSON arguments by keyword. Data only: nothing here is ever evaluated."""

    name: str
    arguments: dict[str, JsonValue] = Field(default_factory=dict)


class Message(Record):
    """One chat message. ``calls`` is only filled on assistant messages."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    calls: list[Call] = Field(default_factory=list)

    def as_chat(self) -> dict[str, Any]:
        """The message in the format of ``tokenizer.apply_chat_template``."""
        chat: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.calls:
            chat["tool_calls"] = [
                {"type": "function", "function": {"name": c.name, "arguments": c.arguments}} for c in self.calls
            ]
        return chat


class Turn(Record):
    """One scripted user turn of a task."""

    messages: list[Message]
    """What the user says when the turn opens (usually one message)."""
    gold: list[Call] = Field(default_factory=list)
    """The expert's calls. Empty means that the right answer is to call nothing (and say so)."""
    reveals: list[str] = Field(default_factory=list)
    """Tools withheld until this turn; their documentation is shown as it opens."""


class Task(Record):
    """A scripted problem: it starts an environment and says what the user will ask, turn by turn."""

    id: str
    """Unique within its environment."""
    category: str
    """What the task tests: ``base``, ``miss_func``, ``miss_param`` or ``long_context`` on BFCL and ToolWorld."""
    scenario: str
    """Tasks of one scenario share their world and gold; a split never puts a scenario on both sides."""
    block: str
    """The stratum of splits (BFCL: the domain block that an id falls into)."""
    turns: list[Turn]
    data: dict[str, Any] = Field(default_factory=dict)
    """What ``Environment.start`` receives; JSON."""


@dataclass(slots=True)
class ExecutedCall:
    """A call that the environment ran (or refused), with the text that the policy read.

    Validated where it is read, by the rules of the :class:`Record` that holds it; not where an environment makes it,
    which would cost as much as a remembered BFCL call itself.
    """

    turn: int
    call: Call
    result: str
    failed: bool = False
    """The result is an error: unknown tool, bad arguments, or an exception of the tool."""


class Verdict(Record):
    """The judgement of one finished turn."""

    valid: bool
    reason: str = ""
    """Empty if valid, else a short stable word: ``state``, ``response``, ``empty``, ``unreached``, ..."""
    detail: str = ""
    """For the human reader: what differed."""


class StopReason(StrEnum):
    """Why an episode ended."""

    COMPLETED = "completed"
    """All scripted user turns were played."""
    STEP_LIMIT = "step_limit"
    """A turn used up its steps; the turns played so far are still judged (as the official protocol does)."""
    LENGTH = "length"
    """The episode's token budget ran out."""
    ERROR = "error"
    """The environment itself failed; ``Episode.error`` says how. The episode counts as reward 0."""


class EpisodeError(Record):
    """A failure of the environment (not of the policy), kept as data."""

    type: str
    message: str


class ParseFailure(Record):
    """A malformed tool call: what was wrong, in words that the policy gets to read."""

    kind: Literal["json", "shape", "unclosed"]
    """``json``: not JSON; ``shape``: JSON, but no name/arguments object; ``unclosed``: a call never closed."""
    message: str
    text: str
    """The offending text, as generated."""


class Step(Record):
    """One assistant message and the executed calls it led to."""

    turn: int
    message: Message
    failures: list[ParseFailure] = Field(default_factory=list)
    calls: list[ExecutedCall] = Field(default_factory=list)
    truncated: bool = False
    """Generation hit its token limit before the end-of-message token."""


Probability = Annotated[float, Field(ge=0, le=1)]


class Sampling(Record):
    """How the policy was sampled. Temperature 0 is greedy."""

    temperature: float = Field(default=1.0, ge=0)
    top_p: Probability = 1.0
    seed: int = 0


class Episode(Record):
    """One rollout (= trajectory) of one task: text for people, token ids for the trainer.

    ``token_ids``, ``loss_mask`` have the same length T; ``loss_mask[t]`` is 1 where token t was generated by
    the policy (or, for experts, written by the gold policy) and 0 where it was given. ``logprobs`` holds the
    sampling log-probability (nats, float32 values) of each token with mask 1, in order: its length is
    ``sum(loss_mask)``, or 0 where no policy sampled the episode. They are taken at the sampling temperature,
    over the whole vocabulary (before top-p truncation), and at temperature 1 for greedy decoding.
    """

    task_id: str
    category: str
    scenario: str
    group_id: str
    """Groups are formed by this id and by nothing else."""
    index: int = 0
    """Position inside the group."""
    policy: str
    """Who acted: ``gold`` or the name of a checkpoint."""
    sampling: Sampling = Field(default_factory=Sampling)
    reward_token: RewardToken | None = None
    """The token in the prompt; None where the episode was not conditioned."""
    messages: list[Message]
    steps: list[Step] = Field(default_factory=list)
    token_ids: list[int]
    loss_mask: list[int]
    logprobs: list[float] = Field(default_factory=list)
    verdicts: list[Verdict] = Field(default_factory=list)
    """One per scripted user turn of the task, also for turns never reached."""
    stop_reason: StopReason
    rewards: dict[str, float] = Field(default_factory=dict)
    """Every reward term of the environment, by name."""
    reward: float = 0.0
    """The term that the run trains on."""
    error: EpisodeError | None = None

    @model_validator(mode="after")
    def _lengths_agree(self) -> Episode:
        if len(self.token_ids) != len(self.loss_mask):
            raise ValueError(f"{len(self.token_ids)} token_ids but {len(self.loss_mask)} loss_mask entries")
        if self.logprobs and len(self.logprobs) != sum(self.loss_mask):
            raise ValueError(f"{len(self.logprobs)} logprobs but {sum(self.loss_mask)} generated tokens")
        return self

    @property
    def success(self) -> bool:
        """Whether every turn was judged valid (the official 0/1)."""
        return self.error is None and bool(self.verdicts) and all(v.valid for v in self.verdicts)


class Group(Record):
    """G episodes of one task that share an advantage baseline."""

    id: str
    task_id: str
    episodes: list[Episode]

    @model_validator(mode="after")
    def _members_agree(self) -> Group:
        for episode in self.episodes:
            if episode.group_id != self.id or episode.task_id != self.task_id:
                raise ValueError(
                    f"episode of group {episode.group_id!r}, task {episode.task_id!r} in group {self.id!r}"
                )
        return self
