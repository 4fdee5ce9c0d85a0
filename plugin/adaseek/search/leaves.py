"""The innermost layer: configs are proposed, raced over examples, and taken up again at the end.

Everything that spends workflow runs is here, so that the budget is kept in one place.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Sequence

from adaseek import events
from adaseek.search.arms import Arm
from adaseek.search.base import Config, Evaluate, LeafRun, Refresh, Space
from adaseek.search.beliefs import Beliefs
from adaseek.search.coder import Coder
from adaseek.search.elimination import Judge
from adaseek.search.proposals import Proposal, Proposals
from adaseek.search.race import rungs
from adaseek.search.records import Archive, Record
from adaseek.search.settings import SearchSettings

__all__ = ["Leaves", "ended", "tell"]

Listen = Callable[[events.Event], None]


class Leaves:
    """The trials that are workflow runs.

    Args:
        layer: number of the innermost layer.
        order: the fixed order of the examples.
        numbers: gives the next trial number; shared with the outer layers.
    """

    def __init__(
        self,
        space: Space,
        settings: SearchSettings,
        archive: Archive,
        *,
        layer: int,
        order: Sequence[int],
        evaluate: Evaluate,
        refresh: Refresh | None,
        identity: Callable[[Config], Hashable],
        numbers: itertools.count[int],
        listen: Listen,
    ) -> None:
        self.space = space
        self.num_runs = 0
        self._coder = Coder(space)
        self._settings = settings
        self._archive = archive
        self._layer = layer
        self._order = order
        self._evaluate = evaluate
        self._refresh = refresh
        self._identity = identity
        self._numbers = numbers
        self._listen = listen
        self.beliefs = Beliefs(archive, lambda: self._coder)
        self._judge = Judge(
            archive,
            delta=settings.delta,
            first_rung=settings.fewest,
            score_span=settings.score_span,
            eta=settings.eta if settings.halving else None,
            beliefs=self.beliefs,
        )
        self._open: dict[int, Proposal] = {}
        self._taken: set[Hashable] = set()

    def evaluate_original(self, root: Arm, proposals: Proposals) -> None:
        """Runs the original program on every example."""
        record = self._open_trial(root, proposals.put(self.space.original()))
        self._advance([record], self._settings.num_examples, self._settings.budget)
        self._close([record], root, proposals)

    def search(self, arm: Arm, proposals: Proposals, stop_at: int) -> None:
        """Proposes and races chunks of configs under `arm` until `num_runs` is `stop_at`."""
        cut = [r for r in self._archive.records if r.state == "running" and r.arm == arm.path]
        self._race(cut, stop_at)
        self._close(cut, arm, proposals)
        while not arm.is_done and stop_at - self.num_runs >= self._settings.fewest:
            asked = self._ask(arm, proposals, stop_at)
            # All is tried, but dynamic cogs may have found something in it.
            if not asked and self._grow():
                asked = self._ask(arm, proposals, stop_at)
            if not asked:
                arm.is_exhausted = True
                return
            cohort = [self._open_trial(arm, proposal) for proposal in asked]
            self._race(cohort, stop_at)
            self._close(cohort, arm, proposals)
            self._grow()

    def take_up_again(self, stop_at: int) -> None:
        """Completes the most promising of the configs that left their race, best first.

        The race judged each with what was known then; beliefs have changed since.
        """
        while self.num_runs < stop_at:
            left = [r for r in self._archive.judged() if r.state in ("running", "eliminated")]
            left = self._archive.most_promising(left)
            front = self._archive.front()
            if not left:
                return
            belief, rivals = self.beliefs.split(left, front)
            hopeful = belief.hopeful(rivals)
            ranked = sorted(belief.best().tolist(), key=lambda i: not hopeful[i])
            record = left[ranked[0]]
            was_told = record.state == "eliminated"
            record.state = "running"
            self._advance([record], self._settings.num_examples, stop_at)
            if record.state == "running":
                record.state = "eliminated" if was_told else "running"
                return
            self._listen(ended(self._archive, record, self._layer, again=was_told))

    def _ask(self, arm: Arm, proposals: Proposals, stop_at: int) -> list[Proposal]:
        """Returns new configs under `arm`; the first ever is the one with all inner originals."""
        settings = self._settings
        least = settings.fewest if settings.halving else settings.num_examples
        affordable = (stop_at - self.num_runs) // least
        count = max(1, min(settings.chunk, affordable))
        default = arm.completed(self.space)
        asked: list[Proposal] = []
        if self._identity(default) not in self._taken:
            asked.append(proposals.put(default))
            self._taken.add(self._identity(default))
        return asked + proposals.ask(arm.config, count - len(asked), taken=self._taken)

    def _open_trial(self, arm: Arm, proposal: Proposal) -> Record:
        record = Record(next(self._numbers), proposal.config, arm.path)
        self._taken.add(self._identity(proposal.config))
        self._open[record.number] = proposal
        self._archive.records.append(record)
        started = events.TrialStarted(record.number, self._layer, arm.path, proposal.config)
        self._listen(started)
        return record

    def _race(self, cohort: Sequence[Record], stop_at: int) -> None:
        """Runs `cohort` over the rungs of examples, judging after each, within the budget."""
        settings = self._settings
        for size in rungs(settings.num_examples, first=settings.first_rung, factor=settings.eta):
            racing = [record for record in cohort if record.state == "running"]
            if not racing or self.num_runs >= stop_at:
                return
            self._advance(racing, size, stop_at)
            self._judge.judge([r for r in racing if len(r.outcomes) >= size])

    def _advance(self, records: Sequence[Record], size: int, stop_at: int) -> None:
        """Evaluates `records` up to `size` examples each, example by example, within the budget."""
        wanted = [
            (record, position)
            for position in range(size)
            for record in records
            if position >= len(record.outcomes)
        ][: stop_at - self.num_runs]
        runs = [LeafRun(record.config, self._order[position]) for record, position in wanted]
        self.num_runs += len(runs)
        outcomes = self._evaluate(runs) if runs else ()
        for (record, _), outcome in zip(wanted, outcomes, strict=True):
            record.outcomes.append(outcome)
        for record in records:
            if len(record.outcomes) == self._settings.num_examples:
                record.state = "complete"

    def _close(self, records: Sequence[Record], arm: Arm, proposals: Proposals) -> None:
        """Tells the study and the arm's patience about the records whose race is over."""
        for record in records:
            if record.state == "running":
                continue
            tell(self._archive, proposals, self._open.pop(record.number), record)
            arm.wait(self._archive, record)
            self._listen(ended(self._archive, record, self._layer))

    def _grow(self) -> bool:
        """Adds the options that the dynamic cogs found, and returns whether there were any."""
        found = self._refresh() if self._refresh else {}
        for name, count in found.items():
            first = self.space.added.get(name, 0)
            self.space = self.space.grown(name, count)
            self._coder = Coder(self.space)
            dimension = self.space.dimension(name)
            keys = tuple(dimension.slot(first + i) for i in range(count))
            self._listen(events.OptionsAdded(name, keys))
        return any(found.values())


def tell(archive: Archive, proposals: Proposals, proposal: Proposal, record: Record) -> None:
    """Tells a study what `record` gave: means on all examples, as well as they are known."""
    values = [archive.adjusted(record, o) for o in archive.objectives]
    known = [
        value if math.isfinite(value) else -math.inf if o == "quality" else math.inf
        for o, value in zip(archive.objectives, values, strict=True)
    ]
    noise = archive.quality_noise() / len(record.outcomes)
    proposals.tell(
        proposal,
        known,
        violation=archive.violation(record),
        num_examples=len(record.outcomes),
        variances=[noise if o == "quality" else 0.0 for o in archive.objectives],
    )


def ended(
    archive: Archive,
    record: Record,
    layer: int,
    *,
    trial: tuple[int, tuple[int, ...], Config] | None = None,
    again: bool = False,
) -> events.TrialEnded:
    """Returns the event that `record` is done, or the outer `trial` whose result it is."""

    def known(objective: str) -> float | None:
        value = archive.mean(record, objective)  # type: ignore[arg-type]
        return value if math.isfinite(value) else None

    state = record.state
    if state == "complete" and not archive.is_feasible(record):
        state = "infeasible"
    number, arm, config = trial or (record.number, record.arm, record.config)
    return events.TrialEnded(
        number,
        layer,
        arm,
        config,
        known("quality"),
        known("cost"),
        known("latency"),
        len(record.outcomes),
        "complete" if state == "running" else state,
        again,
    )
