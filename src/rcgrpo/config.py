"""Recipes: what a run does, as pydantic models that a TOML file fills. An unknown key is an error.

A recipe names a world, a model, and stages. A stage that trains or plays starts from another stage's
checkpoint or from ``base`` (the recipe's model), so the stages form a graph; ``rcgrpo run`` walks it.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rcgrpo.conditioning import TokenSampler
from rcgrpo.environments.bfcl.suite import BfclConfig, BfclSuite
from rcgrpo.environments.custom import CustomConfig, CustomSuite
from rcgrpo.environments.protocol import Suite
from rcgrpo.environments.toolworld.suite import ToolWorldConfig, ToolWorldSuite
from rcgrpo.episodes.types import Probability, RewardToken
from rcgrpo.errors import UserError

BASE = "base"
"""The name under which stages refer to the recipe's own model."""


class Config(BaseModel):
    """Base of all recipe tables: unknown keys are errors, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class LoraTable(Config):
    """Train low-rank adapters (peft) instead of all weights. Checkpoints are saved merged."""

    rank: int = Field(default=16, ge=1)
    """Rank of the adapters."""
    alpha: int = Field(default=32, ge=1)
    """Scale: the adapter's output is multiplied by alpha / rank."""
    targets: str | list[str] = "all-linear"
    """Modules to adapt, as peft's ``target_modules``."""


class ModelTable(Config):
    """The policy before training, and how its weights are held."""

    path: str = "toolworld-base"
    """A folder or hub name that ``AutoModelForCausalLM`` loads, or ``toolworld-base``: the embedded model."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of weights and activations. Training steps on float32 copies of bfloat16 weights: of 8 bits of
    mantissa, an update at lr 1e-6 changes none. Full fine-tuning then takes 16 bytes per parameter and 4 more
    during a step (weight 2, gradient 2, copy 4, AdamW's moments 8), against 16 in float32. LoRA adapters are
    float32 in either case."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto`` takes the GPU where there is one."""
    lora: LoraTable | None = None
    """Absent: all weights are trained."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""


class ChatTable(Config):
    """How conversations become tokens."""

    schemas: Literal["full", "compact"] = "full"
    """``full``: the model's own tool format (official). ``compact``: signatures, about a fifth of the tokens."""
    thinking: bool = False
    """Qwen3 only: open assistant messages for a reasoning block instead of an empty one."""
    reward_tokens: Literal["special", "text"] = "special"
    """``special``: the reward tokens become single trained tokens. ``text``: the model reads them as plain text."""


class VllmTable(Config):
    """A running vLLM server that generates instead of the embedded engine (docs/vllm.md; untested on hardware)."""

    model: str
    """Name under which it serves the model."""
    folder: str = Field(pattern="^/")
    """Absolute path where weights are handed over; this process writes there, the server reads."""
    url: str = Field(default="http://127.0.0.1:8000", pattern=r"^https?://\S+$")
    """Where it listens."""
    sync: Literal["weights", "adapter"] = "weights"
    """What is handed over after an update. ``weights``: a checkpoint, adapters merged. ``adapter``: LoRA alone."""
    timeout: float = Field(default=600, gt=0)
    """Seconds that one message, or loading the weights, may take."""


class RolloutTable(Config):
    """Limits of an episode, and who generates it."""

    steps_per_turn: int = Field(default=21, ge=1)
    """Assistant messages per user turn before the episode is cut (21: what the official harness executes)."""
    step_tokens: int = Field(default=512, ge=1)
    """Generated tokens per assistant message."""
    episode_tokens: int = Field(default=8192, ge=16)
    """Tokens of a whole episode, prompt included."""
    slots: int = Field(default=64, ge=1)
    """Episodes generated at the same time."""
    malformed_call: Literal["report", "end_turn"] = "report"
    """``report``: the policy reads what was wrong and goes on. ``end_turn``: as the official harness does."""
    backend: Literal["engine", "vllm"] = "engine"
    """``engine``: the embedded one. ``vllm``: the server that ``vllm`` names."""
    vllm: VllmTable | None = None
    """The server; for backend = "vllm" only."""

    @model_validator(mode="after")
    def _server_is_used(self) -> RolloutTable:
        if (self.backend == "vllm") != (self.vllm is not None):
            raise ValueError("backend = 'vllm' and the table [rollout.vllm] need each other: give both or neither")
        return self


class CollectTable(Config):
    """Play episodes and keep them: experts from gold, or exploration of a named policy."""

    kind: Literal["collect"]
    policy: str
    """``gold``, ``base``, or the stage whose checkpoint explores."""
    tokenizer: str = BASE
    """Gold only: ``base`` or the stage whose tokenizer renders the episodes; a policy renders with its own."""
    pool: str = "experts"
    """Pool of the split to play."""
    limit: int | None = Field(default=None, ge=1)
    """At most so many tasks."""
    samples: int = Field(default=1, ge=1)
    """Episodes per task. Gold is deterministic: 1."""
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature of the exploration."""
    top_p: Probability = 1.0
    """Nucleus of the exploration."""
    keep: Literal["all", "successes", "failures"] = "all"
    """Which episodes to keep, by the recipe's reward."""
    oversize: Literal["error", "skip"] = "error"
    """Gold only, where an answer does not fit the limits of an episode. ``skip``: leave it out, and count it."""

    @model_validator(mode="after")
    def _gold_is_one(self) -> CollectTable:
        if self.policy == "gold" and (self.samples != 1 or self.keep != "all"):
            raise ValueError("policy = 'gold' is deterministic and always succeeds: remove samples and keep")
        if self.policy != "gold" and self.tokenizer != BASE:
            raise ValueError("tokenizer is for policy = 'gold': a policy plays with its own; remove it")
        if self.policy != "gold" and self.oversize != "error":
            raise ValueError("oversize is for policy = 'gold': an exploration may end at a limit; remove it")
        return self

    @property
    def loaded(self) -> str:
        """``base`` or the stage whose checkpoint is loaded: the policy's, or for gold that with the tokenizer."""
        return self.tokenizer if self.policy == "gold" else self.policy


class OptimiserTable(Config):
    """AdamW and its schedule."""

    lr: float = Field(gt=0)
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After the warm-up: constant, or down to 0 at the last step."""
    warmup: int = Field(default=0, ge=0)
    """Steps of linear warm-up."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled weight decay."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's moment decays."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""


class FinetuneTable(Config):
    """Stage 1: cross-entropy on assistant tokens. ``conditioned`` makes it RCTP-FT, else it is the SFT baseline."""

    kind: Literal["finetune"]
    start: str = BASE
    """``base`` or the stage whose checkpoint is trained."""
    data: list[str] = Field(min_length=1)
    """Collect stages whose episodes are the training set."""
    conditioned: bool
    """Place each episode's reward token (by its reward) in its prompt."""
    balance: bool = False
    """Trim to as many failures as successes (the paper: exactly 1:1)."""
    batch: int = Field(ge=1)
    """Episodes per optimiser step, over all processes."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the data. Give this or ``steps``."""
    steps: int | None = Field(default=None, ge=1)
    """Optimiser steps. Give this or ``epochs``."""
    validation: float = Field(default=0.1, ge=0, lt=1)
    """Share of the episodes held out to report a validation loss."""
    optimiser: OptimiserTable
    """AdamW."""
    batch_tokens: int = Field(default=16384, ge=1)
    """Tokens of one forward pass; more are split into several."""
    checkpoint_every: int = Field(default=100, ge=1)
    """Steps between resume points."""

    @model_validator(mode="after")
    def _one_length(self) -> FinetuneTable:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps")
        return self


class ReinforceTable(Config):
    """Stage 2: GRPO over groups. The sampler alone makes it GRPO (``fixed``) or RC-GRPO (``iid``, ``stratified``)."""

    kind: Literal["reinforce"]
    start: str
    """The stage whose checkpoint is trained; it is also the KL's reference."""
    sampler: TokenSampler
    """Which reward token each rollout of a group is conditioned on."""
    pool: str = "train"
    """Pool of the split that tasks are drawn from."""
    steps: int = Field(ge=1)
    """Batches of rollouts."""
    groups: int = Field(ge=1)
    """Tasks per batch, over all processes."""
    group_size: int = Field(default=5, ge=2)
    """G: rollouts per task (the paper: 5)."""
    updates: int = Field(default=1, ge=1)
    """Optimiser steps per batch; the groups are divided among them."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature; log-probabilities are taken at the same one."""
    top_p: Probability = 1.0
    """Nucleus of the rollouts."""
    clip_low: float = Field(default=0.2, gt=0)
    """The ratio is clipped below 1 - clip_low."""
    clip_high: float = Field(default=0.2, gt=0)
    """The ratio is clipped above 1 + clip_high."""
    beta: float = Field(default=0.1, ge=0)
    """Weight of the KL to the reference (the paper: 0.1). 0: no reference is kept."""
    scale: Literal["std", "none"] = "std"
    """Divide advantages by the group's standard deviation (the paper), or not (Dr. GRPO)."""
    baseline: Literal["group", "token", "leave_one_out"] = "group"
    """Mean over the mixed group (the paper), per reward token inside the group, or over the others."""
    aggregate: Literal["sequence", "token", "constant"] = "sequence"
    """Mean over tokens then sequences (the paper, GRPO), over all tokens (DAPO), or by a constant length (Dr. GRPO)."""
    zero_variance: Literal["keep", "drop"] = "keep"
    """Flat groups have no policy term. ``keep``: they still count in KL and denominator. ``drop``: in neither."""
    shared_prefix: bool = True
    """Compute a group's common prompt once per update (same gradient, less work)."""
    optimiser: OptimiserTable
    """AdamW."""
    batch_tokens: int = Field(default=32768, ge=1)
    """Tokens of one forward pass; more are split into several, groups kept whole."""
    checkpoint_every: int = Field(default=20, ge=1)
    """Steps between resume points."""


class ShapeTable(Config):
    """Size of a new model and its tokenizer."""

    vocabulary: int = Field(default=1024, ge=320)
    """Tokens of the byte-level BPE tokenizer."""
    hidden: int = Field(default=128, ge=16)
    """Width of the model."""
    layers: int = Field(default=4, ge=1)
    """Decoder layers."""
    heads: int = Field(default=4, ge=1)
    """Query heads."""
    kv_heads: int = Field(default=2, ge=1)
    """Key and value heads."""
    context: int = Field(default=4096, ge=64)
    """Longest context that the model declares."""

    @model_validator(mode="after")
    def _heads_divide(self) -> ShapeTable:
        if self.hidden % self.heads or self.heads % self.kv_heads:
            raise ValueError("hidden must be a multiple of heads, and heads of kv_heads")
        return self


class PretrainTable(Config):
    """Make a small base model from nothing (ToolWorld only): how the embedded one was made."""

    kind: Literal["pretrain"]
    start: str | None = None
    """The stage to go on from. Give this or ``shape``."""
    shape: ShapeTable | None = None
    """A new model of this size. Give this or ``start``."""
    pool: str = "pretrain"
    """Pool of the split whose tasks are demonstrated."""
    limit: int | None = Field(default=None, ge=1)
    """At most so many tasks."""
    excerpts: bool = False
    """Train on first turns alone, without the system message: short texts in which copying is learnt fastest."""
    corrupt: Probability = 0.35
    """Share of the turns that are demonstrated wrongly, as near misses."""
    batch: int = Field(default=32, ge=1)
    """Episodes per optimiser step."""
    steps: int = Field(ge=1)
    """Optimiser steps."""
    optimiser: OptimiserTable
    """AdamW."""
    batch_tokens: int = Field(default=16384, ge=1)
    """Tokens of one forward pass; more are split into several."""
    checkpoint_every: int = Field(default=100, ge=1)
    """Steps between resume points."""

    @model_validator(mode="after")
    def _one_origin(self) -> PretrainTable:
        if (self.start is None) == (self.shape is None):
            raise ValueError("give either start or shape")
        return self


class RetokeniseTable(Config):
    """Give a policy a tokenizer trained on a pool's tasks: shorter episodes for a small model in a foreign world."""

    kind: Literal["retokenise"]
    start: str = BASE
    """``base`` or the stage whose checkpoint is carried over: its layers, and the embeddings by their text."""
    pool: str = "train"
    """Pool of the split whose texts the tokenizer learns from."""
    limit: int | None = Field(default=None, ge=1)
    """At most so many tasks."""
    vocabulary: int = Field(default=2048, ge=320)
    """Tokens of the byte-level BPE tokenizer; fewer where the texts hold no more."""


StageTable = Annotated[
    PretrainTable | RetokeniseTable | CollectTable | FinetuneTable | ReinforceTable, Field(discriminator="kind")
]


class RowTable(Config):
    """One row of the results table."""

    row: str
    """Its name in table and report."""
    policy: str
    """``base`` or a stage with a checkpoint."""
    token: RewardToken | None = None
    """Reward token at inference (the paper: high); absent: none."""
    probe: TokenSampler = TokenSampler.fixed()
    """How groups are conditioned when the share of flat groups is measured."""


class EvaluateTable(Config):
    """What is measured at the end."""

    pool: str = "test"
    """Pool of the split."""
    limit: int | None = Field(default=None, ge=1)
    """At most so many tasks."""
    temperature: float = Field(default=0.0, ge=0)
    """0: greedy."""
    top_p: Probability = 1.0
    """Nucleus where the temperature is above 0."""
    seeds: int = Field(default=1, ge=1)
    """Sampled episodes per task, each with its own seed. Greedy decoding needs 1."""
    probe_tasks: int = Field(default=0, ge=0)
    """Tasks on which groups are sampled at temperature 1 to measure flat groups and separation. 0: not measured."""
    probe_group: int = Field(default=8, ge=2)
    """Rollouts per probed group."""
    rows: list[RowTable] = Field(default_factory=list)
    """The table."""

    @model_validator(mode="after")
    def _greedy_is_one(self) -> EvaluateTable:
        if self.temperature == 0 and self.seeds != 1:
            raise ValueError("seeds > 1 needs a temperature above 0: greedy decoding gives the same episode each time")
        return self


class Recipe(Config):
    """A whole run."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    """Names the run directory."""
    description: str = ""
    """One line for the report."""
    seed: int = 0
    """Every random choice of the run derives from it."""
    reward: str = "success"
    """Which reward term labels and trains: ``success``, ``turn_fraction``, ``state_action`` (the paper)."""
    toolworld: ToolWorldConfig | None = None
    """The embedded world. Give exactly one of toolworld, bfcl, custom."""
    bfcl: BfclConfig | None = None
    """The Berkeley Function Calling Leaderboard, multi-turn."""
    custom: CustomConfig | None = None
    """Your own tools and tasks."""
    model: ModelTable = ModelTable()
    """The policy before training."""
    chat: ChatTable = ChatTable()
    """Text to tokens."""
    rollout: RolloutTable = RolloutTable()
    """Limits of an episode."""
    stages: dict[str, StageTable] = Field(default_factory=dict)
    """The work, by name."""
    evaluate: EvaluateTable = EvaluateTable()
    """The table."""

    @model_validator(mode="after")
    def _one_world(self) -> Recipe:
        worlds = [name for name in ("toolworld", "bfcl", "custom") if getattr(self, name) is not None]
        if len(worlds) != 1:
            raise ValueError(f"give exactly one of [toolworld], [bfcl], [custom]; found {worlds or 'none'}")
        return self

    @model_validator(mode="after")
    def _server_can(self) -> Recipe:
        server = self.rollout.vllm
        if server is None:
            return self
        if server.sync == "adapter" and (self.model.lora is None or self.chat.reward_tokens == "special"):
            raise ValueError(
                "rollout.vllm.sync = 'adapter' needs [model.lora] and chat.reward_tokens = 'text': vLLM's adapters "
                "hold no trained tokens; or set sync = 'weights'"
            )
        for where, table in [("evaluate", self.evaluate), *((f"stages.{n}", s) for n, s in self.stages.items())]:
            if isinstance(table, EvaluateTable | CollectTable | ReinforceTable) and table.top_p < 1:
                raise ValueError(
                    f"{where}.top_p = {table.top_p}: with backend = 'vllm' it has to be 1, because vLLM gives "
                    f"log-probabilities over the nucleus only"
                )
        return self

    @model_validator(mode="after")
    def _references_resolve(self) -> Recipe:
        trained = {BASE} | {name for name, stage in self.stages.items() if stage.kind != "collect"}
        collected = set(self.stages) - trained
        for name, stage in self.stages.items():
            if name in (BASE, "gold") or not name.replace("-", "").replace("_", "").isalnum():
                raise ValueError(f"stages.{name}: choose another name (letters, digits, - and _; not 'base' or 'gold')")
            if stage.kind == "pretrain":
                if self.toolworld is None:
                    raise ValueError(f"stages.{name}: pretrain needs the [toolworld] world")
                if stage.start is None:
                    continue
            start = stage.loaded if stage.kind == "collect" else stage.start
            if start not in trained:
                raise ValueError(
                    f"stages.{name}: {start!r} has no checkpoint; choose among {', '.join(sorted(trained))}"
                )
            for source in stage.data if stage.kind == "finetune" else ():
                if source not in collected:
                    raise ValueError(f"stages.{name}.data: {source!r} is not a collect stage")
        for row in self.evaluate.rows:
            if row.policy not in trained:
                raise ValueError(f"evaluate.rows {row.row!r}: {row.policy!r} has no checkpoint")
        names = [row.row for row in self.evaluate.rows]
        if len(set(names)) != len(names):
            raise ValueError("evaluate.rows: two rows have the same name")
        self.order()
        for name, stage in self.stages.items():
            for source in stage.data if stage.kind == "finetune" else ():
                ours, theirs = self.tokenizer_of(name), self.tokenizer_of(source)
                if ours != theirs:
                    raise ValueError(
                        f"stages.{name} trains with the tokenizer of {ours!r}, but stages.{source} is rendered with "
                        f"that of {theirs!r}: set the latter's tokenizer, or explore with a policy that shares it"
                    )
        return self

    @cached_property
    def suite(self) -> Suite:
        """The world, ready to give tasks."""
        if self.toolworld is not None:
            return ToolWorldSuite(self.toolworld)
        if self.bfcl is not None:
            return BfclSuite(self.bfcl)
        assert self.custom is not None  # validated
        return CustomSuite(self.custom)

    def needs(self, name: str) -> list[str]:
        """The stages whose results a stage reads."""
        stage = self.stages[name]
        if stage.kind == "collect":
            sources = [stage.loaded]
        elif stage.kind == "finetune":
            sources = [stage.start, *stage.data]
        else:
            sources = [stage.start]
        return [source for source in sources if source in self.stages]

    def with_followers(self, names: Iterable[str]) -> set[str]:
        """The stages ``names`` and all that read their results, however far down the line."""
        found = set(names)
        for name in self.order():
            if found & set(self.needs(name)):
                found.add(name)
        return found

    def tokenizer_of(self, name: str) -> str:
        """Where the tokenizer of a policy, or of a collect stage's episodes, comes from: ``base`` or a stage."""
        stage = self.stages.get(name)
        if stage is None:
            return BASE
        start = stage.loaded if stage.kind == "collect" else stage.start
        return name if start is None or stage.kind == "retokenise" else self.tokenizer_of(start)

    def order(self) -> list[str]:
        """Stages in an order in which each comes after what it needs; raises ValueError on a cycle."""
        ordered: list[str] = []
        while len(ordered) < len(self.stages):
            ready = [n for n in self.stages if n not in ordered and all(m in ordered for m in self.needs(n))]
            if not ready:
                raise ValueError(f"stages need each other in a circle: {sorted(set(self.stages) - set(ordered))}")
            ordered += ready
        return ordered

    def digest(self, name: str) -> str:
        """Hash of all that decides a stage's result: its table, what it needs, model, world, chat, limits, seed."""
        content = self.model_dump(
            mode="json",
            include={"seed", "reward", "toolworld", "bfcl", "custom", "model", "chat", "rollout"},
            exclude={"rollout": {"vllm"}},  # where a server is decides nothing
        )
        content["stage"] = self.stages[name].model_dump(mode="json")
        content["needs"] = [self.digest(source) for source in self.needs(name)]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Read a TOML recipe and apply overrides such as ``stages.grpo.steps=10`` (values are TOML).

    Raises :class:`UserError` that names file, field, value and what was expected.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no recipe at {path}") from None
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}") from error
    for override in overrides or []:
        _apply(content, override)
    return parse_recipe(content, str(path))


def parse_recipe(content: dict[str, Any], source: str) -> Recipe:
    """Validate a recipe's content; ``source`` is named in errors."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        lines = []
        for issue in error.errors():
            # below stages.<name> pydantic names the kind, which is no key of the file
            kind_at = 2 if issue["loc"][:1] == ("stages",) else None
            where = ".".join(str(part) for i, part in enumerate(issue["loc"]) if i != kind_at)
            value = "" if isinstance(issue["input"], dict | list) else f" (given: {issue['input']!r})"
            hint = (
                "unknown key: check its spelling"
                if issue["type"] == "extra_forbidden"
                else issue["msg"].removeprefix("Value error, ")
            )
            lines.append(f"  {where or 'recipe'}: {hint}{value}")
        raise UserError(f"{source} is not a valid recipe:\n" + "\n".join(lines)) from error


def _apply(content: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    if not sign or not key.strip():
        raise UserError(f"override {override!r}: write key=value, for example seed=1 or stages.grpo.steps=10")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string
    *parents, last = key.strip().split(".")
    table: Any = content
    for parent in parents:
        table = table.setdefault(parent, {}) if isinstance(table, dict) else None
    if not isinstance(table, dict):
        raise UserError(f"override {override!r}: {'.'.join(parents)} is not a table")
    table[last] = value
