"""Order, replay, threads, failures and the end of a batch of runs."""

from __future__ import annotations

import contextvars
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from adaseek.errors import (
    BudgetExhaustedError,
    ConfigurationError,
    EndpointError,
    MetricError,
    RunInterrupted,
    TooManyErrorsError,
)
from adaseek.evaluation.base import Evaluation, RunContext, Task
from adaseek.evaluation.journal import Journal
from adaseek.evaluation.limits import Ledger, Limits
from adaseek.evaluation.retry import Retry
from adaseek.evaluation.runner import Runner
from adaseek.events import Event, Progress
from adaseek.recipe import Recipe
from adaseek.workflow import Example, Score, Trace
from scripted_runs import QUICK, answer, failed, metric

MakeTask = Callable[..., Task]


class Program:
    """Counts its runs; `failures` maps an example id to the traces that its first runs give."""

    def __init__(self, failures: dict[str, list[Trace]] | None = None, delay_s: float = 0.0):
        self.runs: Counter[str] = Counter()
        self.failures = {key: list(value) for key, value in (failures or {}).items()}
        self.delay_s = delay_s
        self.lock = threading.Lock()
        self.in_flight = 0
        self.most_in_flight = 0

    def __call__(self, recipe: Recipe, example: Example, context: RunContext) -> Trace:
        with self.lock:
            self.runs[example.id] += 1
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            planned = self.failures.get(example.id)
            failure = planned.pop(0) if planned else None
        time.sleep(self.delay_s)
        with self.lock:
            self.in_flight -= 1
        return failure or answer(recipe, example, context)


def test_results_come_in_task_order_for_any_number_of_threads(
    tmp_path: Path, task: MakeTask
) -> None:
    def slow_first(recipe: Recipe, example: Example, context: RunContext) -> Trace:
        time.sleep(0.02 if example.id.endswith("0") else 0.0)
        return answer(recipe, example, context)

    seen: list[list[Evaluation]] = []
    orders: list[list[str]] = []
    tasks = [task(i, recipe) for recipe in range(3) for i in range(10)]
    for num_threads in (1, 2, 8):
        with (
            Journal.open(tmp_path / f"{num_threads}.db", identity={}) as journal,
            Runner(run=slow_first, metric=metric, journal=journal, num_threads=num_threads) as run,
        ):
            results = [*run(tasks[:8]), *run(tasks[8:])]
            assert [e.task_key for e in results] == [t.key for t in tasks]
            seen.append(results)
            orders.append([e.task_key for e in journal.evaluations()])
    assert seen[0] == seen[1] == seen[2]
    assert orders[0] == orders[1] == orders[2] == [t.key for t in tasks]


def test_runners_that_share_a_ledger_share_one_order_and_one_cap(
    journal: Journal, task: MakeTask
) -> None:
    ledger = Ledger(Limits(max_runs=5))
    first = Runner(run=answer, metric=metric, journal=journal, ledger=ledger)
    second = Runner(run=answer, metric=metric, journal=journal, ledger=ledger)
    first([task(5), task(4)])
    second([task(3), task(2)])
    first([task(5), task(1)])
    assert [e.task_key for e in journal.evaluations()] == [task(i).key for i in (5, 4, 3, 2, 1)]
    with pytest.raises(BudgetExhaustedError, match="max_runs"):
        second([task(0)])


def test_journalled_tasks_are_replayed_without_running(journal: Journal, task: MakeTask) -> None:
    program = Program()
    first = Runner(run=program, metric=metric, journal=journal)([task(1), task(2)])
    again = Runner(run=program, metric=metric, journal=journal)([task(2), task(1), task(3)])
    assert program.runs == {"example-1": 1, "example-2": 1, "example-3": 1}
    assert [e.replayed for e in first] == [False, False]
    assert [e.replayed for e in again] == [True, True, False]
    assert replace(again[0], replayed=False) == first[1]


def test_a_task_that_occurs_twice_in_a_batch_runs_once(journal: Journal, task: MakeTask) -> None:
    program = Program()
    with Runner(run=program, metric=metric, journal=journal) as runner:
        results = runner([task(1), task(2), task(1)])
    assert program.runs == {"example-1": 1, "example-2": 1}
    assert results[0] == results[2]


def test_replicate_reaches_the_run(journal: Journal, task: MakeTask) -> None:
    with Runner(run=answer, metric=metric, journal=journal) as runner:
        results = runner([task(1, replicate=0), task(1, replicate=3)])
    assert [e.calls[0].id for e in results] == ["c0", "c3"]


def test_threads_are_named_kept_and_see_the_callers_context(
    journal: Journal, task: MakeTask
) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    names: set[str] = set()
    values: set[str] = set()

    def look(recipe: Recipe, example: Example, context: RunContext) -> Trace:
        names.add(threading.current_thread().name)
        values.add(variable.get())
        return answer(recipe, example, context)

    variable.set("set by the caller")
    with Runner(run=look, metric=metric, journal=journal, num_threads=2) as runner:
        runner([task(i) for i in range(5)])
        runner([task(i) for i in range(5, 10)])
    assert values == {"set by the caller"}
    assert names <= {"adaseek-run-0", "adaseek-run-1"}


def test_unusable_answers_are_failed_evaluations_that_do_not_count(
    journal: Journal, task: MakeTask
) -> None:
    program = Program({f"example-{i}": [failed("model", "no JSON")] for i in range(5)})
    with Runner(run=program, metric=metric, journal=journal, max_errors=0) as runner:
        results = runner([task(i) for i in range(5)])
    assert [(e.score, e.error, e.error_kind) for e in results] == [(None, "no JSON", "model")] * 5


def test_more_program_errors_than_allowed_end_the_run_and_are_done_anew(
    journal: Journal, task: MakeTask
) -> None:
    failures = {f"example-{i}": [failed("program", f"KeyError: {i % 2}")] for i in range(6)}
    program = Program(failures)
    tasks = [task(i) for i in range(8)]
    runner = Runner(run=program, metric=metric, journal=journal, max_errors=5, num_threads=1)
    with pytest.raises(TooManyErrorsError) as caught:
        runner(tasks)
    assert "6 workflow runs failed" in str(caught.value)
    assert "3 x KeyError: 0" in str(caught.value)
    with Runner(run=program, metric=metric, journal=journal, max_errors=0) as runner:
        assert all(e.score == Score(1.0) for e in runner(tasks))
    assert journal.paid().cost_usd == pytest.approx(8 * 0.01 + 6 * 0.001)


def test_as_many_program_errors_as_allowed_do_not_end_the_run(
    journal: Journal, task: MakeTask
) -> None:
    program = Program({f"example-{i}": [failed("program")] for i in range(3)})
    with Runner(run=program, metric=metric, journal=journal, max_errors=3) as runner:
        results = runner([task(i) for i in range(5)])
    assert [e.error_kind for e in results] == ["program"] * 3 + [None] * 2


def test_endpoint_errors_are_tried_again_and_their_cost_is_paid(
    journal: Journal, task: MakeTask
) -> None:
    program = Program({"example-1": [failed("endpoint"), failed("endpoint")]})
    ledger = Ledger()
    with Runner(run=program, metric=metric, journal=journal, retry=QUICK, ledger=ledger) as runner:
        (result,) = runner([task(1)])
    assert program.runs == {"example-1": 3}
    assert result.score == Score(1.0)
    assert result.usage.cost_usd == pytest.approx(0.01)
    assert result.paid.cost_usd == pytest.approx(0.012)
    assert ledger.paid.cost_usd == pytest.approx(0.012)


def test_dead_endpoint_ends_the_run_and_is_no_outcome(journal: Journal, task: MakeTask) -> None:
    program = Program({"example-3": [failed("endpoint", "connection refused")] * 3})
    tasks = [task(i) for i in range(6)]
    runner = Runner(run=program, metric=metric, journal=journal, retry=QUICK, num_threads=1)
    with pytest.raises(EndpointError, match=r"3 times on example example-3: connection refused"):
        runner(tasks)
    assert journal.find(tasks[3].key) is None
    finished = journal.count()
    assert finished >= 3
    with Runner(run=program, metric=metric, journal=journal, retry=QUICK) as runner:
        results = runner(tasks)
    assert sum(e.replayed for e in results) == finished
    assert all(e.score == Score(1.0) for e in results)


def test_metric_that_raises_ends_the_run_naming_the_example(
    journal: Journal, task: MakeTask
) -> None:
    def broken(example: Example, trace: Trace) -> float:
        if example.id == "example-2":
            raise KeyError("label")
        return 1.0

    program = Program()
    ledger = Ledger()
    runner = Runner(run=program, metric=broken, journal=journal, ledger=ledger)
    with pytest.raises(MetricError, match=r"`broken` raised KeyError on example example-2"):
        runner([task(i) for i in range(4)])
    assert journal.find(task(2).key) is None
    assert journal.paid().cost_usd == pytest.approx(0.01 * sum(program.runs.values()))
    assert ledger.paid.cost_usd == pytest.approx(journal.paid().cost_usd)


def test_adapter_that_raises_is_not_hidden(journal: Journal, task: MakeTask) -> None:
    def broken(recipe: Recipe, example: Example, context: RunContext) -> Trace:
        raise ZeroDivisionError("a bug of the adapter")

    with pytest.raises(ZeroDivisionError, match="bug of the adapter"):
        Runner(run=broken, metric=metric, journal=journal)([task(1)])


def test_stop_finishes_what_is_in_flight_and_starts_nothing(
    journal: Journal, task: MakeTask
) -> None:
    stop = threading.Event()

    def run(recipe: Recipe, example: Example, context: RunContext) -> Trace:
        stop.set()
        time.sleep(0.3)
        return answer(recipe, example, context)

    runner = Runner(run=run, metric=metric, journal=journal, num_threads=2, stop=stop)
    with pytest.raises(RunInterrupted, match="Start the run again"):
        runner([task(i) for i in range(20)])
    assert 1 <= journal.count() <= 2
    with pytest.raises(RunInterrupted):
        runner([task(0)])


def test_keyboard_interrupt_becomes_an_orderly_end(journal: Journal, task: MakeTask) -> None:
    def run(recipe: Recipe, example: Example, context: RunContext) -> Trace:
        if example.id == "example-0":
            raise KeyboardInterrupt
        time.sleep(0.2)
        return answer(recipe, example, context)

    runner = Runner(run=run, metric=metric, journal=journal, num_threads=2)
    with pytest.raises(RunInterrupted):
        runner([task(i) for i in range(20)])
    assert journal.count() <= 2


def test_run_that_outlasts_the_grace_time_is_given_up(journal: Journal, task: MakeTask) -> None:
    release = threading.Event()
    stop = threading.Event()

    def run(recipe: Recipe, example: Example, context: RunContext) -> Trace:
        stop.set()
        release.wait(30)
        return answer(recipe, example, context)

    runner = Runner(run=run, metric=metric, journal=journal, stop=stop, grace_s=0.1)
    with pytest.raises(RunInterrupted, match="1 in flight were given up"):
        runner([task(1)])
    release.set()


def test_run_that_hangs_ends_the_tuning_naming_it(journal: Journal, task: MakeTask) -> None:
    release = threading.Event()

    def run(recipe: Recipe, example: Example, context: RunContext) -> Trace:
        if example.id == "example-1":
            release.wait(30)
        return answer(recipe, example, context)

    context = RunContext(timeout_s=0.05)
    runner = Runner(run=run, metric=metric, journal=journal, context=context, grace_s=0.2)
    with pytest.raises(EndpointError, match=r"example-1/0 has not come back .*`timeout_s` is 0.05"):
        runner([task(i) for i in range(3)])
    assert journal.find(task(0).key) is not None
    release.set()


def test_waiting_retries_end_at_once_on_a_stop(journal: Journal, task: MakeTask) -> None:
    stop = threading.Event()

    def run(recipe: Recipe, example: Example, context: RunContext) -> Trace:
        stop.set()
        return failed("endpoint", "Retry-After: 200")

    runner = Runner(run=run, metric=metric, journal=journal, stop=stop, retry=Retry(tries=2))
    with pytest.raises(RunInterrupted) as caught:
        runner([task(1)])
    assert "given up" not in str(caught.value)
    assert journal.paid().cost_usd == pytest.approx(0.001)


def test_listener_hears_of_every_run_in_the_callers_thread(
    journal: Journal, task: MakeTask
) -> None:
    heard: list[Event] = []
    threads: set[threading.Thread] = set()

    def listen(event: Event) -> None:
        heard.append(event)
        threads.add(threading.current_thread())

    Runner(run=answer, metric=metric, journal=journal)([task(1)])
    with Runner(run=answer, metric=metric, journal=journal, listener=listen) as runner:
        runner([task(1), task(2), task(3)])
    # Three runs are reserved from the start; told is what has ended.
    assert [(e.num_runs, e.num_replayed) for e in heard if isinstance(e, Progress)] == [
        (1, 1),
        (2, 1),
        (3, 1),
    ]
    assert threads == {threading.current_thread()}


def test_numbers_out_of_range_are_refused(journal: Journal) -> None:
    with pytest.raises(ConfigurationError, match="num_threads"):
        Runner(run=answer, metric=metric, journal=journal, num_threads=0)
    with pytest.raises(ConfigurationError, match="max_errors"):
        Runner(run=answer, metric=metric, journal=journal, max_errors=-1)
