"""The recipe: its tables together, their references checked; reading it from TOML."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from rcgrpo.config.ablation import AblationTable
from rcgrpo.config.tables import (
    BASE,
    ChatTable,
    CollectTable,
    Config,
    EvaluateTable,
    ModelTable,
    PretrainTable,
    ReinforceTable,
    RolloutTable,
    StageTable,
    data_of,
)
from rcgrpo.environments.bfcl.suite import BfclConfig, BfclSuite
from rcgrpo.environments.custom import CustomConfig, CustomSuite
from rcgrpo.environments.protocol import Suite
from rcgrpo.environments.toolworld.suite import ToolWorldConfig, ToolWorldSuite
from rcgrpo.errors import UserError


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
    ablation: AblationTable | None = None
    """A matrix of arms and seeds for ``rcgrpo ablate``; it takes the place of ``evaluate.rows``."""

    @model_validator(mode="after")
    def _one_table(self) -> Recipe:
        if self.ablation is None:
            return self
        if self.evaluate.rows:
            raise ValueError("evaluate.rows: with [ablation] the rows are its arms: remove them")
        if self.evaluate.seeds != 1:
            raise ValueError("evaluate.seeds: with [ablation] it has to be 1: an outcome per task and seed of the run")
        for arm in self.ablation.arms:
            if arm.policy != BASE and (arm.policy not in self.stages or self.stages[arm.policy].kind == "collect"):
                raise ValueError(f"ablation.arms {arm.row!r}: {arm.policy!r} has no checkpoint")
        return self

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
                if self.custom is not None:
                    raise ValueError(f"stages.{name}: pretrain needs the world [toolworld] or [bfcl]")
                if stage.start is None:
                    continue
            start = stage.loaded if stage.kind == "collect" else stage.start
            if start not in trained:
                raise ValueError(
                    f"stages.{name}: {start!r} has no checkpoint; choose among {', '.join(sorted(trained))}"
                )
            for source in data_of(stage):
                if source not in collected:
                    key = "data" if stage.kind == "finetune" else "replay.data"
                    raise ValueError(f"stages.{name}.{key}: {source!r} is not a collect stage")
        for row in self.evaluate.rows:
            if row.policy not in trained:
                raise ValueError(f"evaluate.rows {row.row!r}: {row.policy!r} has no checkpoint")
        names = [row.row for row in self.evaluate.rows]
        if len(set(names)) != len(names):
            raise ValueError("evaluate.rows: two rows have the same name")
        self.order()
        for name, stage in self.stages.items():
            for source in data_of(stage):
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

    @cached_property
    def tasks_sha256(self) -> str | None:
        """Hash of the user's tasks file, whose content is no setting; None for the worlds that the package has."""
        return self.suite.tasks_sha256 if isinstance(self.suite, CustomSuite) else None

    def pools(self) -> list[tuple[str, str]]:
        """Every pool of the split that is played, after the key that names it."""
        named = [("evaluate.pool", self.evaluate.pool)] if self.evaluate.rows else []
        for name, stage in self.stages.items():
            if isinstance(stage, CollectTable | PretrainTable | ReinforceTable):
                named.append((f"stages.{name}.pool", stage.pool))
            if isinstance(stage, PretrainTable) and stage.shape is not None:
                named += [(f"stages.{name}.shape.texts", pool) for pool in stage.shape.texts]
        return named

    def needs(self, name: str) -> list[str]:
        """The stages whose results a stage reads."""
        stage = self.stages[name]
        sources = [stage.loaded if stage.kind == "collect" else stage.start, *data_of(stage)]
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
        """Hash of all that decides a stage's result: its table, what it needs, model, world, chat, limits, seed.

        Of a world of the user's own the tasks file's content counts; the code of its tools cannot be seen.

        Keys at their default are left out, so that a new option leaves results without it valid.
        """
        content = self.model_dump(
            mode="json",
            exclude_defaults=True,
            include={"seed", "reward", "toolworld", "bfcl", "custom", "model", "chat", "rollout"},
            exclude={"rollout": {"vllm"}},  # where a server is decides nothing
        )
        content["stage"] = self.stages[name].model_dump(mode="json", exclude_defaults=True)
        content |= {} if self.tasks_sha256 is None else {"tasks_sha256": self.tasks_sha256}
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
        return Recipe.model_validate(with_defaults(content, source))
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


def with_defaults(content: dict[str, Any], source: str) -> dict[str, Any]:
    """The content with ``[defaults.KIND]`` merged below every stage of that kind, and without ``defaults``.

    A stage's own keys win; nested tables are merged, but one that names another ``kind`` (of sampler) replaces
    the default's. Raises :class:`UserError` for defaults of a kind that no stage has.
    """
    if "defaults" not in content:
        return content
    defaults, stages = content["defaults"], content.get("stages")
    stages = {n: s for n, s in stages.items() if isinstance(s, dict)} if isinstance(stages, dict) else {}
    if not isinstance(defaults, dict) or not all(isinstance(table, dict) for table in defaults.values()):
        raise UserError(f"{source}: defaults: write them as tables by kind of stage, such as [defaults.reinforce]")
    kinds = [stage.get("kind") for stage in stages.values()]
    for kind, table in defaults.items():
        if kind not in kinds:
            found = ", ".join(sorted({str(k) for k in kinds})) or "none"
            raise UserError(f"{source}: defaults.{kind}: no stage is of that kind (found: {found}); remove the table")
        if "kind" in table:
            raise UserError(f"{source}: defaults.{kind}.kind: the table's name says it; remove the key")
    merged = {name: _merged(defaults.get(stage.get("kind"), {}), stage) for name, stage in stages.items()}
    return {**{k: v for k, v in content.items() if k != "defaults"}, "stages": {**content["stages"], **merged}}


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """``above`` over ``below``, nested tables merged unless they are of different kinds."""
    result = {**below, **above}
    for key in below.keys() & above.keys():
        low, high = below[key], above[key]
        if isinstance(low, dict) and isinstance(high, dict) and high.get("kind") in (None, low.get("kind")):
            result[key] = _merged(low, high)
    return result


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
