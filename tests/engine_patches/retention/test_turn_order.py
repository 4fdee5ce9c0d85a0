"""Where a session's next turn queues."""

from __future__ import annotations

import pytest
from adaseek_vllm.retention.turn_order import ORDERS, queue_time
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("order", "share", "expected"),
    [
        ("fcfs", 1.0, 20.0),
        ("session", 0.0, 10.0),
        ("context", 0.0, 20.0),
        ("context", 0.4, 16.0),
        ("context", 1.0, 10.0),
    ],
)
def test_place_by_hand(order: str, share: float, expected: float) -> None:
    assert queue_time(order, 20.0, first_arrival_s=10.0, context_share=share) == expected


@given(st.sampled_from(ORDERS), st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1))
def test_no_turn_queues_before_its_session_or_behind_itself(
    order: str, first_s: float, later_s: float, share: float
) -> None:
    arrival_s = first_s + later_s
    place = queue_time(order, arrival_s, first_arrival_s=first_s, context_share=share)
    assert first_s - 1e-6 <= place <= arrival_s
