"""What is learned from sessions that come back."""

from __future__ import annotations

import math

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


def test_risk_of_being_reused_grows_with_the_pause_over_the_horizon() -> None:
    estimator = Estimator("hint", patience_s=100.0, block_tokens=16)
    estimator.churn.blocks_per_s = 50.0
    session = Session(SessionKey("", "", "s"), first_arrival_s=0.0, paused_s=0.0)

    def risk(pause_s: float, num_free: int) -> float:
        session.hint_s = pause_s
        return estimator.view(session, 0.0, num_exclusive=1, num_free=num_free).eviction_probability

    # 100 free blocks are taken in two seconds.
    assert risk(2.0, 100) == pytest.approx(1 - math.exp(-1))
    assert risk(0.01, 100) == pytest.approx(0.005, rel=0.01)
    assert risk(60.0, 100) == pytest.approx(1.0)
    assert risk(0.01, 0) == 1.0
    estimator.churn.blocks_per_s = 0.0
    assert risk(60.0, 100) == 0.0
