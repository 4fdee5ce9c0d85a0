"""The price of a step's rows, as measured and as learned."""

from __future__ import annotations

from collections import Counter

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


def test_cost_is_positive_whatever_was_measured() -> None:
    cost = StepCost()
    cost.measure({1: 0.1, 2: 0.05, 4: 0.2, 8: 0.1})
    for index in range(100):
        cost.observe(1 + index % 10, 0.1 / (1 + index % 10))
    assert min(cost(rows) for rows in range(1, 40)) > 0


def test_more_rows_may_cost_less() -> None:
    cost = StepCost()
    cost.measure({1: 0.132, 2: 0.141, 4: 0.111, 8: 0.136})
    assert cost(4) / cost(1) == pytest.approx(0.111 / 0.132)
    assert cost(6) / cost(4) == pytest.approx(0.1235 / 0.111)


def test_one_width_is_too_few() -> None:
    with pytest.raises(ValueError, match="needs two"):
        StepCost().measure({1: 0.1})


class Clock:
    """Says how long widths take: as many seconds as they have rows, and more in some rounds."""

    def __init__(self, *slower: float) -> None:
        self.calls, self._slower = Counter[int](), slower

    def __call__(self, width: int) -> float:
        self.calls[width] += 1
        return width * self._slower[min(self.calls[width], len(self._slower)) - 1]


def test_widths_end_at_the_widest_step() -> None:
    assert measured_widths(20, Clock(1.0)) == {w: w for w in (1, 2, 4, 6, 8, 12, 16, 17, 20)}
    assert measured_widths(2, Clock(1.0)) == {1: 1.0, 2: 2.0}


def test_a_quiet_machine_is_measured_three_times() -> None:
    clock = Clock(1.0, 1.01, 1.0)
    measured_widths(2, clock)
    assert clock.calls == {1: 3, 2: 3}


def test_measuring_goes_on_while_widths_get_faster() -> None:
    clock = Clock(2.0, 1.5, 1.5, 1.0, 3.0, 3.0)
    assert measured_widths(2, clock) == {1: 1.0, 2: 2.0}
    assert clock.calls == {1: 6, 2: 6}


def test_measuring_ends_though_nothing_settles() -> None:
    clock = Clock(*(0.9**round_ for round_ in range(100)))
    measured_widths(2, clock)
    assert clock.calls == {1: 10, 2: 10}
