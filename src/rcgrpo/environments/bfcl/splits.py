"""Splits of BFCL's 200 scenarios (800 tasks) into train and test, with and without leaks.

The four categories of a scenario share their world, requests and gold calls: a split that puts them on different
sides tests on what it trained on. ``experts`` are always the train tasks.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

from rcgrpo.environments.bfcl.data import BLOCKS, CATEGORIES, SCENARIOS, Category, bare_schemas, entries, entry_id
from rcgrpo.environments.split import Split
from rcgrpo.errors import UserError

NEAR_DUPLICATES = ({63, 83}, {66, 70, 74}, {100, 104, 133})
"""Scenarios with identical initial states."""

SMOKE_PER_BLOCK = 4


def scenario_split(seed: int = 0, test_share: float = 0.2, categories: Sequence[Category] = CATEGORIES) -> Split:
    """Split by scenario: the same share of each block of 50, near-duplicates together, no leak.

    Raises :class:`UserError` where a side would be empty.
    """
    per_block = round(50 * test_share)
    if not 0 < per_block < 50:
        raise UserError(
            f"test_share = {test_share}: of each block of 50 scenarios {per_block} would be tested; use 0.02-0.98"
        )
    test: set[int] = set()
    for index, block in enumerate(BLOCKS):
        chosen: set[int] = set()
        for unit in _shuffled_units(f"{seed}-{block}", range(50 * index, 50 * index + 50)):
            if len(chosen) + len(unit) <= per_block:
                chosen |= unit
        test |= chosen
    train = [number for number in range(SCENARIOS) if number not in test]
    pools = {name: _ids(numbers, categories, seed) for name, numbers in (("train", train), ("test", sorted(test)))}
    rule = f"by scenario, seed {seed}, test share {test_share}, stratified by block, near-duplicates together"
    return _split(rule, pools, categories)


def _shuffled_units(seed: str, numbers: range) -> list[set[int]]:
    """The scenarios of a block in random order, near-duplicates as one unit."""
    grouped = [group for group in NEAR_DUPLICATES if group <= set(numbers)]
    singles = [{number} for number in numbers if not any(number in group for group in grouped)]
    units = singles + grouped
    random.Random(seed).shuffle(units)
    return units


def task_split(seed: int = 0, test_share: float = 0.1, categories: Sequence[Category] = CATEGORIES) -> Split:
    """The paper's split: tasks drawn at random (720 train, 80 test). It LEAKS: its rule says how much."""
    ids = _ids(list(range(SCENARIOS)), categories, seed)
    tested = round(len(ids) * test_share)
    if not 0 < tested < len(ids):
        raise UserError(f"test_share = {test_share}: of {len(ids)} tasks {tested} would be tested; use a share between")
    pools = {"train": ids[tested:], "test": ids[:tested]}
    scenarios = scenario_of()
    tested_scenarios = {scenarios[i] for i in pools["test"]}
    leaked = len(tested_scenarios & {scenarios[i] for i in pools["train"]})
    rule = f"by task (the paper's), seed {seed}, test share {test_share}; LEAKS: "
    return _split(f"{rule}{leaked} of {len(tested_scenarios)} test scenarios are also trained on", pools, categories)


def smoke_split() -> Split:
    """16 base tasks, 4 of each block, small in gold and in context; train and test are THE SAME tasks."""
    chosen = []
    for index in range(len(BLOCKS)):
        numbers = range(50 * index, 50 * index + 50)
        ranks = [sorted(numbers, key=size) for size in (_gold_size, _context_size)]
        chosen += sorted(numbers, key=lambda n: (sum(rank.index(n) for rank in ranks), n))[:SMOKE_PER_BLOCK]
    ids = [entry_id("base", number) for number in chosen]
    rule = "smoke: 16 small base tasks, TRAINED AND TESTED ON ALIKE: a test of the plumbing, not of learning"
    return _split(rule, {"train": ids, "test": ids}, ["base"])


def _gold_size(number: int) -> int:
    """Characters of gold calls."""
    return len(str(entries("base")[entry_id("base", number)]["ground_truth"]))


def _context_size(number: int) -> int:
    """Characters of tool schemas, almost all of a prompt."""
    classes = entries("base")[entry_id("base", number)]["involved_classes"]
    return sum(len(json.dumps(bare_schemas(name))) for name in classes)


def _ids(numbers: Sequence[int], categories: Sequence[Category], seed: int) -> list[str]:
    """Task ids in an order that is random but fixed, so that the first n of a pool are a fair sample of it."""
    ids = [entry_id(category, number) for number in numbers for category in categories]
    random.Random(f"order-{seed}").shuffle(ids)
    return ids


def _split(rule: str, pools: dict[str, list[str]], categories: Sequence[Category]) -> Split:
    if set(categories) != set(CATEGORIES):
        rule += f"; only {', '.join(categories)}"
    return Split(suite="bfcl", rule=rule, pools={"experts": pools["train"], **pools})


def scenario_of() -> dict[str, str]:
    """Task id to scenario, for all 800: what :meth:`Split.leaked_scenarios` takes."""
    return {entry_id(category, n): f"bfcl_{n}" for category in CATEGORIES for n in range(SCENARIOS)}
