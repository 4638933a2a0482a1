"""Recipes: what a run does, as pydantic models that a TOML file fills. An unknown key is an error.

A recipe names a world, a model, and stages. A stage that trains or plays starts from another stage's
checkpoint or from ``base`` (the recipe's model), so the stages form a graph; ``rcgrpo run`` walks it.
"""

from rcgrpo.config.ablation import AblationTable, ArmTable
from rcgrpo.config.recipe import Recipe, load_recipe, parse_recipe
from rcgrpo.config.tables import (
    BASE,
    ChatTable,
    CollectTable,
    Config,
    EvaluateTable,
    FinetuneTable,
    LoraTable,
    ModelTable,
    OptimiserTable,
    PretrainTable,
    ReinforceTable,
    ReplayTable,
    RetokeniseTable,
    RolloutTable,
    RowTable,
    ShapeTable,
    StageTable,
    VllmTable,
)

__all__ = [
    "BASE",
    "AblationTable",
    "ArmTable",
    "ChatTable",
    "CollectTable",
    "Config",
    "EvaluateTable",
    "FinetuneTable",
    "LoraTable",
    "ModelTable",
    "OptimiserTable",
    "PretrainTable",
    "Recipe",
    "ReinforceTable",
    "ReplayTable",
    "RetokeniseTable",
    "RolloutTable",
    "RowTable",
    "ShapeTable",
    "StageTable",
    "VllmTable",
    "load_recipe",
    "parse_recipe",
]
