"""What a metric may return, and what becomes of anything else."""

from __future__ import annotations

import numpy as np
import pytest
from adaseek.errors import BudgetExhaustedError, MetricError
from adaseek.evaluation.scoring import score_run, to_score
from adaseek.workflow import Example, Score, Trace


class Verdict:
    def __init__(self, score: object, feedback: str | None = None) -> None:
        self.score = score
        self.feedback = feedback


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, Score(1.0)),
        (0, Score(0.0)),
        (0.25, Score(0.25)),
        (np.float32(0.5), Score(0.5)),
        (np.bool_(True), Score(1.0)),
        (np.int64(2), Score(2.0)),
        (Score(0.5, "why"), Score(0.5, "why")),
        (Verdict(True), Score(1.0)),
        (Verdict(0.5, "so"), Score(0.5, "so")),
        ({"score": 0.5, "comment": "so"}, Score(0.5, "so")),
        (np.array([0.5]), Score(0.5)),
    ],
)
def test_scores_of_many_kinds_are_accepted(value: object, expected: Score) -> None:
    assert to_score(value, metric="m", example_id="e") == expected


@pytest.mark.parametrize(
    "value",
    [
        None,
        "0.5",
        float("nan"),
        float("inf"),
        [1.0],
        Verdict("high"),
        Score(float("nan")),
        {},
        np.ones(2),
    ],
)
def test_what_is_no_score_names_metric_example_and_value(value: object) -> None:
    with pytest.raises(MetricError) as caught:
        to_score(value, metric="exact_match", example_id="e7")
    message = str(caught.value)
    assert "`exact_match`" in message
    assert "e7" in message
    assert repr(value)[:20] in message


def test_a_limit_that_a_metrics_own_call_meets_is_no_bug_of_the_metric() -> None:
    def judged(example: Example, trace: Trace) -> float:
        raise BudgetExhaustedError("no more")

    with pytest.raises(BudgetExhaustedError):
        score_run(judged, Example("1", {}), Trace())
