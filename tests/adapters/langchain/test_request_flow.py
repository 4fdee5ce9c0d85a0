"""Answers put together from several requests: reasoning, votes, judges and rewards."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

pytest.importorskip("langchain_openai")

from adaseek.recipe import Demo, Ensemble, Recipe, Setting
from adaseek.testing.loopback import LoopbackServer, Reply
from adaseek.workflow import ModelRef
from adaseek_langchain import AdaSeekHook
from adaseek_langchain._chat import ChatRequest
from adaseek_langchain._flow import Ask, adrive, drive, step_flow
from adaseek_langchain._interpose import uninstall
from adaseek_langchain._turns import REASONING_KEY
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.output_parsers import JsonOutputParser, StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, MessagesState, StateGraph
from pydantic import BaseModel

STEP = "2.lm"


class Colour(BaseModel):
    """The colour of a thing."""

    name: str


@pytest.fixture
def server() -> Iterator[LoopbackServer]:
    with LoopbackServer(keep_alive=False) as running:
        yield running
    gc.collect()
    uninstall()


def chat(server: LoopbackServer, **settings: Any) -> ChatOpenAI:
    return ChatOpenAI(model="m", base_url=server.url, api_key="k", **settings)


def program(server: LoopbackServer, parser: Any = None, **settings: Any) -> Any:
    asked = ChatPromptTemplate.from_messages([("system", "Be brief."), ("human", "{q}")])
    return asked | chat(server, **settings) | (parser or StrOutputParser())


def hook(setting: Setting, members: Mapping[str, Setting] | None = None, **more: Any) -> Any:
    settings = {STEP: setting}
    settings |= {f"{STEP}#{name}": value for name, value in (members or {}).items()}
    return AdaSeekHook(Recipe(settings), **more)


def contents(body: Mapping[str, Any]) -> list[Any]:
    return [message["content"] for message in body["messages"]]


def steps(hook: AdaSeekHook) -> list[str]:
    return [call.step for trace in hook.traces for call in trace.calls if call.kind == "lm"]


# Reasoning


def test_reasoning_is_cut_off_what_the_parser_reads(server: LoopbackServer) -> None:
    server.answer = lambda body: Reply('It is red.\n=== ANSWER ===\n{"name": "red"}')
    carrying = hook(Setting(reasoning="chain_of_thought"))
    reply = program(server, JsonOutputParser()).invoke({"q": "a"}, {"callbacks": [carrying]})
    assert reply == {"name": "red"}
    assert len(server.requests) == 1


def test_the_answer_keeps_its_reasoning_aside(server: LoopbackServer) -> None:
    server.answer = lambda body: Reply("why\n=== ANSWER ===\nred")
    asked = ChatPromptTemplate.from_messages([("human", "{q}")]) | chat(server)
    carrying = hook(Setting(reasoning="plan"))
    reply = asked.invoke({"q": "a"}, {"callbacks": [carrying]})
    assert (reply.text, reply.additional_kwargs[REASONING_KEY]) == ("red", "why")
    assert reply.usage_metadata["total_tokens"] == sum(
        server.usage()[name] for name in ("input_tokens", "output_tokens")
    )


def test_a_model_that_forgets_the_marker_is_asked_for_the_bare_answer(
    server: LoopbackServer,
) -> None:
    def answer(body: Mapping[str, Any]) -> Reply:
        return Reply("It must be red." if len(body["messages"]) == 2 else "red")

    server.answer = answer
    carrying = hook(Setting(reasoning="chain_of_thought"))
    assert program(server).invoke({"q": "a"}, {"callbacks": [carrying]}) == "red"
    first, second = server.bodies
    assert "=== ANSWER ===" in contents(first)[0]
    assert contents(second)[:3] == ["Be brief.", "a", "It must be red."]
    assert carrying.missed == 0


def test_bound_tools_get_a_reasoning_request_of_its_own(server: LoopbackServer) -> None:
    def answer(body: Mapping[str, Any]) -> Reply:
        return Reply(tool_calls=[("Colour", {"name": "red"})]) if "tools" in body else Reply("why")

    server.answer = answer
    model = chat(server).with_structured_output(Colour, method="function_calling")
    asked = ChatPromptTemplate.from_messages([("system", "S"), ("human", "{q}")]) | model
    carrying = hook(Setting(reasoning="chain_of_thought"))
    assert asked.invoke({"q": "a"}, {"callbacks": [carrying]}) == Colour(name="red")
    first, second = server.bodies
    assert "tools" not in first
    assert "tool_choice" not in first
    assert contents(second)[:3] == ["S", "a", "why"]
    assert carrying.missed == 0


def test_a_schema_is_answered_after_the_reasoning(server: LoopbackServer) -> None:
    def answer(body: Mapping[str, Any]) -> Reply:
        return Reply('{"name": "red"}' if "response_format" in body else "why")

    server.answer = answer
    model = chat(server).with_structured_output(Colour, method="json_schema")
    asked = ChatPromptTemplate.from_messages([("system", "S"), ("human", "{q}")]) | model
    carrying = hook(Setting(reasoning="plan"))
    assert asked.invoke({"q": "a"}, {"callbacks": [carrying]}) == Colour(name="red")
    assert len(server.requests) == 2


def test_a_model_made_with_a_fixed_form_is_left_alone(server: LoopbackServer) -> None:
    carrying = hook(Setting(reasoning="plan"))
    with pytest.warns(RuntimeWarning, match="leaves no room for reasoning"):
        program(server, stop=["\n"]).invoke({"q": "a"}, {"callbacks": [carrying]})
    assert carrying.missed == 1
    assert contents(server.bodies[0]) == ["Be brief.", "a"]


def test_reasoning_in_a_stream_gives_the_answer_as_one_chunk(server: LoopbackServer) -> None:
    server.answer = lambda body: Reply("why\n=== ANSWER ===\nred and blue")
    carrying = hook(Setting(reasoning="plan"))
    chunks = list(program(server).stream({"q": "a"}, {"callbacks": [carrying]}))
    assert "".join(chunks) == "red and blue"


def test_demos_show_the_reasoning_in_the_form_that_is_asked_for(server: LoopbackServer) -> None:
    server.answer = lambda body: Reply("why\n=== ANSWER ===\nred")
    demo = Demo({"input": "x", "reasoning": "since", "output": "y"})
    carrying = hook(Setting(reasoning="plan", demos=(demo,)))
    program(server).invoke({"q": "a"}, {"callbacks": [carrying]})
    assert contents(server.bodies[0])[1:3] == ["x", "since\n=== ANSWER ===\ny"]


# Ensembles


def by_seed(*texts: str) -> Any:
    return lambda body: Reply(texts[body["seed"] % len(texts)] if "seed" in body else "2")


def test_the_majority_wins_and_members_are_distinct_draws(server: LoopbackServer) -> None:
    server.answer = by_seed("blue", "Red.", "red")
    carrying = hook(Setting(ensemble=Ensemble(3), params={"temperature": 0.1, "max_tokens": 9}))
    assert program(server).invoke({"q": "a"}, {"callbacks": [carrying]}) == "Red."
    assert sorted(body["seed"] for body in server.bodies) == [0, 1, 2]
    assert {body["temperature"] for body in server.bodies} == {0.7}
    assert {body["max_completion_tokens"] for body in server.bodies} == {9}
    assert sorted(steps(carrying)) == [f"{STEP}#{i}" for i in range(3)]
    (trace,) = carrying.traces
    assert trace.usage.requests == server.usage()["requests"] == 3


def test_the_answer_reports_the_usage_of_all_members(server: LoopbackServer) -> None:
    server.answer = by_seed("a", "b", "a")
    asked = ChatPromptTemplate.from_messages([("human", "{q}")]) | chat(server)
    carrying = hook(Setting(ensemble=Ensemble(3)))
    reply = asked.invoke({"q": "a"}, {"callbacks": [carrying]})
    assert reply.usage_metadata["input_tokens"] == server.usage()["input_tokens"]
    assert reply.usage_metadata["output_tokens"] == server.usage()["output_tokens"]


def test_members_vote_on_tool_calls(server: LoopbackServer) -> None:
    calls = [
        [("f", {"x": 2}), ("g", {})],
        [("f", {"x": 1}), ("g", {})],
        [("g", {}), ("f", {"x": 1})],  # the order of parallel calls is no difference
    ]
    server.answer = lambda body: Reply("because", tool_calls=calls[body["seed"]])

    def f(x: int) -> int:
        """f"""
        return x

    def g() -> int:
        """g"""
        return 0

    asked = ChatPromptTemplate.from_messages([("human", "{q}")]) | chat(server).bind_tools([f, g])
    reply = asked.invoke({"q": "a"}, {"callbacks": [hook(Setting(ensemble=Ensemble(3)))]})
    assert [(call["name"], call["args"]) for call in reply.tool_calls] == [
        ("f", {"x": 1}),
        ("g", {}),
    ]


def test_members_vote_on_the_fields_of_a_schema(server: LoopbackServer) -> None:
    server.answer = by_seed('{"name": "blue"}', '{ "name":"red"}', '{"name": "red"}')
    model = chat(server).with_structured_output(Colour, method="json_schema")
    asked = ChatPromptTemplate.from_messages([("human", "{q}")]) | model
    reply = asked.invoke({"q": "a"}, {"callbacks": [hook(Setting(ensemble=Ensemble(3)))]})
    assert reply == Colour(name="red")


def test_members_have_settings_of_their_own(server: LoopbackServer) -> None:
    server.answer = by_seed("a")
    members = {
        "0": Setting(model=ModelRef("m2", server.url)),
        "1": Setting(instructions="Other.", params={"temperature": 0.2}),
    }
    carrying = hook(Setting(ensemble=Ensemble(2), instructions="Base."), members)
    program(server).invoke({"q": "a"}, {"callbacks": [carrying]})
    found = {body["seed"]: body for body in server.bodies}
    assert (found[0]["model"], contents(found[0])[0]) == ("m2", "Base.")
    assert (found[1]["model"], contents(found[1])[0]) == ("m", "Other.")
    assert (found[0]["temperature"], found[1]["temperature"]) == (0.7, 0.2)


def test_a_judge_chooses_among_different_answers(server: LoopbackServer) -> None:
    server.answer = by_seed("first", "second")
    judge = {"judge": Setting(model=ModelRef("j", server.url), params={"max_tokens": 3})}
    carrying = hook(Setting(ensemble=Ensemble(2, "judge")), judge)
    assert program(server).invoke({"q": "a"}, {"callbacks": [carrying]}) == "second"
    asked = server.bodies[-1]
    assert (asked["model"], asked["max_completion_tokens"]) == ("j", 3)
    assert "[1] first" in contents(asked)[1]
    assert "Be brief." in contents(asked)[1]
    assert "tools" not in asked


def test_equal_answers_need_no_judge(server: LoopbackServer) -> None:
    server.answer = by_seed("same")
    carrying = hook(Setting(ensemble=Ensemble(3, "judge")))
    assert program(server).invoke({"q": "a"}, {"callbacks": [carrying]}) == "same"
    assert len(server.requests) == 3


def test_the_users_reward_rates_the_answers(server: LoopbackServer) -> None:
    server.answer = by_seed("a", "long answer", "b")
    seen: list[Any] = []

    def length(inputs: Mapping[str, Any], answer: AIMessage) -> float:
        seen.append(inputs["messages"][-1].content)
        return len(answer.text)

    carrying = hook(
        Setting(ensemble=Ensemble(3, "best_of", reward="long")), rewards={"long": length}
    )
    assert program(server).invoke({"q": "a"}, {"callbacks": [carrying]}) == "long answer"
    assert seen == ["a"] * 3


def test_a_missing_reward_leaves_the_request_alone(server: LoopbackServer) -> None:
    carrying = hook(Setting(ensemble=Ensemble(3, "best_of", reward="long")))
    with pytest.warns(RuntimeWarning, match="`rewards` has none"):
        program(server).invoke({"q": "a"}, {"callbacks": [carrying]})
    assert len(server.requests) == 1


def test_a_reward_that_raises_is_replaced_by_the_original_request(server: LoopbackServer) -> None:
    server.answer = by_seed("a", "b")

    def broken(inputs: Mapping[str, Any], answer: AIMessage) -> float:
        raise RuntimeError("no rating today")

    carrying = hook(Setting(ensemble=Ensemble(2, "best_of", reward="r")), rewards={"r": broken})
    with pytest.warns(RuntimeWarning, match="no rating today"):
        assert program(server).invoke({"q": "a"}, {"callbacks": [carrying]}) == "2"
    assert contents(server.bodies[-1]) == ["Be brief.", "a"]
    assert carrying.missed == 1


def test_in_production_the_others_answer_for_a_failed_member(server: LoopbackServer) -> None:
    def answer(body: Mapping[str, Any]) -> Reply:
        return Reply("no", status=400) if body["seed"] == 0 else Reply("yes")

    server.answer = answer
    carrying = hook(Setting(ensemble=Ensemble(3)))
    assert program(server).invoke({"q": "a"}, {"callbacks": [carrying]}) == "yes"


def test_if_every_member_fails_the_models_error_is_raised(server: LoopbackServer) -> None:
    import openai

    server.answer = lambda body: Reply("no such thing", status=400)
    carrying = hook(Setting(ensemble=Ensemble(2)))
    with pytest.raises(openai.BadRequestError, match="no such thing"):
        program(server).invoke({"q": "a"}, {"callbacks": [carrying]})
    assert carrying.missed == 0
    assert len(server.requests) == 2


def test_async_members_run_as_tasks(server: LoopbackServer) -> None:
    server.answer = by_seed("blue", "red", "red")
    carrying = hook(Setting(ensemble=Ensemble(3)))
    found = asyncio.run(program(server).ainvoke({"q": "a"}, {"callbacks": [carrying]}))
    assert found == "red"
    assert sorted(steps(carrying)) == [f"{STEP}#{i}" for i in range(3)]


def test_a_graphs_token_stream_shows_the_chosen_answer_only(server: LoopbackServer) -> None:
    server.answer = by_seed("blue", "red", "red")
    model = chat(server)
    built = StateGraph(MessagesState)
    built.add_node("say", lambda state: {"messages": [model.invoke(state["messages"])]})
    built.add_edge(START, "say")
    built.add_edge("say", END)
    graph, given = built.compile(), {"messages": [("user", "q")]}
    observing = AdaSeekHook()
    graph.invoke(given, {"callbacks": [observing]})
    (step,) = steps(observing)
    carrying = AdaSeekHook(Recipe({step: Setting(ensemble=Ensemble(3))}))
    config: Any = {"callbacks": [carrying]}
    parts = [part for part, _ in graph.stream(given, config, stream_mode="messages")]
    assert [part.text for part in parts if part.text] == ["red"]


def test_several_requests_cannot_be_events_of_version_3(server: LoopbackServer) -> None:
    model = chat(server)
    settings = {"lm": Setting(ensemble=Ensemble(2))}

    class Named(AdaSeekHook):
        def request(self, *args: Any, **kwargs: Any) -> Any:
            from dataclasses import replace

            return replace(super().request(*args, **kwargs), step="lm")

    carrying = Named(Recipe(settings))
    with pytest.warns(Warning, match="version v3"):
        stream = model.stream_events("a", {"callbacks": [carrying]}, version="v3")
        assert stream.output.text == "echo[m]: a"
    assert len(server.requests) == 1


# The flow by itself


def test_threads_and_tasks_drive_the_same_flow() -> None:
    ask = Ask("s", FakeListChatModel(responses=["x"]), ChatRequest((HumanMessage("q"),)))
    said: list[int] = []

    def reply(item: Ask) -> AIMessage:
        said.append(len(item.request.messages))
        return AIMessage("thinking" if len(said) % 2 else "answer")

    async def areply(item: Ask) -> AIMessage:
        return reply(item)

    assert drive(step_flow(ask, "plan"), reply).text == "answer"
    assert asyncio.run(adrive(step_flow(ask, "plan"), areply)).text == "answer"
    assert said == [2, 3, 2, 3]


def test_a_single_requests_failure_is_the_flows() -> None:
    ask = Ask("s", FakeListChatModel(responses=["x"]), ChatRequest((HumanMessage("q"),)))

    def fails(item: Ask) -> AIMessage:
        raise ValueError("down")

    with pytest.raises(ValueError, match="down"):
        drive(step_flow(ask, None), fails)
