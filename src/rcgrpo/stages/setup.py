"""Put a recipe's parts together: seeds, policies, players."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rcgrpo.codec.codec import Codec
from rcgrpo.codec.schemas import signatures
from rcgrpo.config import Recipe, VllmTable
from rcgrpo.environments.protocol import Suite
from rcgrpo.episodes.types import Task
from rcgrpo.errors import UserError
from rcgrpo.policy.load import Policy, load_policy
from rcgrpo.stages.directory import RunDirectory
from rcgrpo.stages.rollout import Player, closings

if TYPE_CHECKING:  # needs the extra rcgrpo[vllm]
    from rcgrpo.policy.vllm_server import VllmServer


def seed_of(*parts: object) -> int:
    """A 63-bit seed that depends on all parts and on nothing else (not on process or order)."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def load_for_play(run: RunDirectory, recipe: Recipe, name: str) -> Policy:
    """The policy of a finished stage, or of ``base``."""
    path = run.checkpoint(recipe, name)
    return load_policy(path, name=name, dtype=recipe.model.dtype, device=recipe.model.device)


def player_for(recipe: Recipe, policy: Policy) -> Player:
    """A player with the policy's own tokenizer."""
    codec = Codec(policy.tokenizer, detail=recipe.chat.schemas, thinking=recipe.chat.thinking)
    return Player(recipe.suite, codec, recipe.rollout, recipe.reward, _server(recipe.rollout.vllm))


def _server(table: VllmTable | None) -> VllmServer | None:
    if table is None:
        return None
    try:
        from rcgrpo.policy.vllm_server import VllmServer
    except ModuleNotFoundError as error:
        raise UserError(f"rollout.backend = 'vllm' needs {error.name}: pip install 'rcgrpo[vllm]'") from error
    return VllmServer(**table.model_dump())


def texts_of(suite: Suite, tasks: Sequence[Task]) -> Iterator[str]:
    """What a small tokenizer learns a world from: signatures, user turns, gold calls, closings, the starting data."""
    for task in tasks:
        yield signatures(suite.environment(task).visible())
        for turn, closing in zip(task.turns, closings(task), strict=True):
            yield from (message.content for message in turn.messages)
            yield from (json.dumps({"name": c.name, "arguments": c.arguments}) for c in turn.gold)
            yield closing
        yield json.dumps(task.data)
