"""The tuner: checks everything before anything is spent, then runs, then says what was found."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal  # Any: programs, examples and models are the framework's own

import numpy as np
from numpy.typing import NDArray
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage

from adaseek._canonical import fingerprint
from adaseek.budget import SIZES, BudgetPlan, automatic_budget, plan_budget
from adaseek.cogs import known_cogs
from adaseek.cogs.base import Cog, CogContext
from adaseek.cogs.space import OptionTable, build_space
from adaseek.errors import ConfigurationError, choices, require
from adaseek.evaluation.base import Evaluation, RunContext, Task
from adaseek.evaluation.flights import SingleFlight
from adaseek.evaluation.gate import EndpointGate
from adaseek.evaluation.journal import Journal
from adaseek.evaluation.limits import Ledger, Limits
from adaseek.evaluation.pricing import PriceTable
from adaseek.evaluation.runner import Runner
from adaseek.evaluation.signals import graceful_signals
from adaseek.evaluation.statistics import mean_interval, paired_difference
from adaseek.events import Event
from adaseek.plugins import load_plugins
from adaseek.program import Program
from adaseek.progress import progress_listener
from adaseek.proposing import journalled_proposer, unused_proposer
from adaseek.recipe import Recipe
from adaseek.result import Heldout, TuningResult
from adaseek.search.adaseek import SearchSettings
from adaseek.search.base import OBJECTIVES, Constraint, Objective, Space, check_objectives
from adaseek.setup import (
    Setup,
    check_space,
    fresh_storage,
    open_folder,
    quiet_optuna,
    split_examples,
)
from adaseek.source import source_identity
from adaseek.tuning import Split, TuningRun

__all__ = ["Tuner"]

KEEP_QUALITY = (Constraint("quality", 1.0, relative=True),)
"""The default: what is recommended scores at least as well as the original."""


@dataclass(frozen=True)
class Tuner:
    """Tunes programs of any framework that an adapter translates. Immutable and reusable.

    Args:
        metric: the user's metric, in the framework's own form; higher is better.
        budget: workflow runs (one example through one config), validation and baseline included.
        auto: `light`, `medium` or `heavy` in place of `budget`; `light` if neither is given.
        models: the menu of models: the framework's objects, or `name@endpoint` texts.
        objectives: some of `quality`, `cost`, `latency`. None: all whose values can be known.
        constraints: bounds to keep. None: quality at least the original's.
        cogs: the tuning methods. None: the built-in ones and those of plugins.
        members: whether the copies of an ensemble are tuned together (`shared`) or apart.
        prices: model key or id -> {"input": USD per 1M tokens, "output": ...} or
            {"per_second": USD per engine-second}. Unknown prices stay unknown.
        proposer: the model that proposes instructions; None: instructions are not tuned.
        rewards: name -> reward function, for `best_of` ensembles.
        seed: the same seed and outcomes give the same run for any number of threads.
        run_dir: folder of journal, result, recipe and report; start again with the same folder
            to resume. None: a new folder in the user's state directory.
        journal: database URL in place of the SQLite file in `run_dir`.
        num_threads: workflow runs at once.
        concurrency: endpoint -> most requests at once.
        max_cost_usd, max_tokens, max_seconds: caps on what is really paid.
        max_errors: failures of the user's own code to accept.
        timeout_s: longest time for one workflow run.
        failure_score: quality of a run that failed.
        score_span: largest difference between two scores of the metric.
        sampler, storage: an Optuna sampler and storage in place of the own ones.
        plugins: more plugin objects, see `adaseek.hooks`.
        listeners: functions that are told the run's events.
        verbose: whether to show progress.
    """

    metric: Callable[..., Any]
    _: KW_ONLY
    budget: int | None = None
    auto: str | None = None
    models: Sequence[Any] = ()
    objectives: Sequence[str] | None = None
    constraints: Sequence[Constraint] | None = None
    cogs: Sequence[Cog] | None = None
    members: Literal["shared", "separate"] = "shared"
    prices: Mapping[str, Mapping[str, float]] | None = None
    proposer: Any = None
    rewards: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    seed: int = 0
    run_dir: str | os.PathLike[str] | None = None
    journal: str | None = None
    num_threads: int = 8
    concurrency: Mapping[str, int] | None = None
    max_cost_usd: float | None = None
    max_tokens: int | None = None
    max_seconds: float | None = None
    max_errors: int = 10
    timeout_s: float | None = None
    failure_score: float = 0.0
    score_span: float = 1.0
    sampler: BaseSampler | None = None
    storage: BaseStorage | None = None
    plugins: Sequence[object] = ()
    listeners: Sequence[Callable[[Event], None]] = ()
    verbose: bool = True

    def __post_init__(self) -> None:
        require(callable(self.metric), "metric", self.metric, "must be callable")
        require(
            self.budget is None or self.auto is None,
            "auto",
            self.auto,
            f"cannot be given together with budget={self.budget}",
            cure="Give one of them.",
        )
        if self.auto is not None:
            require(self.auto in SIZES, "auto", self.auto, f"must be one of {choices(SIZES)}")
        if self.budget is not None:
            whole = isinstance(self.budget, int) and self.budget > 0
            require(whole, "budget", self.budget, "must be a whole number above 0")
        if self.objectives is not None:
            check_objectives(self.objectives)
        require(self.num_threads >= 1, "num_threads", self.num_threads, "must be >= 1")
        require(self.score_span > 0, "score_span", self.score_span, "must be above 0")
        PriceTable.parse(self.prices or {})
        self._limits(None)

    def replaced(self, **changes: Any) -> Tuner:
        """Returns a copy with some arguments changed, checked like new ones."""
        return replace(self, **changes)

    def tune(
        self, program: Any, *, trainset: Sequence[Any], valset: Sequence[Any] | None = None
    ) -> TuningResult:
        """Returns what was found for `program`, which is never changed.

        Args:
            program: the user's own object.
            trainset: examples that the search may look at.
            valset: examples for the final comparison only; None: half of `trainset` is kept
                aside for it.

        Raises:
            AdaseekError: before anything is spent if a setting, an example, a model or the
                program cannot be used; later only if not even the original could be evaluated.
                Whatever was paid for is in the journal.
        """
        with ExitStack() as resources:
            return self._tune(program, trainset, valset, resources)

    def evaluate(self, program: Any, recipe: Recipe, examples: Sequence[Any]) -> Heldout:
        """Returns how `recipe` does on `examples` beside the unchanged program.

        Latency is that of the runs as they were made, up to `num_threads` at once.
        """
        with ExitStack() as resources:
            setup = self._set_up(program, resources)
            recipe.check(setup.program.workflow)
            recipe.check_rewards(self.rewards)
            wanted = setup.program.examples("examples", examples)
            require(bool(wanted), "examples", examples, "must hold at least one example")
            setup.program.check_models(self.models)
            folder = Path(resources.enter_context(TemporaryDirectory(prefix="adaseek-")))
            journal = self._open_journal(setup, folder, resources)
            runner = self._runner(setup, journal, Ledger(self._limits(None)), resources)
            tasks = [Task(Recipe(), e) for e in wanted]
            tasks += [Task(recipe.for_example(e.id), e) for e in wanted]
            series = self._series(runner(tasks))
        original = {o: values[: len(wanted)] for o, values in series.items()}
        tuned = {o: values[len(wanted) :] for o, values in series.items()}
        return Heldout(
            {o: mean_interval(v, seed=self.seed) for o, v in original.items()},
            {o: mean_interval(v, seed=self.seed) for o, v in tuned.items()},
            {o: paired_difference(tuned[o], v, seed=self.seed) for o, v in original.items()},
        )

    # One run ------------------------------------------------------------------------------

    def _tune(
        self,
        program: Any,
        trainset: Sequence[Any],
        valset: Sequence[Any] | None,
        resources: ExitStack,
    ) -> TuningResult:
        started = time.monotonic()
        resources.enter_context(quiet_optuna())
        setup = self._set_up(program, resources)
        split = split_examples(setup.program, trainset, valset, seed=self.seed)
        planned = self._planned(setup, split)
        setup.program.check_models(self.models)
        folder = open_folder(self.run_dir)
        run = self._tuning_run(setup, split, planned, folder, resources)
        run.run()
        result = run.result(run_dir=str(folder), seconds=time.monotonic() - started)
        result.save(folder)
        result.recipe.save(folder / "recipe.json")
        return result

    def _planned(self, setup: Setup, split: Split) -> _Planned:
        """Returns what a run on `split` will search and how; nothing is spent or written yet."""
        objectives = self._objectives(setup)
        self._limits(None).check_prices(setup.all_models, setup.price)
        context = CogContext(
            setup.program.workflow,
            models=setup.menu.references,
            train=split.train,
            seed=self.seed,
            rewards=self.rewards,
            proposer=None if self.proposer is None else unused_proposer,
        )
        space, table = build_space(
            setup.program.workflow, self._cogs(setup), context, members=self.members
        )
        check_space(space, table)
        sizes = (len(split.train), len(split.val))
        times_latency = "latency" in objectives
        budget = self.budget or automatic_budget(
            self.auto or "light", space, *sizes, times_latency=times_latency
        )
        plan = plan_budget(budget, *sizes, times_latency=times_latency)
        settings = SearchSettings(
            plan.search,
            plan.num_train,
            objectives,
            KEEP_QUALITY if self.constraints is None else self.constraints,
            failure_score=self.failure_score,
            score_span=self.score_span,
        )
        return _Planned(context, space, table, plan, settings)

    def _tuning_run(
        self, setup: Setup, split: Split, planned: _Planned, folder: Path, resources: ExitStack
    ) -> TuningRun:
        journal = self._open_journal(setup, folder, resources)
        ledger = Ledger(self._limits(planned.plan.total), paid=journal.paid())
        listen = resources.enter_context(progress_listener(enabled=self.verbose))
        listeners = (listen, *self.listeners, lambda e: setup.hooks.hook.adaseek_event(event=e))
        proposer = (
            None
            if self.proposer is None
            else journalled_proposer(self.proposer, setup, journal, ledger)
        )
        return TuningRun(
            program=setup.program,
            split=split,
            space=planned.space,
            table=planned.table,
            cog_context=replace(planned.context, proposer=proposer),
            plan=planned.plan,
            settings=planned.settings,
            runner=self._runner(setup, journal, ledger, resources, listeners),
            timer=self._runner(setup, journal, ledger, resources, listeners, alone=True),
            paid=lambda: ledger.paid,
            sampler=self.sampler,
            storage=self.storage or fresh_storage(folder),
            seed=self.seed,
            listeners=listeners,
        )

    def _set_up(self, program: Any, resources: ExitStack) -> Setup:
        hooks = load_plugins(self.plugins)
        bound = Program(program, hooks)
        for step in bound.workflow.lm_steps():
            require(
                step.model is not None or step.dynamic,
                f"model of step {step.id}",
                None,
                "must be known before the run",
                cure="Configure the program's language model first.",
            )
        return Setup(
            hooks,
            bound,
            bound.menu(self.models),
            PriceTable.parse(self.prices or {}),
            resources.enter_context(graceful_signals()),
        )

    def _objectives(self, setup: Setup) -> tuple[Objective, ...]:
        unknown = [model.key for model in setup.all_models if not setup.knows_price(model)]
        if self.objectives is None:
            return tuple(o for o in OBJECTIVES if o != "cost" or not unknown)
        objectives = check_objectives(self.objectives)
        if "cost" in objectives and unknown:
            raise ConfigurationError(
                f"`objectives` is {tuple(self.objectives)!r}, but no price is known for "
                f"{choices(unknown)}. Give it in `prices`, or leave 'cost' out."
            )
        return objectives

    def _cogs(self, setup: Setup) -> tuple[Cog, ...]:
        return known_cogs(setup.hooks) if self.cogs is None else tuple(self.cogs)

    def _limits(self, budget: int | None) -> Limits:
        return Limits(budget, self.max_cost_usd, self.max_tokens, self.max_seconds)

    def _open_journal(self, setup: Setup, folder: Path, resources: ExitStack) -> Journal:
        models = [model.key for model in setup.program.step_models]
        identity: dict[str, Any] = {
            "workflow": setup.program.workflow.fingerprint,
            "models": models,
            "program": source_identity(type(setup.program.obj)),
            "metric": source_identity(self.metric),
        }
        if self.rewards:
            rewards = {name: source_identity(reward) for name, reward in self.rewards.items()}
            identity["rewards"] = rewards
        location = self.journal or folder / "journal.db"
        run_id = fingerprint(identity) if self.journal else "default"
        return resources.enter_context(Journal.open(location, identity=identity, run_id=run_id))

    def _runner(
        self,
        setup: Setup,
        journal: Journal,
        ledger: Ledger,
        resources: ExitStack,
        listeners: Sequence[Callable[[Event], None]] = (),
        *,
        alone: bool = False,
    ) -> Runner:
        def tell(event: Event) -> None:
            for listener in listeners:
                listener(event)

        context = RunContext(
            models=setup.menu.objects,
            rewards=self.rewards,
            memo=None if alone else journal,
            flights=SingleFlight(),
            timeout_s=self.timeout_s,
            price=setup.price,
            gate=EndpointGate(self.concurrency),
        )
        return resources.enter_context(
            Runner(
                run=setup.program.run,
                metric=setup.program.metric(self.metric),
                journal=journal,
                ledger=ledger,
                context=context,
                num_threads=1 if alone else self.num_threads,
                max_errors=self.max_errors,
                listener=tell,
                stop=setup.stop,
            )
        )

    def _series(self, evaluations: Sequence[Evaluation]) -> dict[str, NDArray[np.float64]]:
        """Returns objective -> values in order, for objectives known on every run."""
        failed = self.failure_score
        rows: dict[str, list[float | None]] = {
            "quality": [failed if e.score is None else e.score.value for e in evaluations],
            "cost": [e.usage.cost_usd for e in evaluations],
            "latency": [e.latency_s for e in evaluations],
        }
        return {
            name: np.asarray(values, dtype=np.float64)
            for name, values in rows.items()
            if None not in values
        }


@dataclass(frozen=True)
class _Planned:
    """What a run will search, and with what: all of it known before anything is spent."""

    context: CogContext
    space: Space
    table: OptionTable
    plan: BudgetPlan
    settings: SearchSettings
