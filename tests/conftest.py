"""Shared by the tests of the stages: small checkpoints, made once per session."""

import os
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


@pytest.fixture(scope="session")
def lights(tmp_path_factory) -> Path:
    """A folder with tasks.jsonl and base/, a model that solves about a third of them."""
    from light_world import make_light_base

    folder = tmp_path_factory.mktemp("lights")
    make_light_base(folder)
    return folder


@pytest.fixture(scope="session")
def toolworld_base(tmp_path_factory) -> Path:
    """A random two-layer Qwen3 checkpoint with a tokenizer trained on ToolWorld's texts."""

    from rcgrpo.codec.tokenizer import train_tokenizer
    from rcgrpo.config import ShapeTable, parse_recipe
    from rcgrpo.policy.load import Policy, save_policy
    from rcgrpo.stages.pretrain import texts_of

    recipe = parse_recipe({"name": "x", "toolworld": {"test": 4, "experts": 20, "train": 20}}, "test")
    tasks = [recipe.suite.task(i) for i in recipe.suite.split().pools["experts"]]
    tokenizer = train_tokenizer(texts_of(recipe, tasks), 600)
    shape = ShapeTable(hidden=32, layers=2, heads=4, kv_heads=2)
    folder = tmp_path_factory.mktemp("toolworld") / "base"
    save_policy(Policy("base", new_model(shape, tokenizer, seed=0), tokenizer), folder)
    return folder


@pytest.fixture(autouse=True, scope="session")
def _subprocesses_find_the_test_worlds():
    """Stages run as processes of their own; they import ``light_world`` from here."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(TESTS), before]))
    yield
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before
