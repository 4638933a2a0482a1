"""The tables of a recipe: model, chat, rollouts, each kind of stage, evaluation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rcgrpo.codec.schemas import Detail
from rcgrpo.conditioning import TokenSampler
from rcgrpo.episodes.types import Probability, RewardToken

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
    """A folder or hub name that ``AutoModelForCausalLM`` loads, or an embedded small model: ``toolworld-base``,
    ``bfcl-base``."""
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

    schemas: Detail = "full"
    """``full``: the model's own tool format (official). ``compact``: signatures, about a fifth of the tokens.
    ``names``: names only, for a policy that knows the tools by heart."""
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
        if self.policy != "gold" and self.temperature == 0 and self.samples != 1:
            raise ValueError("samples > 1 needs a temperature above 0: greedy, all of a task's episodes are the same")
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
    labels: Literal["reward", "permuted"] = "reward"
    """Which token an episode gets: that of its reward (the paper), or, as a control, the same tokens shuffled."""
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
    def _labels_are_used(self) -> FinetuneTable:
        if self.labels == "permuted" and not self.conditioned:
            raise ValueError("labels = 'permuted' needs conditioned = true")
        return self

    @model_validator(mode="after")
    def _one_length(self) -> FinetuneTable:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps")
        return self


class ReplayTable(Config):
    """Stage-1 batches beside the policy gradient: cross-entropy on labelled episodes, so that the tokens keep their
    meaning."""

    data: list[str] = Field(min_length=1)
    """Collect stages whose episodes are replayed."""
    batch: int = Field(ge=1)
    """Episodes per optimiser step, over all processes."""
    weight: float = Field(default=1.0, gt=0)
    """Factor of the mean token loss, added to the loss of stage 2."""
    conditioned: bool = True
    """Place each episode's reward token (by its reward) in its prompt, as in stage 1."""
    balance: bool = False
    """Trim to as many failures as successes, as in stage 1."""


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
    beta_low: float | None = Field(default=None, ge=0)
    """Weight of the KL for rollouts under low; absent: ``beta``. More than that holds the low mode where it began."""
    gradient: Literal["all", "high"] = "all"
    """``high``: rollouts under low count in the baseline alone. They are not scored, and are neither in the policy
    term nor in KL nor denominator."""
    low_reward: Literal["same", "inverted"] = "same"
    """``inverted``: the advantage rewards a rollout under low for failing (1 - R). Reported success stays the true."""
    scale: Literal["std", "none"] = "std"
    """Divide advantages by the group's standard deviation (the paper), or not (Dr. GRPO)."""
    baseline: Literal["group", "token", "leave_one_out"] = "group"
    """Mean over the mixed group (the paper), per reward token inside the group, or over the others."""
    aggregate: Literal["sequence", "token", "constant"] = "sequence"
    """Mean over tokens then sequences (the paper, GRPO), over all tokens (DAPO), or by a constant length (Dr. GRPO)."""
    zero_variance: Literal["keep", "drop"] = "keep"
    """Flat groups have no policy term. ``keep``: they still count in KL and denominator. ``drop``: in neither."""
    flat_advantage: Literal["zero", "ngrpo", "zvp"] = "zero"
    """Advantages where all rollouts of a group are alike. ``ngrpo``: a virtual success counts in the mean and std of
    every group, so that failures alone are lowered. ``zvp``: right groups are raised and wrong ones lowered, by the
    entropy of each token (RL-ZVP)."""
    entropy_scale: float | None = Field(default=None, gt=0)
    """``zvp`` only: the factor of the entropy (alpha); absent: 0.1."""
    replay: ReplayTable | None = None
    """Absent: no stage-1 batches."""
    resample: int = Field(default=0, ge=0)
    """Dynamic sampling (DAPO), capped: a flat group is replaced by one of a fresh task, so many times at most; the
    last one stays, flat or not."""
    rollout_budget: int | None = Field(default=None, ge=1)
    """Rollouts of the whole stage, replaced ones included; it ends before a batch that could exceed them, and toward
    the end replaces less often. Absent: ``steps`` alone ends it."""
    shared_prefix: bool = True
    """Compute a group's common prompt once per update (same gradient, less work)."""
    optimiser: OptimiserTable
    """AdamW."""
    batch_tokens: int = Field(default=32768, ge=1)
    """Tokens of one forward pass; more are split into several, groups kept whole."""
    checkpoint_every: int = Field(default=20, ge=1)
    """Steps between resume points."""

    @model_validator(mode="after")
    def _no_idle_option(self) -> ReinforceTable:
        for key, given in (("beta_low", self.beta_low is not None), ("low_reward", self.low_reward == "inverted")):
            if given and not self.sampler.draws_low:
                raise ValueError(f"{key} is for rollouts under low, and this sampler draws none: remove it")
        if self.gradient == "high":
            if self.sampler.kind == "fixed":
                raise ValueError("gradient = 'high' needs a sampler that draws both tokens")
            if self.beta_low is not None:
                raise ValueError("beta_low has no meaning for gradient = 'high': rollouts under low are not trained on")
            if self.baseline == "token":
                raise ValueError("gradient = 'high' has rollouts under low for the baseline: take another than 'token'")
        if self.flat_advantage == "ngrpo" and self.baseline == "token":
            raise ValueError("flat_advantage = 'ngrpo' does not go with baseline = 'token': its member has no token")
        if self.flat_advantage == "zvp" and self.zero_variance == "drop":
            raise ValueError("flat_advantage = 'zvp' trains on flat groups: remove zero_variance = 'drop'")
        if self.flat_advantage == "zvp" and self.resample:
            raise ValueError("flat_advantage = 'zvp' trains on flat groups: remove resample, which replaces them")
        if self.groups % self.updates:
            raise ValueError(f"groups = {self.groups} cannot be divided among {self.updates} updates: take a multiple")
        if self.rollout_budget is not None and self.rollout_budget < self.groups * self.group_size:
            raise ValueError(f"rollout_budget must allow a batch of {self.groups * self.group_size} rollouts")
        if self.sampler.kind == "gated":
            self.sampler.after_probes(self.group_size, 0)  # raises where the sizes do not fit
        if self.flat_advantage != "zvp" and self.entropy_scale is not None:
            raise ValueError("entropy_scale is for flat_advantage = 'zvp': remove it")
        return self

    @property
    def regularised(self) -> bool:
        """Whether a KL is part of the loss, so that a reference is needed."""
        return bool(self.beta or self.beta_low)


class ShapeTable(Config):
    """Size of a new model and its tokenizer."""

    vocabulary: int = Field(default=1024, ge=320)
    """Tokens of the byte-level BPE tokenizer."""
    texts: list[str] = Field(default_factory=list)
    """Pools whose texts the tokenizer learns from, beside those of the stage's own."""
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
    """Make a small base model from nothing, in [toolworld] (how the embedded one was made) or [bfcl]."""

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
    rated: Probability = 0.0
    """Share of the demonstrations whose prompt says how good they are (``[Rating: high]``, ``low``); half of these are
    right, half wrong in every turn. It makes a base model that can be told what quality to aim for."""
    batch: int = Field(default=32, ge=1)
    """Episodes per optimiser step, over all processes."""
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


def data_of(stage: Config) -> list[str]:
    """The collect stages whose episodes a stage trains on."""
    if isinstance(stage, FinetuneTable):
        return stage.data
    return stage.replay.data if isinstance(stage, ReinforceTable) and stage.replay else []


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

    @model_validator(mode="after")
    def _measures_as_it_is(self) -> RowTable:
        if self.probe.kind == "gated":
            raise ValueError("probe: 'gated' adapts to what it has measured in training; take 'stratified' here")
        return self


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
