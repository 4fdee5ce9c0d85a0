"""Words and number formats of the objectives, the same in the terminal and in the report."""

from __future__ import annotations

import math
from typing import Literal

from adaseek.result import FEWEST_PAIRS, Candidate, Estimate

__all__ = [
    "Reading",
    "best_estimates",
    "format_bounds",
    "format_change",
    "format_estimate",
    "format_value",
    "higher_is_better",
    "label",
    "plain_number",
    "reading",
    "unit",
]

Reading = Literal["better", "worse", "no clear difference"]

_LABELS = {"quality": "Quality", "cost": "Cost", "latency": "Latency"}
_UNITS = {"quality": "score", "cost": "USD per run", "latency": "seconds per run"}
_MINUS = "\N{MINUS SIGN}"


def label(objective: str) -> str:
    """Returns the objective's name for a heading."""
    return _LABELS.get(objective, objective)


def unit(objective: str) -> str:
    """Returns the unit of the objective's values in words."""
    return _UNITS.get(objective, "")


def higher_is_better(objective: str) -> bool:
    """Returns whether larger values of `objective` are better."""
    return objective == "quality"


def format_value(objective: str, value: float | None, *, signed: bool = False) -> str:
    """Returns `value` with three significant digits and the objective's unit sign.

    A difference is `signed`: it shows its plus, too.
    """
    if value is None or math.isnan(value):
        return "unknown"
    plus = "+" if signed else ""
    number = plain_number(abs(value))
    if objective == "cost":
        number = f"${number}"
    elif objective == "latency":
        number = f"{number} s"
    return (_MINUS if value < 0 else plus) + number


def format_bounds(estimate: Estimate, *, signed: bool = False) -> str:
    """Returns the confidence interval as `[low, high]`, in the unit of the mean beside it."""
    low, high = (format_value("", v, signed=signed) for v in (estimate.low, estimate.high))
    return f"[{low}, {high}]"


def format_estimate(objective: str, estimate: Estimate | None, *, signed: bool = False) -> str:
    """Returns `mean [low, high]`, or `unknown`."""
    if estimate is None:
        return "unknown"
    mean = format_value(objective, estimate.mean, signed=signed)
    return f"{mean} {format_bounds(estimate, signed=signed)}"


def format_change(change: float | None) -> str:
    """Returns a relative change in percent with its sign; empty if it is not known."""
    if change is None:
        return ""
    percent = abs(100.0 * change)
    return f"{'+' if change >= 0 else _MINUS}{percent:.{0 if percent >= 10 else 1}f}%"


def reading(objective: str, difference: Estimate) -> Reading:
    """Returns what the interval of a paired difference (new - old) says about `objective`."""
    if difference.num < FEWEST_PAIRS or difference.low <= 0.0 <= difference.high:
        return "no clear difference"
    gained = (difference.mean > 0) == higher_is_better(objective)
    return "better" if gained else "worse"


def best_estimates(candidate: Candidate, objective: str) -> tuple[Estimate | None, str]:
    """Returns the estimate that `Candidate.value` uses, and where it comes from."""
    if objective in candidate.validation:
        return candidate.validation[objective], "validation"
    if objective in candidate.train:
        return candidate.train[objective], "training"
    return None, ""


def plain_number(value: float) -> str:
    """Returns a value >= 0 with three significant digits and never in exponent form."""
    if math.isinf(value):
        return "∞"
    if value == 0 or value >= 1000:
        return f"{value:,.0f}"
    # As many places as three significant digits need: 0.0123 has a magnitude of -2.
    places = 2 - math.floor(math.log10(value))
    return f"{value:.{max(0, places)}f}"
