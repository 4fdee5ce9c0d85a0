"""What a user's metric returns, as a score; anything that is not one is the user's bug."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any  # Any: a user's metric takes and returns what its framework does

from adaseek.errors import AdaseekError, MetricError
from adaseek.evaluation.base import Metric
from adaseek.workflow import Example, Score, Trace

__all__ = ["num_positional", "score_run", "to_score"]


def score_run(metric: Metric, example: Example, trace: Trace) -> Score:
    """Returns the metric's verdict on one run.

    Raises:
        MetricError: naming the metric, the example and the value, if the metric raised or
            returned something that is not a score.
        AdaseekError: what the metric's own model calls met, such as a limit that is reached.
    """
    name = getattr(metric, "__name__", type(metric).__name__)
    # A true isolation boundary: the metric is the user's code and may raise anything; the error
    # must name the example, as it often is the one that the metric was not written for.
    try:
        value: object = metric(example, trace)
    except AdaseekError:
        raise
    except Exception as error:
        raise MetricError(
            f"The metric `{name}` raised {type(error).__name__} on example {example.id}: {error}. "
            "Correct the metric and start again; answers already paid for are kept."
        ) from error
    return to_score(value, metric=name, example_id=example.id)


def to_score(value: object, *, metric: str, example_id: str) -> Score:
    """Returns `value` as a `Score`: a bool, a finite number, or an object or mapping with `score`.

    It may also have `feedback`, as DSPy's predictions do, or a mapping `comment`.

    Raises:
        MetricError: naming the metric, the example and the value.
    """
    if isinstance(value, Score):
        return Score(_number(value.value, value, metric, example_id), value.feedback)
    if isinstance(value, Mapping):
        inner, feedback = value.get("score"), value.get("feedback") or value.get("comment")
    else:
        inner, feedback = getattr(value, "score", None), getattr(value, "feedback", None)
    if inner is None:
        return Score(_number(value, value, metric, example_id))
    return Score(_number(inner, value, metric, example_id), str(feedback or ""))


def num_positional(metric: Callable[..., Any]) -> tuple[int, float]:
    """Returns how many positional arguments `metric` requires, and how many it takes at most.

    `*args` takes infinitely many. What has no signature, such as a builtin, counts as (2, 2).
    """
    try:
        parameters = inspect.signature(metric).parameters.values()
    except (TypeError, ValueError):
        return 2, 2
    named = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    takes_all = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    return sum(p.default is p.empty for p in named), math.inf if takes_all else len(named)


def _number(number: object, value: object, metric: str, example_id: str) -> float:
    if not isinstance(number, Real) and hasattr(number, "item"):
        number = _item(number)  # a number of numpy or torch
    if isinstance(number, Real) and math.isfinite(number):
        return float(number)
    shown = repr(value)[:200]
    raise MetricError(
        f"The metric `{metric}` returned {shown} on example {example_id}, but must return a bool, "
        "a finite number, or an object or mapping with a `score` that is one."
        + (" Does a branch of it lack a `return`?" if value is None else "")
    )


def _item(array: Any) -> object:
    """Returns the one number in `array`; `array` itself if it holds several."""
    try:
        return array.item()
    except (TypeError, ValueError, RuntimeError):
        return array
