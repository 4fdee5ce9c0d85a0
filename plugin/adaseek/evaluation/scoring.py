"""What a user's metric returns, as a score; anything that is not one is the user's bug."""

from __future__ import annotations

import math
from numbers import Real

import numpy as np

from adaseek.errors import MetricError
from adaseek.evaluation.base import Metric
from adaseek.workflow import Example, Score, Trace

__all__ = ["score_run", "to_score"]


def score_run(metric: Metric, example: Example, trace: Trace) -> Score:
    """Returns the metric's verdict on one run.

    Raises:
        MetricError: naming the metric, the example and the value, if the metric raised or
            returned something that is not a score.
    """
    name = getattr(metric, "__name__", type(metric).__name__)
    # A true isolation boundary: the metric is the user's code and may raise anything; the error
    # must name the example, as it often is the one that the metric was not written for.
    try:
        value: object = metric(example, trace)
    except Exception as error:
        raise MetricError(
            f"The metric `{name}` raised {type(error).__name__} on example {example.id}: {error}. "
            "Correct the metric and start again; answers already paid for are kept."
        ) from error
    return to_score(value, metric=name, example_id=example.id)


def to_score(value: object, *, metric: str, example_id: str) -> Score:
    """Returns `value` as a `Score`: a bool, a finite number, or an object with `score`.

    An object may also have `feedback`, as DSPy's predictions do.

    Raises:
        MetricError: naming the metric, the example and the value.
    """
    if isinstance(value, Score):
        return Score(_number(value.value, value, metric, example_id), value.feedback)
    inner = getattr(value, "score", None)
    if inner is None:
        return Score(_number(value, value, metric, example_id))
    feedback = getattr(value, "feedback", None)
    return Score(_number(inner, value, metric, example_id), str(feedback or ""))


def _number(number: object, value: object, metric: str, example_id: str) -> float:
    if isinstance(number, Real | np.bool_) and math.isfinite(number):
        return float(number)
    shown = repr(value)[:200]
    raise MetricError(
        f"The metric `{metric}` returned {shown} on example {example_id}, but must return a bool, "
        "a finite number, or an object with a `score` that is one."
        + (" Does a branch of it lack a `return`?" if value is None else "")
    )
