"""The price of a step's rows, as learned."""

from __future__ import annotations

import pytest
from adaseek_vllm.token_tree.cost import StepCost


def test_assumption_holds_until_something_is_learned() -> None:
    cost = StepCost(slope=0.1)
    assert cost(10) / cost(0) == pytest.approx(2.0)


def test_line_is_learned_from_steps_of_different_widths() -> None:
    cost = StepCost()
    for index in range(400):
        rows = 1 + index % 20
        cost.observe(rows, 0.05 + 0.003 * rows)
    for rows in (1, 8, 24):
        assert cost(rows) == pytest.approx(0.05 + 0.003 * rows, rel=0.02)


def test_steps_of_one_width_keep_the_assumed_ratio() -> None:
    cost = StepCost(slope=0.1)
    for _ in range(50):
        cost.observe(1, 0.011)
    assert cost(1) == pytest.approx(0.011)
    assert cost(11) == pytest.approx(0.021)


def test_busy_machine_is_noticed() -> None:
    cost = StepCost(memory_steps=20)
    for seconds in (0.01, 0.02):
        for index in range(200):
            cost.observe(1 + index % 8, seconds)
    assert cost(4) == pytest.approx(0.02, rel=0.01)


def test_cost_is_positive_and_never_falls_whatever_was_measured() -> None:
    cost = StepCost()
    for index in range(100):
        cost.observe(1 + index % 10, 0.1 / (1 + index % 10))
    costs = [cost(rows) for rows in range(1, 40)]
    assert min(costs) > 0
    assert costs == sorted(costs)
