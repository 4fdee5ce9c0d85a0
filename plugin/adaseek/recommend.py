"""Which candidate to recommend, from paired evaluations on examples that the search never saw.

A candidate must be better than the original in some objective beyond doubt, and must not be worse
in quality. The chance of 5% to see a gain where there is none is shared over all comparisons made:
four fifths of it over the finalists' qualities, where doubt is large, the rest over their costs
and latencies, where it is small. So a search over a landscape without any gain recommends the
original at least 95 times in 100.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adaseek.evaluation.statistics import paired_difference
from adaseek.result import FEWEST_PAIRS, Estimate
from adaseek.search.base import OBJECTIVES

__all__ = ["Comparison", "Verdict", "compare", "recommend"]

_ERROR = 0.05
_QUALITY_SHARE = 0.8

Series = Mapping[str, NDArray[np.float64]]
"""Objective -> [num_examples] values on the same examples in the same order, NaN if unknown."""


@dataclass(frozen=True)
class Comparison:
    """A finalist against the original: objective -> estimate of finalist minus original.

    The intervals are simultaneous over all finalists and objectives of the run: the chance that
    any of them lies on the good side of zero by luck is at most 5%.
    """

    name: str
    differences: Mapping[str, Estimate]
    baseline: Mapping[str, float]

    def gains(self) -> list[str]:
        """Returns the objectives in which the finalist is better beyond doubt."""
        return [o for o, d in self.differences.items() if _is_better(o, d)]

    def relative(self, objective: str) -> float:
        """Returns the change relative to the original's mean, 0 if that is 0 or unknown."""
        difference, base = self.differences.get(objective), self.baseline.get(objective, 0.0)
        return difference.mean / base if difference is not None and base else 0.0


@dataclass(frozen=True)
class Verdict:
    """The name of the recommended candidate (`original` if none is better) and one sentence."""

    name: str
    sentence: str
    comparison: Comparison | None = None


def compare(
    finalists: Mapping[str, Series],
    original: Series,
    objectives: Sequence[str],
    *,
    seed: int = 0,
) -> list[Comparison]:
    """Returns one comparison per finalist over the objectives whose values are all known."""
    known = [o for o in OBJECTIVES if o in original and np.isfinite(original[o]).all()]
    levels = _levels(len(finalists), objectives)
    baseline: dict[str, float] = {o: float(original[o].mean()) for o in known}
    return [
        Comparison(
            name,
            {
                o: paired_difference(series[o], original[o], level=levels[o], seed=seed)
                for o in known
                if np.isfinite(series[o]).all()
            },
            baseline,
        )
        for name, series in finalists.items()
    ]


def recommend(
    comparisons: Sequence[Comparison], objectives: Sequence[str], *, max_loss: float = 0.02
) -> Verdict:
    """Returns the best acceptable comparison, or the original with the reason why.

    Acceptable: better beyond doubt in an objective of the user, and quality (measured always,
    objective or not) not lower beyond doubt, nor lower on average by more than `max_loss`. Of
    several, one that gains quality comes before one that does not, then the larger gain.
    """
    acceptable = [
        c
        for c in comparisons
        if set(c.gains()) & set(objectives) and not _loses_quality(c, max_loss)
    ]
    if not acceptable:
        return Verdict("original", _no_gain(comparisons))
    best = max(acceptable, key=lambda c: _merit(c, objectives))
    gains = [_phrase(o, best) for o in best.gains() if o in objectives]
    return Verdict(
        best.name, f"{best.name} gains {' and '.join(gains)} on held-out examples.", best
    )


def _is_better(objective: str, difference: Estimate) -> bool:
    is_clear = difference.low > 0 if objective == "quality" else difference.high < 0
    return is_clear and difference.num >= FEWEST_PAIRS


def _loses_quality(comparison: Comparison, max_loss: float) -> bool:
    quality = comparison.differences.get("quality")
    return quality is not None and (quality.mean < -max_loss - 1e-12 or quality.high < 0)


def _levels(num_finalists: int, objectives: Sequence[str]) -> dict[str, float]:
    """Returns the two-sided level of each objective's intervals; a gain is a one-sided claim."""
    others = [o for o in objectives if o != "quality"]
    share = (_QUALITY_SHARE if others else 1.0) if "quality" in objectives else 0.0
    errors: dict[str, float] = {"quality": share * _ERROR if share else _ERROR}
    for objective in ("cost", "latency"):
        errors[objective] = (1 - share) * _ERROR / len(others) if objective in others else _ERROR
    return {o: 1 - 2 * error / max(1, num_finalists) for o, error in errors.items()}


def _merit(comparison: Comparison, objectives: Sequence[str]) -> tuple[float, float]:
    quality = comparison.differences.get("quality")
    gains_quality = "quality" in objectives and "quality" in comparison.gains()
    saved = sum(-comparison.relative(o) for o in objectives if o != "quality")
    gained = quality.mean if quality is not None and gains_quality else 0.0
    return gained, saved


def _phrase(objective: str, comparison: Comparison) -> str:
    difference = comparison.differences[objective]
    if objective == "quality":
        return f"{difference.mean:+.3g} quality [{difference.low:+.3g}, {difference.high:+.3g}]"
    base = comparison.baseline[objective]
    low, high = (100 * bound / base for bound in (difference.low, difference.high))
    return f"{100 * difference.mean / base:+.0f}% {objective} [{low:+.0f}%, {high:+.0f}%]"


def _no_gain(comparisons: Sequence[Comparison]) -> str:
    if not comparisons:
        return "No significant gain: the search found no candidate better than the original."
    qualities = [c.differences["quality"] for c in comparisons if "quality" in c.differences]
    best = max(qualities, key=lambda d: d.mean, default=None)
    seen = f" (best quality difference {best})" if best else ""
    return f"No significant gain on held-out examples{seen}: keep the original."
