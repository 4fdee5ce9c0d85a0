"""The price of a step's rows, as measured and as learned."""

from __future__ import annotations

import pytest
from adaseek_vllm.token_tree.cost import StepCost, measured_widths


def test_assumption_holds_until_something_is_learned() -> None:
    cost = StepCost(slope=0.1)
    assert cost(10) / cost(1) == pytest.approx(2.0 / 1.1)
    assert not cost.has_learned


def test_line_is_learned_from_steps_of_different_widths() -> None:
    cost = StepCost()
    for index in range(3000):
        rows = 1 + index % 20
        cost.observe(rows, 0.05 + 0.006 * rows)
    for rows in (1, 8, 16):
        assert cost(rows) == pytest.approx(0.05 + 0.006 * rows, rel=0.06)


def test_steps_of_one_width_keep_the_assumed_ratio() -> None:
    cost = StepCost(slope=0.1)
    for _ in range(50):
        cost.observe(1, 0.011)
    assert cost(1) == pytest.approx(0.011)
    assert cost(11) == pytest.approx(0.021)


def test_measured_widths_are_met_and_joined_by_lines() -> None:
    cost = StepCost()
    cost.measure({1: 0.05, 16: 0.06, 17: 0.1, 32: 0.115})
    cost.observe(1, 0.05)
    assert cost(16) == pytest.approx(0.06)
    assert cost(17) == pytest.approx(0.1)
    assert cost(24) == pytest.approx(0.107)
    assert cost(47) == pytest.approx(0.13)


def test_a_slower_machine_is_slower_at_widths_that_were_not_seen() -> None:
    cost = StepCost()
    cost.measure({1: 0.05, 16: 0.06, 17: 0.1})
    for _ in range(300):
        cost.observe(16, 0.12)
    assert cost(16) == pytest.approx(0.12, rel=0.01)
    assert cost(17) == pytest.approx(0.2, rel=0.25)


def test_busy_machine_is_noticed() -> None:
    cost = StepCost(slope=0.0)
    for seconds in (0.01, 0.02):
        for index in range(400):
            cost.observe(1 + index % 8, seconds)
    assert cost(4) == pytest.approx(0.02, rel=0.02)


def test_one_disturbed_step_changes_little() -> None:
    cost = StepCost(slope=0.0)
    for _ in range(100):
        cost.observe(1, 0.01)
    cost.observe(1, 10.0)
    assert cost(1) < 0.015


def test_cost_is_positive_and_never_falls_whatever_was_measured() -> None:
    cost = StepCost()
    cost.measure({1: 0.1, 2: 0.05, 4: 0.2, 8: 0.1})
    for index in range(100):
        cost.observe(1 + index % 10, 0.1 / (1 + index % 10))
    costs = [cost(rows) for rows in range(1, 40)]
    assert min(costs) > 0
    assert costs == sorted(costs)


def test_a_disturbed_measurement_of_few_rows_does_not_make_more_rows_free() -> None:
    cost = StepCost()
    cost.measure({1: 0.29, 2: 0.24, 4: 0.26, 8: 0.23, 24: 0.285})
    assert cost(1) == cost(8) == pytest.approx(0.255)
    assert cost(24) == pytest.approx(0.285)


def test_one_width_is_too_few() -> None:
    with pytest.raises(ValueError, match="needs two"):
        StepCost().measure({1: 0.1})


def test_widths_end_at_the_widest_step_and_the_fastest_of_each_counts() -> None:
    calls: list[int] = []

    def seconds(width: int) -> float:
        calls.append(width)
        return width + (10.0 if calls.count(width) == 2 else 0.0)

    found = measured_widths(20, seconds)
    assert list(found)[-1] == 20
    assert all(value == width for width, value in found.items())
    assert measured_widths(2, seconds).keys() == {1, 2}
