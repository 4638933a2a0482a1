"""Put a recipe's parts together: seeds, policies, players."""

from __future__ import annotations

import hashlib

from rcgrpo.codec.codec import Codec
from rcgrpo.config import BASE, Recipe
from rcgrpo.policy.load import Policy, load_policy
from rcgrpo.stages.directory import RunDirectory
from rcgrpo.stages.rollout import GOLD, Player


def seed_of(*parts: object) -> int:
    """A 63-bit seed that depends on all parts and on nothing else (not on process or order)."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def load_for_play(run: RunDirectory, recipe: Recipe, name: str) -> Policy:
    """The policy of a finished stage, or of ``base``; for ``gold``, the base (whose tokenizer renders it)."""
    path = run.checkpoint(recipe, BASE if name == GOLD else name)
    return load_policy(path, name=name, dtype=recipe.model.dtype, device=recipe.model.device)


def player_for(recipe: Recipe, policy: Policy) -> Player:
    """A player with the policy's own tokenizer."""
    codec = Codec(policy.tokenizer, detail=recipe.chat.schemas, thinking=recipe.chat.thinking)
    return Player(recipe.suite, codec, recipe.rollout, recipe.reward)
