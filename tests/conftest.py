"""Shared by the tests of the stages: small checkpoints, made once per session."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: pytest's workers share the cores

TESTS = Path(__file__).parent


@pytest.fixture(scope="session")
def lights(tmp_path_factory) -> Path:
    """A folder with tasks.jsonl and base/, a model that solves about a third of them."""
    from light_world import make_light_base

    folder = tmp_path_factory.mktemp("lights")
    make_light_base(folder)
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
