"""One tuning run, phase by phase: baseline and search, validation, latency, result.

The journal answers what was already run, so a run is resumed by starting it again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage

from adaseek import events
from adaseek._version import __version__
from adaseek.budget import BudgetPlan
from adaseek.cogs.base import CogContext, Run
from adaseek.cogs.space import OptionTable
from adaseek.errors import AdaseekError, TooManyErrorsError
from adaseek.evaluation.base import Evaluation, Task
from adaseek.evaluation.runner import Runner
from adaseek.evaluation.statistics import mean_interval
from adaseek.evidence import Evidence
from adaseek.program import Program
from adaseek.recipe import Recipe
from adaseek.recommend import Comparison, Verdict, compare, recommend
from adaseek.result import Candidate, Estimate, Spending, TuningResult
from adaseek.search.adaseek import AdaSeek, SearchSettings
from adaseek.search.base import OBJECTIVES, LeafRun, Outcome, Space
from adaseek.search.importance import importance
from adaseek.search.records import Archive, Record
from adaseek.workflow import Example, Score, Trace, Usage

__all__ = ["TuningRun"]

_LATENCY_REPLICATE = 1
"""Replicate of the runs that are timed alone; the runs of the search are replicate 0."""

Series = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Split:
    """Examples by use; the search never sees `val`."""

    train: Sequence[Example]
    val: Sequence[Example]


class TuningRun:
    """Everything that belongs to one run; call `run` once.

    Args:
        runner: does the runs of search and validation.
        timer: does the runs that are timed: one at a time, nothing cached.
        paid: returns what the whole run has really paid so far.
    """

    def __init__(
        self,
        *,
        program: Program,
        split: Split,
        space: Space,
        table: OptionTable,
        cog_context: CogContext,
        plan: BudgetPlan,
        settings: SearchSettings,
        runner: Runner,
        timer: Runner,
        paid: Callable[[], Usage],
        sampler: BaseSampler | None,
        storage: BaseStorage | None,
        seed: int,
        listeners: Sequence[Callable[[events.Event], None]],
    ) -> None:
        self._program = program
        self._split = split
        self._table = table
        self._cog_context = cog_context
        self._plan = plan
        self._runner = runner
        self._timer = timer
        self._paid = paid
        self._seed = seed
        self._listeners = listeners
        self._evidence = Evidence()
        self._events = events.EventLog()
        self._phases: dict[str, int] = {}
        self._calls = _CallCount()
        self._num_runs = 0
        self._num_replayed = 0
        self._phase: events.Phase = "check"
        self.ended = "budget"
        self._validation: dict[int, Series] = {}
        self.search = AdaSeek(
            space,
            settings,
            self._evaluate_leaves,
            labels=[_stratum(example) for example in split.train],
            refresh=self._refresh,
            identity=lambda config: self._table.recipe(config).fingerprint,
            sampler=sampler,
            storage=storage,
            seed=seed,
            listen=self._tell,
        )

    @property
    def archive(self) -> Archive:
        return self.search.archive

    def run(self) -> str:
        """Runs all phases and returns why the run ended; `result` then has the outcome.

        Raises:
            AdaseekError: if the original could not be evaluated; everything later ends the run
                with what was found so far.
        """
        self._tell(
            events.RunStarted(
                self._plan.total,
                tuple(
                    tuple(d.name for d in self.search.plan.dimensions(layer, self.search.space))
                    for layer in range(self.search.plan.num_layers)
                ),
                self.search.plan.budgets,
                self.archive.objectives,
                len(self._split.train),
                len(self._split.val),
                self._plan.timing,
            )
        )
        self.ended = "budget"
        try:
            self._search()
            self._validate()
            self._time()
        except AdaseekError as error:
            if not self._has_baseline(error):
                raise
            self.ended = _reason(error)
        paid = self._paid().cost_usd
        self._tell(events.RunEnded(self.ended, self._num_runs, paid))
        return self.ended

    def result(self, *, run_dir: str, seconds: float) -> TuningResult:
        """Returns what was found, with validated estimates where there are any."""
        comparisons = self._comparisons()
        verdict = recommend(comparisons, self.archive.objectives)
        if 0 not in self._validation:
            verdict = Verdict("original", f"Nothing was validated: {self.ended}")
        front = {r.number for r in self.archive.front()}
        candidates = {
            r.number: self._candidate(r, pareto=r.number in front) for r in self.archive.judged()
        }
        named = {candidate.name: candidate for candidate in candidates.values()}
        recommended = named[verdict.name]
        improvement = {} if verdict.comparison is None else verdict.comparison.differences
        settings = {"adaseek": __version__, "seed": self._seed, "budget": self._plan.total}
        scores = {o: asdict(e) for o, e in (recommended.validation or recommended.train).items()}
        recipe = replace(recommended.recipe, scores=scores, made_with=settings)
        named[verdict.name] = recommended = replace(recommended, recipe=recipe)
        return TuningResult(
            workflow=self._program.workflow,
            objectives=self.archive.objectives,
            original=named["original"],
            candidates=tuple(named.values()),
            recommended=recommended,
            verdict=verdict.sentence,
            improvement=dict(improvement),
            importance=importance(self.archive, self.search.space),
            spending=Spending(
                budget=self._plan.total,
                num_runs=self._num_runs,
                num_replayed=self._num_replayed,
                cost_usd=self._paid().cost_usd,
                phases=dict(self._phases),
                num_calls=self._calls.total,
                num_memo_calls=self._calls.memo,
                seconds=seconds,
            ),
            events=self._events,
            ended=self.ended,
            seed=self._seed,
            run_dir=run_dir,
        )

    # Phases -------------------------------------------------------------------------------

    def _search(self) -> None:
        self._begin("search", self._plan.search)
        self.search.run()
        if self.search.left >= self.search.settings.first_rung:
            self.ended = "converged"

    def _validate(self) -> None:
        finalists = self._finalists()
        val = self._validation_examples()
        self._begin("validation", (1 + len(finalists)) * len(val))
        records = [self.archive.original, *finalists]
        tasks = [
            Task(self._recipe(record).for_example(example.id), example)
            for example in val
            for record in records
        ]
        evaluations = self._run(tasks, self._runner)
        for index, record in enumerate(records):
            series = self._series(evaluations[index :: len(records)])
            # These ran side by side: what they say of latency is mostly the load they made.
            series.pop("latency")
            self._validation[record.number] = series

    def _time(self) -> None:
        """Times original and finalists alone and uncached, taking turns."""
        if not self._plan.num_latency:
            return
        examples = self._validation_examples()[: self._plan.num_latency]
        records = [r for r in self.archive.records if r.number in self._validation]
        self._begin("latency", len(records) * len(examples))
        tasks = [
            Task(self._recipe(r).for_example(e.id), e, _LATENCY_REPLICATE)
            for e in examples
            for r in records
        ]
        evaluations = self._run(tasks, self._timer)
        for index, record in enumerate(records):
            timed = self._series(evaluations[index :: len(records)])
            self._validation[record.number]["latency"] = timed["latency"]

    def _finalists(self) -> list[Record]:
        """Returns the front's most promising records, at most as planned."""
        front = [r for r in self.archive.front() if r.number != 0 and not self._is_original(r)]
        front = self.archive.most_promising(front)
        order = self.search.beliefs.about(front).order()
        return [front[i] for i in order[: self._plan.num_finalists]]

    # Runs ---------------------------------------------------------------------------------

    def _evaluate_leaves(self, runs: Sequence[LeafRun]) -> list[Outcome]:
        tasks = [self._task(run) for run in runs]
        # The very first run goes alone: a broken metric or program costs one run, not a batch.
        alone = 0 if self._num_runs else 1
        evaluations = [
            *self._run(tasks[:alone], self._runner),
            *self._run(tasks[alone:], self._runner),
        ]
        for run, task, evaluation in zip(runs, tasks, evaluations, strict=True):
            self._learn(run, task, evaluation)
        return [_outcome(evaluation) for evaluation in evaluations]

    def _run(self, tasks: Sequence[Task], runner: Runner) -> Sequence[Evaluation]:
        evaluations = runner(tasks)
        self._num_runs += len(tasks)
        self._num_replayed += sum(evaluation.replayed for evaluation in evaluations)
        for evaluation in evaluations:
            self._calls.add(evaluation)
        self._phases[self._phase] = self._phases.get(self._phase, 0) + len(tasks)
        return evaluations

    def _task(self, run: LeafRun) -> Task:
        example = self._split.train[run.example]
        recipe = self._table.recipe(run.config).for_example(example.id)
        return Task(recipe, example, run.replicate)

    def _learn(self, run: LeafRun, task: Task, evaluation: Evaluation) -> None:
        score = evaluation.score or Score(self.archive.failure_score, evaluation.error or "")
        trace = Trace(calls=evaluation.calls, error=evaluation.error)
        self._evidence.add(Run(task.recipe, task.example, trace, score))

    def _refresh(self) -> Mapping[str, int]:
        self._table, counts = self._table.evolved(self._evidence.runs(), self._cog_context)
        return counts

    # Results ------------------------------------------------------------------------------

    def _comparisons(self) -> list[Comparison]:
        if 0 not in self._validation:
            return []
        return compare(
            {
                self._name(r): self._validation[r.number]
                for r in self.archive.judged()
                if r.number in self._validation and r.number != 0
            },
            self._validation[0],
            self.archive.objectives,
            seed=self._seed,
        )

    def _candidate(self, record: Record, *, pareto: bool) -> Candidate:
        series: Series = {o: self.archive.series(record, o) for o in OBJECTIVES}
        validation = self._validation.get(record.number, {})
        return Candidate(
            name=self._name(record),
            config={
                name: self._table.label(name, option) for name, option in record.config.items()
            },
            recipe=self._recipe(record).bind(self._program.workflow),
            train=_estimates(series, self._seed),
            validation=_estimates(validation, self._seed),
            pareto=pareto,
            layer_path=record.arm,
            num_failed=record.num_failed,
        )

    def _series(self, evaluations: Sequence[Evaluation]) -> Series:
        record = Record(-1, {}, outcomes=[_outcome(evaluation) for evaluation in evaluations])
        return {o: self.archive.series(record, o) for o in OBJECTIVES}

    def _recipe(self, record: Record) -> Recipe:
        return self._table.recipe(record.config)

    def _name(self, record: Record) -> str:
        return "original" if record.number == 0 else f"trial {record.number}"

    def _is_original(self, record: Record) -> bool:
        return self._recipe(record).is_empty

    def _has_baseline(self, error: AdaseekError) -> bool:
        """Returns whether the original was evaluated before `error` ended the run.

        It was not if the program's own code failed on every example: with few examples that takes
        more configs than the original to be noticed.
        """
        if not self.archive.records or self.archive.original.state != "complete":
            return False
        failed = self.archive.original.num_failed == len(self.archive.original.outcomes)
        return not (failed and isinstance(error, TooManyErrorsError))

    def _validation_examples(self) -> Sequence[Example]:
        return self._split.val[: self._plan.num_val]

    # Events -------------------------------------------------------------------------------

    def _begin(self, phase: events.Phase, num_runs: int) -> None:
        self._phase = phase
        self._tell(events.PhaseStarted(phase, num_runs))

    def _tell(self, event: events.Event) -> None:
        if not isinstance(event, events.Progress):
            self._events.add(event, num_runs=self._num_runs)
        for listener in self._listeners:
            listener(event)


@dataclass
class _CallCount:
    total: int = 0
    memo: int = 0

    def add(self, evaluation: Evaluation) -> None:
        requests = [call for call in evaluation.calls if call.kind == "lm"]
        self.total += len(requests)
        self.memo += len(requests) if evaluation.replayed else sum(c.cached for c in requests)


def _outcome(evaluation: Evaluation) -> Outcome:
    quality = None if evaluation.score is None else evaluation.score.value
    return Outcome(quality, evaluation.usage.cost_usd, evaluation.latency_s)


def _estimates(series: Mapping[str, NDArray[np.float64]], seed: int) -> dict[str, Estimate]:
    """Returns an estimate of every objective whose values are all known."""
    known = {o: v for o, v in series.items() if len(v) and np.isfinite(v).all()}
    return {objective: mean_interval(values, seed=seed) for objective, values in known.items()}


def _stratum(example: Example) -> str:
    """Returns what examples are balanced by: short labels, such as classes."""
    text = json.dumps(example.labels, sort_keys=True, default=str)
    return text if len(text) <= 60 else ""


def _reason(error: AdaseekError) -> str:
    return f"{type(error).__name__.removesuffix('Error')}: {error}"
