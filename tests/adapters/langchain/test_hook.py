"""What a hook sees: calls, usage, times, whose step a call is; and that it never disturbs."""

from __future__ import annotations

import asyncio
import gc
import operator
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, TypedDict

import pytest
from adaseek.errors import ConfigurationError
from adaseek.recipe import Ensemble, Recipe, Setting
from adaseek.testing.loopback import LoopbackServer, Reply, echo
from adaseek.workflow import Trace, Usage

pytest.importorskip("langchain")
pytest.importorskip("langchain_openai")

from adaseek_langchain import AdaSeekHook, disable, enable
from adaseek_langchain._recorder import Tree
from langchain.agents import create_agent
from langchain_core.caches import InMemoryCache
from langchain_core.messages import HumanMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langchain_programs import chain, chat
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt

GIVEN = {"q": "what is it"}


def lm_steps(trace: Trace) -> list[str]:
    return [call.step for call in trace.calls if call.kind == "lm"]


def counted(server: LoopbackServer) -> tuple[int, int, int, int]:
    usage = server.usage()
    names = ("input_tokens", "output_tokens", "cached_tokens", "requests")
    return tuple(usage[name] for name in names)  # type: ignore[return-value]


def seen(hook: AdaSeekHook) -> tuple[int, int, int, int]:
    usage = Usage.total(trace.usage for trace in hook.traces)
    return usage.input_tokens, usage.output_tokens, usage.cached_tokens, usage.requests


def test_trace_holds_output_calls_and_the_usage_that_the_server_counted(
    server: LoopbackServer,
) -> None:
    hook = AdaSeekHook()
    output = chain(server).invoke(GIVEN, {"callbacks": [hook]})
    (trace,) = hook.traces
    (call,) = trace.calls
    assert trace.output == output
    assert call.step == "2.lm"
    assert call.inputs == {"input": "what is it"}
    assert call.outputs == {"output": output}
    assert call.model is not None and call.model.key == f"m@{server.url}"
    assert seen(hook) == counted(server)
    assert trace.error is None and trace.latency_s is not None


def test_streams_are_counted_too_and_have_a_time_to_first_token(server: LoopbackServer) -> None:
    hook = AdaSeekHook()
    chunks = list(chain(server).stream(GIVEN, {"callbacks": [hook]}))
    (call,) = hook.traces[0].calls
    assert len(chunks) > 1
    assert seen(hook) == counted(server)
    assert call.first_token_s is not None
    assert 0 < call.first_token_s <= call.duration_s


def test_a_stream_without_our_wish_for_usage_sends_the_request_as_it_was(
    server: LoopbackServer,
) -> None:
    list(chain(server).stream(GIVEN))
    list(chain(server).stream(GIVEN, {"callbacks": [AdaSeekHook(stream_usage=False)]}))
    first, second = server.requests
    assert first.raw == second.raw


def test_observing_sends_byte_identical_requests(server: LoopbackServer) -> None:
    program = chain(server)
    program.invoke(GIVEN)
    program.invoke(GIVEN, {"callbacks": [AdaSeekHook(Recipe())]})
    first, second = server.requests
    assert first.raw == second.raw


def test_no_secret_is_in_a_trace_or_a_workflow(server: LoopbackServer) -> None:
    hook = AdaSeekHook()
    chain(server).invoke(GIVEN, {"callbacks": [hook]})
    assert "secret-key" not in repr(hook.traces)
    assert "secret-key" not in repr(hook.workflow)


def test_keys_are_the_same_however_a_program_is_invoked(server: LoopbackServer) -> None:
    hook = AdaSeekHook()
    config = {"callbacks": [hook]}
    program = chain(server)

    def elsewhere() -> None:
        program.invoke(GIVEN, {**config, "run_name": "another name"})

    program.invoke(GIVEN, config)
    elsewhere()
    program.batch([GIVEN, GIVEN], config)
    list(program.stream(GIVEN, config))
    asyncio.run(program.ainvoke(GIVEN, config))
    with ThreadPoolExecutor(1) as pool:
        pool.submit(program.invoke, GIVEN, config).result()
    assert {step for trace in hook.traces for step in lm_steps(trace)} == {"2.lm"}
    assert len(hook.traces) == 7


def test_two_calls_in_one_function_are_two_steps(server: LoopbackServer) -> None:
    llm = chat(server)

    def both(x: dict[str, str]) -> str:
        first = llm.invoke(x["q"]).text
        return llm.invoke(first).text

    hook = AdaSeekHook()
    RunnableLambda(both).invoke(GIVEN, {"callbacks": [hook]})
    steps = lm_steps(hook.traces[0])
    assert len(set(steps)) == 2
    assert all(step.startswith("lm@test_hook:") for step in steps)


def test_model_and_its_fallback_are_two_steps(server: LoopbackServer) -> None:
    server.answer = lambda body: Reply("no", status=400) if body["model"] == "m" else echo(body)
    other = ChatOpenAI(model="m2", base_url=server.url, api_key="secret-key")
    hook = AdaSeekHook()
    program = RunnableLambda(lambda x: x["q"]) | chat(server).with_fallbacks([other])
    program.invoke(GIVEN, {"callbacks": [hook]})
    (trace,) = hook.traces
    lm = [call for call in trace.calls if call.kind == "lm"]
    assert [call.step for call in lm] == ["2.lm[m]", "2.lm[m2]"]
    assert lm[0].error is not None and lm[0].usage == Usage()
    assert trace.error is None


@tool
def look_up(q: str) -> str:
    """Finds something."""
    time.sleep(0.05)
    return f"found {q}"


def calls_a_tool(body: Any) -> Reply:
    if body["messages"][-1]["role"] == "tool":
        return Reply("done")
    return Reply(tool_calls=[("look_up", {"q": "x"})])


def test_agent_is_one_step_with_a_tool_whose_time_is_known(server: LoopbackServer) -> None:
    server.answer = calls_a_tool
    hook = AdaSeekHook()
    agent = create_agent(chat(server), [look_up], system_prompt="Use the tool.")
    agent.invoke({"messages": [("user", "hello")]}, {"callbacks": [hook]})
    (trace,) = hook.traces
    used = next(call for call in trace.calls if call.kind == "tool")
    assert lm_steps(trace) == ["model/1.lm", "model/1.lm"]
    assert used.step == "tool:look_up"
    assert used.inputs == {"q": "x"} and used.outputs == {"result": "found x"}
    assert used.duration_s >= 0.05
    assert trace.latency_s is not None and trace.latency_s >= used.duration_s
    workflow = hook.workflow
    assert workflow.steps["model/1.lm"].tools == ("look_up",)
    assert workflow.steps["tool:look_up"].kind == "tool"


class State(TypedDict, total=False):
    q: str
    parts: Annotated[list[str], operator.add]


def test_latency_is_the_critical_path_of_parallel_branches(server: LoopbackServer) -> None:
    server.answer = lambda _: Reply("one two", delay_s=0.2)
    llm = chat(server)
    built = StateGraph(State)
    for name in ("a", "b", "c"):
        built.add_node(name, lambda s: {"parts": [llm.invoke(s["q"]).text]})
        built.add_edge(START, name)
        built.add_edge(name, END)
    hook = AdaSeekHook()
    built.compile().invoke({"q": "x"}, {"callbacks": [hook]})
    (trace,) = hook.traces
    durations = [call.duration_s for call in trace.calls]
    assert len(durations) == 3 and min(durations) >= 0.2
    assert trace.latency_s is not None and trace.latency_s < sum(durations)


def test_a_pause_for_a_person_is_no_failure_and_no_latency(server: LoopbackServer) -> None:
    llm = chat(server)

    def ask(state: State) -> State:
        answer = interrupt("ok?")
        return {"parts": [llm.invoke(answer).text]}

    built = StateGraph(State)
    built.add_node("ask", ask)
    built.add_edge(START, "ask")
    graph = built.compile(checkpointer=InMemorySaver())
    hook = AdaSeekHook()
    config: Any = {"callbacks": [hook], "configurable": {"thread_id": "1"}}
    graph.invoke({"q": "x"}, config)
    time.sleep(0.3)
    graph.invoke(Command(resume="yes"), config)
    paused, resumed = hook.traces
    assert paused.error is None and lm_steps(paused) == []
    assert len(lm_steps(resumed)) == 1
    assert resumed.latency_s is not None and resumed.latency_s < 0.3
    assert resumed.latency_s >= resumed.calls[0].duration_s


def test_hook_given_twice_counts_once(server: LoopbackServer) -> None:
    hook = AdaSeekHook()
    chain(server).with_config(callbacks=[hook]).invoke(GIVEN, {"callbacks": [hook, hook]})
    assert [len(trace.calls) for trace in hook.traces] == [1]
    assert seen(hook) == counted(server)


def test_nested_hooks_each_see_their_part(server: LoopbackServer) -> None:
    inner, outer = AdaSeekHook(), AdaSeekHook()
    first = chain(server).with_config(callbacks=[inner])
    both = first | RunnableLambda(lambda text: {"q": text}) | chain(server)
    both.invoke(GIVEN, {"callbacks": [outer]})
    assert len(lm_steps(outer.traces[0])) == 2
    assert lm_steps(inner.traces[0]) == ["2.lm"]
    assert len(server.requests) == 2


def test_one_hook_serves_many_threads(server: LoopbackServer) -> None:
    hook = AdaSeekHook(max_traces=50)
    program = chain(server)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: program.invoke(GIVEN, {"callbacks": [hook]}), range(24)))
    assert len(hook.traces) == 24
    assert all(lm_steps(trace) == ["2.lm"] for trace in hook.traces)
    assert seen(hook) == counted(server)


def test_what_a_program_changes_afterwards_is_recorded_as_it_was(server: LoopbackServer) -> None:
    hook = AdaSeekHook()
    llm = ChatOpenAI(model="m", base_url=server.url, api_key="k")
    messages: list[Any] = [HumanMessage("first")]
    llm.invoke(messages, {"callbacks": [hook]})
    messages.append(HumanMessage("second"))
    prompt = ChatPromptTemplate.from_messages([("human", "{q}")]).invoke({"q": "third"})
    llm.invoke(prompt, {"callbacks": [hook]})
    prompt.messages.append(HumanMessage("fourth"))
    state: dict[str, Any] = {"items": ["a"]}
    RunnableLambda(lambda x: x).invoke(state, {"callbacks": [hook]})
    state["items"].append("b")
    state["more"] = 1
    first, second, third = hook.traces
    assert first.calls[0].inputs == {"input": "first"}
    assert second.calls[0].inputs == {"input": "third"}
    assert hook._recorder.trees()[2].root.given == {"items": ["a"]}
    assert third.calls == ()


def test_an_invocation_that_is_not_kept_leaves_nothing_to_collect(server: LoopbackServer) -> None:
    hook = AdaSeekHook(max_traces=1)
    program = RunnableLambda(lambda x: x) | ChatOpenAI(model="m", base_url=server.url, api_key="k")
    program.invoke("a", {"callbacks": [hook]})
    gc.collect()
    gc.disable()
    try:
        before = sum(isinstance(held, Tree) for held in gc.get_objects())
        program.invoke("b", {"callbacks": [hook]})
        assert sum(isinstance(held, Tree) for held in gc.get_objects()) == before
    finally:
        gc.enable()


def test_only_the_newest_traces_are_kept(server: LoopbackServer) -> None:
    hook = AdaSeekHook(max_traces=2)
    for word in ("one", "two", "three"):
        chain(server).invoke({"q": word}, {"callbacks": [hook]})
    assert [t.calls[0].inputs["input"] for t in hook.traces] == ["two", "three"]
    assert hook._recorder._runs == {}


def test_failure_of_the_endpoint_is_told_from_one_of_the_program(server: LoopbackServer) -> None:
    def broken(_: str) -> str:
        raise RuntimeError("my own fault")

    hook = AdaSeekHook()
    with pytest.raises(RuntimeError, match="my own fault"):
        (chain(server) | RunnableLambda(broken)).invoke(GIVEN, {"callbacks": [hook]})
    server.answer = lambda _: Reply("no", status=400)
    with pytest.raises(Exception, match="no"):
        chain(server, max_retries=0).invoke(GIVEN, {"callbacks": [hook]})
    assert [trace.error_kind for trace in hook.traces] == ["program", "endpoint"]
    assert [trace.output for trace in hook.traces] == [None, None]


def test_a_stream_that_is_given_up_leaves_nothing_behind(server: LoopbackServer) -> None:
    hook = AdaSeekHook()
    chunks = chat(server).stream("hello you there", {"callbacks": [hook]})
    next(chunks)
    chunks.close()  # type: ignore[attr-defined]
    gc.collect()
    assert hook._recorder._runs == {}
    assert [trace.usage.requests for trace in hook.traces] == [1]


def test_keyboard_interrupt_passes_and_closes_the_run(server: LoopbackServer) -> None:
    hook = AdaSeekHook()
    with pytest.raises(KeyboardInterrupt):
        for _ in chain(server).stream(GIVEN, {"callbacks": [hook]}):
            raise KeyboardInterrupt
    chain(server).invoke(GIVEN, {"callbacks": [hook]})
    assert lm_steps(hook.traces[-1]) == ["2.lm"]


def test_model_without_usage_data_is_counted_at_unknown_cost(server: LoopbackServer) -> None:
    from langchain_core.language_models.fake_chat_models import FakeListChatModel

    hook = AdaSeekHook(prices={"FakeListChatModel": {"input": 1.0, "output": 1.0}})
    FakeListChatModel(responses=["hello"]).invoke("x", {"callbacks": [hook]})
    (trace,) = hook.traces
    assert trace.usage == Usage(requests=1, cost_usd=None)
    assert any("reports no usage" in note.text for note in hook.workflow.notes)


def test_known_prices_give_a_cost(server: LoopbackServer) -> None:
    hook = AdaSeekHook(prices={"m": {"input": 1.0, "output": 2.0}})
    chain(server).invoke(GIVEN, {"callbacks": [hook]})
    usage = hook.traces[0].usage
    expected = (usage.input_tokens + 2 * usage.output_tokens) / 1e6
    assert usage.cost_usd == pytest.approx(expected)


def test_answers_of_langchains_own_cache_are_marked(server: LoopbackServer) -> None:
    hook = AdaSeekHook()
    program = chain(server, cache=InMemoryCache())
    program.invoke(GIVEN, {"callbacks": [hook]})
    program.invoke(GIVEN, {"callbacks": [hook]})
    assert [trace.calls[0].cached for trace in hook.traces] == [False, True]
    assert hook.traces[1].latency_s is None  # the cache kept no duration
    assert len(server.requests) == 1


def test_recipe_that_cannot_be_applied_is_counted_and_the_program_runs_on(
    server: LoopbackServer,
) -> None:
    recipe = Recipe({"2.lm": Setting(ensemble=Ensemble(2, "best_of", reward="short"))})
    hook = AdaSeekHook(recipe)
    with pytest.warns(RuntimeWarning, match="left a request of step `2.lm`"):
        first = chain(server).invoke(GIVEN, {"callbacks": [hook]})
    second = chain(server).invoke(GIVEN, {"callbacks": [hook]})
    assert first == second == chain(server).invoke(GIVEN)
    assert hook.missed == 2
    assert [request.raw for request in server.requests[:2]] == [server.requests[2].raw] * 2


@pytest.mark.parametrize("given", ["runs/qa", {}, AdaSeekHook])
def test_what_is_no_recipe_is_refused_at_once(given: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"must be a Recipe.*Recipe\.load"):
        AdaSeekHook(given)
    with pytest.raises(ConfigurationError, match="must be a Recipe"):
        enable(given)
    disable()


def test_recipe_for_another_program_is_said_once_and_ignored(server: LoopbackServer) -> None:
    hook = AdaSeekHook(Recipe({"elsewhere/2.lm": Setting(instructions="x")}))
    with pytest.warns(RuntimeWarning, match="elsewhere/2.lm") as told:
        for _ in range(3):
            chain(server).invoke(GIVEN, {"callbacks": [hook]})
    assert len(told) == 1
    assert hook.missed == 3
    assert [body["messages"][0]["content"] for body in server.bodies] == ["Answer briefly."] * 3


def test_workflow_shows_what_flows_where(server: LoopbackServer) -> None:
    server.answer = lambda _: Reply("a text that is long enough to be told apart")
    both = chain(server) | RunnableLambda(lambda text: {"q": text}) | chain(server)
    hook = AdaSeekHook()
    both.invoke(GIVEN, {"callbacks": [hook]})
    flows = {(edge.source, edge.target, edge.evidence) for edge in hook.workflow.edges}
    steps = lm_steps(hook.traces[0])
    assert (steps[0], steps[1], "trace") in flows
    assert (steps[1], "OUTPUT", "trace") in flows
