"""Requests that were paid for once are not made again."""

from __future__ import annotations

import asyncio
import contextvars
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from adaseek.evaluation.base import CallRecord, RunContext
from adaseek.evaluation.flights import SingleFlight
from adaseek.evaluation.gate import EndpointGate
from adaseek.recipe import Ensemble, Recipe, Setting
from adaseek.testing.loopback import LoopbackServer, Reply
from adaseek.workflow import ModelRef, Trace, Usage

dspy = pytest.importorskip("dspy")

from adaseek_dspy import _requests, translate  # noqa: E402
from adaseek_dspy._convert import core_example  # noqa: E402
from adaseek_dspy._run import run  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
EXAMPLE = core_example(dspy.Example(q="what", y="label").with_inputs("q"))


class Memo:
    """A memo that keeps what a journal would: JSON text."""

    def __init__(self) -> None:
        self.records: dict[str, tuple[str, CallRecord]] = {}

    def get(self, key: str) -> CallRecord | None:
        if key not in self.records:
            return None
        text, record = self.records[key]
        return replace(record, outputs=json.loads(text))

    def put(self, key: str, record: CallRecord) -> None:
        self.records[key] = (json.dumps(record.outputs), record)


@pytest.fixture
def memo() -> Memo:
    return Memo()


def ran(program: Any, memo: Memo | None, recipe: Recipe | None = None, **context: Any) -> Trace:
    workflow = translate(program)
    return run(program, workflow, recipe or Recipe(), EXAMPLE, RunContext(memo=memo, **context))


def test_a_known_request_is_not_sent(
    two_steps: Any, lm: Any, memo: Memo, server: LoopbackServer
) -> None:
    first = ran(two_steps, memo)
    server.clear()
    again = ran(two_steps, memo)
    assert server.requests == ()
    assert again.output.toDict() == first.output.toDict()
    assert all(call.cached for call in again.calls)
    assert not any(call.cached for call in first.calls)
    assert again.usage == first.usage
    assert [c.duration_s for c in again.calls] == [c.duration_s for c in first.calls]
    assert again.latency_s == pytest.approx(first.latency_s)
    assert [c.outputs for c in again.calls] == [c.outputs for c in first.calls]


def test_a_change_in_the_last_step_repeats_only_that_one(
    two_steps: Any, lm: Any, memo: Memo, server: LoopbackServer
) -> None:
    ran(two_steps, memo)
    server.clear()
    trace = ran(two_steps, memo, Recipe({"c.predict": Setting(instructions="Other.")}))
    assert [call.cached for call in trace.calls] == [True, False]
    assert len(server.requests) == 1


def test_the_key_names_everything_that_determines_the_answer(
    two_steps: Any, make_lm: Callable[..., Any], memo: Memo, server: LoopbackServer
) -> None:
    models = [
        make_lm(),
        make_lm("openai/m2"),
        make_lm(temperature=0.5),
        make_lm(max_tokens=7),
        make_lm(api_base=server.url + "/"),
    ]
    for model in models:
        with dspy.context(lm=model, callbacks=[]):
            ran(two_steps, memo)
    assert len(server.requests) == len(memo.records) == 2 * len(models)
    with dspy.context(lm=make_lm(api_key="another-key"), callbacks=[]):
        ran(two_steps, memo)
    assert len(server.requests) == 2 * len(models)
    assert "secret-key" not in str(memo.records)


def test_replicates_are_draws_of_their_own_unless_nothing_is_drawn(
    two_steps: Any, make_lm: Callable[..., Any], memo: Memo, server: LoopbackServer
) -> None:
    for temperature, num_requests in ((0.0, 2), (0.7, 4), (None, 4)):
        with dspy.context(lm=make_lm(temperature=temperature), callbacks=[]):
            ran(two_steps, memo, replicate=0)
            ran(two_steps, memo, replicate=1)
            ran(two_steps, memo, replicate=1)
        assert len(server.requests) == num_requests
        server.clear()


def test_members_of_an_ensemble_are_draws_of_their_own(
    lm: Any, memo: Memo, server: LoopbackServer
) -> None:
    program = dspy.Predict("q -> a")
    ran(program, memo, Recipe({"self": Setting(ensemble=Ensemble(3))}))
    assert len(server.requests) == 3
    ran(program, memo, Recipe({"self": Setting(ensemble=Ensemble(5))}))
    assert len(server.requests) == 5


class Repeating(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = dspy.Predict("q -> a", temperature=0.7)

    def forward(self, q: str) -> Any:
        return [self.a(q=q) for _ in range(3)][-1]


def test_equal_requests_of_one_run_share_an_answer_only_if_the_user_caches(
    make_lm: Callable[..., Any], memo: Memo, server: LoopbackServer
) -> None:
    with dspy.context(lm=make_lm(cache=True), callbacks=[]):
        ran(Repeating(), memo)
        assert len(server.requests) == 1
    server.clear()
    with dspy.context(lm=make_lm(cache=False), callbacks=[]):
        ran(Repeating(), memo)
        assert len(server.requests) == 3
        ran(Repeating(), memo)
        assert len(server.requests) == 3


def test_failures_are_not_remembered(
    make_lm: Callable[..., Any], memo: Memo, server: LoopbackServer
) -> None:
    answer = server.answer
    server.answer = lambda body: Reply("broken", status=500)
    with dspy.context(lm=make_lm(num_retries=0), callbacks=[]):
        assert ran(dspy.Predict("q -> a"), memo).error_kind == "endpoint"
        assert memo.records == {}
        server.answer = answer
        assert ran(dspy.Predict("q -> a"), memo).output.a == "v-a"


def test_the_price_of_today_holds_for_an_answer_of_yesterday(
    two_steps: Any, lm: Any, memo: Memo
) -> None:
    assert ran(two_steps, memo).usage.cost_usd is None

    def price(model: ModelRef, usage: Usage, duration_s: float) -> float:
        return 1.0

    assert ran(two_steps, memo, price=price).usage.cost_usd == 2.0


def test_a_memo_serves_async_programs(lm: Any, memo: Memo, server: LoopbackServer) -> None:
    class Steps(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = dspy.Predict("q -> x")

        async def aforward(self, q: str) -> Any:
            return (await asyncio.gather(self.a.acall(q=q), self.a.acall(q=q + "!")))[0]

    ran(Steps(), memo)
    assert len(server.requests) == 2
    assert ran(Steps(), memo).output.x == "v-x"
    assert len(server.requests) == 2


@pytest.mark.skipif(not hasattr(dspy, "ReActV2"), reason="this DSPy has no ReActV2")
def test_native_tool_calls_come_back_from_the_memo(
    make_lm: Callable[..., Any], memo: Memo, server: LoopbackServer
) -> None:
    def search(q: str) -> str:
        """Finds something."""
        return f"found:{q}"

    if dspy.__version__ < "3.4":
        pytest.importorskip("mcp", reason="LiteLLM needs it for requests with tools")
    program = dspy.ReActV2("q -> a", tools=[search], max_iters=3)
    adapter = dspy.ChatAdapter(use_native_function_calling=True)
    with dspy.context(lm=make_lm("openai/gpt-4o-mini"), adapter=adapter, callbacks=[]):
        first = ran(program, memo)
        assert first.error is None
        assert "tools" in server.bodies[0]
        server.clear()
        again = ran(program, memo)
    assert server.requests == ()
    assert again.output.a == first.output.a == "final"


def test_a_direct_call_is_answered_from_the_memo(
    lm: Any, memo: Memo, server: LoopbackServer
) -> None:
    class Direct(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = dspy.Predict("q -> x")
            self.own = lm

        def forward(self, q: str) -> Any:
            return self.a(q=self.own(q)[0] + dspy.settings.lm(q)[0])

    ran(Direct(), memo)
    server.clear()
    ran(Direct(), memo)
    assert server.requests == ()


@pytest.fixture
def own_cache() -> Any:
    """DSPy's cache in memory, empty, and as it was afterwards."""
    before = dspy.cache
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=True)
    yield dspy.cache
    dspy.cache = before


def test_dspys_own_cache_answers_only_when_it_may(
    two_steps: Any, make_lm: Callable[..., Any], server: LoopbackServer, own_cache: Any
) -> None:
    with dspy.context(lm=make_lm(cache=True), callbacks=[]):
        two_steps(q="what")
        server.clear()
        assert ran(two_steps, None, use_cache=False).latency_s is not None
        assert len(server.requests) == 2
        server.clear()
        cached = ran(two_steps, None, use_cache=True)
    assert server.requests == ()
    assert all(call.cached for call in cached.calls)
    assert cached.latency_s is None
    assert cached.usage.cost_usd is None


def test_dspys_own_cache_keeps_replicates_apart(
    two_steps: Any, make_lm: Callable[..., Any], server: LoopbackServer, own_cache: Any
) -> None:
    with dspy.context(lm=make_lm(cache=True, temperature=0.5), callbacks=[]):
        for replicate in (0, 1, 1, 0):
            ran(two_steps, None, use_cache=True, replicate=replicate)
    assert len(server.requests) == 4


def slowly(server: LoopbackServer, *, num_waiting: int) -> Callable[..., Reply]:
    """Makes the server's first answer wait until `num_waiting` runs have looked for it."""
    answer, lock, asked = server.answer, threading.Lock(), []

    def slow(body: Any) -> Reply:
        with lock:
            asked.append(body)
            is_first = len(asked) == 1
        if is_first:
            for _ in range(num_waiting):
                assert looked.acquire(timeout=30)
        return answer(body)

    looked = threading.Semaphore(0)
    server.answer = slow
    return looked.release


class Watched(Memo):
    """A memo that tells when an answer is looked for and not found."""

    def __init__(self) -> None:
        super().__init__()
        self.missed: Callable[[], object] = lambda: None

    def get(self, key: str) -> CallRecord | None:
        found = super().get(key)
        if found is None:
            self.missed()
        return found


def test_two_runs_that_ask_the_same_at_once_pay_once(
    two_steps: Any, lm: Any, server: LoopbackServer
) -> None:
    memo, flights = Watched(), SingleFlight()
    memo.missed = slowly(server, num_waiting=2 + 1)  # the one that asks looks twice
    other = Recipe({"c.predict": Setting(instructions="Other.")})
    with ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(
                contextvars.copy_context().run, ran, two_steps, memo, recipe, flights=flights
            )
            for recipe in (Recipe(), other)
        ]
        traces = [run.result(timeout=60) for run in runs]
    assert [trace.error for trace in traces] == [None, None]
    assert len(server.requests) == 3  # the first step once, each second step
    assert sorted(trace.calls[0].cached for trace in traces) == [False, True]
    assert all(trace.calls[0].usage.input_tokens for trace in traces)


def test_async_steps_that_ask_the_same_at_once_pay_once(
    make_lm: Callable[..., Any], memo: Memo, server: LoopbackServer
) -> None:
    class Steps(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = dspy.Predict("q -> x")

        async def aforward(self, q: str) -> Any:
            return (await asyncio.gather(*(self.a.acall(q=q) for _ in range(12))))[0]

    with dspy.context(lm=make_lm(cache=True), callbacks=[]):
        trace = ran(Steps(), memo, flights=SingleFlight(), gate=EndpointGate(default=1))
    assert trace.output.x == "v-x"
    assert len(server.requests) == 1
    assert [call.cached for call in trace.calls].count(False) == 1


def test_threads_of_a_program_that_ask_the_same_do_not_wait_for_each_other(
    make_lm: Callable[..., Any], memo: Memo, server: LoopbackServer
) -> None:
    class Nested(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = dspy.Predict("q -> x")

        def forward(self, q: str) -> Any:
            pairs = [(self.a, {"q": q})] * 3
            with ThreadPoolExecutor(2) as pool:
                done = [pool.submit(dspy.Parallel(num_threads=3), pairs) for _ in range(2)]
                return done[0].result()[0]

    with dspy.context(lm=make_lm(cache=True), callbacks=[]):
        ensemble = Recipe({"a": Setting(ensemble=Ensemble(3))})
        for recipe in (Recipe(), ensemble):
            context = {"flights": SingleFlight(), "gate": EndpointGate(default=1)}
            assert ran(Nested(), memo, recipe, **context).error is None
    assert len(server.requests) == 1 + 3


def test_a_model_that_calls_the_same_model_does_not_wait_for_itself(
    make_lm: Callable[..., Any], memo: Memo, server: LoopbackServer
) -> None:
    class Twice(dspy.LM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            if not dspy.settings.get("is_inner"):
                with dspy.context(is_inner=True):
                    self.__call__(*args, **kwargs)
            return super().forward(*args, **kwargs)

    inner = make_lm(temperature=0.0)
    twice = Twice(inner.model, cache=False, **inner.kwargs)
    with dspy.context(lm=twice, callbacks=[]):
        assert ran(dspy.Predict("q -> x"), memo, flights=SingleFlight()).error is None


class Fork(dspy.Module):
    """Two steps side by side, in one of the ways in which programs do that, and one after them."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.a = dspy.Predict("q -> x")
        self.b = dspy.Predict("q -> y")
        self.c = dspy.Predict("x, y -> z")
        self.way = way

    def forward(self, q: str) -> Any:
        a, b = self._forked(q)
        return self.c(x=a.x, y=b.y)

    def _forked(self, q: str) -> Any:
        if self.way == "parallel":
            pairs = [(self.a, {"q": q}), (self.b, {"q": q})]
            return dspy.Parallel(num_threads=2, disable_progress_bar=True)(pairs)
        with ThreadPoolExecutor(2) as pool:
            if self.way == "threads":
                both = [pool.submit(self.a, q=q), pool.submit(self.b, q=q)]
            elif self.way == "context":
                both = [
                    pool.submit(contextvars.copy_context().run, step, q=q)
                    for step in (self.a, self.b)
                ]
            else:
                return [self.a(q=q), self.b(q=q)]
            return [step.result() for step in both]


class AsyncFork(Fork):
    forward = None

    async def aforward(self, q: str) -> Any:
        a, b = await asyncio.gather(self.a.acall(q=q), self.b.acall(q=q))
        return await self.c.acall(x=a.x, y=b.y)


def fork(way: str) -> Any:
    return AsyncFork(way) if way == "tasks" else Fork(way)


WAYS = ("threads", "context", "parallel", "tasks")


@pytest.fixture
def slow(server: LoopbackServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every answer takes a third of a second: long enough to see what overlaps."""
    monkeypatch.setattr(_requests, "_HEAD_START_S", 0.3)  # for machines that stall
    answer = server.answer
    server.answer = lambda body: replace(answer(body), delay_s=0.3)


@pytest.mark.parametrize("way", WAYS)
def test_steps_side_by_side_stay_so_when_the_memo_answers(
    lm: Any, memo: Memo, slow: None, way: str
) -> None:
    first = ran(fork(way), memo)
    again = ran(fork(way), memo)
    assert all(call.cached for call in again.calls)
    a, b, c = (call.duration_s for call in again.calls)
    assert first.latency_s == again.latency_s == pytest.approx(max(a, b) + c)


@pytest.mark.parametrize("way", WAYS)
def test_a_new_step_beside_one_that_the_memo_answers_is_beside_it(
    lm: Any, memo: Memo, slow: None, way: str
) -> None:
    ran(fork(way), memo)
    trace = ran(fork(way), memo, Recipe({"b": Setting(instructions="Other.")}))
    seconds = {call.step: call.duration_s for call in trace.calls}
    assert {c.step: c.cached for c in trace.calls} == {"a": True, "b": False, "c": True}
    assert trace.latency_s == pytest.approx(max(seconds["a"], seconds["b"]) + seconds["c"])


def test_steps_one_after_the_other_stay_so(lm: Any, memo: Memo, slow: None) -> None:
    first, again = ran(fork("sequence"), memo), ran(fork("sequence"), memo)
    changed = ran(fork("sequence"), memo, Recipe({"b": Setting(instructions="Other.")}))
    for trace in (first, again, changed):
        assert trace.latency_s == pytest.approx(sum(call.duration_s for call in trace.calls))


def test_a_new_member_runs_beside_those_that_the_memo_answers(
    lm: Any, memo: Memo, slow: None
) -> None:
    program = dspy.Predict("q -> a")
    ran(program, memo, Recipe({"self": Setting(ensemble=Ensemble(2))}))
    trace = ran(program, memo, Recipe({"self": Setting(ensemble=Ensemble(3))}))
    assert [call.cached for call in trace.calls].count(True) == 2
    assert trace.latency_s == pytest.approx(max(call.duration_s for call in trace.calls))


def test_a_tool_is_as_long_as_its_longest_branch(lm: Any, memo: Memo, slow: None) -> None:
    inner = fork("context")

    class Agent(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner
            self.tool = dspy.Tool(lambda q: self.inner(q=q).z, name="look")

        def forward(self, q: str) -> Any:
            return dspy.Prediction(z=self.tool(q=q))

    ran(Agent(), memo)
    # As if each request had taken a thousand seconds, which no stall of this machine comes near.
    last = max(record.start_s for _, record in memo.records.values())
    for key, (text, record) in memo.records.items():
        start_s = 1000.0 if record.start_s == last else 0.0
        memo.records[key] = (text, replace(record, duration_s=1000.0, start_s=start_s))
    again = ran(Agent(), memo)
    assert all(call.cached for call in again.calls if call.kind == "lm")
    tool = next(call for call in again.calls if call.kind == "tool")
    assert tool.duration_s == again.latency_s == pytest.approx(2000.0, abs=200.0)
