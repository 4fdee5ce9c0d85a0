"""What goes wrong in programs: an observed or tuned one behaves as it does without us."""

from __future__ import annotations

import asyncio
import warnings
from contextvars import Context
from typing import Any, TypedDict

import pytest
from adaseek.recipe import Recipe, Setting
from adaseek.testing.conformance import INSTRUCTIONS, marking_recipe
from adaseek.testing.loopback import LoopbackServer, Reply, echo, scripted
from adaseek.workflow import ModelRef, Usage

pytest.importorskip("langchain")
pytest.importorskip("langchain_openai")

from adaseek_langchain import AdaSeekHook, disable, enable
from langchain.agents import create_agent
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableLambda
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langchain_programs import chat, prompt
from langgraph.checkpoint.memory import MemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt

GIVEN = {"q": "what is it"}


def chain(server: LoopbackServer, **settings: Any) -> Any:
    return prompt() | chat(server, **settings)


def usage(hook: AdaSeekHook) -> Usage:
    return Usage.total(trace.usage for trace in hook.traces)


def steps(hook: AdaSeekHook) -> list[str]:
    return [call.step for trace in hook.traces for call in trace.calls if call.kind == "lm"]


def tuned(server: LoopbackServer, program: Any, given: Any = GIVEN) -> Recipe:
    """Returns a recipe that marks every step that a run of `program` shows."""
    hook = AdaSeekHook()
    program.invoke(given, {"callbacks": [hook]})
    server.clear()
    return marking_recipe(hook.workflow, ModelRef("m2", server.url))


# X2: pauses, errors and interruptions


class State(TypedDict, total=False):
    """The state of the graph below."""

    q: str
    a: str


def approved(server: LoopbackServer) -> Any:
    llm = chat(server)

    def ask(state: State) -> State:
        allowed = interrupt("may I?")
        return {"a": llm.invoke(f"{state['q']} {allowed}").text}

    built = StateGraph(State)
    built.add_node("ask", ask)
    built.add_edge(START, "ask")
    built.add_edge("ask", END)
    return built.compile(checkpointer=MemorySaver())


def test_a_pause_for_a_human_is_no_failure(server: LoopbackServer) -> None:
    hook, graph = AdaSeekHook(), approved(server)
    config = {"configurable": {"thread_id": "t1"}, "callbacks": [hook]}
    paused = graph.invoke(GIVEN, config)
    assert "__interrupt__" in paused
    resumed = graph.invoke(Command(resume="yes"), config)
    assert resumed["a"] == "echo[m]: what is it yes"
    assert [trace.error for trace in hook.traces] == [None] * len(hook.traces)
    first = steps(hook)
    assert len(first) == 1
    assert usage(hook).requests == server.usage()["requests"] == 1
    again = AdaSeekHook()
    config = {"configurable": {"thread_id": "t2"}, "callbacks": [again]}
    graph.invoke(GIVEN, config)
    graph.invoke(Command(resume="no"), config)
    assert steps(again) == first


def test_a_recipe_reaches_a_node_that_goes_on_after_a_pause(server: LoopbackServer) -> None:
    observing, graph = AdaSeekHook(), approved(server)
    config = {"configurable": {"thread_id": "t1"}, "callbacks": [observing]}
    graph.invoke(GIVEN, config)
    graph.invoke(Command(resume="yes"), config)
    hook = AdaSeekHook(marking_recipe(observing.workflow, ModelRef("m2", server.url)))
    server.clear()
    config = {"configurable": {"thread_id": "t2"}, "callbacks": [hook]}
    graph.invoke(GIVEN, config)
    graph.invoke(Command(resume="yes"), config)
    (body,) = server.bodies
    assert body["model"] == "m2"
    assert INSTRUCTIONS in str(body["messages"])


@tool
def broken(q: str) -> str:
    """Always fails."""
    raise RuntimeError("the tool broke")


@pytest.mark.parametrize("is_tuned", [False, True])
def test_a_tools_exception_leaves_the_agent(server: LoopbackServer, is_tuned: bool) -> None:
    agent = create_agent(chat(server), [broken], system_prompt="Use it.")
    given = {"messages": [("user", "go")]}
    recipe = Recipe()
    if is_tuned:
        recipe = tuned(server, create_agent(chat(server), [broken], system_prompt="Use it."), given)
    hook = AdaSeekHook(recipe)
    server.answer = lambda body: Reply(tool_calls=[("broken", {"q": "x"})])
    with pytest.raises(RuntimeError, match="the tool broke"):
        agent.invoke(given, {"callbacks": [hook]})
    (trace,) = hook.traces
    assert "the tool broke" in str(trace.error)
    assert trace.error_kind == "program"
    assert [c.error is not None for c in trace.calls if c.kind == "tool"] == [True]
    assert trace.usage.requests == server.usage()["requests"] == 1


def test_a_retried_request_is_one_call(server: LoopbackServer) -> None:
    server.answer = scripted(Reply("overloaded", status=500))
    hook = AdaSeekHook()
    reply = chain(server, max_retries=2).invoke(GIVEN, {"callbacks": [hook]})
    assert reply.text == "echo[m]: what is it"
    assert len(server.requests) == 2
    assert len(steps(hook)) == 1
    assert usage(hook).requests == server.usage()["requests"] == 1
    assert hook.traces[0].error is None


def test_an_error_of_the_endpoint_is_recorded_and_raised(server: LoopbackServer) -> None:
    server.answer = lambda body: Reply("no such key", status=401)
    program, hook = chain(server), AdaSeekHook()
    with pytest.raises(Exception, match="no such key") as with_us:
        program.invoke(GIVEN, {"callbacks": [hook]})
    with pytest.raises(Exception, match="no such key") as without_us:
        program.invoke(GIVEN)
    assert with_us.type is without_us.type
    (trace,) = hook.traces
    assert trace.error_kind == "endpoint"


@pytest.mark.parametrize("is_tuned", [False, True])
def test_an_interrupted_stream_leaves_nothing_behind(
    server: LoopbackServer, is_tuned: bool
) -> None:
    program = chain(server)
    hook = AdaSeekHook(tuned(server, program) if is_tuned else None)

    def interrupted() -> None:
        for _ in program.stream(GIVEN, {"callbacks": [hook]}):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    server.clear()
    reply = program.invoke(GIVEN, {"callbacks": [hook]})
    assert reply.text.startswith("echo[m2]" if is_tuned else "echo[m]")
    assert hook.missed == 0
    server.clear()
    assert program.invoke(GIVEN).text == "echo[m]: what is it"


@pytest.mark.parametrize("is_tuned", [False, True])
def test_a_cancelled_task_leaves_nothing_behind(server: LoopbackServer, is_tuned: bool) -> None:
    program = chain(server)
    hook = AdaSeekHook(tuned(server, program) if is_tuned else None)
    config: Any = {"callbacks": [hook]}

    async def cancelled() -> Any:
        server.answer = lambda body: Reply("late", delay_s=0.5)
        task = asyncio.create_task(program.ainvoke(GIVEN, config))
        while not server.requests:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        server.answer = echo
        return await program.ainvoke(GIVEN, config)

    reply = asyncio.run(cancelled())
    assert reply.text.startswith("echo[m2]" if is_tuned else "echo[m]")
    assert hook.traces[-1].error is None
    assert hook.missed == 0


def test_a_timeout_is_the_endpoints_error(server: LoopbackServer) -> None:
    server.answer = lambda body: Reply("late", delay_s=1.0)
    hook = AdaSeekHook()
    with pytest.raises(Exception, match=r"(?i)timed out"):
        chain(server, timeout=0.1, max_retries=0).invoke(GIVEN, {"callbacks": [hook]})
    (trace,) = hook.traces
    assert trace.error_kind == "endpoint"


# What users hand in


def test_a_hook_given_twice_counts_once(server: LoopbackServer) -> None:
    hook = AdaSeekHook()
    chain(server).with_config(callbacks=[hook]).invoke(GIVEN, {"callbacks": [hook, hook]})
    assert len(hook.traces) == 1
    assert usage(hook).requests == server.usage()["requests"] == 1


def test_two_hooks_both_see_everything(server: LoopbackServer) -> None:
    outer, inner = AdaSeekHook(), AdaSeekHook()
    asked = chain(server).with_config(callbacks=[inner])
    # Passed on by hand: a config with callbacks of its own inherits none from its context.
    passing = RunnableLambda(lambda x, config: asked.invoke(x, config))
    passing.invoke(GIVEN, {"callbacks": [outer]})
    for hook in (outer, inner):
        assert usage(hook).requests == 1
        assert usage(hook).input_tokens == server.usage()["input_tokens"]


def test_nested_hooks_rewrite_a_request_once(server: LoopbackServer) -> None:
    program = chain(server)
    recipe = tuned(server, program)
    inner, outer = AdaSeekHook(recipe), AdaSeekHook(recipe)
    program.with_config(callbacks=[inner]).invoke(GIVEN, {"callbacks": [outer]})
    (body,) = server.bodies
    assert str(body["messages"]).count(INSTRUCTIONS) == 1
    assert body["model"] == "m2"


def test_a_recipe_of_another_program_changes_nothing_and_warns_once(
    server: LoopbackServer,
) -> None:
    hook = AdaSeekHook(Recipe({"elsewhere.lm": Setting(instructions="Shout.")}))
    program = chain(server)
    program.invoke(GIVEN)
    plain = [request.raw for request in server.requests]
    server.clear()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        program.invoke(GIVEN, {"callbacks": [hook]})
        program.invoke(GIVEN, {"callbacks": [hook]})
    assert [request.raw for request in server.requests] == plain * 2
    assert len([w for w in told if "elsewhere.lm" in str(w.message)]) == 1


class Dropping(Runnable[Any, Any]):
    """A node of the user's that asks its model without the config it was given."""

    def __init__(self, llm: ChatOpenAI) -> None:
        self.llm = llm

    def invoke(self, given: Any, config: Any = None, **kwargs: Any) -> Any:
        return Context().run(self.llm.invoke, given["q"])


def test_a_node_that_drops_the_config_runs_as_without_us(server: LoopbackServer) -> None:
    program = RunnableLambda(lambda x: x) | Dropping(chat(server))
    program.invoke(GIVEN)
    (plain,) = server.requests
    hook = AdaSeekHook(Recipe({"2.lm": Setting(instructions="Shout.")}))
    assert program.invoke(GIVEN, {"callbacks": [hook]}).text == "echo[m]: what is it"
    assert server.requests[-1].raw == plain.raw
    (trace,) = hook.traces
    assert trace.error is None
    assert steps(hook) == []
    everywhere = enable()
    try:
        program.invoke(GIVEN)
    finally:
        disable()
    assert len(steps(everywhere)) == 1


def test_a_changed_step_is_left_alone(server: LoopbackServer) -> None:
    recipe = tuned(server, chain(server))
    asked = ChatPromptTemplate.from_messages([("system", "Now rhyme."), ("human", "{q}")])
    changed, hook = asked | chat(server), AdaSeekHook(recipe)
    with pytest.warns(RuntimeWarning):
        changed.invoke(GIVEN, {"callbacks": [hook]})
    (body,) = server.bodies
    assert "Now rhyme." in str(body["messages"])
    assert body["model"] == "m"
    assert hook.missed == 1


def test_a_model_without_usage_costs_an_unknown_amount(server: LoopbackServer) -> None:
    server.answer = lambda body: Reply("hello", tells_usage=False)
    hook = AdaSeekHook(prices={"m": {"input": 1.0, "output": 1.0}})
    reply = chain(server).invoke(GIVEN, {"callbacks": [hook]})
    assert reply.text == "hello"
    assert usage(hook).cost_usd is None
    assert any("reports no usage" in note.text for note in hook.workflow.notes)
