"""Estimates of how long a tool takes, and whether its session comes back."""

from __future__ import annotations

import math

import numpy as np
import pytest
from adaseek_vllm.retention.durations import DurationModel, ElapsedEstimate, ReturnModel
from hypothesis import given
from hypothesis import strategies as st

seconds = st.floats(1e-6, 1e5, allow_nan=False)


def taught(*durations: float, tool: str = "search", **options: float) -> DurationModel:
    model = DurationModel(**options)  # type: ignore[arg-type]
    for duration in durations:
        model.observe(tool, duration)
    return model


def test_a_steady_tool_is_known_after_a_few_calls() -> None:
    model = taught(*[0.7] * 100)
    assert model.mean_remaining_s("search", 0.0) == pytest.approx(0.7, rel=0.3)
    assert model.mean_remaining_s("search", 0.5) < 0.5


def test_unknown_tool_is_expected_to_take_seconds_not_minutes() -> None:
    assert 1 < DurationModel().mean_remaining_s("", 0.0) < 15


def test_tools_are_told_apart() -> None:
    model = taught(*[30.0] * 50, tool="image")
    for _ in range(50):
        model.observe("calculator", 1e-4)
    image, calculator = (model.mean_remaining_s(name, 0.0) for name in ("image", "calculator"))
    assert image > 20
    assert calculator < 3


def test_beyond_everything_seen_the_elapsed_time_is_expected_again() -> None:
    assert taught(0.7).mean_remaining_s("search", 5000.0) == 5000.0
    assert ElapsedEstimate().mean_remaining_s("search", 3.0) == 3.0


def test_a_long_wait_is_a_bad_sign_for_a_tool_with_two_modes() -> None:
    model = taught(*[0.1, 0.1, 0.1, 60.0] * 25)
    assert model.mean_remaining_s("search", 1.0) > model.mean_remaining_s("search", 0.0)


def test_hint_moves_the_estimate_and_evidence_overrules_it() -> None:
    assert DurationModel().mean_remaining_s("", 0.0, hint_s=40.0) > 25
    known = taught(*[0.5] * 400)
    assert known.mean_remaining_s("search", 0.0, hint_s=40.0) < 15


def test_old_behaviour_fades() -> None:
    model = taught(*[30.0] * 100, *[0.1] * 200)
    assert model.mean_remaining_s("search", 0.0) < 3


def test_number_of_tools_is_bounded() -> None:
    model = DurationModel(max_tools=3)
    for index in range(50):
        model.observe(f"tool-{index}", 1.0)
    assert list(model._tools) == ["tool-47", "tool-48", "tool-49"]


@given(durations=st.lists(seconds, max_size=20), elapsed=seconds, more=seconds, further=seconds)
def test_survival_is_a_falling_probability_and_the_mean_is_positive(
    durations: list[float], elapsed: float, more: float, further: float
) -> None:
    for model in (taught(*durations), ElapsedEstimate()):
        soon = model.survival("search", elapsed, more)
        later = model.survival("search", elapsed, more + further)
        assert 0 <= later <= soon <= 1 + 1e-9
        assert model.survival("search", elapsed, math.inf) == 0
        assert model.mean_remaining_s("search", elapsed) > 0


@given(
    break_even=st.floats(0.01, 100),
    duration=st.floats(0.001, 1000),
)
def test_elapsed_time_rule_is_never_worse_than_twice_a_clairvoyant(
    break_even: float, duration: float
) -> None:
    # Cost in units of tokens: holding costs time, letting go costs the break-even pause.
    elapsed, step = 0.0, break_even / 1000
    estimate = ElapsedEstimate()
    held_for = duration
    for elapsed in np.arange(0, duration, step):
        if estimate.mean_remaining_s("", float(elapsed)) > break_even:
            held_for = float(elapsed)
            break
        if elapsed > 2 * break_even:
            pytest.fail("the rule never let go")
    paid = held_for if held_for >= duration else held_for + break_even
    assert paid <= 2 * min(duration, break_even) + 2 * step


def test_sessions_that_always_return_are_trusted_more() -> None:
    model = ReturnModel()
    assert model.probability("tool") == pytest.approx(0.9)
    for _ in range(50):
        model.observe("plain", returned=True)
        model.observe("tool", returned=False)
    assert model.probability("plain") > 0.85
    assert model.probability("tool") < 0.25


def test_a_session_that_should_be_back_by_now_probably_left() -> None:
    model = ReturnModel()
    assert model.probability("tool", still_out=0.0) == 0
    assert model.probability("tool", still_out=0.01) < 0.1
    assert model.probability("tool", still_out=1.0) == pytest.approx(0.9)
