"""Decomposition: subtasks are asked first, and the step answers from their results."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

pytest.importorskip("langchain_openai")

from adaseek.recipe import Demo, Ensemble, Recipe, Setting, Subtask
from adaseek.testing.loopback import LoopbackServer, Reply
from adaseek.workflow import ModelRef
from adaseek_langchain import AdaSeek, AdaSeekHook, apply, translate
from adaseek_langchain._interpose import uninstall
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

STEP = "2.lm"
SPLIT = (Subtask("facts", "List the facts."), Subtask("check", "Check the facts."))


class Colour(BaseModel):
    """The colour of a thing."""

    name: str


@tool
def look_up(q: str) -> str:
    """Looks it up."""
    return "found"


def is_subtask(body: Mapping[str, Any]) -> bool:
    return "only this part of the task" in str(body["messages"][-1])


def answer(body: Mapping[str, Any]) -> Reply:
    return Reply("the result" if is_subtask(body) else "red")


@pytest.fixture
def server() -> Iterator[LoopbackServer]:
    with LoopbackServer(answer, keep_alive=False) as running:
        yield running
    gc.collect()
    uninstall()


def chat(server: LoopbackServer, **settings: Any) -> ChatOpenAI:
    return ChatOpenAI(model="m", base_url=server.url, api_key="k", **settings)


def program(server: LoopbackServer, **settings: Any) -> Any:
    asked = ChatPromptTemplate.from_messages([("system", "Be brief."), ("human", "{q}")])
    return asked | chat(server, **settings) | StrOutputParser()


def hook(setting: Setting, **subtasks: Setting) -> AdaSeekHook:
    named = {f"{STEP}#{name}": value for name, value in subtasks.items()}
    return AdaSeekHook(Recipe({STEP: setting, **named}))


def contents(body: Mapping[str, Any]) -> list[str]:
    return [str(message["content"]).partition("\n")[0] for message in body["messages"]]


PARTS = [
    f"First do only this part of the task, which prepares the rest: {s.instructions}" for s in SPLIT
]


def test_subtasks_come_first_and_the_step_is_given_their_results(server: LoopbackServer) -> None:
    carrying = hook(Setting(decompose=SPLIT))
    assert program(server).invoke({"q": "a"}, {"callbacks": [carrying]}) == "red"
    facts, check, whole = map(contents, server.bodies)
    assert facts == ["Be brief.", "a", PARTS[0]]
    assert check == [*facts, "the result", PARTS[1]]
    assert whole[:-1] == [*check, "the result"]
    assert whole[-1].startswith("Now respond to the whole task")
    (trace,) = carrying.traces
    assert [call.step for call in trace.calls] == [f"{STEP}#facts", f"{STEP}#check", STEP]
    assert trace.usage.requests == 3
    assert trace.calls[-1].inputs == {"input": "a"}
    assert carrying.missed == 0 and list(carrying.workflow.steps) == [STEP]


def test_async_and_streamed_calls_do_the_same(server: LoopbackServer) -> None:
    carrying = hook(Setting(decompose=SPLIT))
    config = {"callbacks": [carrying]}
    program(server).invoke({"q": "a"}, config)
    sent = [body["messages"] for body in server.bodies]
    server.clear()
    assert asyncio.run(program(server).ainvoke({"q": "a"}, config)) == "red"
    assert [body["messages"] for body in server.bodies] == sent
    assert list(program(server).stream({"q": "a"}, config)) == ["red"]


def test_the_answer_reports_the_usage_of_all_requests(server: LoopbackServer) -> None:
    asked = ChatPromptTemplate.from_messages([("human", "{q}")]) | chat(server)
    carrying = AdaSeekHook(Recipe({STEP: Setting(decompose=SPLIT)}))
    reply = asked.invoke({"q": "a"}, {"callbacks": [carrying]})
    assert reply.usage_metadata["input_tokens"] == server.usage()["input_tokens"]


def test_subtasks_follow_the_model_of_their_step_unless_they_have_one(
    server: LoopbackServer,
) -> None:
    step = Setting(decompose=SPLIT, model=ModelRef("large", server.url))
    small = Setting(model=ModelRef("small", server.url), params={"max_tokens": 5})
    program(server).invoke({"q": "a"}, {"callbacks": [hook(step, facts=small)]})
    assert [body["model"] for body in server.bodies] == ["small", "large", "large"]
    assert [body.get("max_completion_tokens") for body in server.bodies] == [5, None, None]


def test_what_else_is_tuned_goes_to_the_answer(server: LoopbackServer) -> None:
    setting = Setting(
        instructions="Sing.",
        decompose=SPLIT[:1],
        demos=(Demo({"input": "x", "output": "y"}),),
        reasoning="plan",
        params={"temperature": 0.5},
    )
    server.answer = lambda body: Reply(
        "the result" if is_subtask(body) else "since\n=== ANSWER ===\nred"
    )
    assert program(server).invoke({"q": "a"}, {"callbacks": [hook(setting)]}) == "red"
    facts, whole = server.bodies
    assert contents(facts) == ["Sing.", "a", PARTS[0]] and "temperature" not in facts
    assert contents(whole)[:6] == ["Sing.", "x", "=== ANSWER ===", "a", PARTS[0], "the result"]
    assert "=== ANSWER ===" in str(whole["messages"][0]) and whole["temperature"] == 0.5


def test_an_ensemble_shares_the_results(server: LoopbackServer) -> None:
    carrying = hook(Setting(decompose=SPLIT[:1], ensemble=Ensemble(2)))
    assert program(server).invoke({"q": "a"}, {"callbacks": [carrying]}) == "red"
    (trace,) = carrying.traces
    assert sorted(c.step for c in trace.calls) == [f"{STEP}#0", f"{STEP}#1", f"{STEP}#facts"]
    assert all("the result" in contents(body) for body in server.bodies[1:])


def test_tools_and_schemas_are_kept_for_the_answer(server: LoopbackServer) -> None:
    server.answer = lambda body: (
        Reply("the result") if is_subtask(body) else Reply(tool_calls=[("Colour", {"name": "red"})])
    )
    model = chat(server).with_structured_output(Colour, method="function_calling")
    asked = ChatPromptTemplate.from_messages([("system", "S"), ("human", "{q}")]) | model
    carrying = hook(Setting(decompose=SPLIT[:1]))
    assert asked.invoke({"q": "a"}, {"callbacks": [carrying]}) == Colour(name="red")
    facts, whole = server.bodies
    assert not {"tools", "tool_choice"} & facts.keys()
    assert {"tools", "tool_choice"} <= whole.keys()


def test_an_agent_does_them_in_every_turn(server: LoopbackServer) -> None:
    from langchain.agents import create_agent

    def acting(body: Mapping[str, Any]) -> Reply:
        if is_subtask(body):
            return Reply("the result")
        has_result = any(message["role"] == "tool" for message in body["messages"])
        return Reply("done") if has_result else Reply(tool_calls=[("look_up", {"q": "x"})])

    server.answer = acting
    agent = create_agent(chat(server), [look_up], system_prompt="Look.")
    (step,) = translate(agent).lm_steps()
    tuned = apply(agent, Recipe({step.id: Setting(decompose=SPLIT[:1])}))
    result = tuned.invoke({"messages": [("user", "go")]})
    assert [message.type for message in result["messages"]] == ["human", "ai", "tool", "ai"]
    assert result["messages"][-1].text == "done"
    assert [is_subtask(body) for body in server.bodies] == [True, False, True, False]


def test_in_production_the_step_goes_on_without_a_failed_subtask(server: LoopbackServer) -> None:
    server.answer = lambda body: (
        Reply("no", status=400) if PARTS[0] in str(body["messages"][-1]) else answer(body)
    )
    carrying = hook(Setting(decompose=SPLIT))
    assert program(server).invoke({"q": "a"}, {"callbacks": [carrying]}) == "red"
    assert contents(server.bodies[-1])[:4] == ["Be brief.", "a", PARTS[1], "the result"]


def test_a_model_made_with_a_fixed_form_is_left_alone(server: LoopbackServer) -> None:
    carrying = hook(Setting(decompose=SPLIT))
    with pytest.warns(RuntimeWarning, match="leaves no room for a subtask"):
        program(server, stop=["\n"]).invoke({"q": "a"}, {"callbacks": [carrying]})
    assert carrying.missed == 1
    assert contents(server.bodies[0]) == ["Be brief.", "a"]


def test_it_is_tuned_like_everything_else(server: LoopbackServer, tmp_path: Any) -> None:
    """Only with the facts written down does the model know: the search must find that."""
    from adaseek.cogs import DecomposeCog

    server.answer = lambda body: Reply("red" if len(body["messages"]) > 2 else "blue")
    examples = [({"q": f"q{i}"}, "red") for i in range(12)]
    optimizer = AdaSeek(
        lambda example, output: float(output == "red"),
        cogs=[DecomposeCog({"facts": SPLIT[:1]})],
        budget=60,
        objectives=("quality",),
        run_dir=tmp_path,
    )
    tuned = optimizer.compile(program(server), trainset=examples)
    assert tuned.invoke({"q": "new"}) == "red"
    assert tuned.detailed_results.recipe.setting(STEP).decompose == SPLIT[:1]
