"""A split: which task ids belong to which pool, as a file with a hash that every run records."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, ValidationError

from rcgrpo.episodes.types import Record
from rcgrpo.errors import UserError
from rcgrpo.files import write_text


class Split(Record):
    """Pools of task ids (``experts``, ``train``, ``test``, ...) and the rule that made them."""

    suite: str
    """``toolworld``, ``bfcl``, or the import path of a user's suite."""
    rule: str
    """How it was made, with its parameters, for people: ``by scenario, seed 0, test share 0.2``."""
    pools: dict[str, list[str]] = Field(min_length=1)

    @property
    def sha256(self) -> str:
        """Hash of the content (canonical JSON, sorted keys), hex."""
        content = json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Write the manifest, hash included."""
        write_text(path, json.dumps({**self.model_dump(), "sha256": self.sha256}, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Split:
        """Read a manifest; raises :class:`UserError` if its content does not match its hash."""
        try:
            content = json.loads(path.read_text())
            recorded = content.pop("sha256")
            split = cls.model_validate(content)
        except (OSError, ValueError, KeyError, ValidationError) as error:
            raise UserError(f"split manifest {path} cannot be read: {error}") from error
        if split.sha256 != recorded:
            raise UserError(f"split manifest {path} was changed: its hash is {split.sha256}, it records {recorded}")
        return split

    def leaked_scenarios(self, scenario_of: Mapping[str, str], pool: str = "test") -> set[str]:
        """Scenarios of ``pool`` of which some task stands in another pool too.

        ``scenario_of`` maps task ids to scenarios. Empty for a sound split.
        """
        here = {scenario_of[i] for i in self.pools[pool]}
        elsewhere = {scenario_of[i] for name, ids in self.pools.items() if name != pool for i in ids}
        return here & elsewhere
