"""What the search knows about each config: its outcomes on a prefix of the fixed example order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from adaseek.search import pareto
from adaseek.search.base import Config, Constraint, Objective, Outcome

__all__ = ["Archive", "Record", "TrialState"]

TrialState = Literal["running", "complete", "eliminated", "infeasible"]

_PRIOR_EXAMPLES = 4
"""Strength of the pull towards the original's quality, in examples (see `Archive.point`)."""

_MOST_NOISES = 256
"""Records whose spread tells the noise: more would not change it."""
_MOST_WEIGHED = 128
"""Records between which a careful choice is made; more are thinned out by their points first."""


@dataclass(slots=True)
class Record:
    """One config and its outcomes so far.

    Attributes:
        number: trial number; 0 is the original program.
        arm: trial numbers of the outer configs it was searched under, outermost first.
        outcomes: outcomes on the first `len(outcomes)` examples of the fixed order.
    """

    number: int
    config: Config
    arm: tuple[int, ...] = ()
    outcomes: list[Outcome] = field(default_factory=list)
    state: TrialState = "running"
    _means: dict[tuple[Objective, int], float] = field(
        default_factory=dict, repr=False, compare=False
    )
    _spread: tuple[int, float] = field(default=(0, 0.0), repr=False, compare=False)
    _judgement: tuple[tuple[int, int], NDArray[np.float64], float] | None = field(
        default=None, repr=False, compare=False
    )

    @property
    def num_failed(self) -> int:
        return sum(outcome.quality is None for outcome in self.outcomes)


class Archive:
    """All records of a search, with the arithmetic that compares them.

    Objective values are vectors to be minimised: quality negated, cost in USD, latency in
    seconds, each only if it is an objective.
    """

    def __init__(
        self,
        objectives: Sequence[Objective],
        constraints: Sequence[Constraint],
        *,
        failure_score: float = 0.0,
    ) -> None:
        self.objectives = tuple(objectives)
        self.constraints = tuple(constraints)
        self.failure_score = failure_score
        self.records: list[Record] = []
        self._front: list[Record] = []
        self._num_read = 0
        self._open: list[Record] = []

    @property
    def original(self) -> Record:
        return self.records[0]

    def series(self, record: Record, objective: Objective) -> NDArray[np.float64]:
        """Returns [num_outcomes] float: the values of `objective`; NaN where unknown.

        A failed run has quality `failure_score`.
        """
        if objective == "quality":
            values = [
                self.failure_score if o.quality is None else o.quality for o in record.outcomes
            ]
        else:
            raw = [o.cost if objective == "cost" else o.latency for o in record.outcomes]
            values = [np.nan if value is None else value for value in raw]
        return np.asarray(values, dtype=np.float64)

    def mean(self, record: Record, objective: Objective, num: int | None = None) -> float:
        """Returns the mean of `objective` over the first `num` outcomes, NaN if unknown."""
        known = record._means
        size = len(record.outcomes) if num is None else min(num, len(record.outcomes))
        if (objective, size) not in known:
            # Outcomes are only ever appended, so the mean of a prefix stays what it is.
            values = self.series(record, objective)[:size]
            known[objective, size] = float(values.mean()) if size else float("nan")
        return known[objective, size]

    def adjusted(self, record: Record, objective: Objective) -> float:
        """Returns the mean that `record` would have on all examples that the original has seen.

        The first examples may be easier or dearer than the rest; the original, which has seen
        all, tells by how much (a control variate: additive for quality, a factor otherwise).
        """
        num = len(record.outcomes)
        mean = self.mean(record, objective)
        whole, part = self.mean(self.original, objective), self.mean(self.original, objective, num)
        if objective == "quality":
            return mean + whole - part
        return mean * whole / part if part > 0 else mean

    def point(self, record: Record) -> NDArray[np.float64]:
        """Returns [num_objectives] float, to be minimised; unknown values are infinite.

        Quality is pulled towards the original's by a prior worth four examples, so that a lucky
        mean of few examples does not win (the winner's curse).
        """
        return self._judge(record)[0]

    def points(self, records: Sequence[Record]) -> NDArray[np.float64]:
        """Returns [num_records, num_objectives] float: the points of `records`."""
        rows = [self.point(record) for record in records]
        return np.asarray(rows, dtype=np.float64).reshape(len(rows), len(self.objectives))

    def quality_noise(self) -> float:
        """Returns the variance of one run's quality about its config's mean, over many records."""
        squares, freedom = 0.0, 0
        for record in self.records[:_MOST_NOISES]:
            num = len(record.outcomes)
            if num > 1:
                squares += self._squares(record)
                freedom += num - 1
        return squares / freedom if freedom else 0.0

    def bound(self, constraint: Constraint) -> float:
        """Returns the constraint's bound in the objective's unit."""
        if not constraint.relative:
            return constraint.bound
        return constraint.bound * self.mean(self.original, constraint.objective)

    def violation(self, record: Record) -> float:
        """Returns by how much `record` breaks the constraints; 0 if it keeps them all.

        The violation of a bound is the excess relative to the bound's size; they add up.
        """
        return self._judge(record)[1]

    def excess(self, record: Record, constraint: Constraint, quality: float | None = None) -> float:
        """Returns by how much `record` breaks `constraint`, relative to the bound.

        Args:
            quality: what its quality is taken to be; None: its adjusted mean.
        """
        bound = self.bound(constraint)
        if constraint.objective == "quality" and quality is not None:
            value = quality
        else:
            value = self.adjusted(record, constraint.objective)
        if not np.isfinite(value) or not np.isfinite(bound):
            return 0.0
        over = bound - value if constraint.objective == "quality" else value - bound
        return max(0.0, over) / (abs(bound) or 1.0)

    def is_feasible(self, record: Record) -> bool:
        return self.violation(record) <= 0

    def judged(self, within: Config | None = None) -> list[Record]:
        """Returns the records that have outcomes and, if given, the values of `within`.

        A record belongs to an arm by its config and not by who asked for it, so an arm profits
        from what others found.
        """
        fixed = (within or {}).items()
        return [r for r in self.records if r.outcomes and fixed <= r.config.items()]

    def front(self, records: Sequence[Record] | None = None) -> list[Record]:
        """Returns the feasible complete records that no other such record dominates.

        Uses plain means over all examples, without the prior: what is reported is what was seen.
        """
        if records is not None or self.original.state != "complete":
            return self._best_of(self.records if records is None else records)
        # A complete record never changes: whoever was dominated stays so.
        if complete := self._newly_complete():
            self._front = self._best_of([*self._front, *complete])
            self._front.sort(key=lambda r: r.number)
        return list(self._front)

    def _best_of(self, records: Sequence[Record]) -> list[Record]:
        complete = [r for r in records if r.state == "complete" and self.is_feasible(r)]
        if not complete:
            return []
        means = np.asarray([self._means(record) for record in complete])
        mask = pareto.front(np.nan_to_num(means, nan=np.inf))
        return [record for record, keep in zip(complete, mask, strict=True) if keep]

    def normalised(self, records: Sequence[Record]) -> NDArray[np.float64]:
        """Returns the points of `records` scaled by the range over the whole archive.

        0 is the best value seen of an objective and 1 the worst; all of it in one unit, so that
        hypervolumes of different arms compare.
        """
        everyone = self.points(self.judged())
        known = np.isfinite(everyone)
        low = np.where(known, everyone, np.inf).min(axis=0)
        high = np.where(known, everyone, -np.inf).max(axis=0)
        low, span = np.where(high >= low, low, 0.0), np.where(high > low, high - low, 1.0)
        return np.asarray(np.nan_to_num((self.points(records) - low) / span, posinf=2.0))

    def promise(self, arm: Config) -> float:
        """Returns how promising an arm is: the hypervolume of its feasible records.

        An arm without a feasible record has minus its smallest violation. Only realised configs
        count; best values of different configs are never mixed.
        """
        records = self.judged(arm)
        feasible = [r for r in records if self.is_feasible(r)]
        if not feasible:
            return -min((self.violation(r) for r in records), default=float("inf"))
        reference = np.full(len(self.objectives), 1.1)
        return pareto.hypervolume(self.normalised(feasible), reference.tolist())

    def most_promising(self, records: Sequence[Record]) -> list[Record]:
        """Returns `records`, or the best of them if they are more than can be weighed at once."""
        if len(records) <= _MOST_WEIGHED:
            return list(records)
        violations = np.asarray([self.violation(r) for r in records])
        best = pareto.ranked(self.points(records), violations, _MOST_WEIGHED)[:_MOST_WEIGHED]
        return [records[i] for i in sorted(best.tolist())]

    def champion(self, arm: Config) -> Record | None:
        """Returns the arm's record that adds most hypervolume, else the least infeasible one."""
        records = self.judged(arm)
        feasible = [r for r in records if self.is_feasible(r)]
        if not feasible:
            return min(records, key=self.violation, default=None)
        reference = [1.1] * len(self.objectives)
        points = self.normalised(feasible)
        alone = [pareto.hypervolume(points[i : i + 1], reference) for i in range(len(points))]
        return feasible[int(np.argmax(alone))]

    def _judge(self, record: Record) -> tuple[NDArray[np.float64], float]:
        """Returns point and violation of `record`, computed once per number of outcomes."""
        sizes = (len(record.outcomes), len(self.original.outcomes))
        if record._judgement is None or record._judgement[0] != sizes:
            values = [self._value(record, objective) for objective in self.objectives]
            point = np.nan_to_num(np.asarray(values), nan=np.inf, posinf=np.inf)
            violation = sum(self.excess(record, constraint) for constraint in self.constraints)
            record._judgement = (sizes, point, violation)
        return record._judgement[1], record._judgement[2]

    def _newly_complete(self) -> list[Record]:
        """Returns the records that completed since this was last asked."""
        records = [*self._open, *self.records[self._num_read :]]
        self._num_read = len(self.records)
        self._open = [r for r in records if r.state != "complete"]
        return [r for r in records if r.state == "complete"]

    def _squares(self, record: Record) -> float:
        """Returns the sum of squared deviations of quality from its mean, computed once."""
        num = len(record.outcomes)
        if record._spread[0] != num:
            record._spread = (num, num * float(self.series(record, "quality").var()))
        return record._spread[1]

    def _means(self, record: Record) -> list[float]:
        signs = {"quality": -1.0, "cost": 1.0, "latency": 1.0}
        return [signs[o] * self.mean(record, o) for o in self.objectives]

    def _value(self, record: Record, objective: Objective) -> float:
        value = self.adjusted(record, objective)
        if objective != "quality":
            return value
        num = len(record.outcomes)
        prior = self.mean(self.original, "quality")
        return -(num * value + _PRIOR_EXAMPLES * prior) / (num + _PRIOR_EXAMPLES)
