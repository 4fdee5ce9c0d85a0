"""Streams under the interposition: chunk by chunk, and ended as without it."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("langchain_openai")

from adaseek.recipe import Recipe, Setting
from adaseek.testing.loopback import LoopbackServer, Reply, echo
from adaseek_langchain import AdaSeekHook, disable
from adaseek_langchain._interpose import uninstall
from adaseek_langchain._seam import current_request, is_inside
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI

pytestmark = [
    pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning"),
    pytest.mark.filterwarnings("ignore:Unexpected type for token usage"),
]


@pytest.fixture
def server() -> Iterator[LoopbackServer]:
    with LoopbackServer(echo, keep_alive=False) as running:
        yield running


@pytest.fixture(autouse=True)
def left_as_found() -> Iterator[None]:
    """Every test ends without a hook, so that the next one starts with an unwrapped class."""
    gc.collect()
    yield
    disable()
    gc.collect()
    uninstall()


def chat(server: LoopbackServer, **settings: Any) -> ChatOpenAI:
    return ChatOpenAI(model="m", base_url=server.url, api_key="secret-key", **settings)


def program(server: LoopbackServer, **settings: Any) -> Any:
    asked = ChatPromptTemplate.from_messages([("system", "Be brief."), ("human", "{q}")])
    return asked | chat(server, **settings) | StrOutputParser()


def recipe(step: str = "2.lm", **settings: Any) -> Recipe:
    return Recipe({step: Setting(**(settings or {"instructions": "Sing."}))})


def messages(body: dict[str, Any]) -> list[str]:
    return [message["content"] for message in body["messages"]]


def _waiting(server: LoopbackServer) -> tuple[threading.Event, list[int]]:
    """Makes `server` hold every chunk behind the third until the event is set."""
    allowed, sent = threading.Event(), list[int]()

    def before_chunk(index: int) -> None:
        if index > 3:
            allowed.wait(20)
        sent.append(index)

    server.answer = lambda body: Reply("one two three four five", before_chunk=before_chunk)
    return allowed, sent


def test_chunks_arrive_one_by_one(server: LoopbackServer) -> None:
    allowed, _ = _waiting(server)
    hook = AdaSeekHook(recipe())
    chunks = program(server).stream({"q": "a"}, {"callbacks": [hook]})
    early = [next(chunks), next(chunks)]
    assert not allowed.is_set()  # the server still holds the rest back
    allowed.set()
    assert "".join([*early, *chunks]) == "one two three four five"
    assert messages(server.bodies[0])[0] == "Sing."


def test_async_chunks_arrive_one_by_one(server: LoopbackServer) -> None:
    allowed, _ = _waiting(server)
    hook = AdaSeekHook(recipe())

    async def read() -> str:
        chunks = program(server).astream({"q": "a"}, {"callbacks": [hook]})
        early = [await anext(chunks), await anext(chunks)]
        assert not allowed.is_set()
        allowed.set()
        return "".join([*early, *[chunk async for chunk in chunks]])

    assert asyncio.run(read()) == "one two three four five"


def test_the_consumer_of_a_stream_is_not_inside_the_call(server: LoopbackServer) -> None:
    hook = AdaSeekHook(recipe())
    inner, asked = program(server), 0
    for _ in program(server).stream({"q": "a"}, {"callbacks": [hook]}):
        assert not is_inside()
        assert current_request() is None
        if not asked:
            inner.invoke({"q": "b"}, {"callbacks": [hook]})
            asked += 1
    assert [messages(body) for body in server.bodies] == [["Sing.", "a"], ["Sing.", "b"]]


@pytest.mark.parametrize("tuned", [False, True])
def test_ctrl_c_in_a_stream_ends_it_as_without_us(server: LoopbackServer, tuned: bool) -> None:
    handlers = [AdaSeekHook(recipe())] if tuned else []
    chunks = program(server).stream({"q": "a"}, {"callbacks": handlers})
    with pytest.raises(KeyboardInterrupt):
        for _ in chunks:
            raise KeyboardInterrupt
    chunks.close()
    assert not is_inside()
    assert current_request() is None
    assert list(chunks) == []


@pytest.mark.parametrize("tuned", [False, True])
def test_an_exception_thrown_into_a_stream_reaches_the_model(
    server: LoopbackServer, tuned: bool
) -> None:
    from langchain_core.callbacks import BaseCallbackHandler

    class Watching(BaseCallbackHandler):
        errors: list[type[BaseException]] = []  # noqa: RUF012  (one instance)

        def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
            self.errors.append(type(error))

    Watching.errors.clear()
    handlers = [Watching(), *([AdaSeekHook(recipe("lm", params={}))] if tuned else [])]
    chunks: Any = chat(server).stream("a", {"callbacks": handlers})
    next(chunks)
    with pytest.raises(KeyboardInterrupt):
        chunks.throw(KeyboardInterrupt())
    assert Watching.errors == [KeyboardInterrupt]
