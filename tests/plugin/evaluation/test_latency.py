from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from adaseek.evaluation.latency import critical_path
from adaseek.workflow import Call
from hypothesis import given
from hypothesis import strategies as st


def span(
    name: str, start: float, end: float, *, parent: str | None = None, duration: float | None = None
) -> Call:
    length = end - start if duration is None else duration
    return Call(name, name, parent=parent, start_s=start, end_s=end, duration_s=length)


def test_no_calls_take_no_time() -> None:
    assert critical_path([]) == 0.0


def test_calls_one_after_the_other_add_without_the_gaps() -> None:
    assert critical_path([span("a", 0, 2), span("b", 3, 4), span("c", 4, 9)]) == 8.0


def test_calls_side_by_side_count_as_the_longest() -> None:
    assert critical_path([span("a", 0, 2), span("b", 0, 5), span("c", 1, 4)]) == 5.0


def test_longest_chain_wins_over_the_longest_call() -> None:
    # a then b (7 s) beside c (6 s), then d after all of them.
    calls = [span("a", 0, 3), span("b", 3, 7), span("c", 0, 6), span("d", 7, 8)]
    assert critical_path(calls) == 8.0


def test_memoised_calls_count_with_the_duration_of_the_real_call() -> None:
    calls = [span("a", 0, 0.001, duration=4), span("b", 0.001, 2.001), span("c", 0, 2, duration=5)]
    assert critical_path(calls) == 6.0


def test_memoised_calls_at_one_instant_follow_each_other() -> None:
    calls = [span("a", 1, 1, duration=4), span("b", 1, 1, duration=3)]
    assert critical_path(calls) == 7.0


def test_calls_inside_a_call_are_not_counted_twice() -> None:
    agent = span("agent", 0, 10)
    inner = [span("lm", 1, 4, parent="agent"), span("tool", 4, 9, parent="agent")]
    # 3 + 5 inside, and 2 in which neither ran.
    assert critical_path([agent, *inner]) == 10.0
    assert critical_path([*inner, agent, span("after", 10, 11)]) == 11.0


def test_memoised_calls_inside_a_call_make_it_as_long_as_it_was() -> None:
    agent = span("agent", 0, 2.0)
    inner = [
        span("lm", 1, 1, parent="agent", duration=3),
        span("tool", 1, 1, parent="agent", duration=5),
    ]
    assert critical_path([agent, *inner]) == 10.0


def test_parallel_calls_inside_a_call_count_as_the_longest() -> None:
    calls = [
        span("vote", 0, 5),
        span("m0", 0, 4, parent="vote"),
        span("m1", 0, 5, parent="vote"),
        span("deep", 1, 3, parent="m1"),
    ]
    assert critical_path(calls) == 5.0


def test_cached_call_is_as_long_as_it_says_whatever_is_inside() -> None:
    cached = replace(span("a", 0, 0, duration=7), cached=True)
    assert critical_path([cached, span("b", 0, 0, parent="a", duration=5)]) == 7.0


def test_cached_call_without_a_duration_makes_the_latency_unknown() -> None:
    assert critical_path([replace(span("a", 0, 0), cached=True), span("b", 0, 1)]) is None


def test_call_whose_parent_is_not_in_the_trace_is_a_top_call() -> None:
    assert critical_path([span("a", 0, 2, parent="gone"), span("b", 2, 3, parent="b")]) == 3.0


def test_memoised_calls_that_would_have_overlapped_count_as_the_longest() -> None:
    calls = [
        span("a", 0, 0.001, duration=4),
        span("b", 0.002, 0.003, duration=3),
        span("after", 0.004, 0.005, duration=2),
    ]
    assert critical_path(calls) == 9.0
    assert critical_path(calls, parallel=[("a", "b")]) == 6.0
    assert critical_path(calls, parallel=[("b", "a"), ("a", "gone")]) == 6.0


def test_what_encloses_calls_that_would_have_overlapped_overlaps_too() -> None:
    calls = [
        span("tool 1", 0, 0.001),
        span("a", 0, 0.001, parent="tool 1", duration=4),
        span("tool 2", 0.001, 0.002),
        span("b", 0.001, 0.002, parent="tool 2", duration=3),
    ]
    assert critical_path(calls) == pytest.approx(7.0)
    assert critical_path(calls, parallel=[("a", "b")]) == pytest.approx(4.0)


def test_a_call_is_not_parallel_to_what_encloses_it() -> None:
    calls = [span("agent", 0, 5), span("lm", 1, 4, parent="agent")]
    assert critical_path(calls, parallel=[("agent", "lm")]) == 5.0


spans = st.lists(
    st.tuples(st.integers(0, 50), st.integers(0, 20), st.integers(0, 30)), min_size=1, max_size=15
)


def _flat(drawn: Sequence[tuple[int, int, int]]) -> list[Call]:
    return [
        span(str(i), start, start + length, duration=duration)
        for i, (start, length, duration) in enumerate(drawn)
    ]


@given(spans)
def test_path_is_between_the_longest_call_and_the_sum(drawn: list[tuple[int, int, int]]) -> None:
    path = critical_path(_flat(drawn))
    durations = [duration for _, _, duration in drawn]
    assert path is not None
    assert max(durations) <= path <= sum(durations)


@given(spans, st.integers(-100, 100))
def test_path_does_not_depend_on_when_the_clock_started(
    drawn: list[tuple[int, int, int]], shift: int
) -> None:
    later = [(start + shift, length, duration) for start, length, duration in drawn]
    assert critical_path(_flat(drawn)) == critical_path(_flat(later))


few_spans = st.lists(
    st.tuples(st.integers(0, 30), st.integers(1, 10), st.integers(0, 9)), max_size=7
)
pairs = st.sets(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=6)


@given(few_spans, pairs)
def test_path_equals_the_best_of_all_chains(
    drawn: list[tuple[int, int, int]], apart: set[tuple[int, int]]
) -> None:
    calls = _flat(drawn)
    parallel = [(str(one), str(two)) for one, two in apart]
    excluded = {*parallel, *((two, one) for one, two in parallel)}

    def best_after(call: Call | None) -> float:
        following = (
            c
            for c in calls
            if call is None or (c.start_s >= call.end_s and (call.id, c.id) not in excluded)
        )
        return max((c.duration_s + best_after(c) for c in following), default=0.0)

    assert critical_path(calls, parallel=parallel) == pytest.approx(best_after(None))
