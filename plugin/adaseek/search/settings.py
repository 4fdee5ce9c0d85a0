"""The knobs of a search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adaseek.errors import require
from adaseek.search.base import Constraint, check_objectives

__all__ = ["SearchSettings"]


@dataclass(frozen=True)
class SearchSettings:
    """Knobs of the search; the defaults suit 100 to 2000 workflow runs.

    Attributes:
        budget: workflow runs, the baseline included.
        num_examples: examples that a config sees if it survives its race.
        objectives: some of `quality`, `cost`, `latency`.
        constraints: bounds that the recommended configs must keep.
        eta: reduction factor of successive halving, of arms and within a race.
        alpha: control exponent of layer complexity. Measured on landscapes of known truth, a
            deeper layering pays only when it gets several trials per dimension, hence 1.5.
        num_layers: None lets the budget decide; 1 forces a flat search.
        chunk: configs proposed and raced together; also the most arms of one bracket.
        delta: chance that the test of a race drops a config that is not worse than its rivals.
        first_rung: examples before a race is first judged.
        halving: whether a race also drops all but the most promising at each rung; without, only
            the test does.
        reserve: share of the budget kept for the end, to give the configs that are then believed
            to be the best the examples that they have not seen.
        patience: full trials' worth of runs without any improvement after which an arm has
            converged; None: three times the number of its dimensions, at least 16.
        failure_score: quality of a failed run.
        score_span: largest difference between two scores.
    """

    budget: int
    num_examples: int
    objectives: Sequence[str] = ("quality", "cost", "latency")
    constraints: Sequence[Constraint] = ()
    eta: int = 2
    alpha: float = 1.5
    num_layers: int | None = None
    chunk: int = 4
    delta: float = 0.1
    first_rung: int = 6
    halving: bool = True
    reserve: float = 0.15
    patience: int | None = None
    failure_score: float = 0.0
    score_span: float = 1.0

    def __post_init__(self) -> None:
        check_objectives(self.objectives)
        require(self.num_examples >= 1, "num_examples", self.num_examples, "must be at least 1")
        require(
            self.budget >= 2 * self.num_examples,
            "budget",
            self.budget,
            f"must allow two configs on {self.num_examples} examples each",
            cure=f"Give at least {2 * self.num_examples} workflow runs, or fewer examples.",
        )
        require(self.eta >= 2, "eta", self.eta, "must be at least 2")
        require(self.chunk >= 1, "chunk", self.chunk, "must be at least 1")
        require(0 < self.delta < 1, "delta", self.delta, "must be between 0 and 1")
        require(self.first_rung >= 1, "first_rung", self.first_rung, "must be at least 1")
        require(0 <= self.reserve < 1, "reserve", self.reserve, "must be at least 0 and below 1")
        require(self.num_layers in (None, 1), "num_layers", self.num_layers, "must be None or 1")

    @property
    def fewest(self) -> int:
        """The least workflow runs that a new config is worth opening for."""
        return min(self.first_rung, self.num_examples)
