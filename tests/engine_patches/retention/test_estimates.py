"""What is learned from sessions that come back."""

from __future__ import annotations

import pytest
from adaseek_vllm.retention.estimates import Estimator
from adaseek_vllm.retention.sessions import Session, SessionKey


def test_contexts_that_get_lost_give_memory_a_price() -> None:
    estimator = Estimator("learned", patience_s=100.0, block_tokens=16)
    session = Session(SessionKey("", "", "s"), first_arrival_s=0.0)
    for _ in range(10):
        estimator.found(session, 1.0)
    assert estimator.lost_share == 0
    for _ in range(100):
        estimator.found(session, 0.25)
    assert estimator.lost_share == pytest.approx(0.75, abs=0.01)
    for _ in range(100):
        estimator.found(session, 1.0)
    assert estimator.lost_share < 0.01


def test_what_a_turn_does_not_repeat_was_not_lost() -> None:
    estimator = Estimator("learned", patience_s=100.0, block_tokens=16)
    session = Session(SessionKey("", "", "s"), first_arrival_s=0.0, survival_ratio=0.5)
    estimator.found(session, 0.5)
    assert estimator.lost_share == 0
