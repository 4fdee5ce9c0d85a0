"""Runs workflows on examples: in threads, each outcome journalled before it is used."""

from __future__ import annotations

import contextvars
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from adaseek.errors import (
    EndpointError,
    MetricError,
    RunInterrupted,
    TooManyErrorsError,
    require,
)
from adaseek.evaluation.base import Evaluation, Metric, RunContext, Task
from adaseek.evaluation.journal import Journal
from adaseek.evaluation.limits import Ledger
from adaseek.evaluation.retry import Retry, retry_after_s
from adaseek.evaluation.scoring import score_run
from adaseek.evaluation.workers import WorkerPool
from adaseek.events import Event, Progress
from adaseek.recipe import Recipe
from adaseek.workflow import Example, Score, Trace, Usage

__all__ = ["Runner"]

RunWorkflow = Callable[[Recipe, Example, RunContext], Trace]
"""An adapter's `adaseek_run`, bound to the user's program and its workflow."""

_POLL_S = 0.1
_MAX_SHOWN_ERRORS = 3
_HANGS_AFTER = 2.0
"""A run that takes this many times its `timeout_s`, plus the grace time, is said to hang."""


class Runner:
    """Does tasks and returns their evaluations in task order; the `Evaluator` of a tuning run.

    A journalled task is not run again. A new one goes to a thread, is scored and journalled there,
    and only then handed out. Call it from one thread at a time; close it after use.
    """

    def __init__(
        self,
        *,
        run: RunWorkflow,
        metric: Metric,
        journal: Journal,
        ledger: Ledger | None = None,
        context: RunContext | None = None,
        num_threads: int = 8,
        max_errors: int = 10,
        retry: Retry | None = None,
        listener: Callable[[Event], None] | None = None,
        stop: threading.Event | None = None,
        grace_s: float = 30.0,
    ) -> None:
        """Makes a runner; threads start with the first new task.

        Args:
            run: runs the user's program under a recipe on an example.
            metric: scores a run.
            journal: where outcomes are kept; often also the context's memo.
            ledger: keeps the caps; None: no caps.
            context: what every run may use; its replicate is set per task.
            num_threads: runs at once.
            max_errors: failures of the user's program to accept; one more ends the run.
            retry: how a run that failed at the endpoint is tried again.
            listener: is told the progress, in the caller's thread.
            stop: ends the run when set, see `graceful_signals`.
            grace_s: how long an ending run waits for what is in flight.

        Raises:
            ConfigurationError: if a number is out of range.
        """
        require(num_threads >= 1, "num_threads", num_threads, "must be >= 1")
        require(max_errors >= 0, "max_errors", max_errors, "must be >= 0")
        self._run = run
        self._metric = metric
        self._journal = journal
        self._ledger = ledger or Ledger()
        self._context = context or RunContext()
        self._max_errors = max_errors
        self._retry = retry or Retry()
        self._listener = listener
        self._stop = stop or threading.Event()
        self._grace_s = grace_s
        self._pool = WorkerPool(num_threads, name="adaseek-run")
        self._errors: Counter[str] = Counter()
        self._order: dict[str, int] = {}

    def __call__(self, tasks: Sequence[Task]) -> list[Evaluation]:
        """Returns one evaluation per task, in the order of the tasks.

        Raises:
            BudgetExhaustedError: if the ledger refuses the tasks, or a cap is reached half-way.
            EndpointError: if a run failed at the endpoint on every try.
            MetricError: if the metric raised or returned no score.
            TooManyErrorsError: if more than `max_errors` runs of the user's program failed.
            RunInterrupted: if the run was asked to end.
        """
        if self._stop.is_set():
            raise RunInterrupted(self._interrupted_message(0))
        keys = [task.key for task in tasks]
        batch = dict(zip(keys, tasks, strict=True))
        fresh = [key for key in batch if key not in self._order]
        # The place of a run in the journal is its place in the search, whichever ends first.
        first = self._ledger.reserve(len(fresh))
        self._order.update((key, first + i) for i, key in enumerate(fresh))
        done = self._journal.find_all(list(batch))
        try:
            self._accept_replayed([done[key] for key in fresh if key in done])
            self._run_new({key: batch[key] for key in batch if key not in done}, done)
        except BaseException as error:
            self._give_back([key for key in fresh if key not in done])
            if isinstance(error, TooManyErrorsError):
                # They would be replayed for ever, also after the program has been corrected.
                self._journal.forget("program")
            raise
        return [done[key] for key in keys]

    def close(self) -> None:
        """Lets the threads end."""
        self._pool.close()

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _accept_replayed(self, evaluations: Sequence[Evaluation]) -> None:
        for evaluation in evaluations:
            self._ledger.observe(evaluation.usage, replayed=True)
            self._ledger.finish()
            self._count_error(evaluation)
        if evaluations:
            self._report()

    def _run_new(self, tasks: dict[str, Task], done: dict[str, Evaluation]) -> None:
        keys = list(tasks)
        waves = [keys[:1], keys[1:]] if self._ledger.needs_sample else [keys]
        for wave in waves:
            self._ledger.afford(len(wave))
            self._run_wave({key: tasks[key] for key in wave}, done)
            for key in wave:
                self._ledger.observe(done[key].usage)

    def _give_back(self, keys: Sequence[str]) -> None:
        self._ledger.release(len(keys))
        for key in keys:
            del self._order[key]

    def _run_wave(self, tasks: dict[str, Task], done: dict[str, Evaluation]) -> None:
        wave = _Wave(num_open=len(tasks))
        for key, task in tasks.items():
            self._pool.submit(self._job(key, task, wave))
        try:
            while wave.num_open:
                self._take(wave, done, timeout_s=_POLL_S)
                self._check_overdue(wave)
                if self._stop.is_set():
                    raise RunInterrupted
        except (KeyboardInterrupt, RunInterrupted):
            self._drain(wave, done)
            raise RunInterrupted(self._interrupted_message(wave.num_open)) from None
        except BaseException:
            self._drain(wave, done)
            raise

    def _job(self, key: str, task: Task, wave: _Wave) -> Callable[[], None]:
        # A context of its own for each job: one cannot be entered by two threads at once.
        context = contextvars.copy_context()

        def work() -> None:
            if wave.ending.is_set() or self._stop.is_set():
                wave.results.put((key, None))
                return
            # Whatever ends a run in its thread is handed to the caller's thread, and raised there.
            try:
                wave.results.put((key, context.run(self._evaluate, key, task, wave)))
            except BaseException as error:
                wave.ending.set()
                wave.results.put((key, error))

        return work

    def _evaluate(self, key: str, task: Task, wave: _Wave) -> Evaluation | None:
        self._ledger.check()
        context = replace(self._context, replicate=task.replicate)
        paid = Usage()
        attempt = 1
        while True:
            wave.running[key] = time.monotonic()
            trace = self._run(task.recipe, task.example, context)
            del wave.running[key]
            paid += _paid(trace)
            if trace.error_kind != "endpoint":
                return self._journalled(key, task, trace, paid)
            if attempt == self._retry.tries:
                self._lose(key, paid)
                raise EndpointError(self._endpoint_message(task, trace))
            hint_s = retry_after_s(trace.error or "")
            if wave.ending.wait(self._retry.pause_s(attempt, seed=key, hint_s=hint_s)):
                self._lose(key, paid)
                return None
            attempt += 1

    def _journalled(self, key: str, task: Task, trace: Trace, paid: Usage) -> Evaluation:
        score: Score | None = None
        if trace.error is None:
            try:
                score = score_run(self._metric, task.example, trace)
            except MetricError:
                self._lose(key, paid)
                raise
        evaluation = Evaluation(
            task_key=key,
            score=score,
            usage=trace.usage,
            paid=paid,
            latency_s=trace.latency_s,
            error=trace.error,
            error_kind=None if trace.error is None else trace.error_kind or "program",
            calls=trace.calls,
        )
        journalled = self._journal.record(evaluation, task, sequence=self._order[key])
        self._ledger.spend(paid)
        return journalled

    def _lose(self, key: str, paid: Usage) -> None:
        self._journal.expense(key, paid)
        self._ledger.spend(paid)

    def _take(self, wave: _Wave, done: dict[str, Evaluation], *, timeout_s: float) -> None:
        try:
            key, outcome = wave.results.get(timeout=timeout_s)
        except queue.Empty:
            return
        wave.num_open -= 1
        if isinstance(outcome, BaseException):
            raise outcome
        if outcome is not None:
            done[key] = outcome
            self._ledger.finish()
            self._count_error(outcome)
            self._report()

    def _check_overdue(self, wave: _Wave) -> None:
        # An adapter ends a run between its requests. One that hangs inside a request cannot be
        # ended from outside, but the user must hear of it.
        limit_s = self._context.timeout_s
        if limit_s is None:
            return
        now_s = time.monotonic()
        for key, started_s in tuple(wave.running.items()):
            if now_s - started_s > _HANGS_AFTER * limit_s + self._grace_s:
                raise EndpointError(
                    f"The workflow run {key} has not come back {now_s - started_s:.0f} s after it "
                    f"began, though `timeout_s` is {limit_s:g}: a model server or tool hangs. See "
                    "to it, give its client a timeout, and start the run again: it goes on from "
                    f"the {self._journal.count()} workflow runs that are journalled."
                )

    def _drain(self, wave: _Wave, done: dict[str, Evaluation]) -> None:
        """Starts nothing more, and waits up to the grace time for what is in flight."""
        wave.ending.set()
        until_s = time.monotonic() + self._grace_s
        while wave.num_open and (rest_s := until_s - time.monotonic()) > 0:
            try:
                key, outcome = wave.results.get(timeout=rest_s)
            except queue.Empty:
                return
            wave.num_open -= 1
            if isinstance(outcome, Evaluation):
                done[key] = outcome

    def _count_error(self, evaluation: Evaluation) -> None:
        if evaluation.error_kind != "program":
            return
        self._errors[evaluation.error or ""] += 1
        num_errors = self._errors.total()
        if num_errors <= self._max_errors:
            return
        shown = self._errors.most_common(_MAX_SHOWN_ERRORS)
        lines = "\n".join(f"  {count} x {text}" for text, count in shown)
        raise TooManyErrorsError(
            f"{num_errors} workflow runs failed in the program's own code, more than `max_errors` "
            f"({self._max_errors}) allows; {len(self._errors)} different errors, most often:\n"
            f"{lines}\nCorrect the program, or raise `max_errors`, and start the run again: it "
            "goes on from what is journalled, and does the failed runs anew."
        )

    def _endpoint_message(self, task: Task, trace: Trace) -> str:
        return (
            f"The endpoint failed {self._retry.tries} times on example {task.example.id}: "
            f"{trace.error}. See to the model server, then start the run again: it goes on from "
            f"the {self._journal.count()} workflow runs that are journalled."
        )

    def _interrupted_message(self, num_lost: int) -> str:
        lost = f", {num_lost} in flight were given up" if num_lost else ""
        return (
            f"Interrupted: {self._journal.count()} workflow runs are journalled{lost}. "
            "Start the run again with the same settings to go on."
        )

    def _report(self) -> None:
        if self._listener is not None:
            ledger = self._ledger
            paid = ledger.paid.cost_usd
            self._listener(Progress(ledger.num_finished, ledger.num_replayed, paid))


@dataclass
class _Wave:
    """The tasks that are being run now.

    Attributes:
        num_open: tasks whose outcome has not been taken yet.
        ending: set when no further task may start.
        results: outcomes as they come; None stands for a task that was not started.
        running: task key -> when its run under way began.
    """

    num_open: int
    ending: threading.Event = field(default_factory=threading.Event)
    results: queue.SimpleQueue[tuple[str, Evaluation | BaseException | None]] = field(
        default_factory=queue.SimpleQueue
    )
    running: dict[str, float] = field(default_factory=dict)


def _paid(trace: Trace) -> Usage:
    return Usage.total(c.usage for c in trace.calls if c.kind == "lm" and not c.cached)
