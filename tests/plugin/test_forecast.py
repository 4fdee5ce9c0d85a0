"""What is told beside a request: only what nearly always followed the same turn before."""

from __future__ import annotations

import pytest
from adaseek.forecast import Forecast
from adaseek.hints import MAX_SECONDS, Hint

ASK, ANSWER = ("model", ["search"]), ("model", [])


def learned(*runs: list[tuple[str, list[str]]], seconds: float = 2.0) -> Forecast:
    forecast = Forecast()
    for turns in runs:
        called = [name for _, names in turns for name in names]
        forecast.learn(turns, [(name, seconds) for name in called])
    return forecast


def test_nothing_is_said_before_a_turn_was_seen_in_three_runs() -> None:
    two = learned([ASK, ANSWER], [ASK, ANSWER])
    assert two.hint("s", "model", 0, may_end=True) == Hint(session="s")
    assert two.hint("s", "unknown", 0, may_end=True) == Hint(session="s")


def test_each_turn_of_a_loop_is_foreseen_by_itself() -> None:
    forecast = learned(*[[ASK, ANSWER]] * 3)
    first = forecast.hint("s", "model", 0, may_end=True)
    assert first == Hint(session="s", tool="search", expected_s=2.0)
    assert forecast.hint("s", "model", 1, may_end=True) == Hint(session="s", final=True)
    assert forecast.hint("s", "model", 2, may_end=True) == Hint(session="s")


def test_a_named_session_outlives_its_runs() -> None:
    forecast = learned(*[[ASK, ANSWER]] * 3)
    assert forecast.hint("s", "model", 1, may_end=False) == Hint(session="s")


def test_a_turn_before_another_model_call_is_not_the_last() -> None:
    forecast = learned(*[[("draft", []), ("check", [])]] * 3)
    assert not forecast.hint("s", "draft", 0, may_end=True).final
    assert forecast.hint("s", "check", 0, may_end=True).final


def test_turns_side_by_side_have_no_last_one() -> None:
    forecast = Forecast()
    for _ in range(3):
        forecast.learn([("a", []), ("b", [])], [], ends=False)
    assert not forecast.hint("s", "b", 0, may_end=True).final


def test_what_varies_is_not_foreseen() -> None:
    forecast = learned([ASK, ANSWER], [ANSWER], [ASK, ANSWER], [ANSWER])
    assert forecast.hint("s", "model", 0, may_end=True) == Hint(session="s")


def test_what_a_program_did_long_ago_is_forgotten() -> None:
    forecast = learned(*[[ANSWER]] * 30, *[[ASK, ANSWER]] * 20)
    assert forecast.hint("s", "model", 0, may_end=True).tool == "search"


def test_tools_called_together_take_as_long_as_the_slowest() -> None:
    forecast = Forecast()
    for _ in range(3):
        forecast.learn([("m", ["fast", "slow"])], [("fast", 0.1), ("slow", 5.0)])
    hint = forecast.hint("s", "m", 0, may_end=True)
    assert hint.tool == "slow"
    assert hint.expected_s == pytest.approx(5.0)


def test_seconds_follow_the_tool() -> None:
    forecast = learned(*[[ASK]] * 3, seconds=1.0)
    for _ in range(40):
        forecast.learn([ASK], [("search", 3.0)])
    assert forecast.hint("s", "model", 0, may_end=True).expected_s == pytest.approx(3.0, rel=0.05)


def test_nothing_that_a_server_would_refuse_is_said() -> None:
    names = learned(*[[("m", ["x" * 500])]] * 3)
    assert names.hint("s", "m", 0, may_end=True) == Hint(session="s")
    slow = learned(*[[ASK]] * 3, seconds=1e9)
    assert slow.hint("s", "model", 0, may_end=True).expected_s == MAX_SECONDS
