"""One run of a program under a recipe: recipe, gate, memory, threads, failures."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypedDict

import pytest
from adaseek.errors import ConfigurationError
from adaseek.evaluation.base import RunContext
from adaseek.recipe import Demo, Ensemble, Recipe, Setting
from adaseek.testing.loopback import LoopbackServer, Reply, echo
from adaseek.workflow import ModelRef

pytest.importorskip("langchain")
pytest.importorskip("langchain_openai")

from adaseek_langchain import disable, enable
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langchain_programs import chain, chat
from langchain_runs import RAW, Memo, bound, run
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph


class CountingGate:
    """Lets one request through at a time, and counts them."""

    def __init__(self) -> None:
        self.endpoints: list[str] = []
        self.lock = threading.Lock()

    @contextmanager
    def slot(self, endpoint: str) -> Iterator[None]:
        with self.lock:
            self.endpoints.append(endpoint)
            yield


def test_run_gives_what_the_program_gives_and_sends_the_same(server: LoopbackServer) -> None:
    program = chain(server)
    expected = program.invoke(RAW["inputs"])
    trace = run(program)
    assert trace.output == expected and trace.error is None
    assert [request.raw for request in server.requests] == [server.requests[0].raw] * 2
    assert trace.usage.requests == 1


def test_recipe_changes_instructions_demos_and_model(server: LoopbackServer) -> None:
    setting = Setting(
        instructions="Shout.",
        demos=(Demo({"input": "one", "output": "ONE"}),),
        model=ModelRef("m2", server.url),
    )
    run(chain(server), Recipe({"2.lm": setting}))
    (body,) = server.bodies
    assert body["model"] == "m2"
    assert [m["content"] for m in body["messages"]] == ["Shout.", "one", "ONE", "what is it"]


def test_a_recipe_of_the_whole_process_has_no_part_in_a_run(server: LoopbackServer) -> None:
    enable(Recipe({"2.lm": Setting(instructions="Sing.")}))
    try:
        run(chain(server))
        run(chain(server), Recipe({"2.lm": Setting(instructions="Shout.")}))
    finally:
        disable()
    assert [body["messages"][0]["content"] for body in server.bodies] == [
        "Answer briefly.",
        "Shout.",
    ]


def test_a_call_names_and_is_priced_by_the_model_that_answered(server: LoopbackServer) -> None:
    other = ModelRef("m2", server.url)
    recipe = Recipe({"2.lm": Setting(model=other)})
    context = RunContext(price=lambda model, usage, seconds: 1.0 if model == other else 5.0)
    (call,) = run(chain(server), recipe, context=context).calls
    assert call.model == other
    assert call.usage.cost_usd == 1.0


def test_calls_keep_the_programs_own_inputs_for_demonstrations(server: LoopbackServer) -> None:
    demos = (Demo({"input": "one", "output": "ONE"}),)
    (call,) = run(chain(server), Recipe({"2.lm": Setting(demos=demos)})).calls
    assert call.inputs == {"input": "what is it"}


def test_a_failed_member_of_an_ensemble_fails_the_trial(server: LoopbackServer) -> None:
    turns = iter([Reply("no such thing", status=400)])
    server.answer = lambda body: next(turns, echo(body))
    trace = run(chain(server), Recipe({"2.lm": Setting(ensemble=Ensemble(3, "majority"))}))
    assert len(server.requests) == 3
    assert trace.error is not None and "no such thing" in trace.error


def test_every_real_request_goes_through_the_gate(server: LoopbackServer) -> None:
    gate = CountingGate()
    context = RunContext(memo=Memo(), gate=gate)
    run(chain(server), None, context)
    run(chain(server), None, context)
    assert gate.endpoints == [server.url]


class SlowGate:
    """Lets every request wait, and knows for how long the last one did."""

    waited_s = 0.0

    @contextmanager
    def slot(self, endpoint: str) -> Iterator[None]:
        began = time.monotonic()
        time.sleep(0.2)
        self.waited_s = time.monotonic() - began
        yield


def test_waiting_at_the_gate_is_not_the_models_time(server: LoopbackServer) -> None:
    gate = SlowGate()
    began = time.monotonic()
    (call,) = run(chain(server), None, RunContext(gate=gate)).calls
    # Holds on a machine of any speed: what the call did not wait for is all that it may claim.
    assert 0 < call.duration_s <= time.monotonic() - began - gate.waited_s


def test_run_ends_when_its_time_is_used_up(server: LoopbackServer) -> None:
    server.answer = lambda _: Reply("hello", delay_s=0.3)
    llm = chat(server)
    endless = RunnableLambda(lambda x: [llm.invoke(x["q"]).text for _ in range(50)])
    trace = run(endless, None, RunContext(timeout_s=0.5))
    assert trace.error is not None and "timeout_s" in trace.error
    assert trace.error_kind == "endpoint"
    assert len(server.requests) < 5


def test_failures_are_in_the_trace(server: LoopbackServer) -> None:
    trace = run(chain(server) | RunnableLambda(lambda text: text["no such key"]))
    assert trace.error_kind == "program" and trace.output is None
    assert trace.usage.requests == 1  # what was paid before is told
    server.answer = lambda _: Reply("no", status=400)
    assert run(chain(server)).error_kind == "endpoint"


def test_setting_that_cannot_be_applied_is_an_error_not_another_result(
    server: LoopbackServer,
) -> None:
    recipe = Recipe({"2.lm": Setting(ensemble=Ensemble(2, "best_of", reward="short"))})
    with pytest.raises(ConfigurationError, match="cannot be applied"):
        run(chain(server), recipe)


class State(TypedDict, total=False):
    q: str
    a: str


def test_memory_of_a_graph_is_its_own_in_each_run(server: LoopbackServer) -> None:
    memory = InMemorySaver()
    agent = create_agent(chat(server), [], checkpointer=memory)
    raw = {"inputs": {"messages": [HumanMessage("hello")]}, "outputs": {}}
    for _ in range(2):
        trace = run(agent, raw=raw)
        assert len(trace.output["messages"]) == 2
    assert list(memory.storage) == []


def test_async_programs_run_too(server: LoopbackServer) -> None:
    inner = chain(server)

    async def draft(state: State) -> State:
        return {"a": await inner.ainvoke({"q": state["q"]})}

    built = StateGraph(State)
    built.add_node("draft", draft)
    built.add_edge(START, "draft")
    built.add_edge("draft", END)
    graph = built.compile()
    context = RunContext(memo=Memo(), gate=CountingGate())
    raw = {"inputs": {"q": "hello"}, "outputs": {}}
    traces = [run(graph, None, context, raw) for _ in range(2)]
    assert [trace.error for trace in traces] == [None, None]
    assert traces[0].output == traces[1].output
    assert len(server.requests) == 1


def test_threads_without_a_context_are_reached_as_well(server: LoopbackServer) -> None:
    llm = chat(server)

    def both(x: Mapping[str, str]) -> list[str]:
        with ThreadPoolExecutor(2) as pool:
            return [m.text for m in pool.map(llm.invoke, [f"one {x['q']}", f"two {x['q']}"])]

    context = RunContext(memo=Memo())
    traces = [run(RunnableLambda(both), None, context) for _ in range(2)]
    assert [trace.usage.requests for trace in traces] == [2, 2]
    assert len(server.requests) == 2


def test_tools_with_effects_run_once_per_run(server: LoopbackServer) -> None:
    used: list[str] = []

    @tool
    def note(text: str) -> str:
        """Notes something."""
        used.append(text)
        return "noted"

    def answer(body: Mapping[str, Any]) -> Reply:
        done = body["messages"][-1]["role"] == "tool"
        return Reply("done") if done else Reply(tool_calls=[("note", {"text": "x"})])

    server.answer = answer
    agent = create_agent(chat(server), [note])
    program = bound(agent)
    assert used == []
    raw = {"inputs": {"messages": [("user", "hello")]}, "outputs": {}}
    (example,) = program.examples("examples", [raw])
    trace = program.run(Recipe(), example, RunContext(memo=Memo()))
    assert used == ["x"]
    kinds = [call.kind for call in sorted(trace.calls, key=lambda c: c.start_s)]
    assert kinds == ["lm", "tool", "lm"]
    assert [m.type for m in trace.output["messages"]] == ["human", "ai", "tool", "ai"]


def test_program_may_change_its_input_without_harm(server: LoopbackServer) -> None:
    def greedy(x: dict[str, Any]) -> Any:
        return chat(server).invoke(x.pop("q"))

    raw = {"inputs": {"q": "hello"}, "outputs": {}}
    assert run(RunnableLambda(greedy), raw=raw).error is None
    assert raw == {"inputs": {"q": "hello"}, "outputs": {}}


def test_tuners_own_prompt_is_answered_and_counted(server: LoopbackServer) -> None:
    program = bound(chain(server))
    completion = program.complete(chat(server), "Propose.", seed=7, max_tokens=20)
    assert completion.text.endswith("Propose.")
    assert completion.usage.input_tokens == server.usage()["input_tokens"]
    assert server.bodies[0]["seed"] == 7


def test_models_that_are_not_served_are_named_before_anything_is_spent(
    server: LoopbackServer,
) -> None:
    from adaseek.errors import EndpointError

    program = bound(chain(server))
    program.check_models([chat(server, "m2"), f"m2@{server.url}"])
    with pytest.raises(EndpointError, match="does not serve `m9`"):
        program.check_models([chat(server, "m9")])
    assert server.requests == ()
