"""Equal requests at the same time are one request, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from adaseek.evaluation.base import CallRecord
from adaseek.evaluation.flights import SingleFlight
from adaseek.workflow import ModelRef, Usage
from hypothesis import given
from hypothesis import strategies as st


class Memo:
    """A memo that tells when a key is looked up and not found."""

    def __init__(self, *, keeps: bool = True) -> None:
        self.records: dict[str, CallRecord] = {}
        self.num_misses = threading.Semaphore(0)
        self._keeps = keeps

    def get(self, key: str) -> CallRecord | None:
        found = self.records.get(key)
        if found is None:
            self.num_misses.release()
        return found

    def put(self, key: str, record: CallRecord) -> None:
        if self._keeps:
            self.records.setdefault(key, record)


class Model:
    """A slow scripted model: each request waits until `go`, and counts."""

    def __init__(self, memo: Memo, *, num_failures: int = 0) -> None:
        self.memo = memo
        self.flights = SingleFlight()
        self.num_requests: Counter[str] = Counter()
        self.begun = threading.Semaphore(0)
        self.go = threading.Event()
        self._num_failures = num_failures
        self._lock = threading.Lock()

    def ask(self, key: str) -> object:
        with self.flights.answer(self.memo, key) as record:
            if record is not None:
                return record.outputs
            answer = self._request(key)
            self.memo.put(key, record_of(answer))
            return answer

    async def aask(self, key: str) -> object:
        async with self.flights.aanswer(self.memo, key) as record:
            if record is not None:
                return record.outputs
            await asyncio.sleep(0)
            answer = self._request(key)
            self.memo.put(key, record_of(answer))
            return answer

    def _request(self, key: str) -> str:
        with self._lock:
            self.num_requests[key] += 1
            fails = self._num_failures > 0
            self._num_failures -= fails
            answer = f"{key} {self.num_requests[key]}"
        self.begun.release()
        assert self.go.wait(timeout=30)
        if fails:
            raise ConnectionError(answer)
        return answer


def record_of(answer: str) -> CallRecord:
    return CallRecord(answer, Usage(requests=1), 1.0, ModelRef("m"))


def together(num: int, ask: Callable[[], object]) -> list[Future[object]]:
    with ThreadPoolExecutor(num) as pool:
        return [pool.submit(ask) for _ in range(num)]


def test_a_second_caller_waits_for_the_answer_of_the_first() -> None:
    memo = Memo()
    model = Model(memo)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(model.ask, "k")
        assert model.begun.acquire(timeout=30)
        while memo.num_misses.acquire(blocking=False):
            pass
        second = pool.submit(model.ask, "k")
        assert memo.num_misses.acquire(timeout=30)  # it did not find the answer either
        assert not second.done()
        model.go.set()
        assert first.result(timeout=30) == second.result(timeout=30) == "k 1"
    assert model.num_requests == {"k": 1}


def test_other_requests_do_not_wait() -> None:
    model = Model(Memo())
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(model.ask, key) for key in ("a", "b")]
        # Passes only if both are under way at once.
        assert model.begun.acquire(timeout=30)
        assert model.begun.acquire(timeout=30)
        model.go.set()
        assert [answer.result(timeout=30) for answer in answers] == ["a 1", "b 1"]


def test_one_of_the_waiting_takes_over_when_the_first_fails() -> None:
    model = Model(Memo(), num_failures=2)
    model.go.set()
    outcomes = together(6, lambda: model.ask("k"))
    errors = [outcome.exception() for outcome in outcomes if outcome.exception() is not None]
    assert [type(error) for error in errors] == [ConnectionError] * 2
    assert {o.result() for o in outcomes if o.exception() is None} == {"k 3"}
    assert model.num_requests == {"k": 3}


def test_answers_that_the_memo_cannot_keep_do_not_make_callers_queue() -> None:
    memo, flights = Memo(keeps=False), SingleFlight()
    side_by_side = threading.Barrier(3)  # passes only if the three that waited ask at once

    def ask() -> None:
        with flights.answer(memo, "k") as record:
            assert record is None
            side_by_side.wait(timeout=30)

    with ThreadPoolExecutor(3) as pool:
        with flights.answer(memo, "k"):
            waiting = [pool.submit(ask) for _ in range(3)]
            for _ in range(1 + 1 + 3):  # this thread looked twice
                assert memo.num_misses.acquire(timeout=30)
        for outcome in waiting:
            outcome.result(timeout=30)


def test_a_caller_inside_a_request_asks_for_itself() -> None:
    memo, flights = Memo(), SingleFlight()
    with flights.answer(memo, "k") as outer, flights.answer(memo, "k", may_wait=False) as inner:
        assert outer is None
        assert inner is None
    memo.put("k", record_of("kept"))
    with flights.answer(memo, "k", may_wait=False) as found:
        assert found == record_of("kept")


def test_patience_ends() -> None:
    memo, flights = Memo(), SingleFlight(patience_s=0.01)
    with flights.answer(memo, "k"), flights.answer(memo, "k") as inner:
        assert inner is None

    async def impatient() -> None:
        async with flights.aanswer(memo, "k"), flights.aanswer(memo, "k") as inner:
            assert inner is None

    asyncio.run(impatient())


def test_a_caller_may_be_less_patient_than_the_table() -> None:
    memo, flights = Memo(), SingleFlight()
    with flights.answer(memo, "k"), flights.answer(memo, "k", wait_s=0.0) as inner:
        assert inner is None


def test_a_request_that_is_over_is_nobodys_any_more() -> None:
    memo, flights = Memo(keeps=False), SingleFlight()
    for _ in range(2):
        with pytest.raises(ConnectionError), flights.answer(memo, "k") as record:
            assert record is None
            raise ConnectionError
        with flights.answer(memo, "k") as record:
            assert record is None


def test_a_memo_that_fails_leaves_nobody_waiting() -> None:
    class Broken(Memo):
        num_calls = 0

        def get(self, key: str) -> CallRecord | None:
            self.num_calls += 1
            if self.num_calls == 2:
                raise OSError("disk")
            return super().get(key)

    memo, flights = Broken(), SingleFlight()
    with pytest.raises(OSError, match="disk"), flights.answer(memo, "k"):
        raise AssertionError("not reached")
    with flights.answer(memo, "k") as record:
        assert record is None


def test_tasks_of_one_event_loop_share_a_request() -> None:
    model = Model(Memo())
    model.go.set()

    async def many() -> list[object]:
        return await asyncio.gather(*(model.aask("k") for _ in range(20)))

    assert set(asyncio.run(many())) == {"k 1"}
    assert model.num_requests == {"k": 1}


def test_a_cancelled_task_leaves_the_request_to_the_others() -> None:
    model = Model(Memo())
    model.go.set()

    async def scene() -> list[object]:
        async def stuck() -> None:
            async with model.flights.aanswer(model.memo, "k"):
                await asyncio.Event().wait()

        leader = asyncio.create_task(stuck())
        await asyncio.sleep(0)
        waiting = [asyncio.create_task(model.aask("k")) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.sleep(0)
        leader.cancel()
        return await asyncio.gather(*waiting[1:])

    assert set(asyncio.run(scene())) == {"k 1"}
    assert model.num_requests == {"k": 1}


def test_ordinary_code_in_an_event_loop_does_not_hold_it_up() -> None:
    model = Model(Memo())
    model.go.set()

    async def scene() -> object:
        async with model.flights.aanswer(model.memo, "k"):
            return model.ask("k")

    assert asyncio.run(scene()) == "k 1"


@given(st.lists(st.lists(st.sampled_from("abc"), max_size=6), min_size=1, max_size=6))
def test_no_key_is_asked_twice_whatever_the_threads_do(plans: list[list[str]]) -> None:
    model = Model(Memo())
    model.go.set()
    with ThreadPoolExecutor(len(plans)) as pool:
        done = [pool.submit(lambda keys=keys: [model.ask(k) for k in keys]) for keys in plans]
        answers = [answer for outcome in done for answer in outcome.result(timeout=30)]
    keys = [key for keys in plans for key in keys]
    assert answers == [f"{key} 1" for key in keys]
    assert model.num_requests == dict.fromkeys(set(keys), 1)
