"""AdaSeek: the adaptive hierarchical search over a workflow's configs.

Source: Cognify (arXiv 2502.08056) for what it does: layers chosen by the total budget, the budget
split by layer complexity, each outer config opening an inner search, budget moved to promising
configs. The procedure is our reconstruction; racing over examples, one surrogate for all arms and
exact budgets in workflow runs are ours.

The search is a deterministic function of its arguments and of the outcomes it is given; nothing
depends on the order in which runs finish. So a run is resumed by running it again with an
evaluator that answers from the journal.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, InMemoryStorage

from adaseek import events
from adaseek.errors import require
from adaseek.search.base import (
    Config,
    Constraint,
    Evaluate,
    LeafRun,
    Refresh,
    Space,
    check_objectives,
)
from adaseek.search.elimination import Judge
from adaseek.search.halving import Rung, halve
from adaseek.search.layers import plan_layers
from adaseek.search.proposals import Proposal, Proposals
from adaseek.search.race import rungs, stratified_order
from adaseek.search.records import Archive, Record
from adaseek.search.sampler import CategoricalTPESampler
from adaseek.search.stopping import Patience

__all__ = ["AdaSeek", "SearchSettings"]


@dataclass(frozen=True)
class SearchSettings:
    """Knobs of the search; the defaults suit 100 to 2000 workflow runs.

    Attributes:
        budget: workflow runs, the baseline included.
        num_examples: examples that a config sees if it survives its race.
        objectives: some of `quality`, `cost`, `latency`.
        constraints: bounds that the recommended configs must keep.
        eta: reduction factor of successive halving.
        alpha: control exponent of layer complexity. Measured on landscapes of known truth, a
            deeper layering pays only when it gets several trials per dimension, hence 1.5.
        num_layers: None lets the budget decide; 1 forces a flat search.
        chunk: configs proposed and raced together; also the most arms of one bracket.
        delta: chance that a race drops a config that is in truth not worse than its rivals.
        first_rung: examples before a race is first judged.
        patience: trials without any improvement after which an arm has converged; None: three
            times the number of its dimensions, at least 16.
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
    first_rung: int = 4
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
        require(self.num_layers in (None, 1), "num_layers", self.num_layers, "must be None or 1")


@dataclass
class _Arm:
    """The search under fixed outer values; the root arm fixes nothing."""

    config: Config
    path: tuple[int, ...]
    layer: int
    patience: Patience
    children: dict[frozenset[tuple[str, str]], _Arm] = field(default_factory=dict)
    is_exhausted: bool = False

    @property
    def is_done(self) -> bool:
        return self.is_exhausted or self.patience.converged


class AdaSeek:
    """One search. Call `run` once; `archive` holds what was found, also after an exception.

    Args:
        space: the dimensions and options known at the start.
        settings: budget, objectives and knobs.
        evaluate: runs leaf runs and returns their outcomes in order.
        labels: one hashable per example, for a balanced example order; more than
            `num_examples` may be given, the search then uses a balanced part.
        refresh: asks dynamic cogs for options after each chunk.
        identity: names what a config does; configs of equal identity are evaluated once.
        sampler: any Optuna sampler; each layer gets a copy. Default: `CategoricalTPESampler`.
        storage: any Optuna storage, for example one that a dashboard watches.
        seed: makes the search repeatable.
        listen: is told the search's events.
    """

    def __init__(
        self,
        space: Space,
        settings: SearchSettings,
        evaluate: Evaluate,
        *,
        labels: Sequence[Hashable] = (),
        refresh: Refresh | None = None,
        identity: Callable[[Config], Hashable] | None = None,
        sampler: BaseSampler | None = None,
        storage: BaseStorage | None = None,
        seed: int = 0,
        listen: Callable[[events.Event], None] | None = None,
    ) -> None:
        self.space = space
        self.settings = settings
        self.num_runs = 0
        objectives = check_objectives(settings.objectives)
        self.archive = Archive(
            objectives, settings.constraints, failure_score=settings.failure_score
        )
        num_trials = 1 if settings.num_layers == 1 else settings.budget // settings.num_examples
        self.plan = plan_layers(space, num_trials, alpha=settings.alpha)
        self.order = stratified_order(list(labels) or [0] * settings.num_examples, seed=seed)[
            : settings.num_examples
        ]
        self._evaluate = evaluate
        self._refresh = refresh
        self._identity = identity or (lambda config: frozenset(config.items()))
        self._listen = listen or (lambda event: None)
        self._judge = Judge(
            self.archive,
            delta=settings.delta,
            first_rung=settings.first_rung,
            score_span=settings.score_span,
        )
        shared = storage or InMemoryStorage()
        self._proposals = [
            Proposals(
                f"layer-{layer}",
                lambda layer=layer: self._layer_space(layer),  # type: ignore[misc]
                sampler=self._layer_sampler(sampler, seed, layer),
                storage=shared,
                objectives=objectives,
                identity=self._identity,
                seed=[seed, layer, 1],
            )
            for layer in range(self.plan.num_layers)
        ]
        self._open: dict[int, Proposal] = {}
        self._taken: set[Hashable] = set()
        self._num_trials = 0

    @property
    def _innermost(self) -> int:
        return self.plan.num_layers - 1

    @property
    def left(self) -> int:
        """Workflow runs that may still be asked for."""
        return self.settings.budget - self.num_runs

    def run(self) -> Archive:
        """Spends the budget, or less if every arm converges, and returns the archive.

        Raises:
            AdaseekError: whatever `evaluate` raises; the archive keeps what was found before.
        """
        root = self._new_arm({}, (), 0)
        self._evaluate_original(root)
        while self.left >= self.settings.first_rung and not root.is_done:
            if self._search(root, self.left) == 0:
                break
        return self.archive

    # The tree of arms ---------------------------------------------------------------------

    def _search(self, arm: _Arm, budget: int) -> int:
        """Searches under `arm` with at most `budget` workflow runs and returns the runs used."""
        before = self.num_runs
        if arm.layer == self._innermost:
            self._search_leaves(arm, before + budget)
        else:
            self._search_arms(arm, before + budget)
        return self.num_runs - before

    def _search_arms(self, arm: _Arm, stop_at: int) -> None:
        """Opens outer configs under `arm`, a bracket at a time, until `num_runs` is `stop_at`."""
        distinct = self._layer_space(arm.layer).size(arm.config)
        # Fewer arms than one bracket takes would leave outer configs unseen to no purpose.
        planned = min(max(self.plan.budgets[arm.layer], self.settings.chunk), distinct)
        while planned > 0 and stop_at - self.num_runs >= self.settings.first_rung:
            asked = self._ask_arms(arm, min(planned, self.settings.chunk))
            alive = [(child, proposal) for child, proposal in asked if not child.is_done]
            if not alive:
                arm.is_exhausted = all(child.is_done for child in arm.children.values())
                for _, proposal in asked:
                    self._proposals[arm.layer].drop(proposal)
                return
            budget = (stop_at - self.num_runs) * len(asked) // max(planned, len(asked))
            self._race_arms(arm, [child for child, _ in alive], budget)
            for child, proposal in asked:
                self._tell_arm(arm, child, proposal)
            planned -= len(asked)

    def _race_arms(self, arm: _Arm, children: Sequence[_Arm], budget: int) -> None:
        """Halves `children` over `budget` workflow runs; what they leave goes to the best."""

        def heard(rung: Rung) -> None:
            numbers = [children[i].path[-1] for i in rung.arms]
            kept = [children[i].path[-1] for i in rung.kept]
            event = events.ArmHalved(
                arm.layer, rung.index, tuple(numbers), tuple(kept), rung.budget
            )
            self._listen(event)

        halve(
            range(len(children)),
            budget,
            run=lambda i, share: 0 if children[i].is_done else self._search(children[i], share),
            score=lambda i: self.archive.promise(children[i].config),
            eta=self.settings.eta,
            listen=heard,
        )

    def _ask_arms(self, arm: _Arm, count: int) -> list[tuple[_Arm, Proposal]]:
        """Returns up to `count` distinct outer configs; the original's is always the first."""
        proposals = self._proposals[arm.layer]
        asked: list[Proposal] = []
        default = self._completed(arm.config, self._layer_space(arm.layer))
        if not arm.children:
            asked.append(proposals.put(default))
        asked += proposals.ask(
            arm.config,
            count - len(asked),
            taken=[self._identity(p.config) for p in asked],
        )
        return [(self._child(arm, proposal.config), proposal) for proposal in asked]

    def _child(self, arm: _Arm, config: Config) -> _Arm:
        key = frozenset(config.items())
        if key not in arm.children:
            path = (*arm.path, self._next_number())
            arm.children[key] = self._new_arm(config, path, arm.layer + 1)
            self._listen(events.TrialStarted(path[-1], arm.layer, arm.path, dict(config)))
        return arm.children[key]

    def _tell_arm(self, arm: _Arm, child: _Arm, proposal: Proposal) -> None:
        """Tells the outer study a realised result: its best config's, never a mix of several."""
        champion = self.archive.champion(child.config)
        if champion is None:
            self._proposals[arm.layer].drop(proposal)
            return
        self._tell(arm.layer, proposal, champion)
        self._wait(arm, champion)
        self._listen(self._ended(champion, child.path[-1], arm.layer, arm.path, child.config))

    # The innermost layer ------------------------------------------------------------------

    def _evaluate_original(self, root: _Arm) -> None:
        config = self.space.original()
        record = self._open_trial(root, self._proposals[-1].put(config))
        self._advance([record], self.settings.num_examples, self.settings.budget)
        self._close_trials(root, [record])

    def _search_leaves(self, arm: _Arm, stop_at: int) -> None:
        """Proposes and races chunks of configs under `arm` until `num_runs` is `stop_at`."""
        self._race(self._unfinished(arm), stop_at)
        self._close_trials(arm, self._unfinished(arm))
        while not arm.is_done and stop_at - self.num_runs >= self.settings.first_rung:
            affordable = (stop_at - self.num_runs) // self.settings.num_examples
            count = max(1, min(self.settings.chunk, affordable))
            cohort = [self._open_trial(arm, p) for p in self._ask_leaves(arm, count)]
            if not cohort:
                arm.is_exhausted = True
                return
            self._race(cohort, stop_at)
            self._close_trials(arm, cohort)
            self._grow()

    def _ask_leaves(self, arm: _Arm, count: int) -> list[Proposal]:
        """Returns new configs under `arm`; the first ever is the one with all inner originals."""
        proposals = self._proposals[-1]
        default = self._completed(arm.config, self.space)
        asked: list[Proposal] = []
        if self._identity(default) not in self._taken:
            asked.append(proposals.put(default))
            self._taken.add(self._identity(default))
        asked += proposals.ask(arm.config, count - len(asked), taken=self._taken)
        return asked

    def _open_trial(self, arm: _Arm, proposal: Proposal) -> Record:
        record = Record(self._next_number(), proposal.config, arm.path)
        self._taken.add(self._identity(proposal.config))
        self._open[record.number] = proposal
        self.archive.records.append(record)
        self._listen(
            events.TrialStarted(record.number, self._innermost, arm.path, dict(proposal.config))
        )
        return record

    def _unfinished(self, arm: _Arm) -> list[Record]:
        """Returns the arm's records whose race an earlier budget cut short."""
        return [r for r in self.archive.records if r.state == "running" and r.arm == arm.path]

    def _race(self, cohort: Sequence[Record], stop_at: int) -> None:
        """Runs `cohort` over the rungs of examples, judging after each, within the budget."""
        for size in rungs(self.settings.num_examples, first=self.settings.first_rung):
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
        runs = [LeafRun(record.config, self.order[position]) for record, position in wanted]
        self.num_runs += len(runs)
        outcomes = self._evaluate(runs) if runs else ()
        for (record, _), outcome in zip(wanted, outcomes, strict=True):
            record.outcomes.append(outcome)
        for record in records:
            if len(record.outcomes) == self.settings.num_examples:
                record.state = "complete"

    def _close_trials(self, arm: _Arm, records: Sequence[Record]) -> None:
        """Tells the study and the arm's patience about the records whose race is over."""
        for record in records:
            if record.state == "running":
                continue
            self._tell(self._innermost, self._open.pop(record.number), record)
            self._wait(arm, record)
            self._listen(
                self._ended(record, record.number, self._innermost, record.arm, record.config)
            )

    def _grow(self) -> None:
        """Adds the options that the dynamic cogs found."""
        for name, count in (self._refresh() if self._refresh else {}).items():
            first = self.space.added.get(name, 0)
            self.space = self.space.grown(name, count)
            dimension = self.space.dimension(name)
            keys = tuple(dimension.slot(first + i) for i in range(count))
            self._listen(events.OptionsAdded(name, keys))

    # Small things -------------------------------------------------------------------------

    def _layer_space(self, layer: int) -> Space:
        """Returns the space of the dimensions of `layer` and of the layers around it."""
        families = {family for group in self.plan.families[: layer + 1] for family in group}
        if layer == self._innermost:
            return self.space
        return replace(
            self.space,
            dimensions=tuple(d for d in self.space.dimensions if d.family in families),
        )

    def _layer_sampler(self, sampler: BaseSampler | None, seed: int, layer: int) -> BaseSampler:
        if sampler is not None:
            return copy.deepcopy(sampler)
        state = np.random.SeedSequence([seed, layer]).generate_state(1)
        return CategoricalTPESampler(lambda: self._layer_space(layer), seed=int(state[0]))

    def _completed(self, fixed: Config, space: Space) -> dict[str, str]:
        """Returns `fixed` with the original option of every other active dimension."""
        config: dict[str, str] = {}
        for dimension in space.dimensions:
            if space.is_active(dimension, config):
                config[dimension.name] = fixed.get(dimension.name, dimension.options[0])
        return config

    def _new_arm(self, config: Config, path: tuple[int, ...], layer: int) -> _Arm:
        patience = self.settings.patience
        if patience is None:
            patience = max(16, 3 * self.plan.complexities[-1])
        return _Arm(config, path, layer, Patience(patience))

    def _wait(self, arm: _Arm, record: Record) -> None:
        """Counts `record` for the arm's patience."""
        if self.archive.is_feasible(record):
            arm.patience.tell(self.archive.point(record).tolist())
        else:
            arm.patience.tell_infeasible()

    def _next_number(self) -> int:
        self._num_trials += 1
        return self._num_trials - 1

    def _tell(self, layer: int, proposal: Proposal, record: Record) -> None:
        values = [self.archive.adjusted(record, o) for o in self.archive.objectives]
        known = [
            value if math.isfinite(value) else -math.inf if o == "quality" else math.inf
            for o, value in zip(self.archive.objectives, values, strict=True)
        ]
        self._proposals[layer].tell(
            proposal,
            known,
            violation=self.archive.violation(record),
            num_examples=len(record.outcomes),
        )

    def _ended(
        self, record: Record, number: int, layer: int, arm: tuple[int, ...], config: Config
    ) -> events.TrialEnded:
        def known(objective: str) -> float | None:
            value = self.archive.mean(record, objective)  # type: ignore[arg-type]
            return value if math.isfinite(value) else None

        state = record.state
        if state == "complete" and not self.archive.is_feasible(record):
            state = "infeasible"
        return events.TrialEnded(
            number,
            layer,
            arm,
            dict(config),
            known("quality"),
            known("cost"),
            known("latency"),
            len(record.outcomes),
            "complete" if state == "running" else state,
        )
