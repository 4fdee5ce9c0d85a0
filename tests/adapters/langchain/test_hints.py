"""What a hook tells the model server beside requests: what is true, below the caches, if asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest
from adaseek.recipe import Recipe, Setting
from adaseek.testing.loopback import LoopbackServer, Reply

pytest.importorskip("langchain")
pytest.importorskip("langchain_openai")

from adaseek_langchain import AdaSeekHook, _hinting
from adaseek_langchain._hinting import takes_hints
from langchain.agents import create_agent
from langchain_core.caches import InMemoryCache
from langchain_core.messages import HumanMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langchain_openai import AzureChatOpenAI, ChatOpenAI
from langchain_openai.chat_models.base import BaseChatOpenAI
from langgraph.checkpoint.memory import MemorySaver

FIELDS = ("session_id", "vllm_xargs")
GIVEN: Any = {"messages": [("user", "go")]}


def chat(server: LoopbackServer, **settings: Any) -> ChatOpenAI:
    return ChatOpenAI(model="m", base_url=server.url, api_key="k", **settings)


def program(server: LoopbackServer, **settings: Any) -> Any:
    asked = ChatPromptTemplate.from_messages([("system", "Be brief."), ("human", "{q}")])
    return asked | chat(server, **settings)


@tool
def search(q: str) -> str:
    """Searches."""
    return "found"


def calls_once(body: Mapping[str, Any]) -> Reply:
    """Answers a request with a tool call, and its result with a text."""
    is_answered = body["messages"][-1]["role"] == "tool"
    return Reply("done") if is_answered else Reply(tool_calls=[("search", {"q": "x"})])


def agent(server: LoopbackServer, **settings: Any) -> Any:
    server.answer = calls_once
    return create_agent(chat(server), [search], system_prompt="Use it.", **settings)


def told(body: Mapping[str, Any]) -> Any:
    return body.get("vllm_xargs", {})


# What is told


async def _astreamed(model: ChatOpenAI, config: Any) -> None:
    async for _ in model.astream("a", config):
        pass


WAYS: dict[str, Any] = {
    "invoke": lambda model, config: model.invoke("a", config),
    "stream": lambda model, config: list(model.stream("a", config)),
    "ainvoke": lambda model, config: asyncio.run(model.ainvoke("a", config)),
    "astream": lambda model, config: asyncio.run(_astreamed(model, config)),
    "generate": lambda model, config: model.generate(
        [[HumanMessage("a")]], callbacks=config["callbacks"]
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_session_is_told_to_the_server(server: LoopbackServer, way: str) -> None:
    WAYS[way](chat(server), {"callbacks": [AdaSeekHook(session="s1")]})
    WAYS[way](chat(server), {"callbacks": [AdaSeekHook()]})
    assert [body.get("session_id") for body in server.bodies] == ["s1", None]


def test_an_agents_turns_are_foreseen_from_the_runs_before(server: LoopbackServer) -> None:
    asked, hook = agent(server), AdaSeekHook(hints=True)
    for _ in range(4):
        asked.invoke(GIVEN, {"callbacks": [hook]})
    bodies = server.bodies
    assert [told(body) for body in bodies[:6]] == [{}] * 6
    first, second = bodies[6:]
    assert told(first)["kvret_tool"] == "search"
    assert 0 <= told(first)["kvret_expect_s"] < 60
    assert told(second) == {"kvret_final": 1}
    sessions = [body["session_id"] for body in bodies]
    assert sessions[0::2] == sessions[1::2]
    assert len(set(sessions)) == 4


def test_a_named_conversation_is_never_said_to_end(server: LoopbackServer) -> None:
    asked, hook = agent(server, checkpointer=MemorySaver()), AdaSeekHook(hints=True)
    for number in range(5):
        config: Any = {"callbacks": [hook], "configurable": {"thread_id": f"t{number}"}}
        asked.invoke(GIVEN, config)
    assert [body["session_id"] for body in server.bodies[-2:]] == ["t4", "t4"]
    assert told(server.bodies[-2])["kvret_tool"] == "search"
    assert told(server.bodies[-1]) == {}
    named = AdaSeekHook(session="s")
    for _ in range(4):
        program(server).invoke({"q": "a"}, {"callbacks": [named]})
    assert told(server.bodies[-1]) == {}


def test_runs_that_fail_teach_nothing(server: LoopbackServer) -> None:
    hook = AdaSeekHook(hints=True)

    def fails(_: Any) -> Any:
        raise ValueError("no")

    broken = program(server) | RunnableLambda(fails)
    for _ in range(4):
        with pytest.raises(ValueError, match="no"):
            broken.invoke({"q": "a"}, {"callbacks": [hook]})
    assert [told(body) for body in server.bodies] == [{}] * 4


def test_a_tool_that_nobody_runs_is_not_told(server: LoopbackServer) -> None:
    hook = AdaSeekHook(hints=True)
    server.answer = lambda body: Reply(tool_calls=[("search", {"q": "x"})])
    bound = RunnableLambda(lambda x: x) | chat(server).bind_tools([search])
    for _ in range(4):
        bound.invoke("a", {"callbacks": [hook]})
    assert told(server.bodies[-1]) == {"kvret_final": 1}


# Only what was asked for, and only to whom it helps


def test_nothing_is_told_unasked(server: LoopbackServer) -> None:
    asked, hook = agent(server), AdaSeekHook()
    for _ in range(4):
        asked.invoke(GIVEN, {"callbacks": [hook]})
    assert not any(field in body for body in server.bodies for field in FIELDS)


def test_without_hints_a_session_is_all_that_is_told(server: LoopbackServer) -> None:
    asked, hook = agent(server), AdaSeekHook(session="s1", hints=False)
    for _ in range(4):
        asked.invoke(GIVEN, {"callbacks": [hook]})
    assert {body["session_id"] for body in server.bodies} == {"s1"}
    assert not any("vllm_xargs" in body for body in server.bodies)


def test_nothing_else_of_a_request_differs(server: LoopbackServer) -> None:
    asked = agent(server)
    answers = [asked.invoke(GIVEN)["messages"][-1].text]
    plain = server.bodies
    hook = AdaSeekHook(hints=True, stream_usage=False)
    for _ in range(4):
        server.clear()
        answers.append(asked.invoke(GIVEN, {"callbacks": [hook]})["messages"][-1].text)
    assert set(answers) == {"done"}
    bare = [{k: v for k, v in body.items() if k not in FIELDS} for body in server.bodies]
    assert _without_ids(bare) == _without_ids(plain)
    assert all("vllm_xargs" in body for body in server.bodies)


def _without_ids(bodies: Any) -> Any:
    """Returns `bodies` with the server's ids of tool calls, which are new each time, left out."""
    text = json.dumps(bodies)
    for body in bodies:
        for message in body["messages"]:
            for call in message.get("tool_calls") or ():
                text = text.replace(call["id"], "id")
    return json.loads(text)


def test_a_session_joins_the_calls_own_extra_fields(server: LoopbackServer) -> None:
    recipe = Recipe({"2.lm": Setting(params={"top_k": 3})})
    hook = AdaSeekHook(recipe, session="s1")
    program(server, extra_body={"min_p": 0.1}).invoke({"q": "a"}, {"callbacks": [hook]})
    (body,) = server.bodies
    assert (body["session_id"], body["top_k"], body["min_p"]) == ("s1", 3, 0.1)


@pytest.mark.parametrize("extra", [None, {"min_p": 0.1}])
def test_another_session_gets_the_cached_answer(server: LoopbackServer, extra: Any) -> None:
    asked = ChatPromptTemplate.from_messages([("human", "{q}")])
    cached = asked | chat(server, cache=InMemoryCache()).bind(extra_body=extra)
    for session in ("s1", "s2", None):
        cached.invoke({"q": "a"}, {"callbacks": [AdaSeekHook(session=session)]})
    cached.invoke({"q": "a"})
    assert [body.get("session_id") for body in server.bodies] == ["s1"]
    assert server.bodies[0].get("min_p") == (extra or {}).get("min_p")


def test_a_providers_own_servers_are_told_nothing() -> None:
    settings: dict[str, Any] = {"model": "m", "api_key": "k"}
    assert takes_hints(ChatOpenAI(base_url="http://127.0.0.1:8000/v1", **settings))
    assert not takes_hints(ChatOpenAI(**settings))
    assert not takes_hints(ChatOpenAI(base_url="https://api.openai.com/v1", **settings))
    azure = AzureChatOpenAI(
        azure_endpoint="https://x.openai.azure.com", api_version="1", api_key="k", model="m"
    )
    assert not takes_hints(azure)


def test_the_place_below_the_cache_is_where_it_was() -> None:
    assert callable(getattr(BaseChatOpenAI, _hinting._PAYLOAD))


def test_without_that_place_nothing_is_told(
    server: LoopbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_hinting, "_PAYLOAD", "_gone")
    hook = AdaSeekHook(session="s1")
    assert program(server).invoke({"q": "a"}, {"callbacks": [hook]}).text == "echo[m]: a"
    assert "session_id" not in server.bodies[0]
    assert len(hook.traces) == 1
