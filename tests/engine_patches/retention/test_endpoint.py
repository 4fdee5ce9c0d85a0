"""The intercept door and its routes over a pretended engine: states, bounds, errors, lost clients.

What the real engine and vLLM's server do with it is in test_server.py.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from adaseek_vllm.retention.endpoint import add_routes
from adaseek_vllm.retention.endpoint_door import InterceptDoor, Piece, Prepared
from adaseek_vllm.retention.endpoint_requests import NewIntercept, Release, Resume
from adaseek_vllm.retention.endpoint_store import Intercept, InterceptStore
from fastapi import FastAPI

PAUSE = 7
MAX_LEN = 40


@dataclass
class PretendedEngine:
    """Writes 100, 101, ... and then what `ends` says next; a token is one letter of text."""

    max_model_len: int = MAX_LEN
    ends: list[Piece] = field(default_factory=list)
    prompts: list[list[int]] = field(default_factory=list)
    limits: list[int] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    # Set to hold a generation before its last piece.
    gate: asyncio.Event | None = None
    tail: str = ""

    async def prepare(self, request: NewIntercept, raw_request: Any) -> Prepared:
        prompt = request.body["prompt"]
        assert isinstance(prompt, list)
        session = str(request.body.get("session_id") or "")
        return Prepared(list(prompt), model="m", session=session, plan=None)

    async def tokens_of(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def text_of(self, token_ids: Sequence[int]) -> str:
        return self.tail

    async def generate(
        self, intercept: Intercept, prompt: list[int], *, max_tokens: int, stream: bool
    ) -> AsyncGenerator[Piece, None]:
        self.prompts.append(prompt)
        self.limits.append(max_tokens)
        yield Piece([100, 101], "ab", num_cached_tokens=3)
        if self.gate is not None:
            await self.gate.wait()
        yield self.ends.pop(0)

    async def stop(self, intercept: Intercept) -> None:
        self.stopped.append(intercept.id)
        self.ends = [Piece([], "", "abort")]
        if self.gate is not None:
            self.gate.set()

    async def release(self, intercept: Intercept) -> None:
        self.released.append(intercept.id)

    async def release_session(self, release: Release) -> int:
        self.released.append(release.session)
        return 5

    async def retention_status(self) -> list[dict[str, object]]:
        return [{"num_held_blocks": 5}]


def paused(*token_ids: int) -> Piece:
    return Piece([*token_ids, PAUSE], "c", "stop", PAUSE, report={"decision": "pin"})


def finished() -> Piece:
    return Piece([102], "c", "stop", None)


class Server:
    """The routes over one engine, and a clock that tests move."""

    def __init__(self, **store: Any) -> None:
        self.engine = PretendedEngine()
        self.now_s = 0.0
        store = {"max_intercepts": 100, "ttl_s": 60.0, **store}
        self.store = InterceptStore(now=lambda: self.now_s, **store)
        self.app = FastAPI()
        self.app.state.adaseek_engine = self.engine
        self.app.state.adaseek_door = InterceptDoor(self.engine, self.store)
        add_routes(self.app)
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=True)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://server")

    async def open(self, end: Piece | None = None, **body: Any) -> dict[str, Any]:
        self.engine.ends.append(end or paused())
        return await self.post("/v1/intercepts", **new_body(**body))

    async def resume(self, intercept: dict[str, Any], end: Piece, **body: Any) -> dict[str, Any]:
        self.engine.ends.append(end)
        return await self.post(f"/v1/intercepts/{intercept['id']}/resume", **body)

    async def post(self, path: str, **body: Any) -> dict[str, Any]:
        answer = await self.client.post(path, json=body)
        return {"status": answer.status_code, **answer.json()}


def new_body(**body: Any) -> dict[str, Any]:
    return {"prompt": [1, 2, 3], "triggers": {"stop_token_ids": [PAUSE]}, **body}


Check = Callable[[Server], Awaitable[None]]


def run(check: Check, **store: Any) -> Server:
    server = Server(**store)
    asyncio.run(check(server))
    return server


def refused(answer: dict[str, Any], status: int, *words: str) -> None:
    assert answer["status"] == status, answer
    for word in words:
        assert word in answer["error"]["message"]


def test_pause_resume_and_end() -> None:
    async def check(server: Server) -> None:
        first = await server.open()
        assert first["state"] == "paused"
        assert first["trigger"] == {"type": "stop_token", "token_id": PAUSE}
        assert first["kv_retention"] == {"decision": "pin"}
        assert first["usage"]["prompt_tokens_details"] == {"cached_tokens": 3}
        last = await server.resume(first, finished(), token_ids=[50, 51])
        assert (last["state"], last["finish_reason"]) == ("finished", "stop")
        assert len(server.store) == 0

    server = run(check)
    # What goes on is exactly what was: prompt, written, the trigger, the tool's tokens.
    assert server.engine.prompts == [[1, 2, 3], [1, 2, 3, 100, 101, PAUSE, 50, 51]]


def test_stream_ends_with_how_it_stands() -> None:
    async def check(server: Server) -> None:
        server.engine.ends.append(paused())
        answer = await server.client.post("/v1/intercepts", json=new_body(stream=True))
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
        assert lines[-1] == "[DONE]"
        chunks = [json.loads(line) for line in lines[:-1]]
        assert [chunk["state"] for chunk in chunks] == ["running", "paused"]
        assert [chunk["token_ids"] for chunk in chunks] == [[100, 101], [PAUSE]]

    run(check)


@pytest.mark.parametrize(
    ("triggers", "last", "trigger"),
    [
        ({"stop": "Obs"}, Piece([5], "", "stop", "Obs"), {"type": "stop", "text": "Obs"}),
        ({"stop": "Obs"}, Piece([5], "", "stop", "end"), None),
        # The end of the model's turn is a token like any other.
        ({"stop_token_ids": [9]}, Piece([9], "", "stop"), {"type": "stop_token", "token_id": 9}),
        ({"stop_token_ids": [9]}, Piece([8], "", "stop"), None),
        ({"tool_call": True}, Piece([8], "", "stop"), {"type": "tool_call", "tool": "search"}),
        ({"stop": "Obs"}, Piece([8], "", "length"), None),
        ({"tool_call": True}, Piece([8], "", "length"), None),
    ],
)
def test_only_a_trigger_pauses(
    triggers: dict[str, Any], last: Piece, trigger: dict[str, Any] | None
) -> None:
    async def check(server: Server) -> None:
        server.engine.tail = '{"name": "search", "arguments": {}}'
        answer = await server.open(last, triggers=triggers)
        assert answer["trigger"] == trigger
        assert answer["state"] == ("finished" if trigger is None else "paused")

    run(check)


def test_turn_without_a_call_is_finished() -> None:
    async def check(server: Server) -> None:
        answer = await server.open(finished(), triggers={"tool_call": True})
        assert answer["state"] == "finished"

    run(check)


def test_tokens_to_write_are_counted_over_all_segments() -> None:
    async def check(server: Server) -> None:
        first = await server.open(max_tokens=10)
        assert first["num_tokens_left"] == 7
        last = await server.resume(first, Piece([1] * 5, "", "length"), text="x")
        assert (last["state"], last["finish_reason"]) == ("finished", "length")
        assert server.engine.limits == [10, 7]
        # A pause that leaves nothing to write is an end.
        assert (await server.open(max_tokens=3))["state"] == "finished"

    run(check)


def test_resume_may_allow_more_tokens() -> None:
    async def check(server: Server) -> None:
        first = await server.open(max_tokens=4)
        await server.resume(first, finished(), text="x", max_tokens=9)
        assert server.engine.limits == [4, 9]

    run(check)


def test_too_long_answer_is_refused_and_a_shorter_one_taken() -> None:
    async def check(server: Server) -> None:
        first = await server.open()
        answer = await server.resume(first, finished(), text="x" * MAX_LEN)
        refused(answer, 400, "has 40 tokens", "only 33 fit", "shorter")
        assert (await server.resume(first, finished(), text="x" * 33))["state"] == "finished"

    run(check)


def test_too_long_prompt_is_refused() -> None:
    async def check(server: Server) -> None:
        refused(await server.open(prompt=[1] * MAX_LEN), 400, "leaves none", "shorten")
        assert len(server.store) == 0

    run(check)


def test_unknown_intercept() -> None:
    async def check(server: Server) -> None:
        unknown = {"id": "icpt-0"}
        refused(await server.resume(unknown, finished(), text="x"), 404, "'icpt-0'", "`id`")
        assert (await server.client.get("/v1/intercepts/icpt-0")).status_code == 404
        assert (await server.client.delete("/v1/intercepts/icpt-0")).status_code == 404

    run(check)


def test_another_tenants_intercept_is_unknown_even_when_gone() -> None:
    async def check(server: Server) -> None:
        first = await server.open(cache_salt="mine")
        path = f"/v1/intercepts/{first['id']}"
        for salt in ({}, {"cache_salt": "theirs"}):
            refused(await server.post(f"{path}/resume", text="x", **salt), 404)
        assert (await server.client.get(path)).status_code == 404
        assert (await server.client.delete(path)).status_code == 404
        mine = {"X-Cache-Salt": "mine"}
        assert (await server.client.get(path, headers=mine)).json()["state"] == "paused"
        assert (await server.client.delete(path, headers=mine)).json()["state"] == "cancelled"
        assert (await server.client.get(path)).status_code == 404
        assert (await server.client.get(path, headers=mine)).status_code == 410

    run(check)


def test_tool_that_never_returns() -> None:
    async def check(server: Server) -> None:
        first = await server.open()
        server.now_s = 59.0
        path = f"/v1/intercepts/{first['id']}"
        assert (await server.client.get(path)).json()["expires_in_s"] == 1.0
        server.now_s = 60.0
        refused(
            await server.resume(first, finished(), text="x"),
            *(410, "within 60 s", "`intercept_ttl_s`", "open a new one"),
        )
        assert server.engine.released == [first["id"]]
        assert len(server.store) == 0

    run(check)


def test_flood_drops_the_oldest_of_whoever_has_most() -> None:
    async def check(server: Server) -> None:
        quiet = await server.open(cache_salt="quiet")
        flood = [await server.open(cache_salt="flood") for _ in range(9)]
        assert len(server.store) == 4
        assert server.engine.released == [one["id"] for one in flood[:6]]
        answer = await server.resume(quiet, finished(), text="x", cache_salt="quiet")
        assert answer["state"] == "finished"
        gone = await server.resume(flood[0], finished(), text="x", cache_salt="flood")
        refused(gone, 410, "`max_intercepts`")

    run(check, max_intercepts=4)


def test_flood_of_running_ones_is_told_to_wait() -> None:
    async def check(server: Server) -> None:
        server.engine.gate = asyncio.Event()
        server.engine.ends = [finished(), finished()]
        running = [
            asyncio.create_task(server.post("/v1/intercepts", **new_body())) for _ in range(2)
        ]
        await until(lambda: len(server.store) == 2)
        refused(await server.open(), 429, "`max_intercepts`", "later")
        server.engine.gate.set()
        assert [answer["state"] for answer in await asyncio.gather(*running)] == ["finished"] * 2

    run(check, max_intercepts=2)


def test_two_resumes_at_once() -> None:
    async def check(server: Server) -> None:
        first = await server.open()
        server.engine.gate = asyncio.Event()
        one = asyncio.create_task(server.resume(first, finished(), text="x"))
        await until(lambda: len(server.engine.prompts) == 2)
        refused(await server.post(f"/v1/intercepts/{first['id']}/resume", text="y"), 409, "running")
        server.engine.gate.set()
        assert (await one)["state"] == "finished"

    run(check)


def test_client_that_goes_while_the_model_writes_may_resume_again() -> None:
    async def check(server: Server) -> None:
        first = await server.open()
        server.engine.gate = asyncio.Event()
        server.engine.ends.append(paused())

        async def resume() -> None:
            door: InterceptDoor = server.app.state.adaseek_door
            async for _ in door.resume(first["id"], Resume.read({"text": "x"})):
                pass

        gone = asyncio.create_task(resume())
        await until(lambda: len(server.engine.prompts) == 2)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        assert server.store.num_paused == 1
        server.engine.gate = None
        server.engine.ends.clear()
        again = await server.resume(first, finished(), text="x")
        assert again["state"] == "finished"
        assert server.engine.prompts[1] == server.engine.prompts[2]

    run(check)


def test_client_that_goes_before_the_first_pause_leaves_nothing() -> None:
    async def check(server: Server) -> None:
        door: InterceptDoor = server.app.state.adaseek_door
        server.engine.ends.append(paused())
        answers = door.open(NewIntercept.read(new_body(stream=True)))
        await anext(answers)
        assert len(server.store) == 1
        await answers.aclose()
        assert len(server.store) == 0

    run(check)


@pytest.mark.parametrize("reason", ["error", None])
def test_engine_failure_leaves_a_paused_intercept_paused(reason: str | None) -> None:
    async def check(server: Server) -> None:
        first = await server.open()
        refused(await server.resume(first, Piece([], "", reason), text="x"), 500, "resume again")
        assert (await server.resume(first, finished(), text="x"))["state"] == "finished"

    run(check)


def test_cancel_stops_a_running_one() -> None:
    async def check(server: Server) -> None:
        first = await server.open()
        server.engine.gate = asyncio.Event()
        running = asyncio.create_task(server.resume(first, finished(), text="x"))
        await until(lambda: len(server.engine.prompts) == 2)
        answer = await server.client.delete(f"/v1/intercepts/{first['id']}")
        assert answer.json()["state"] == "cancelled"
        assert (await running)["state"] == "cancelled"
        assert server.engine.stopped == [first["id"]]
        assert len(server.store) == 0

    run(check)


def test_status_and_release() -> None:
    async def check(server: Server) -> None:
        await server.open()
        status = (await server.client.get("/v1/kv_retention")).json()
        assert status == {
            "num_intercepts": 1,
            "num_paused": 1,
            "engines": [{"num_held_blocks": 5}],
        }
        answer = await server.post("/v1/kv_retention/release", session_id="s")
        assert answer["num_released_blocks"] == 5
        refused(await server.post("/v1/kv_retention/release"), 400, "`session_id`", "a text")

    run(check)


def test_bad_resume_leaves_the_intercept_paused() -> None:
    async def check(server: Server) -> None:
        first = await server.open()
        refused(await server.post(f"/v1/intercepts/{first['id']}/resume", text=3), 400, "a text")
        assert server.store.num_paused == 1

    run(check)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0)
