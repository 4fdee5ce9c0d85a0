"""What is believed about the configs tried so far: quality pooled over configs that are alike.

Cost and latency vary little between runs of one config, so they are taken as measured; quality is
mostly noise after a few examples, so it is estimated from all configs together (`surrogate`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adaseek.search import pareto
from adaseek.search.coder import Coder
from adaseek.search.records import Archive, Record
from adaseek.search.surrogate import MOST_CONFIGS, Surrogate

__all__ = ["Belief", "Beliefs"]

Floats = NDArray[np.float64]

_MOST_LATEST = 4 * MOST_CONFIGS


@dataclass(frozen=True)
class Belief:
    """Beliefs about some records, in their order.

    Attributes:
        points: [num_records, num_objectives] float, to be minimised.
        errors: [num_records, num_objectives] float, the standard errors of the points.
        hopes: the same with quality half a standard deviation better than believed.
        violations: [num_records] float, 0 if believed to keep the constraints.
        hoped_violations: the same by `hopes`.
    """

    points: Floats
    errors: Floats
    hopes: Floats
    violations: Floats
    hoped_violations: Floats

    def hopeful(self, rivals: Belief) -> NDArray[np.bool_]:
        """Returns [num_records] bool: which could still join the front of `rivals`."""
        usable = rivals.points[rivals.violations <= 0]
        beaten = [
            bool(((usable <= p).all(axis=1) & (usable < p).any(axis=1)).any()) for p in self.hopes
        ]
        return ~np.asarray(beaten, dtype=bool) & (self.hoped_violations <= 0)

    def scaled(self) -> Floats:
        """Returns the points, scaled to [0, 1] from the best to the worst of each objective."""
        if not len(self.points):
            return self.points
        low, high = self.points.min(axis=0), self.points.max(axis=0)
        span = np.where(np.isfinite(high - low) & (high > low), high - low, 1.0)
        return np.asarray(np.nan_to_num((self.points - low) / span, nan=0.0, posinf=1.0))

    def frugal(self, axis: int) -> int:
        """Returns the index of the record that comes close to the best of `axis` for least.

        Of those within a standard error of the best it is the best in the other objectives: a
        difference that cannot be seen may not be worth its price.

        Source: the one-standard-error rule (Breiman et al., Classification and Regression Trees,
        1984, section 3.4.3).
        """
        values = self.points[:, axis]
        leader = int(np.argmin(values))
        close = np.flatnonzero(values <= values[leader] + self.errors[leader, axis])
        price = np.delete(self.scaled(), axis, axis=1).sum(axis=1)
        return int(min(close, key=lambda i: (price[i], values[i])))

    def order(self) -> list[int]:
        """Returns the indices of the records, those first that are most worth a validation.

        The best of each objective, then who comes close to it for less, then the best in all of
        them together; by what is believed, not by what was seen: the luckiest must not win.
        """
        if not len(self.points):
            return []
        points = self.scaled()
        total = points.sum(axis=1)
        places, axes = range(len(points)), range(points.shape[1])
        first = [min(places, key=lambda i: (points[i, axis], total[i])) for axis in axes]
        close = [self.frugal(axis) for axis in axes]
        return list(dict.fromkeys([*first, *close, *sorted(places, key=lambda i: float(total[i]))]))

    def best(self) -> NDArray[np.intp]:
        """Returns the indices of the records, those with the best hopes first."""
        return pareto.ranked(self.hopes, self.hoped_violations, len(self.hopes))


class Beliefs:
    """Makes beliefs from an archive; the coder is that of the space as it is now."""

    def __init__(self, archive: Archive, coder: Callable[[], Coder]) -> None:
        self._archive = archive
        self._coder = coder
        self._surrogate = Surrogate()

    def about(self, records: Sequence[Record]) -> Belief:
        """Returns what is believed about `records`, which must have outcomes.

        The others that are most tried lend their strength, so many that all fit in one model; if
        there are many hundreds, of the latest.
        """
        qualities, errors = self._qualities(records)
        return self._belief(records, qualities, errors)

    def split(self, records: Sequence[Record], rivals: Sequence[Record]) -> tuple[Belief, Belief]:
        """Returns the beliefs about `records` and about `rivals`, from one model."""
        qualities, errors = self._qualities([*records, *rivals])
        num = len(records)
        return (
            self._belief(records, qualities[:num], errors[:num]),
            self._belief(rivals, qualities[num:], errors[num:]),
        )

    def best(self) -> Record:
        """Returns the complete, feasible record of the best believed quality, else the original.

        Of equals the cheapest, then the earliest.
        """
        archive = self._archive
        usable = [r for r in archive.records if r.state == "complete" and archive.is_feasible(r)]
        if not usable:
            return archive.original
        usable.sort(key=lambda r: -archive.mean(r, "quality"))
        usable = usable[:MOST_CONFIGS]
        qualities, _ = self._qualities(usable)
        places = range(len(usable))
        place = max(
            places,
            key=lambda i: (qualities[i], -archive.mean(usable[i], "cost"), -usable[i].number),
        )
        return usable[place]

    def _qualities(self, records: Sequence[Record]) -> tuple[Floats, Floats]:
        """Returns believed quality and its standard error for each of `records`."""
        archive = self._archive
        if not records:
            return np.zeros(0), np.zeros(0)
        chosen = list(records[:MOST_CONFIGS])
        inside = {id(r) for r in chosen}
        latest = archive.records[-_MOST_LATEST:]
        rest = [r for r in latest if r.outcomes and id(r) not in inside]
        rest.sort(key=lambda r: (-len(r.outcomes), -r.number))
        chosen += rest[: MOST_CONFIGS - len(chosen)]
        counts = np.asarray([len(r.outcomes) for r in chosen], dtype=np.float64)
        values = np.asarray([archive.adjusted(r, "quality") for r in chosen])
        coder = self._coder()
        means, errors = self._surrogate.estimates(
            coder.one_hot(coder.encode([r.config for r in chosen])),
            values,
            archive.quality_noise() / counts,
            num=len(records),
        )
        return means, errors

    def _belief(self, records: Sequence[Record], qualities: Floats, errors: Floats) -> Belief:
        measured = self._archive.points(records)
        points, spread = measured.copy(), np.zeros_like(measured)
        if "quality" in self._archive.objectives:
            column = self._archive.objectives.index("quality")
            points[:, column] = -qualities
            spread[:, column] = errors
        return Belief(
            points,
            spread,
            points - 0.5 * spread,
            self._violations(records, qualities),
            self._violations(records, qualities + 0.5 * errors),
        )

    def _violations(self, records: Sequence[Record], qualities: Floats) -> Floats:
        excess = self._archive.excess
        totals = [
            sum(excess(r, c, quality) for c in self._archive.constraints)
            for r, quality in zip(records, qualities.tolist(), strict=True)
        ]
        return np.asarray(totals, dtype=np.float64)
