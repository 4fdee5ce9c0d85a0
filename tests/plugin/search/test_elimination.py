from __future__ import annotations

import numpy as np
import pytest
from adaseek.search.base import Constraint, Outcome
from adaseek.search.elimination import Judge
from adaseek.search.records import Archive, Record


def record(
    number: int, scores: list[float], *, cost: float = 1.0, state: str = "running"
) -> Record:
    outcomes = [Outcome(score, cost, cost) for score in scores]
    return Record(number, {"n": str(number)}, outcomes=outcomes, state=state)


def judged(
    *records: Record, objectives=("quality", "cost"), constraints=(), delta=0.1
) -> list[str]:
    archive = Archive(objectives, constraints)
    archive.records += records
    judge = Judge(archive, delta=delta, first_rung=4, score_span=1.0)
    judge.judge([r for r in records if r.state == "running"])
    return [r.state for r in records]


def test_a_clear_loser_at_equal_cost_is_eliminated():
    assert judged(record(0, [1] * 12, state="complete"), record(1, [0] * 12)) == [
        "complete",
        "eliminated",
    ]


def test_a_cheaper_loser_stays():
    states = judged(record(0, [1] * 12, state="complete"), record(1, [0] * 12, cost=0.5))
    assert states[1] == "running"


def test_a_cheaper_loser_that_breaks_the_quality_constraint_leaves():
    keep = (Constraint("quality", 1.0, relative=True),)
    states = judged(
        record(0, [1] * 12, state="complete"), record(1, [0] * 12, cost=0.5), constraints=keep
    )
    assert states[1] == "infeasible"


def test_a_close_race_goes_on():
    leader, close = [1, 1, 0, 1] * 3, [1, 0, 0, 1, 1, 0, 1, 1, 1, 1, 0, 1]
    assert judged(record(0, leader, state="complete"), record(1, close))[1] == "running"


def test_of_two_in_one_race_the_loser_leaves():
    assert judged(
        record(0, [0] * 12, cost=9, state="complete"), record(1, [1] * 12), record(2, [0] * 12)
    ) == ["complete", "running", "eliminated"]


def test_cost_far_above_its_bound_is_infeasible():
    bound = (Constraint("cost", 2.0),)
    states = judged(
        record(0, [1] * 8, state="complete"), record(1, [1] * 8, cost=3), constraints=bound
    )
    assert states[1] == "infeasible"


def test_nothing_is_judged_before_the_first_rung():
    assert judged(record(0, [1] * 12, state="complete"), record(1, [0] * 3))[1] == "running"


@pytest.mark.parametrize("seed", range(3))
def test_the_best_of_a_field_is_rarely_eliminated(seed):
    rng = np.random.default_rng(seed)
    lost = 0
    for _ in range(200):
        field = [0.75, 0.7, 0.7, 0.65]
        rows = [
            record(i, [float(x) for x in rng.random(24) < p], state="running" if i else "complete")
            for i, p in enumerate([0.5, *field])
        ]
        lost += judged(*rows)[1] == "eliminated"
    assert lost / 200 <= 0.1
