"""ToolWorld's configuration: how hard its tasks are, and which scenario numbers go to which pool."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Category = Literal["base", "miss_func", "miss_param", "long_context"]

STARTS = {"test": 0, "experts": 100_000, "train": 200_000, "pretrain": 500_000}
"""First scenario number of each pool; the ranges do not meet."""


class ToolWorldConfig(BaseModel):
    """Same config, same tasks: an id means the same task wherever seed and difficulty agree."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    seed: int = 0
    """Of all scenarios."""
    categories: tuple[Category, ...] = Field(default=("base", "miss_func", "miss_param", "long_context"), min_length=1)
    """Variants that the pools hold, dealt out in turn: one variant per scenario, so that tasks are independent."""
    experts_categories: tuple[Category, ...] | None = Field(default=None, min_length=1)
    """Variants of the pool ``experts``, where they are fewer: the other pools then go beyond what experts show."""
    test: int = Field(default=200, ge=1, le=100_000)
    """Tasks to evaluate on."""
    experts: int = Field(default=400, ge=0, le=100_000)
    """Tasks whose gold stage 1 learns from."""
    train: int = Field(default=2000, ge=0, le=300_000)
    """Tasks for reinforcement learning, beyond the experts'."""
    pretrain: int = Field(default=0, ge=0, le=400_000)
    """Tasks for the base model's own training."""
    min_turns: int = Field(default=1, ge=1, le=6)
    """Fewest user turns of a base variant (miss_func and miss_param have one more)."""
    max_turns: int = Field(default=3, ge=1, le=6)
    """Most user turns of a base variant."""
    hardness: float = Field(default=0.5, ge=0, le=1)
    """Share of requests that chain results, decide on them, or recover from an error."""
    follow_ups: float = Field(default=0.4, ge=0, le=1)
    """Chance to draw a later request from those that refer back (``do the same with``); redrawn if none fits."""
    two_domains: float = Field(default=0.5, ge=0, le=1)
    """Share of scenarios with tools of two domains."""
    entries: int = Field(default=5, ge=3, le=14)
    """Entries per listing: items, mails; twice as many files and calendar entries in all."""
    long_entries: int = Field(default=12, ge=0, le=20)
    """Entries that long_context adds per listing."""
    tools: int = Field(default=10, ge=1, le=32)
    """Tools shown per task, if its domains have so many and gold does not need more."""

    @model_validator(mode="after")
    def _turns_ordered(self) -> Self:
        if self.min_turns > self.max_turns:
            raise ValueError(f"min_turns = {self.min_turns} is above max_turns = {self.max_turns}: lower it")
        return self

    def is_test(self, number: int) -> bool:
        """Whether a scenario number lies in the test range."""
        return number < STARTS["experts"]

    def kinds(self, pool: str) -> tuple[Category, ...]:
        """Variants of a pool."""
        return (self.experts_categories if pool == "experts" else None) or self.categories

    def numbers(self, pool: str) -> range:
        """Scenario numbers of a pool."""
        return range(STARTS[pool], STARTS[pool] + getattr(self, pool))
