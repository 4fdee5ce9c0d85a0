"""What the trace of a run holds, and how runs fail."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from adaseek.errors import RecipeMismatchError
from adaseek.evaluation.base import RunContext
from adaseek.recipe import Demo, Recipe, Setting
from adaseek.testing.loopback import LoopbackServer, Reply, scripted
from adaseek.workflow import Example, ModelRef, Trace, Usage

dspy = pytest.importorskip("dspy")

from adaseek_dspy import translate  # noqa: E402
from adaseek_dspy._convert import core_example  # noqa: E402
from adaseek_dspy._run import run  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
EXAMPLE = core_example(dspy.Example(q="what", y="label").with_inputs("q"))


def ran(program: Any, recipe: Recipe | None = None, **context: Any) -> Trace:
    return run(program, translate(program), recipe or Recipe(), EXAMPLE, RunContext(**context))


class Program(dspy.Module):
    def __init__(self, forward: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.forward_function = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, q: str) -> Any:
        return self.forward_function(self, q)


def test_calls_hold_the_fields_that_a_demo_needs(two_steps: Any, lm: Any) -> None:
    trace = ran(two_steps)
    first, second = trace.calls
    assert (first.step, second.step) == ("a", "c.predict")
    assert (first.inputs, first.outputs) == ({"q": "what"}, {"x": "v-x"})
    assert second.outputs == {"reasoning": "v-reasoning", "y": "v-y"}
    assert first.end_s <= second.start_s
    assert first.model == ModelRef("openai/m", lm.kwargs["api_base"])
    assert trace.output.y == "v-y"
    assert not first.cached and first.error is None


def test_the_price_table_is_asked_with_usage_and_duration(two_steps: Any, lm: Any) -> None:
    asked: list[tuple[ModelRef, Usage, float]] = []

    def price(model: ModelRef, usage: Usage, duration_s: float) -> float:
        asked.append((model, usage, duration_s))
        return usage.input_tokens * 0.5

    trace = ran(two_steps, price=price)
    assert trace.usage.cost_usd == trace.usage.input_tokens * 0.5
    assert [duration for _, _, duration in asked] == [call.duration_s for call in trace.calls]


def test_typed_values_reach_the_program_as_the_users_own_objects(lm: Any) -> None:
    history = dspy.History(messages=[{"q": "hello", "a": "hi"}])
    seen: list[Any] = []

    class Chat(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.p = dspy.Predict("q -> a")

        def forward(self, q: str, history: Any) -> Any:
            seen.append(history)
            return self.p(q=q)

    program = Chat()
    raw = dspy.Example(q="?", history=history).with_inputs("q", "history")
    run(program, translate(program), Recipe(), core_example(raw), RunContext())
    assert seen[0] is history
    plain = Example("id", {"q": "?", "history": {"messages": []}})
    run(program, translate(program), Recipe(), plain, RunContext())
    assert seen[1] == {"messages": []}


def test_tool_calls_are_in_the_trace_with_the_calls_inside_them(lm: Any) -> None:
    sub = dspy.Predict("q -> hint")

    def ask(q: str) -> str:
        """Asks another step."""
        return str(sub(q=q).hint)

    trace = ran(dspy.ReAct("q -> a", tools=[ask], max_iters=2))
    tools = [call for call in trace.calls if call.kind == "tool"]
    assert [tool.step for tool in tools] == ["tools['ask']"]
    assert tools[0].inputs == {"q": "x"}
    assert tools[0].outputs == {"result": "v-hint"}
    inside = [call for call in trace.calls if call.parent == tools[0].id]
    assert [call.step for call in inside] == ["<q -> hint>"]
    assert trace.usage == Usage.total(c.usage for c in trace.calls if c.kind == "lm")


def test_two_agents_with_a_tool_of_the_same_name_are_told_apart(lm: Any) -> None:
    def agent(result: str) -> Any:
        def search(q: str) -> str:
            """Finds something."""
            return result

        return dspy.ReAct("q -> a", tools=[search], max_iters=2)

    program = Program(lambda p, q: p.two(q=p.one(q=q).a), one=agent("1"), two=agent("2"))
    trace = ran(program)
    found = {c.step: c.outputs["result"] for c in trace.calls if c.kind == "tool"}
    assert found == {"one.tools['search']": "1", "two.tools['search']": "2"}


def test_a_model_held_by_a_closure_is_counted(
    make_lm: Callable[..., Any], lm: Any, server: LoopbackServer
) -> None:
    hidden = make_lm("openai/m3")
    program = Program(lambda p, q: p.a(q=hidden("direct")[0], lm=hidden), a=dspy.Predict("q -> x"))
    trace = ran(program)
    counted = server.usage()
    assert trace.usage.input_tokens == counted["input_tokens"]
    assert trace.usage.requests == counted["requests"] == 2
    assert [call.step for call in trace.calls] == ["<lm>", "a"]
    assert {call.model.id for call in trace.calls if call.model} == {"openai/m3"}


def test_a_model_that_no_attribute_holds_is_warned_of_once_with_the_cure(
    make_lm: Callable[..., Any], lm: Any, recwarn: pytest.WarningsRecorder
) -> None:
    hidden = make_lm("openai/hidden")
    for _ in range(2):
        ran(Program(lambda p, q: p.a(q=hidden("direct")[0]), a=dspy.Predict("q -> x")))
    told = [str(w.message) for w in recwarn if w.category is RuntimeWarning]
    assert len(told) == 1
    assert "openai/hidden" in told[0] and "self.lm = ..." in told[0]
    held = Program(lambda p, q: p.a(q=p.own("direct")[0]), a=dspy.Predict("q -> x"))
    held.own = make_lm("openai/held")
    ran(held)
    assert not any("openai/held" in str(w.message) for w in recwarn)


def test_a_model_chosen_inside_the_program_is_counted(
    make_lm: Callable[..., Any], lm: Any, server: LoopbackServer
) -> None:
    big = make_lm("openai/m3")

    def forward(p: Any, q: str) -> Any:
        with dspy.context(lm=big):
            return p.a(q=q)

    trace = ran(Program(forward, a=dspy.Predict("q -> x")))
    assert trace.usage.input_tokens == server.usage()["input_tokens"] > 0
    assert trace.calls[0].model is not None and trace.calls[0].model.id == "openai/m3"


def test_a_thread_that_forgot_the_context_is_still_counted(lm: Any, server: LoopbackServer) -> None:
    def forward(p: Any, q: str) -> Any:
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(lambda i: p.a(q=f"{q}{i}"), range(3)))
        return answers[0]

    trace = ran(Program(forward, a=dspy.Predict("q -> x")))
    assert trace.error is None
    assert [call.step for call in trace.calls] == ["a"] * 3
    assert trace.usage.requests == server.usage()["requests"] == 3


def test_several_candidates_are_one_call(lm: Any, server: LoopbackServer) -> None:
    trace = ran(dspy.Predict("q -> a", n=3))
    assert len(trace.calls) == 1
    assert trace.usage.requests == len(server.requests)
    assert trace.usage.output_tokens == server.usage()["output_tokens"]


def test_an_answer_that_had_to_be_asked_for_again_is_two_requests_of_one_step(
    lm: Any, server: LoopbackServer
) -> None:
    answer = server.answer

    def clumsy(body: Mapping[str, Any]) -> Reply:
        return answer(body) if len(server.requests) % 2 else Reply("no fields at all")

    server.answer = clumsy
    trace = ran(dspy.Predict("q -> a"))
    assert trace.error is None
    first, second = trace.calls
    assert first.step == second.step == "self"
    assert first.error is not None and first.outputs == {}
    assert second.error is None and second.outputs == {"a": "v-a"}
    assert trace.usage.requests == 2


def test_an_unusable_answer_is_the_models_failure(lm: Any, server: LoopbackServer) -> None:
    server.answer = lambda body: Reply("no fields at all")
    trace = ran(dspy.Predict("q -> a"))
    assert trace.error_kind == "model"
    assert trace.output is None
    assert "AdapterParseError" in str(trace.error)
    assert trace.usage.input_tokens == server.usage()["input_tokens"] > 0


@pytest.mark.parametrize("status", [400, 401, 429, 500])
def test_a_refusal_is_the_endpoints_failure(
    make_lm: Callable[..., Any], server: LoopbackServer, status: int
) -> None:
    server.answer = lambda body: Reply("refused", status=status)
    with dspy.context(lm=make_lm(num_retries=0), callbacks=[]):
        trace = ran(dspy.Predict("q -> a"))
    assert trace.error_kind == "endpoint"
    assert trace.usage == Usage(cost_usd=0.0)
    assert trace.calls[0].error is not None


def test_a_closed_port_is_the_endpoints_failure(make_lm: Callable[..., Any]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with dspy.context(lm=make_lm(api_base=url, num_retries=0), callbacks=[]):
        trace = ran(dspy.Predict("q -> a"))
    assert trace.error_kind == "endpoint"


def test_a_prompt_that_is_too_long_is_no_outage(
    make_lm: Callable[..., Any], server: LoopbackServer
) -> None:
    text = "This model's maximum context length is 10 tokens. However, you requested 99 tokens."
    server.answer = lambda body: Reply(text, status=400)
    with dspy.context(lm=make_lm(num_retries=0), callbacks=[]):
        trace = ran(dspy.Predict("q -> a"))
    assert trace.error_kind in ("model", "endpoint")
    assert "context" in str(trace.error).lower()


def test_the_users_code_may_raise_and_wrap(lm: Any, server: LoopbackServer) -> None:
    def wrong(p: Any, q: str) -> Any:
        p.a(q=q)
        raise KeyError("mine")

    trace = ran(Program(wrong, a=dspy.Predict("q -> x")))
    assert trace.error_kind == "program"
    assert trace.error == "KeyError: 'mine'"
    assert len(trace.calls) == 1

    def wrapping(p: Any, q: str) -> Any:
        try:
            return p.a(q=q)
        except Exception as error:
            raise RuntimeError("could not do it") from error

    server.answer = lambda body: Reply("no fields at all")
    assert ran(Program(wrapping, a=dspy.Predict("q -> x"))).error_kind == "model"


@pytest.mark.skipif(
    dspy.__version__ < "3.4", reason="only since DSPy 3.4 does an agent say that it gave up"
)
def test_an_agent_that_gives_up_is_the_models_failure(lm: Any, server: LoopbackServer) -> None:
    server.answer = lambda body: Reply("no fields at all")

    def search(q: str) -> str:
        """Finds something."""
        return q

    assert ran(dspy.ReActV2("q -> a", tools=[search], max_iters=1)).error_kind == "model"


def test_an_outage_that_parallel_hides_is_still_the_endpoints_failure(
    make_lm: Callable[..., Any], server: LoopbackServer
) -> None:
    def forward(p: Any, q: str) -> Any:
        found = dspy.Parallel(disable_progress_bar=True)([(p.a, {"q": q})])
        return p.a(q=found[0].x)

    server.answer = lambda body: Reply("down", status=503)
    with dspy.context(lm=make_lm(num_retries=0), callbacks=[]):
        trace = ran(Program(forward, a=dspy.Predict("q -> x")))
    assert "NoneType" in str(trace.error)
    assert trace.error_kind == "endpoint"


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interruption_passes(lm: Any, kind: type[BaseException]) -> None:
    def stopped(p: Any, q: str) -> Any:
        raise kind

    with pytest.raises(kind):
        ran(Program(stopped, a=dspy.Predict("q -> x")))


def test_a_recipe_for_another_program_is_an_error_of_the_caller(two_steps: Any, lm: Any) -> None:
    with pytest.raises(RecipeMismatchError):
        ran(two_steps, Recipe({"gone": Setting(instructions="x")}))


def test_a_run_that_used_up_its_time_makes_no_further_request(
    two_steps: Any, lm: Any, server: LoopbackServer
) -> None:
    trace = ran(two_steps, timeout_s=0.0)
    assert trace.error_kind == "endpoint"
    assert "timeout_s" in str(trace.error)
    assert server.requests == ()


class Silence:
    """An answer that never comes, until the test ends."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.asked = 0

    def __call__(self, body: Mapping[str, Any]) -> Reply:
        self.asked += 1
        self.over.wait(timeout=60)
        return Reply("too late")


@pytest.fixture
def silence() -> Iterator[Silence]:
    never = Silence()
    yield never
    never.over.set()


@pytest.fixture
def silent(silence: Silence) -> Iterator[LoopbackServer]:
    """A server that takes requests and never answers."""
    with LoopbackServer(silence) as server:
        yield server
        silence.over.set()


@pytest.mark.parametrize("is_async", [False, True])
def test_a_request_that_hangs_ends_with_the_time_of_the_run(
    make_lm: Callable[..., Any], silent: LoopbackServer, silence: Silence, is_async: bool
) -> None:
    class Later(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = dspy.Predict("q -> x")

        async def aforward(self, q: str) -> Any:
            return await self.a.acall(q=q)

    program = Later() if is_async else dspy.Predict("q -> x")
    with dspy.context(lm=make_lm(api_base=silent.url, num_retries=3), callbacks=[]):
        trace = ran(program, timeout_s=3.0)
    assert trace.error_kind == "endpoint"
    assert "`timeout_s`, 3 s" in str(trace.error)
    assert silence.asked == 1
    assert trace.calls[0].error


def test_a_run_that_is_answered_too_late_has_failed_by_itself(
    two_steps: Any, lm: Any, server: LoopbackServer, silence: Silence
) -> None:
    server.answer = scripted(Reply("[[ ## x ## ]]\nv-x"), then=silence)
    trace = ran(two_steps, timeout_s=8.0)
    assert silence.asked == 1
    assert trace.error_kind == "model"
    assert "`timeout_s`, 8 s" in str(trace.error)


def test_a_limit_of_the_users_own_that_is_shorter_stays(
    make_lm: Callable[..., Any], silent: LoopbackServer
) -> None:
    with dspy.context(lm=make_lm(api_base=silent.url, timeout=0.3), callbacks=[]):
        trace = ran(dspy.Predict("q -> x"), timeout_s=50.0)
    assert trace.error_kind == "endpoint"
    assert "timeout_s" not in str(trace.error)


def test_runs_of_different_recipes_do_not_meet(lm: Any, server: LoopbackServer) -> None:
    program = Program(
        lambda p, q: p.b(x=p.a(q=q).x), a=dspy.Predict("q -> x"), b=dspy.Predict("x -> y")
    )
    workflow = translate(program)
    answer = server.answer
    started = threading.Barrier(8)

    def slowed(body: Mapping[str, Any]) -> Reply:
        with contextlib.suppress(threading.BrokenBarrierError):
            started.wait(timeout=0.2)
        return answer(body)

    server.answer = slowed

    def one(index: int) -> Trace:
        recipe = Recipe(
            {
                "a": Setting(instructions=f"RUN-{index}-A", params={"top_p": (index + 1) / 10}),
                "b": Setting(
                    instructions=f"RUN-{index}-B", demos=(Demo({"x": f"D{index}", "y": "1"}),)
                ),
            }
        )
        with dspy.context(lm=lm):
            return run(program, workflow, recipe, EXAMPLE, RunContext())

    with ThreadPoolExecutor(8) as pool:
        traces = list(pool.map(one, range(8)))
    assert all(trace.error is None and len(trace.calls) == 2 for trace in traces)
    firsts = [b for b in server.bodies if "-A" in str(b["messages"][0])]
    assert sorted(b["top_p"] for b in firsts) == [i / 10 for i in range(1, 9)]
    for body in server.bodies:
        text = str(body["messages"])
        index = text.split("RUN-")[1][0]
        assert text.count("RUN-") == 1
        if "-B" in text:
            assert f"D{index}" in text
    assert sum((t.usage for t in traces), Usage()).input_tokens == server.usage()["input_tokens"]


def test_the_users_own_callbacks_history_and_usage_stay_with_the_user(
    two_steps: Any, lm: Any
) -> None:
    class Counting(dspy.utils.BaseCallback):
        def __init__(self) -> None:
            self.modules: list[str] = []
            self.formats = 0

        def on_module_start(self, call_id: str, instance: Any, inputs: Any) -> None:
            self.modules.append(type(instance).__name__)

        def on_adapter_format_start(self, call_id: str, instance: Any, inputs: Any) -> None:
            self.formats += 1

    mine = Counting()
    with dspy.context(callbacks=[mine], track_usage=True):
        trace = ran(two_steps)
    assert mine.modules == ["TwoSteps", "Predict", "ChainOfThought", "Predict"]
    assert mine.formats == 2
    assert trace.output.get_lm_usage()["openai/m"]["prompt_tokens"] == trace.usage.input_tokens
    assert lm.history == []


def test_a_users_adapter_is_used(two_steps: Any, lm: Any, server: LoopbackServer) -> None:
    class Shouting(dspy.ChatAdapter):
        def format_task_description(self, signature: Any) -> str:
            return "SHOUT"

    with dspy.context(adapter=Shouting()):
        ran(two_steps)
    assert all("SHOUT" in str(body["messages"][0]) for body in server.bodies)


def test_demos_of_the_example_itself_are_left_out_by_the_recipe(
    two_steps: Any, lm: Any, server: LoopbackServer
) -> None:
    demos = (Demo({"q": "OWN", "x": "1"}, EXAMPLE.id), Demo({"q": "OTHER", "x": "2"}, "other"))
    recipe = Recipe({"a": Setting(demos=demos)}).for_example(EXAMPLE.id)
    ran(two_steps, recipe)
    text = str(server.bodies[0]["messages"])
    assert "OTHER" in text
    assert "OWN" not in text


class Gate:
    """Counts who is inside, and what passes through."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.endpoints: list[str] = []
        self.errors: list[str] = []
        self.slots = threading.BoundedSemaphore(1)

    @contextlib.contextmanager
    def slot(self, endpoint: str) -> Iterator[None]:
        with self.slots:
            self.endpoints.append(endpoint)
            try:
                yield
            except Exception as error:
                self.errors.append(type(error).__name__)
                raise


def test_every_real_request_passes_the_gate(two_steps: Any, lm: Any) -> None:
    gate = Gate()
    ran(two_steps, gate=gate)
    assert gate.endpoints == [lm.kwargs["api_base"]] * 2


def test_a_refusal_passes_through_the_gate(
    make_lm: Callable[..., Any], server: LoopbackServer
) -> None:
    gate = Gate()
    server.answer = lambda body: Reply("slow down", status=429)
    with dspy.context(lm=make_lm(num_retries=0), callbacks=[]):
        ran(dspy.Predict("q -> a"), gate=gate)
    assert len(gate.errors) == len(server.requests) > 0


def test_the_gate_does_not_stop_an_event_loop(lm: Any) -> None:
    class Both(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = dspy.Predict("q -> x")

        async def aforward(self, q: str) -> Any:
            found = await asyncio.gather(*(self.a.acall(q=f"{q}{i}") for i in range(3)))
            return found[0]

    gate = Gate()
    trace = ran(Both(), gate=gate)
    assert trace.error is None
    assert len(gate.endpoints) == 3


def test_a_run_inside_a_running_event_loop_works(two_steps: Any, lm: Any) -> None:
    class Only(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = dspy.Predict("q -> x")

        async def aforward(self, q: str) -> Any:
            return await self.a.acall(q=q)

    async def inside() -> Trace:
        return ran(Only())

    trace = asyncio.run(inside())
    assert trace.error is None
    assert trace.output.x == "v-x"
