from __future__ import annotations

import threading
from collections.abc import Mapping

import pytest
from adaseek.errors import ConfigurationError
from adaseek.evaluation.base import Gate
from adaseek.evaluation.gate import EndpointGate
from adaseek.evaluation.retry import Retry


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds


class Response:
    def __init__(self, status_code: int, headers: Mapping[str, str] | None = None) -> None:
        self.status_code = status_code
        self.headers = headers or {}


class RefusedError(Exception):
    def __init__(self, text: str, response: Response) -> None:
        super().__init__(text)
        self.response = response


def refuse(gate: Gate, endpoint: str, error: Exception) -> None:
    with pytest.raises(type(error)), gate.slot(endpoint):
        raise error


def enter(gate: Gate, endpoint: str) -> None:
    with gate.slot(endpoint):
        pass


@pytest.mark.parametrize("slots", [1, 3])
def test_no_more_threads_than_slots_are_inside(slots: int) -> None:
    gate = EndpointGate({"a": slots})
    inside = threading.Semaphore(slots)
    crowded: list[bool] = []
    full = threading.Barrier(slots)

    def request() -> None:
        with gate.slot("a"):
            crowded.append(not inside.acquire(blocking=False))
            full.wait(timeout=10)  # so many at once do get in
            inside.release()

    threads = [threading.Thread(target=request) for _ in range(slots * 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert crowded == [False] * (slots * 4)


def test_endpoints_do_not_wait_for_each_other() -> None:
    gate = EndpointGate(default=1)
    with gate.slot("a"), gate.slot("b"):
        pass


def test_without_a_limit_any_number_is_inside() -> None:
    gate = EndpointGate({"a": 1})
    with gate.slot("b"), gate.slot("b"), gate.slot("b"):
        pass


def test_refusal_holds_back_every_request_to_that_endpoint_only() -> None:
    clock = Clock()
    gate = EndpointGate(clock=clock, sleep=clock.sleep)
    refuse(gate, "a", RefusedError("slow down", Response(429, {"retry-after": "7"})))
    enter(gate, "b")
    assert clock.slept == []
    enter(gate, "a")
    assert 107.0 <= clock.now_s <= 108.0
    enter(gate, "a")
    assert len(clock.slept) == 1


def test_hint_in_the_text_counts_too() -> None:
    clock = Clock()
    gate = EndpointGate(clock=clock, sleep=clock.sleep)
    refuse(gate, "a", RefusedError("Please try again in 3s", Response(429)))
    enter(gate, "a")
    assert 103.0 <= clock.now_s <= 104.0


def test_refusals_in_a_row_make_longer_pauses_until_one_succeeds() -> None:
    clock = Clock()
    gate = EndpointGate(retry=Retry(base_s=8.0, cap_s=1000.0), clock=clock, sleep=clock.sleep)
    for longest_s in (8.0, 16.0, 32.0):
        refuse(gate, "a", RefusedError("", Response(503)))
        before = clock.now_s
        clock.sleep(0.0)
        gate_opens = _wait_for(gate, clock)
        assert longest_s / 2 <= gate_opens - before <= longest_s
    enter(gate, "a")
    refuse(gate, "a", RefusedError("", Response(503)))
    assert _wait_for(gate, clock) - clock.now_s <= 8.0


def _wait_for(gate: EndpointGate, clock: Clock) -> float:
    # Moves the clock past the pause without a success, which would end the row.
    pause = gate._doors["a"].open_at_s
    clock.now_s = max(clock.now_s, pause)
    return pause


def test_requests_refused_together_are_one_refusal() -> None:
    clock = Clock()
    gate = EndpointGate(retry=Retry(base_s=8.0), clock=clock, sleep=clock.sleep)
    under_way = [gate.slot("a") for _ in range(5)]
    for slot in under_way:
        slot.__enter__()
    for slot in under_way:
        error = RefusedError("", Response(429))
        assert not slot.__exit__(RefusedError, error, None)
    assert gate._doors["a"].open_at_s - 100.0 <= 8.0


def test_other_errors_hold_nobody_back() -> None:
    clock = Clock()
    gate = EndpointGate(clock=clock, sleep=clock.sleep)
    refuse(gate, "a", RefusedError("bad request", Response(400)))
    refuse(gate, "a", ValueError("no JSON"))
    enter(gate, "a")
    assert clock.slept == []


def test_status_on_the_error_itself_is_seen() -> None:
    class StatusError(Exception):
        status_code = 429

    clock = Clock()
    gate = EndpointGate(clock=clock, sleep=clock.sleep)
    refuse(gate, "a", StatusError())
    enter(gate, "a")
    assert len(clock.slept) == 1


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"concurrency\['a'\]"):
        EndpointGate({"a": 0})
    with pytest.raises(ConfigurationError, match="`concurrency` is 0"):
        EndpointGate(default=0)
