"""Words and number formats of the objectives."""

from __future__ import annotations

import math

import pytest
from adaseek._comparison import Comparison
from adaseek._units import (
    best_estimates,
    format_bounds,
    format_change,
    format_estimate,
    format_value,
    plain_number,
    reading,
)
from adaseek.recipe import Recipe
from adaseek.result import Candidate, Estimate
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.5, "0.500"),
        (0.0123456, "0.0123"),
        (0.000000987654, "0.000000988"),
        (12.345, "12.3"),
        (123.4, "123"),
        (1234567.0, "1,234,567"),
        (math.inf, "∞"),
    ],
)
def test_numbers_have_three_digits_and_no_exponent(value: float, text: str) -> None:
    assert plain_number(value) == text


@given(st.floats(min_value=1e-9, max_value=1e9))
def test_a_number_is_off_by_less_than_one_percent(value: float) -> None:
    assert float(plain_number(value).replace(",", "")) == pytest.approx(value, rel=0.006)


@pytest.mark.parametrize(
    ("objective", "value", "signed", "text"),
    [
        ("quality", 0.71, False, "0.710"),
        ("cost", 0.0025, False, "$0.00250"),
        ("latency", 1.5, False, "1.50 s"),
        ("cost", -0.0025, True, "\N{MINUS SIGN}$0.00250"),
        ("latency", 0.5, True, "+0.500 s"),
        ("quality", None, False, "unknown"),
        ("quality", math.nan, False, "unknown"),
    ],
)
def test_values_have_the_unit_of_their_objective(
    objective: str, value: float | None, signed: bool, text: str
) -> None:
    assert format_value(objective, value, signed=signed) == text


def test_estimates_show_their_interval() -> None:
    estimate = Estimate(1.0, 0.5, 1.5, 9)
    assert format_estimate("latency", estimate) == "1.00 s [0.500, 1.50]"
    assert format_bounds(estimate, signed=True) == "[+0.500, +1.50]"
    assert format_estimate("cost", None) == "unknown"


def test_changes_are_percentages_with_a_sign() -> None:
    assert format_change(0.2) == "+20%"
    assert format_change(0.02) == "+2.0%"
    assert format_change(-0.5) == "\N{MINUS SIGN}50%"
    assert format_change(None) == ""


@pytest.mark.parametrize(
    ("original", "difference", "expected"),
    [
        (Estimate(2.0, 1, 3, 10), Estimate(-0.5, -1, 0, 10), -0.25),
        (Estimate(-2.0, -3, -1, 10), Estimate(0.5, 0, 1, 10), 0.25),
        (Estimate(2.0, 1, 3, 4), Estimate(-0.5, -1, 0, 10), None),
        (Estimate(0.0, 0, 0, 10), Estimate(0.5, 0, 1, 10), None),
        (None, Estimate(0.5, 0, 1, 10), None),
        (Estimate(2.0, 1, 3, 10), None, None),
    ],
)
def test_a_change_relates_values_of_the_same_runs(
    original: Estimate | None, difference: Estimate | None, expected: float | None
) -> None:
    assert Comparison("latency", original, None, "validation", difference).change == expected


@pytest.mark.parametrize(
    ("objective", "low", "high", "expected"),
    [
        ("quality", 0.1, 0.3, "better"),
        ("quality", -0.3, -0.1, "worse"),
        ("cost", -0.3, -0.1, "better"),
        ("latency", 0.1, 0.3, "worse"),
        ("quality", -0.1, 0.3, "no clear difference"),
        ("cost", 0.0, 0.0, "no clear difference"),
    ],
)
def test_an_interval_decides_only_if_it_leaves_out_zero(
    objective: str, low: float, high: float, expected: str
) -> None:
    assert reading(objective, Estimate((low + high) / 2, low, high, 10)) == expected


def test_validation_comes_before_training() -> None:
    first, second = Estimate(1, 1, 1, 1), Estimate(2, 2, 2, 2)
    candidate = Candidate("a", {}, Recipe(), {"quality": first, "cost": first}, {"quality": second})
    assert best_estimates(candidate, "quality") == (second, "validation")
    assert best_estimates(candidate, "cost") == (first, "training")
    assert best_estimates(candidate, "latency") == (None, "")


def test_a_difference_of_few_pairs_says_nothing() -> None:
    assert reading("latency", Estimate(1.0, 0.5, 2.0, 3)) == "no clear difference"
