"""[defaults.KIND]: what the stages of one kind share, written once."""

import pytest

from light_world import light_recipe
from rcgrpo.config import Recipe
from rcgrpo.errors import UserError

SHARED = {
    "groups": 4,
    "group_size": 4,
    "steps": 9,
    "sampler": {"kind": "iid", "p": 0.25},
    "optimiser": {"lr": 1e-3, "warmup": 2},
}


def stage(**own) -> dict:
    return {"kind": "reinforce", "start": "base", **own}


def recipe(tmp_path, stages: dict, **defaults) -> Recipe:
    return light_recipe(tmp_path, stages=stages, defaults=defaults)


def test_defaults_equal_the_same_keys_written_in_every_stage(tmp_path):
    own = {"a": stage(), "b": stage(steps=2, optimiser={"lr": 1.0}), "c": stage(sampler={"kind": "fixed"})}
    written = {
        "a": stage(**SHARED),
        "b": stage(**{**SHARED, "steps": 2, "optimiser": {"lr": 1.0, "warmup": 2}}),
        "c": stage(**{**SHARED, "sampler": {"kind": "fixed"}}),
        "play": {"kind": "collect", "policy": "gold"},
    }
    short = recipe(tmp_path, {**own, "play": written["play"]}, reinforce=SHARED, collect={"limit": 3})
    written["play"] = {**written["play"], "limit": 3}
    assert short.model_dump() == light_recipe(tmp_path, stages=written).model_dump()
    assert "defaults" not in short.model_dump()
    assert short.stages["b"].optimiser.warmup == 2 and short.stages["c"].sampler.p is None


def test_a_nested_table_of_the_same_kind_is_merged(tmp_path):
    merged = recipe(tmp_path, {"a": stage(sampler={"kind": "iid", "p": 0.75})}, reinforce=SHARED)
    assert merged.stages["a"].sampler.p == 0.75


@pytest.mark.parametrize(
    ("defaults", "message"),
    [
        ({"finetune": {"batch": 8}}, r"defaults\.finetune: no stage is of that kind \(found: reinforce\)"),
        ({"reinforce": {**SHARED, "kind": "reinforce"}}, r"defaults\.reinforce\.kind"),
        ({"reinforce": {**SHARED, "stepz": 1}}, r"stages\.a\.stepz: unknown key"),
        ({"steps": 3}, "write them as tables by kind"),
    ],
)
def test_defaults_that_hold_for_nothing_are_refused(tmp_path, defaults, message):
    with pytest.raises(UserError, match=message):
        recipe(tmp_path, {"a": stage()}, **defaults)
