"""The HTTP routes of `--kv-retention`: intercepts, and a look at what is held.

    POST   /v1/intercepts               {messages | prompt, triggers, max_tokens, stream, ...}
    POST   /v1/intercepts/{id}/resume   {text | token_ids, max_tokens, stream, cache_salt}
    GET    /v1/intercepts/{id}          how it stands
    DELETE /v1/intercepts/{id}          ends it and lets its KV cache go
    GET    /v1/kv_retention             counts, for people and tests; /metrics has the rest
    POST   /v1/kv_retention/release     {session_id, cache_salt}: no turn of a session follows

All lie under /v1, which vLLM's --api-key guards. GET and DELETE of an intercept that was opened
with a `cache_salt` take it in the header X-Cache-Salt, which no access log shows.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from adaseek_vllm._compat.serving import ServingEngine, until_disconnect
from adaseek_vllm._compat.version import unsupported_reason
from adaseek_vllm.config import is_off
from adaseek_vllm.retention.endpoint_door import InterceptDoor
from adaseek_vllm.retention.endpoint_requests import InterceptError, NewIntercept, Release, Resume
from adaseek_vllm.retention.endpoint_store import InterceptStore
from adaseek_vllm.retention.settings import FLAG, RetentionSettings

__all__ = ["RetentionEndpoints", "add_routes", "configured"]

_logger = logging.getLogger(__name__)
_SALT_HEADER = "X-Cache-Salt"


class RetentionEndpoints:
    """What vLLM calls an endpoint plugin; see `vllm.plugins.endpoint_plugins.interface`."""

    name = "adaseek"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Adds the routes, if the server's flags ask for retention and it is one process."""
        args = app.state.args
        if configured(args) is None:
            return
        num_servers = getattr(args, "api_server_count", None) or 1
        if num_servers > 1:
            _logger.warning(
                "%s: no /v1/intercepts with --api-server-count %d, as an intercept is known only "
                "to the process that opened it. Sessions of other requests are kept all the same.",
                FLAG,
                num_servers,
            )
            return
        add_routes(app)

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Makes what the routes need, once the server's own state is there."""
        settings = configured(args)
        if settings is None or engine_client is None:
            return
        chat, completion = state.openai_serving_chat, state.openai_serving_completion
        engine = ServingEngine(engine_client, chat, completion)
        store = InterceptStore(
            settings.max_intercepts, settings.intercept_ttl_s, now=time.monotonic
        )
        state.adaseek_engine = engine
        state.adaseek_door = InterceptDoor(engine, store)


def configured(args: Any) -> RetentionSettings | None:
    """Returns the settings that a server's command line holds, None if it has none.

    Args:
        args: the parsed command line; the flag itself, or the long form in `additional_config`.
    """
    value = getattr(args, "kv_retention", None)
    if is_off(value):
        value = (getattr(args, "additional_config", None) or {}).get("kv_retention")
    return None if is_off(value) or unsupported_reason() else RetentionSettings.read(value)


def add_routes(app: FastAPI) -> None:
    """Adds the routes and their errors to `app`; its state must hold the door and the engine."""
    app.add_exception_handler(InterceptError, _error_response)
    router = APIRouter(tags=["AdaSeek"])

    @router.post("/v1/intercepts")
    @until_disconnect
    async def open_intercept(body: dict[str, Any], raw_request: Request) -> Any:
        request = NewIntercept.read(body)
        answers = _door(raw_request).open(request, raw_request)
        return await _response(answers, stream=request.stream)

    @router.post("/v1/intercepts/{intercept_id}/resume")
    @until_disconnect
    async def resume_intercept(
        intercept_id: str, body: dict[str, Any], raw_request: Request
    ) -> Any:
        request = Resume.read(body)
        answers = _door(raw_request).resume(intercept_id, request)
        return await _response(answers, stream=request.stream)

    @router.get("/v1/intercepts/{intercept_id}")
    async def intercept_status(intercept_id: str, raw_request: Request) -> dict[str, object]:
        return await _door(raw_request).status(intercept_id, _salt(raw_request))

    @router.delete("/v1/intercepts/{intercept_id}")
    async def cancel_intercept(intercept_id: str, raw_request: Request) -> dict[str, object]:
        return await _door(raw_request).cancel(intercept_id, _salt(raw_request))

    @router.get("/v1/kv_retention")
    async def retention_status(raw_request: Request) -> dict[str, object]:
        engines = await raw_request.app.state.adaseek_engine.retention_status()
        return {**_door(raw_request).counts(), "engines": engines}

    @router.post("/v1/kv_retention/release")
    async def release_session(body: dict[str, Any], raw_request: Request) -> dict[str, object]:
        request = Release.read(body)
        engine = raw_request.app.state.adaseek_engine
        return {"num_released_blocks": await engine.release_session(request)}

    app.include_router(router)


def _door(request: Request) -> InterceptDoor:
    door: InterceptDoor = request.app.state.adaseek_door
    return door


def _salt(request: Request) -> str:
    return request.headers.get(_SALT_HEADER, "")


async def _response(answers: AsyncGenerator[dict[str, object], None], *, stream: bool) -> Any:
    """Returns the last answer, or all of them as server-sent events.

    The first is awaited in any case: what is refused before it gets an HTTP status of its own, and
    from then on the generator sees its client go.
    """
    if not stream:
        return [answer async for answer in answers][-1]
    first = await anext(answers)
    return StreamingResponse(_events(first, answers), media_type="text/event-stream")


async def _events(
    first: dict[str, object], answers: AsyncGenerator[dict[str, object], None]
) -> AsyncIterator[str]:
    async with aclosing(answers):
        yield _event(first)
        try:
            async for answer in answers:
                yield _event(answer)
        except InterceptError as error:
            yield _event(_error(error))
    yield "data: [DONE]\n\n"


def _event(content: dict[str, object]) -> str:
    return f"data: {json.dumps(content)}\n\n"


def _error(error: InterceptError) -> dict[str, object]:
    """Returns an error in the shape of vLLM's."""
    kind = HTTPStatus(error.status).phrase
    return {"error": {"message": str(error), "type": kind, "param": None, "code": error.status}}


async def _error_response(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, InterceptError), "registered for no other"
    return JSONResponse(_error(error), status_code=error.status)
