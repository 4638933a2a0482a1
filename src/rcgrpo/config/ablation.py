"""The plan of an ablation: arms, seeds, tokens at inference and comparisons, fixed before its runs start."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rcgrpo.config.tables import Config

TokenName = Literal["none", "high", "low"]
"""Reward token at inference, ``none`` included."""


class ArmTable(Config):
    """One row of an ablation's table: a policy, evaluated under every token of ``[ablation]``."""

    row: str
    """Its name in table, comparisons and report."""
    policy: str
    """``base`` or a stage with a checkpoint."""
    token: TokenName = "none"
    """Reward token at inference for the headline and the comparisons (the paper: ``high`` after RCTP-FT)."""
    unmatched: str | None = Field(default=None, min_length=1)
    """Why this arm may spend another budget than the others; the report shows it. Absent: it may not."""


class AblationTable(Config):
    """What ``rcgrpo ablate`` runs: every arm under every seed, each cell evaluated under every token."""

    arms: list[ArmTable] = Field(min_length=1)
    """The rows of the table, in order."""
    seeds: list[int] = Field(min_length=1)
    """Each is one run of the whole recipe with that ``seed``. Fixed before the runs start."""
    comparisons: list[tuple[str, str]] = Field(default_factory=list)
    """Planned pairs of rows ``[a, b]``: success of a minus success of b. Holm's correction runs over all of them."""
    tokens: list[TokenName] = Field(default=["none", "high", "low"], min_length=1)
    """Reward tokens under which every arm is evaluated."""

    @model_validator(mode="after")
    def _names_resolve(self) -> AblationTable:
        for what, values in (("seeds", self.seeds), ("tokens", self.tokens), ("arms", [a.row for a in self.arms])):
            if len(set(values)) != len(values):
                raise ValueError(f"{what}: one stands there twice")
        for arm in self.arms:
            if arm.token not in self.tokens:
                raise ValueError(f"arms {arm.row!r}: its token {arm.token!r} is not among tokens")
        rows = {arm.row for arm in self.arms}
        for a, b in self.comparisons:
            if missing := {a, b} - rows:
                raise ValueError(f"comparisons: no arm {missing.pop()!r}")
            if a == b or self.comparisons.count((a, b)) + self.comparisons.count((b, a)) > 1:
                raise ValueError(f"comparisons: {a!r} and {b!r} are the same row, or compared twice")
        return self
