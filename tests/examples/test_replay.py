"""The replayed comparison: its table holds together, and its searches keep their budget."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
from adaseek.search.base import Config, LeafRun

SETTING = "quality, cost and latency"
BUDGET = 120


@pytest.fixture(scope="module")
def compare(load_example: Callable[[str], ModuleType]) -> ModuleType:
    return load_example("benchmarks/replay/compare")


def test_the_table_holds_every_config_of_its_space_once(compare: ModuleType) -> None:
    table = compare.load_table()
    shape = (len(table.configs), len(table.labels))
    assert len(table.index) == len(table.configs) == table.space.size()
    assert table.quality.shape == table.cost.shape == table.latency.shape == shape
    assert np.isfinite(table.cost).all() and (table.cost > 0).all()
    assert np.isfinite(table.latency).all() and (table.latency > 0).all()
    assert table.row(table.space.original()) >= 0


def test_costs_of_the_two_steps_add_up(compare: ModuleType) -> None:
    """What the recording rests on: a step costs the same, whatever runs at the other one."""
    table = compare.load_table()

    def half(config: Config, step: str) -> frozenset[tuple[str, str]]:
        return frozenset(item for item in config.items() if item[0].startswith(step))

    cost = {
        (half(c, "start"), half(c, "swaps")): table.cost[row] for row, c in enumerate(table.configs)
    }
    starts, swaps = ({key[i] for key in cost} for i in (0, 1))
    assert len(cost) == len(starts) * len(swaps)
    a, b = next(iter(cost))
    for c, d in cost:
        np.testing.assert_allclose(cost[a, b] + cost[c, d], cost[c, b] + cost[a, d], rtol=1e-4)


def test_the_halves_of_a_split_are_disjoint_and_complete(compare: ModuleType) -> None:
    table = compare.load_table()
    split = table.split(3)
    assert sorted((*split.train, *split.held)) == list(range(len(table.labels)))
    assert split != table.split(4)


def test_every_method_keeps_its_budget_and_repeats_itself(compare: ModuleType) -> None:
    table = compare.load_table()
    for method in compare.METHODS:
        first = compare.search(table, SETTING, BUDGET, method, 0)
        again = compare.search(table, SETTING, BUDGET, method, 0)
        assert 0 < first.num_runs <= BUDGET, method
        assert first.regret >= 0, method
        assert (first.regret, first.hypervolume, first.num_configs, first.num_runs) == (
            again.regret,
            again.hypervolume,
            again.num_configs,
            again.num_runs,
        ), method


def test_an_exhaustive_search_sees_every_run_of_its_half(compare: ModuleType) -> None:
    table = compare.load_table()
    result = compare.exhaustive(table, SETTING, 0)
    assert result.num_runs == len(table.configs) * (len(table.labels) // 2)


def test_replayed_outcomes_are_those_of_the_training_half(compare: ModuleType) -> None:
    table = compare.load_table()
    split = table.split(0)
    outcome = table.evaluator(split)([LeafRun(table.space.original(), 2)])[0]
    row = table.row(table.space.original())
    assert outcome.cost == table.cost[row, split.train[2]]
    assert outcome.latency == table.latency[row, split.train[2]]


def test_the_report_names_every_method_and_budget(compare: ModuleType) -> None:
    table = compare.load_table()
    results = [
        compare.search(table, setting, budget, method, seed)
        for setting in compare.SETTINGS
        for budget in compare.BUDGETS[:1]
        for method in compare.METHODS
        for seed in range(2)
    ]
    results += [compare.exhaustive(table, s, seed) for s in compare.SETTINGS for seed in range(2)]
    text = compare.report(results, table, budgets=compare.BUDGETS[:1])
    assert all(f"| {compare.BUDGETS[0]} | {method} |" in text for method in compare.METHODS)
