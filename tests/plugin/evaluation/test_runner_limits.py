"""A runner keeps to its caps on runs and money, whatever fails and however many threads it has."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from adaseek.errors import BudgetExhaustedError, ConfigurationError, TooManyErrorsError
from adaseek.evaluation.base import RunContext, Task
from adaseek.evaluation.journal import Journal
from adaseek.evaluation.limits import Ledger, Limits
from adaseek.evaluation.runner import Runner
from adaseek.recipe import Recipe
from adaseek.workflow import Call, Example, Trace, Usage
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_runs import QUICK, answer, failed, metric

MakeTask = Callable[..., Task]

kinds = st.sampled_from(["ok", "ok", "model", "program", "endpoint"])


@given(
    max_runs=st.integers(1, 25),
    batches=st.lists(
        st.lists(st.tuples(st.integers(0, 12), kinds), min_size=1, max_size=8), max_size=6
    ),
    num_threads=st.sampled_from([1, 2, 8]),
)
@settings(max_examples=40, deadline=None)
def test_runs_never_exceed_the_cap_whatever_fails(
    max_runs: int, batches: Sequence[Sequence[tuple[int, str]]], num_threads: int
) -> None:
    plan = {f"example-{i}": kind for batch in batches for i, kind in batch}
    runs: Counter[str] = Counter()
    lock = threading.Lock()

    def run(recipe: Recipe, example: Example, context: RunContext) -> Trace:
        kind = plan[example.id]
        with lock:
            runs[example.id] += 1
            first = runs[example.id] == 1
        if kind == "ok" or (kind == "endpoint" and not first):
            return answer(recipe, example, context)
        return failed(kind)

    ledger = Ledger(Limits(max_runs=max_runs))
    with (
        Journal.open("sqlite://", identity={}) as journal,
        Runner(
            run=run,
            metric=metric,
            journal=journal,
            ledger=ledger,
            num_threads=num_threads,
            max_errors=3,
            retry=QUICK,
        ) as runner,
    ):
        for batch in batches:
            tasks = [Task(Recipe(), Example(f"example-{i}", {})) for i, _ in batch]
            try:
                results = runner(tasks)
            except (BudgetExhaustedError, TooManyErrorsError):
                break
            assert [e.task_key for e in results] == [t.key for t in tasks]
            assert all(journal.find(t.key) is not None for t in tasks)
        assert ledger.num_runs <= max_runs
        assert journal.count() <= max_runs
        assert sum(1 for _ in runs) <= max_runs
        assert ledger.paid.cost_usd == pytest.approx(journal.paid().cost_usd)


@given(
    costs=st.lists(st.floats(0.001, 1.0), min_size=1, max_size=40),
    cap=st.floats(0.01, 5.0),
    num_threads=st.sampled_from([1, 3, 8]),
    batch_size=st.integers(1, 12),
)
@settings(max_examples=40, deadline=None)
def test_money_overshoots_by_no_more_than_what_was_in_flight(
    costs: Sequence[float], cap: float, num_threads: int, batch_size: int
) -> None:
    def run(recipe: Recipe, example: Example, context: RunContext) -> Trace:
        usage = Usage(requests=1, cost_usd=costs[int(example.id)])
        return Trace((Call("c", "s", usage=usage),), output=example.id)

    ledger = Ledger(Limits(max_cost_usd=cap))
    tasks = [Task(Recipe(), Example(str(i), {})) for i in range(len(costs))]
    with (
        Journal.open("sqlite://", identity={}) as journal,
        Runner(
            run=run, metric=metric, journal=journal, ledger=ledger, num_threads=num_threads
        ) as runner,
    ):
        try:
            for start in range(0, len(tasks), batch_size):
                runner(tasks[start : start + batch_size])
        except BudgetExhaustedError:
            pass
        most_in_flight = sum(sorted(costs)[-num_threads:])
        assert ledger.paid.cost_usd is not None
        assert ledger.paid.cost_usd <= cap + most_in_flight
        assert ledger.paid.cost_usd == pytest.approx(journal.paid().cost_usd)


@pytest.mark.parametrize("num_threads", [1, 3])
def test_runs_dearer_than_the_first_stop_at_the_cap(
    journal: Journal, task: MakeTask, num_threads: int
) -> None:
    def run(recipe: Recipe, example: Example, context: RunContext) -> Trace:
        usage = Usage(requests=1, cost_usd=0.001 if example.id == "example-0" else 1.0)
        return Trace((Call("c", "s", usage=usage),), output=example.id)

    ledger = Ledger(Limits(max_cost_usd=2.5))
    runner = Runner(run=run, metric=metric, journal=journal, ledger=ledger, num_threads=num_threads)
    with pytest.raises(BudgetExhaustedError, match="max_cost_usd"):
        runner([task(i) for i in range(30)])
    assert ledger.paid.cost_usd is not None
    assert ledger.paid.cost_usd <= 2.5 + num_threads * 1.0
    assert ledger.num_runs == journal.count()


def test_money_cap_holds_over_an_interruption(tmp_path: Path, task: MakeTask) -> None:
    runs: Counter[str] = Counter()

    def run(recipe: Recipe, example: Example, context: RunContext) -> Trace:
        runs[example.id] += 1
        return answer(recipe, example, context)

    limits = Limits(max_cost_usd=0.055)
    paid = Usage()
    for _ in range(3):
        with (
            Journal.open(tmp_path / "j.db", identity={}) as journal,
            Runner(
                run=run,
                metric=metric,
                journal=journal,
                ledger=Ledger(limits, paid=journal.paid()),
            ) as runner,
        ):
            with pytest.raises(BudgetExhaustedError, match="max_cost_usd"):
                for i in range(10):
                    runner([task(i)])
            paid = journal.paid()
    assert paid.cost_usd == pytest.approx(0.05)
    assert sum(runs.values()) == 5


def test_unknown_cost_stops_a_run_whose_money_is_capped(journal: Journal, task: MakeTask) -> None:
    def run(recipe: Recipe, example: Example, context: RunContext) -> Trace:
        return Trace((Call("c", "s", usage=Usage(requests=1, cost_usd=None)),), output=example.id)

    ledger = Ledger(Limits(max_cost_usd=1.0))
    with pytest.raises(ConfigurationError, match="unknown price"):
        Runner(run=run, metric=metric, journal=journal, ledger=ledger)([task(i) for i in range(4)])
    assert journal.count() == 1
