"""Who leaves a race, and why."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adaseek.search.base import Constraint, Objective
from adaseek.search.beliefs import Beliefs
from adaseek.search.race import evidence_of_loss
from adaseek.search.records import Archive, Record

__all__ = ["Judge"]

_CLEAR_MARGIN = 1.1
"""Without a quality objective a config is beaten if it is 10% dearer and slower than a rival."""

_FEWEST_RECORDS = 4
"""Before, configs that are alike have not shown anything yet."""
_MOST_RIVALS = 128


class Judge:
    """Decides after each rung which running records are eliminated or infeasible.

    A record is eliminated only by a rival that is at least as good in every other objective on
    the examples both have seen, and only if the evidence that it has less quality is 1 / delta
    or more; delta is shared by the rivals it is compared with. So a cheaper or faster config is
    never dropped for its quality alone, unless that breaks a constraint.

    The test is slow to speak after few runs. So with `eta`, of those still racing only 1 / eta go
    on, those with the best hopes, and none that could not even then join the front of what is
    complete. Hopes come from all configs together; nobody is tested here, so `delta` does not bound
    the chance to be dropped, but who is dropped may be taken up again at the end.
    """

    def __init__(
        self,
        archive: Archive,
        *,
        delta: float,
        first_rung: int,
        score_span: float,
        eta: int | None = None,
        beliefs: Beliefs | None = None,
    ) -> None:
        self._archive = archive
        self._delta = delta
        self._first_rung = first_rung
        self._span = score_span
        self._eta = eta
        self._beliefs = beliefs

    def judge(self, cohort: Sequence[Record]) -> None:
        """Sets the state of the records of `cohort` that leave the race now."""
        for record in cohort:
            if record.state == "running" and self._breaks_a_constraint(record):
                record.state = "infeasible"
        front = [r for r in self._archive.front() if r not in cohort]
        for record in cohort:
            if record.state != "running":
                continue
            racing = [r for r in cohort if r is not record and r.state in ("running", "complete")]
            rivals = [r for r in (*front, *racing) if self._may_dominate(r, record)]
            if any(self._beats(rival, record, len(rivals)) for rival in rivals):
                record.state = "eliminated"
        if self._eta is not None and self._beliefs is not None:
            self._halve([r for r in cohort if r.state == "running"], self._eta, self._beliefs)

    def _halve(self, racing: Sequence[Record], eta: int, beliefs: Beliefs) -> None:
        if not racing or len(self._archive.records) < _FEWEST_RECORDS:
            return
        belief, rivals = beliefs.split(racing, self._archive.front()[:_MOST_RIVALS])
        hopeful = belief.hopeful(rivals)
        ranked = [i for i in belief.best() if hopeful[i]]
        for i in {*range(len(racing))} - {*ranked[: -(-len(racing) // eta)]}:
            racing[i].state = "eliminated"

    def _may_dominate(self, rival: Record, record: Record) -> bool:
        num = min(len(rival.outcomes), len(record.outcomes))
        if num < self._first_rung:
            return False
        others: list[Objective] = [o for o in self._archive.objectives if o != "quality"]
        mean = self._archive.mean
        return not any(mean(record, o, num) < mean(rival, o, num) for o in others)

    def _beats(self, rival: Record, record: Record, num_rivals: int) -> bool:
        num = min(len(rival.outcomes), len(record.outcomes))
        if "quality" in self._archive.objectives:
            mine = self._archive.series(record, "quality")[:num]
            theirs = self._archive.series(rival, "quality")[:num]
            return evidence_of_loss(mine, theirs, span=self._span) * self._delta >= num_rivals
        mean = self._archive.mean
        return num >= 2 * self._first_rung and all(
            mean(record, o, num) > _CLEAR_MARGIN * mean(rival, o, num)
            for o in self._archive.objectives
        )

    def _breaks_a_constraint(self, record: Record) -> bool:
        if len(record.outcomes) < self._first_rung:
            return False
        return any(self._breaks(record, c) for c in self._archive.constraints)

    def _breaks(self, record: Record, constraint: Constraint) -> bool:
        archive, num = self._archive, len(record.outcomes)
        if constraint.objective == "quality":
            mine = archive.series(record, "quality")
            if not constraint.relative:
                rival, margin = np.full(num, constraint.bound), 0.0
            else:
                rival = archive.series(archive.original, "quality")[:num]
                margin = (1 - constraint.bound) * archive.mean(archive.original, "quality")
            shift = max(0.0, -margin)  # a bound above the original's own quality
            evidence = evidence_of_loss(
                mine, rival + shift, margin=max(0.0, margin), span=self._span
            )
            return evidence * self._delta >= 1
        values = archive.series(record, constraint.objective)
        error = float(values.std(ddof=1) / np.sqrt(num)) if num > 1 else np.inf
        return bool(values.mean() - 2 * error > archive.bound(constraint))
