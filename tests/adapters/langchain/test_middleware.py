"""The middleware: one agent's model under a recipe, by LangChain's own means."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

pytest.importorskip("langchain.agents")
pytest.importorskip("langchain_openai")

from adaseek.errors import ConfigurationError, RecipeMismatchError
from adaseek.recipe import Demo, Ensemble, Recipe, Setting
from adaseek.testing.loopback import LoopbackServer, Reply
from adaseek.workflow import ModelRef
from adaseek_langchain import AdaSeekHook, AdaSeekMiddleware
from adaseek_langchain._interpose import is_installed
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain_core.language_models import BaseChatModel
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

STEP = "model/1.lm"
GIVEN: Any = {"messages": [("user", "how far?")]}


class Distance(BaseModel):
    """A distance."""

    km: int


@tool
def measure(place: str) -> str:
    """Measures the way to a place."""
    return f"{place} is 5 km away"


def answer(body: Mapping[str, Any]) -> Reply:
    """Returns a tool call first, then an answer."""
    if any(message["role"] == "tool" for message in body["messages"]):
        return Reply("5 km")
    return Reply(tool_calls=[("measure", {"place": "home"})])


@pytest.fixture
def server() -> Iterator[LoopbackServer]:
    with LoopbackServer(answer, keep_alive=False) as running:
        yield running
    gc.collect()


def agent(server: LoopbackServer, *middleware: AgentMiddleware[Any, Any], **settings: Any) -> Any:
    model = ChatOpenAI(model="m", base_url=server.url, api_key="k")
    return create_agent(
        model, [measure], system_prompt="Be exact.", middleware=middleware, **settings
    )


def recipe(**settings: Any) -> Recipe:
    return Recipe({STEP: Setting(**settings)})


def ask(program: Any) -> str:
    return str(program.invoke(GIVEN)["messages"][-1].text)


def aask(program: Any) -> str:
    return str(asyncio.run(program.ainvoke(GIVEN))["messages"][-1].text)


def contents(body: Mapping[str, Any]) -> list[Any]:
    return [message["content"] for message in body["messages"]]


BOTH = pytest.mark.parametrize("run", [ask, aask])


@BOTH
def test_an_empty_recipe_sends_the_same_bytes(
    server: LoopbackServer, run: Callable[[Any], str]
) -> None:
    assert run(agent(server)) == "5 km"
    plain = [request.raw for request in server.requests]
    server.clear()
    assert run(agent(server, AdaSeekMiddleware(Recipe()))) == "5 km"
    assert [request.raw for request in server.requests] == plain


@BOTH
def test_a_recipe_reaches_every_turn(server: LoopbackServer, run: Callable[[Any], str]) -> None:
    demos = (Demo({"input": "x", "output": "y"}),)
    tuned = recipe(
        instructions="Sing.",
        demos=demos,
        model=ModelRef("m2", server.url),
        params={"temperature": 0.25},
    )
    assert run(agent(server, AdaSeekMiddleware(tuned))) == "5 km"
    first, second = server.bodies
    assert contents(first) == ["Sing.", "x", "y", "how far?"]
    assert contents(second)[:4] == contents(first)
    assert {body["model"] for body in server.bodies} == {"m2"}
    assert {body["temperature"] for body in server.bodies} == {0.25}
    assert [body["tools"][0]["function"]["name"] for body in server.bodies] == ["measure"] * 2


@BOTH
def test_members_vote_on_what_tool_to_call(
    server: LoopbackServer, run: Callable[[Any], str]
) -> None:
    def voting(body: Mapping[str, Any]) -> Reply:
        reply = answer(body)
        if reply.tool_calls and body["seed"] == 0:
            return Reply(tool_calls=[("measure", {"place": "elsewhere"})])
        return reply

    server.answer = voting
    assert run(agent(server, AdaSeekMiddleware(recipe(ensemble=Ensemble(3))))) == "5 km"
    assert len(server.requests) == 6
    assert "home is 5 km away" in str(server.bodies[-1]["messages"])


def test_reasoning_leaves_tool_calls_whole(server: LoopbackServer) -> None:
    server.answer = lambda body: answer(body) if "tools" in body else Reply("I should measure.")
    assert ask(agent(server, AdaSeekMiddleware(recipe(reasoning="chain_of_thought")))) == "5 km"
    assert ["tools" in body for body in server.bodies] == [False, True] * 2
    assert "I should measure." in contents(server.bodies[1])


def test_the_users_middleware_still_runs(server: LoopbackServer) -> None:
    log: list[str] = []

    class Logged(AgentMiddleware[Any, Any]):
        def before_model(self, state: Any, runtime: Any) -> None:
            log.append("before")

        def wrap_model_call(self, request: Any, handler: Any) -> Any:
            log.append("wrap")
            return handler(request)

        def wrap_tool_call(self, request: Any, handler: Any) -> Any:
            log.append("tool")
            return handler(request)

    tuned = AdaSeekMiddleware(recipe(instructions="Sing."))
    assert ask(agent(server, Logged(), tuned)) == "5 km"
    assert log == ["before", "wrap", "tool", "before", "wrap"]
    assert {contents(body)[0] for body in server.bodies} == {"Sing."}


def test_structured_output_is_still_parsed(server: LoopbackServer) -> None:
    def structured(body: Mapping[str, Any]) -> Reply:
        if any(message["role"] == "tool" for message in body["messages"]):
            return Reply('{"km": 5}', tool_calls=[("Distance", {"km": 5})])
        return answer(body)

    server.answer = structured
    tuned = AdaSeekMiddleware(recipe(instructions="Sing.", ensemble=Ensemble(2)))
    from langchain.agents.structured_output import ToolStrategy

    program = agent(server, tuned, response_format=ToolStrategy(Distance))
    assert program.invoke(GIVEN)["structured_response"] == Distance(km=5)
    assert len(server.requests) == 4


def test_nothing_is_patched_and_the_model_is_not_changed(server: LoopbackServer) -> None:
    gc.collect()
    before = dict(vars(BaseChatModel))
    model = ChatOpenAI(model="m", base_url=server.url, api_key="k")
    fields, kind = dict(vars(model)), type(model)
    tuned = AdaSeekMiddleware(recipe(instructions="Sing."))
    ask(create_agent(model, [measure], middleware=[tuned]))
    assert dict(vars(BaseChatModel)) == before
    assert not is_installed()
    assert type(model) is kind
    assert {name: value for name, value in vars(model).items() if name in fields} == fields


def test_a_tools_exception_leaves_the_agent(server: LoopbackServer) -> None:
    @tool("measure")
    def broken(place: str) -> str:
        """Measures the way to a place."""
        raise LookupError("no such place")

    model = ChatOpenAI(model="m", base_url=server.url, api_key="k")
    tuned = AdaSeekMiddleware(recipe(instructions="Sing."))
    for middleware in ([], [tuned]):
        program = create_agent(model, [broken], middleware=middleware)
        with pytest.raises(LookupError, match="no such place"):
            program.invoke(GIVEN)


def test_a_hook_observes_the_tuned_agent(server: LoopbackServer) -> None:
    hook = AdaSeekHook()
    tuned = AdaSeekMiddleware(recipe(ensemble=Ensemble(2)))
    agent(server, tuned).invoke(GIVEN, {"callbacks": [hook]})
    (trace,) = hook.traces
    asked = [call.step for call in trace.calls if call.kind == "lm"]
    assert sorted(asked) == sorted([f"{STEP}#0", f"{STEP}#1"] * 2)
    assert trace.usage.requests == server.usage()["requests"] == 4


def test_the_recipe_of_a_hook_works_as_middleware(server: LoopbackServer) -> None:
    hook = AdaSeekHook()
    agent(server).invoke(GIVEN, {"callbacks": [hook]})
    bound = recipe(instructions="Sing.").bind(hook.workflow)
    server.clear()
    ask(agent(server, AdaSeekMiddleware(Recipe.from_json(bound.to_json()))))
    assert {contents(body)[0] for body in server.bodies} == {"Sing."}


def test_a_recipe_for_another_agent_is_refused_at_the_call(server: LoopbackServer) -> None:
    hook = AdaSeekHook()
    agent(server).invoke(GIVEN, {"callbacks": [hook]})
    bound = recipe(instructions="Sing.").bind(hook.workflow)
    model = ChatOpenAI(model="m", base_url=server.url, api_key="k")
    other = create_agent(
        model, [measure], system_prompt="Be vague.", middleware=[AdaSeekMiddleware(bound)]
    )
    with pytest.raises(RecipeMismatchError, match=r"'Be exact\.'.*'Be vague\.'"):
        other.invoke(GIVEN)


def test_the_step_must_be_clear() -> None:
    setting = Setting(instructions="Sing.")
    with pytest.raises(ConfigurationError, match="holds no agent's model"):
        AdaSeekMiddleware(Recipe({"2.lm": setting}))
    assert AdaSeekMiddleware(Recipe({"2.lm": setting}), step="2.lm").step == "2.lm"
    two = Recipe({STEP: setting, f"outer/{STEP}": setting})
    with pytest.raises(ConfigurationError, match="several agents"):
        AdaSeekMiddleware(two)
    assert AdaSeekMiddleware(two, step=STEP).step == STEP
    with pytest.raises(ConfigurationError, match="`step` is 'other'"):
        AdaSeekMiddleware(two, step="other")


def test_the_path_of_a_recipe_is_no_recipe() -> None:
    with pytest.raises(ConfigurationError, match=r"must be a Recipe\. .*Recipe\.load"):
        AdaSeekMiddleware("runs/qa")  # type: ignore[arg-type]


def test_a_setting_that_cannot_be_applied_is_refused_at_once() -> None:
    with pytest.raises(ConfigurationError, match="`rewards` has none"):
        AdaSeekMiddleware(recipe(ensemble=Ensemble(2, "best_of", reward="short")))
    with pytest.raises(ConfigurationError, match="`rewards` has none"):
        AdaSeekMiddleware(recipe(ensemble=Ensemble(2, "best_of", reward="r")))
