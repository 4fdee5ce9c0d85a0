"""The wide landscapes: their truth is what their outcomes say, and searches on them repeat."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
from adaseek.search.base import LeafRun
from adaseek.search.records import Record


@pytest.fixture(scope="module")
def wide(load_example: Callable[[str], ModuleType]) -> ModuleType:
    return load_example("benchmarks/replay/compare_wide")


@pytest.mark.parametrize("kind", ["additive", "interacting", "deceptive"])
def test_outcomes_have_the_quality_that_the_truth_says(wide: ModuleType, kind: str) -> None:
    space = wide.wide_space(2, num_demos=3, members=2)
    land = wide.Wide(space, kind, 5, num_examples=3000, num_held=3000)
    for row in land.coder.draw({}, 4, np.random.default_rng(1)):
        runs = [LeafRun(land.coder.decode(row), e) for e in range(3000)]
        seen = np.mean([outcome.quality for outcome in land.evaluate(runs)])
        assert abs(seen - land.quality(row[None])[0]) < 0.05


def test_no_config_is_better_than_the_best(wide: ModuleType) -> None:
    space = wide.wide_space(2, num_demos=2)
    for kind in wide.KINDS:
        land = wide.Wide(space, kind, 3)
        everything = land.coder.candidates({}, space.size(), np.random.default_rng(0))
        assert len(everything) == space.size()
        assert land.quality(everything).max() == pytest.approx(land.best_quality)


def test_deceptive_structures_look_worst_under_original_inner_options(wide: ModuleType) -> None:
    space = wide.wide_space(2, num_demos=3, members=2)
    land = wide.Wide(space, "deceptive", 8)
    original = space.original()
    config = {**original, "b:ensemble": "judge"}
    assert land.regret(Record(1, config)) > land.regret(Record(0, original))
    redeemed = {**config, "b:reasoning": "plan", "b:few_shot": "4"}
    assert land.regret(Record(2, redeemed)) < land.regret(Record(0, original))


def test_searches_repeat(wide: ModuleType) -> None:
    land = wide.Wide(wide.SPACES["three steps"], "additive", 1)
    results = [
        wide.search(land, "three steps", setting, 160, method, 1)
        for setting in wide.SETTINGS
        for method in wide.CHOSEN
    ]
    again = wide.search(land, "three steps", "quality only", 160, "AdaSeek", 1)
    assert again in results
    assert all(r.regret >= 0 and 0 <= r.hypervolume <= 1.5 for r in results)
