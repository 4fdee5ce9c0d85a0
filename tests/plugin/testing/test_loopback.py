"""The loopback server: what it answers, records and counts."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from adaseek.testing.loopback import LoopbackServer, Reply, echo, scripted

HELLO = {"model": "m", "messages": [{"role": "user", "content": "hello there"}]}


@pytest.fixture
def server() -> Iterator[LoopbackServer]:
    with LoopbackServer(echo, models=("m", "other")) as running:
        yield running


def post(server: LoopbackServer, body: Any, **headers: str) -> httpx.Response:
    url = f"{server.url}/chat/completions"
    return httpx.post(url, json=body, headers=headers, trust_env=False)


def test_it_answers_and_bills_what_it_recorded(server: LoopbackServer) -> None:
    answer = post(server, HELLO, Authorization="Bearer k").json()
    assert answer["choices"][0]["message"]["content"] == "echo[m]: hello there"
    (request,) = server.requests
    assert request.body == HELLO
    assert request.path == "/v1/chat/completions"
    assert request.headers["authorization"] == "Bearer k"
    usage = server.usage()
    assert usage["input_tokens"] == answer["usage"]["prompt_tokens"] > 0
    assert usage["output_tokens"] == answer["usage"]["completion_tokens"] > 0
    assert usage["cached_tokens"] == answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert usage["requests"] == 1
    server.clear()
    assert server.usage()["requests"] == 0


def test_the_raw_bytes_of_a_request_are_kept(server: LoopbackServer) -> None:
    raw = b'{ "model":"m",\n "messages": [] }'
    httpx.post(f"{server.url}/chat/completions", content=raw, trust_env=False)
    assert server.requests[0].raw == raw


def test_several_answers_are_several_choices(server: LoopbackServer) -> None:
    one = post(server, HELLO).json()
    three = post(server, {**HELLO, "n": 3}).json()
    assert len(three["choices"]) == 3
    assert three["usage"]["completion_tokens"] == 3 * one["usage"]["completion_tokens"]


@pytest.mark.parametrize("with_usage", [False, True])
def test_a_stream_spells_the_same_answer(server: LoopbackServer, with_usage: bool) -> None:
    body: dict[str, Any] = {**HELLO, "stream": True}
    if with_usage:
        body["stream_options"] = {"include_usage": True}
    lines = [line for line in post(server, body).text.splitlines() if line]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert "".join(delta.get("content", "") for delta in deltas) == "echo[m]: hello there"
    assert ("usage" in chunks[-1]) is with_usage


def test_native_tool_calls_and_errors_have_the_providers_form(server: LoopbackServer) -> None:
    server.answer = lambda body: Reply(tool_calls=[("search", {"q": "x"})])
    message = post(server, HELLO).json()["choices"][0]["message"]
    assert message["tool_calls"][0]["function"] == {"name": "search", "arguments": '{"q": "x"}'}
    server.answer = lambda body: Reply("slow down", status=429)
    refused = post(server, HELLO)
    assert refused.status_code == 429
    assert refused.json()["error"]["message"] == "slow down"
    assert server.usage()["requests"] == 1
    assert len(server.requests) == 2


def test_it_lists_its_models(server: LoopbackServer) -> None:
    listed = httpx.get(f"{server.url}/models", trust_env=False).json()["data"]
    assert [model["id"] for model in listed] == ["m", "other"]


def test_requests_are_served_at_the_same_time(server: LoopbackServer) -> None:
    met = threading.Barrier(2)

    def together(body: Any) -> Reply:
        met.wait(timeout=10)
        return Reply("met")

    server.answer = together
    other = threading.Thread(target=post, args=(server, HELLO))
    other.start()
    assert post(server, HELLO).status_code == 200
    other.join()


def test_nothing_listens_after_the_end() -> None:
    with LoopbackServer() as running:
        url = running.url
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/models", trust_env=False)


def streamed(server: LoopbackServer) -> list[dict[str, Any]]:
    lines = [line for line in post(server, {**HELLO, "stream": True}).text.splitlines() if line]
    return [json.loads(line.removeprefix("data: ")) for line in lines if not line.endswith("]")]


def test_tool_calls_are_streamed_and_each_turn_names_its_own(server: LoopbackServer) -> None:
    server.answer = lambda body: Reply(tool_calls=[("search", {"q": "x"})])
    chunks = streamed(server)
    (call,) = chunks[1]["choices"][0]["delta"]["tool_calls"]
    assert call["function"] == {"name": "search", "arguments": '{"q": "x"}'}
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    ids = [
        post(server, {**HELLO, "messages": HELLO["messages"] * turns}).json()["choices"][0][
            "message"
        ]["tool_calls"][0]["id"]
        for turns in (1, 2, 1)
    ]
    assert ids[0] == call["id"] == ids[2] != ids[1]


def test_a_script_is_answered_once_and_in_order(server: LoopbackServer) -> None:
    server.answer = scripted(Reply("overloaded", status=500), Reply("second"))
    assert post(server, HELLO).status_code == 500
    texts = [post(server, HELLO).json()["choices"][0]["message"]["content"] for _ in range(2)]
    assert texts == ["second", "echo[m]: hello there"]


def test_a_stream_can_wait_for_its_reader(server: LoopbackServer) -> None:
    seen = threading.Event()
    waited: list[bool] = []

    def before(index: int) -> None:
        if index == 2:
            waited.append(seen.wait(timeout=30))

    server.answer = lambda body: Reply("one two three", before_chunk=before)
    url, body = f"{server.url}/chat/completions", {**HELLO, "stream": True}
    with httpx.stream("POST", url, json=body, trust_env=False) as response:
        for line in response.iter_lines():
            if "one" in line:
                seen.set()
    assert waited == [True]


def test_a_stream_can_break(server: LoopbackServer) -> None:
    server.answer = lambda body: Reply("one two three", num_chunks=2)
    assert [chunk["choices"][0]["delta"] for chunk in streamed(server)] == [
        {"role": "assistant"},
        {"content": "one "},
    ]


def test_a_server_can_refuse_to_keep_connections() -> None:
    with LoopbackServer(keep_alive=False) as closing, httpx.Client(trust_env=False) as client:
        first = client.post(f"{closing.url}/chat/completions", json=HELLO)
        assert first.headers["connection"] == "close"


def test_a_client_that_goes_away_leaves_no_traceback(
    server: LoopbackServer, capfd: pytest.CaptureFixture[str]
) -> None:
    sent = threading.Event()
    server.answer = lambda body: Reply(
        "word " * 4000, before_chunk=lambda i: i < 3999 or sent.set()
    )
    url, body = f"{server.url}/chat/completions", {**HELLO, "stream": True}
    with httpx.stream("POST", url, json=body, trust_env=False) as response:
        next(response.iter_lines())
    post(server, HELLO)
    sent.wait(timeout=1)
    assert "Traceback" not in capfd.readouterr().err


def test_a_server_can_keep_its_usage_to_itself(server: LoopbackServer) -> None:
    server.answer = lambda body: Reply("hello", tells_usage=False)
    assert "usage" not in post(server, HELLO).json()
    options = {"stream": True, "stream_options": {"include_usage": True}}
    assert "usage" not in post(server, {**HELLO, **options}).text
