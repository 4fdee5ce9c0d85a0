"""Streams under the interposition: chunk by chunk, and ended as without it."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

pytest.importorskip("langchain_openai")

from adaseek.testing.loopback import LoopbackServer, Reply
from adaseek_langchain import AdaSeekHook
from adaseek_langchain._seam import current_request, is_inside
from langchain_programs import chain, chat, messages, recipe

pytestmark = [
    pytest.mark.usefixtures("left_as_found"),
    pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning"),
    pytest.mark.filterwarnings("ignore:Unexpected type for token usage"),
]


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
    chunks = chain(server).stream({"q": "a"}, {"callbacks": [hook]})
    early = [next(chunks), next(chunks)]
    assert not allowed.is_set()  # the server still holds the rest back
    allowed.set()
    assert "".join([*early, *chunks]) == "one two three four five"
    assert messages(server.bodies[0])[0] == "Sing."


def test_async_chunks_arrive_one_by_one(server: LoopbackServer) -> None:
    allowed, _ = _waiting(server)
    hook = AdaSeekHook(recipe())

    async def read() -> str:
        chunks = chain(server).astream({"q": "a"}, {"callbacks": [hook]})
        early = [await anext(chunks), await anext(chunks)]
        assert not allowed.is_set()
        allowed.set()
        return "".join([*early, *[chunk async for chunk in chunks]])

    assert asyncio.run(read()) == "one two three four five"


def test_the_consumer_of_a_stream_is_not_inside_the_call(server: LoopbackServer) -> None:
    hook = AdaSeekHook(recipe())
    inner, asked = chain(server), 0
    for _ in chain(server).stream({"q": "a"}, {"callbacks": [hook]}):
        assert not is_inside()
        assert current_request() is None
        if not asked:
            inner.invoke({"q": "b"}, {"callbacks": [hook]})
            asked += 1
    assert [messages(body) for body in server.bodies] == [["Sing.", "a"], ["Sing.", "b"]]


@pytest.mark.parametrize("tuned", [False, True])
def test_ctrl_c_in_a_stream_ends_it_as_without_us(server: LoopbackServer, tuned: bool) -> None:
    handlers = [AdaSeekHook(recipe())] if tuned else []
    chunks = chain(server).stream({"q": "a"}, {"callbacks": handlers})
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
