"""An OpenAI-compatible model server on the loopback interface that answers from a function.

Experimental. It records what every request said and counts the tokens that it billed, so that a
test can compare a client's own count, and its requests byte by byte, with the server's.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any  # Any: request bodies are the client's JSON

__all__ = ["LoopbackServer", "RecordedRequest", "Reply", "echo", "scripted"]

Body = Mapping[str, Any]


@dataclass(frozen=True)
class Reply:
    """What the server answers to one request.

    Attributes:
        text: the assistant's message.
        tool_calls: (function name, arguments) of native tool calls.
        status: HTTP status; anything but 200 answers an error with `text` as its message.
        delay_s: time before the answer, for tests of order and overlap.
        before_chunk: called with the index of each chunk of a stream before it is sent; may wait,
            so that a test can tell a stream that passes through from one that is collected.
        num_chunks: breaks the connection after this many chunks of a stream.
        tells_usage: whether the answer reports its tokens; some servers do not.
    """

    text: str = ""
    tool_calls: Sequence[tuple[str, Mapping[str, Any]]] = ()
    status: int = 200
    delay_s: float = 0.0
    before_chunk: Callable[[int], object] | None = None
    num_chunks: int | None = None
    tells_usage: bool = True


@dataclass(frozen=True)
class RecordedRequest:
    """One request as it arrived, its headers by lower-case name, and the usage it was billed."""

    path: str
    headers: Mapping[str, str]
    raw: bytes
    usage: Mapping[str, int] = field(default_factory=dict)

    @property
    def body(self) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(self.raw or b"{}")
        return body


def echo(body: Body) -> Reply:
    """Returns a reply that repeats the end of the last message."""
    messages = body.get("messages") or [{"content": ""}]
    return Reply(f"echo[{body.get('model')}]: {str(messages[-1].get('content'))[-60:]}")


def scripted(*replies: Reply, then: Callable[[Body], Reply] = echo) -> Callable[[Body], Reply]:
    """Returns an answer function that gives `replies` one by one, then asks `then`.

    So `scripted(Reply("overloaded", status=500))` is a server that fails once.
    """
    rest = iter(replies)
    lock = threading.Lock()

    def answer(body: Body) -> Reply:
        with lock:
            reply = next(rest, None)
        return then(body) if reply is None else reply

    return answer


class LoopbackServer:
    """A model server for tests; use it as a context manager.

    Args:
        answer: request body -> reply; called in the thread of the request.
        models: ids that `/v1/models` lists.
        keep_alive: whether a client may use a connection again. Async clients that outlive their
            event loop find it dead and ask twice, which a test of exact requests cannot want.
    """

    def __init__(
        self,
        answer: Callable[[Body], Reply] = echo,
        *,
        models: Sequence[str] = ("m",),
        keep_alive: bool = True,
    ) -> None:
        self.answer = answer
        self.models = tuple(models)
        self.keep_alive = keep_alive
        self._requests: list[RecordedRequest] = []
        self._lock = threading.Lock()
        self._http = _Http(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    @property
    def url(self) -> str:
        """The base URL for OpenAI clients, ending in `/v1`."""
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    @property
    def requests(self) -> tuple[RecordedRequest, ...]:
        """The completion requests so far, in order of arrival."""
        with self._lock:
            return tuple(self._requests)

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [request.body for request in self.requests]

    def clear(self) -> None:
        """Forgets the requests recorded so far."""
        with self._lock:
            self._requests.clear()

    def usage(self) -> dict[str, int]:
        """Returns the tokens billed so far and the number of requests answered."""
        answered = [request.usage for request in self.requests if request.usage]
        names = ("input_tokens", "output_tokens", "cached_tokens")
        total = {name: sum(usage[name] for usage in answered) for name in names}
        return {**total, "requests": len(answered)}

    def __enter__(self) -> LoopbackServer:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _record(self, request: RecordedRequest) -> None:
        with self._lock:
            self._requests.append(request)


class _Http(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keeps quiet about clients that went away; anything else is printed."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _handler(server: LoopbackServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (http.server's name)
            """Keeps the test's output clean."""

        def do_GET(self) -> None:
            listed = [{"id": model, "object": "model"} for model in server.models]
            self._json(200, {"object": "list", "data": listed})

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers.get("content-length", 0)))
            body = json.loads(raw or b"{}")
            reply = server.answer(body)
            num_answers = body.get("n") or 1
            usage = _usage(body, reply, num_answers) if reply.status == 200 else {}
            headers = {name.lower(): value for name, value in self.headers.items()}
            server._record(RecordedRequest(self.path, headers, raw, usage))
            if reply.delay_s:
                time.sleep(reply.delay_s)
            if reply.status != 200:
                self._json(reply.status, {"error": {"message": reply.text, "type": "test"}})
            elif body.get("stream"):
                self._stream(body, reply, usage)
            else:
                self._json(200, _completion(body, reply, usage, num_answers))

        def _json(self, status: int, value: object) -> None:
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            if not server.keep_alive:
                self.send_header("connection", "close")
            self.end_headers()
            self.wfile.write(content)

        def _stream(self, body: Body, reply: Reply, usage: Mapping[str, int]) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("connection", "close")
            self.end_headers()
            for index, chunk in enumerate(_chunks(body, reply, usage)[: reply.num_chunks]):
                if reply.before_chunk is not None:
                    reply.before_chunk(index)
                text = chunk if isinstance(chunk, str) else json.dumps(chunk)
                self.wfile.write(f"data: {text}\n\n".encode())
                self.wfile.flush()
            self.close_connection = True

    return Handler


def _usage(body: Body, reply: Reply, num_answers: int) -> dict[str, int]:
    """Returns a deterministic token count: a quarter of the characters."""
    prompt = len(json.dumps(body.get("messages", [])))
    answer = len(reply.text) + sum(len(json.dumps(args)) for _, args in reply.tool_calls)
    return {
        "input_tokens": max(4, prompt // 4),
        "output_tokens": max(1, answer // 4) * num_answers,
        "cached_tokens": 3,
    }


def _wire_usage(usage: Mapping[str, int]) -> dict[str, Any]:
    return {
        "prompt_tokens": usage["input_tokens"],
        "completion_tokens": usage["output_tokens"],
        "total_tokens": usage["input_tokens"] + usage["output_tokens"],
        "prompt_tokens_details": {"cached_tokens": usage["cached_tokens"]},
    }


def _tool_calls(body: Body, reply: Reply) -> list[dict[str, Any]]:
    # The id differs between the turns of a conversation, and is the same when the turn is repeated.
    turn = len(body.get("messages") or ())
    return [
        {
            "index": index,
            "id": f"call_{turn}_{index}",
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(dict(arguments))},
        }
        for index, (name, arguments) in enumerate(reply.tool_calls)
    ]


def _completion(
    body: Body, reply: Reply, usage: Mapping[str, int], num_answers: int
) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": reply.text or None}
    if reply.tool_calls:
        message["tool_calls"] = _tool_calls(body, reply)
    reason = "tool_calls" if reply.tool_calls else "stop"
    choices = [
        {"index": i, "message": message, "finish_reason": reason, "logprobs": None}
        for i in range(num_answers)
    ]
    completion = {
        "id": "cmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": body.get("model"),
        "choices": choices,
    }
    return {**completion, "usage": _wire_usage(usage)} if reply.tells_usage else completion


def _chunks(body: Body, reply: Reply, usage: Mapping[str, int]) -> list[dict[str, Any] | str]:
    base = {
        "id": "cmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": body.get("model"),
    }
    deltas: list[dict[str, Any]] = [{"role": "assistant"}]
    if reply.tool_calls:
        deltas.append({"tool_calls": _tool_calls(body, reply)})
    deltas += [{"content": part} for part in re.findall(r"\S+\s*|\s+", reply.text)]
    chunks: list[dict[str, Any] | str] = [
        {**base, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
        for delta in deltas
    ]
    reason = "tool_calls" if reply.tool_calls else "stop"
    chunks.append({**base, "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
    if (body.get("stream_options") or {}).get("include_usage") and reply.tells_usage:
        chunks.append({**base, "choices": [], "usage": _wire_usage(usage)})
    return [*chunks, "[DONE]"]
