"""Token in, token out generation through vLLM's own OpenAI serving objects (vLLM 0.32).

Chat templates, tokenization, sampling defaults, adapters and checks are vLLM's: a request is read
as a chat completion or a completion, and only its continuations are made here.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, ParamSpec

from pydantic import ValidationError
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.utils.api_utils import with_cancellation
from vllm.inputs.engine import tokens_input
from vllm.sampling_params import RequestOutputKind

from adaseek_vllm._compat.engine_control import call_retention
from adaseek_vllm.retention.endpoint_door import Piece, Prepared
from adaseek_vllm.retention.endpoint_requests import InterceptError, NewIntercept, Release
from adaseek_vllm.retention.endpoint_store import Intercept

__all__ = ["ServingEngine", "until_disconnect"]

_Parameters = ParamSpec("_Parameters")


@dataclass(frozen=True)
class _Plan:
    """How to continue an intercept. The types are vLLM's.

    Args:
        params: sampling parameters of its first segment.
        lora: its adapter, None without one.
        priority: for the scheduler, lower is earlier.
        data_parallel_rank: the engine that was asked for, None for any.
    """

    params: Any
    lora: Any
    priority: int
    data_parallel_rank: int | None


class ServingEngine:
    """The engine behind the serving objects of one server.

    Args:
        client: vLLM's engine client.
        chat: its `OpenAIServingChat`.
        completion: its `OpenAIServingCompletion`.
    """

    def __init__(self, client: Any, chat: Any, completion: Any) -> None:
        self._client = client
        self._chat = chat
        self._completion = completion
        self.max_model_len = int(client.model_config.max_model_len)

    async def prepare(self, request: NewIntercept, raw_request: Any) -> Prepared:
        body = _with_triggers(request)
        is_chat = "messages" in body
        serving = self._chat if is_chat else self._completion
        parsed = _parse(ChatCompletionRequest if is_chat else CompletionRequest, body)
        rendered = await (
            serving.render_chat_request(parsed)
            if is_chat
            else serving.render_completion_request(parsed)
        )
        inputs = _checked(rendered)[1] if is_chat else _checked(rendered)
        lora = serving._maybe_get_adapters(parsed)
        return Prepared(
            token_ids=_only_tokens(inputs),
            model=serving.models.model_name(lora),
            session=serving._get_session_id(parsed, raw_request) or "",
            plan=_Plan(
                params=parsed.to_sampling_params(1, serving.default_sampling_params),
                lora=lora,
                priority=serving._get_priority(parsed, raw_request),
                data_parallel_rank=serving._get_data_parallel_rank(raw_request),
            ),
        )

    async def tokens_of(self, text: str) -> list[int]:
        # The seed is vLLM's default; it is named for pyright, which misses it.
        request = CompletionRequest(prompt=text, add_special_tokens=False, max_tokens=1, seed=None)
        renderer = self._completion.online_renderer
        return _only_tokens(_checked(await renderer.render_completion(request)))

    def text_of(self, token_ids: Sequence[int]) -> str:
        tokenizer = self._client.renderer.get_tokenizer()
        return str(tokenizer.decode(list(token_ids), skip_special_tokens=False))

    async def generate(
        self, intercept: Intercept, prompt: list[int], *, max_tokens: int, stream: bool
    ) -> AsyncGenerator[Piece, None]:
        plan: _Plan = intercept.plan
        params = plan.params.clone()
        params.max_tokens = max_tokens
        params.output_kind = RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY
        params.extra_args = {**(params.extra_args or {}), **_hints(intercept)}
        outputs = self._client.generate(
            tokens_input(prompt, cache_salt=intercept.tenant or None),
            params,
            _request_id(intercept),
            lora_request=plan.lora,
            priority=plan.priority,
            data_parallel_rank=plan.data_parallel_rank,
            session_id=intercept.session or intercept.id,
        )
        async with aclosing(outputs):
            async for output in outputs:
                (written,) = output.outputs
                yield Piece(
                    token_ids=list(written.token_ids),
                    text=written.text,
                    finish_reason=written.finish_reason,
                    stop_reason=written.stop_reason,
                    num_cached_tokens=output.num_cached_tokens,
                    report=(output.kv_transfer_params or {}).get("kv_retention"),
                )

    async def stop(self, intercept: Intercept) -> None:
        await self._client.abort(_request_id(intercept))

    async def release(self, intercept: Intercept) -> None:
        if not intercept.session:  # else it is the client's, and may have turns to come
            await self.release_session(Release(intercept.id, intercept.tenant))

    async def release_session(self, release: Release) -> int:
        """Lets a session's KV cache go; returns how many blocks it held."""
        order = ("release", release.tenant, release.session)
        return sum(await call_retention(self._client, *order))

    async def retention_status(self) -> list[dict[str, object]]:
        """Returns the scheduler's counts, for each engine."""
        return await call_retention(self._client, "status")


def until_disconnect(
    handler: Callable[_Parameters, Awaitable[Any]],
) -> Callable[_Parameters, Awaitable[Any]]:
    """Returns a route's handler that is cancelled when its client goes.

    Args:
        handler: takes the request as `raw_request`, its body parsed already.
    """
    wrapped: Callable[_Parameters, Awaitable[Any]] = with_cancellation(handler)
    return wrapped


def _with_triggers(request: NewIntercept) -> dict[str, object]:
    """Returns a body in which triggers are stops: vLLM ends its request at each."""
    stop = request.body.get("stop") or []
    tokens = request.body.get("stop_token_ids") or []
    if not isinstance(stop, str | list) or not isinstance(tokens, list):
        return request.body  # vLLM says what is wrong with it
    return {
        **request.body,
        "stop": [*([stop] if isinstance(stop, str) else stop), *request.triggers.stop],
        "stop_token_ids": [*tokens, *request.triggers.stop_token_ids],
    }


def _hints(intercept: Intercept) -> dict[str, object]:
    """Returns what the scheduler is told: where a pause is, and that nothing follows an end."""
    triggers = intercept.triggers
    pause_at = [*triggers.stop_token_ids, *triggers.stop]
    return {"kvret_pause_at": pause_at, **({} if intercept.session else {"kvret_final": 1})}


def _request_id(intercept: Intercept) -> str:
    return f"{intercept.id}-{intercept.num_segments}"


def _parse(kind: Any, body: dict[str, object]) -> Any:
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        wrong = "; ".join(
            f"`{'.'.join(str(part) for part in one['loc'])}`: {one['msg']}"
            for one in error.errors()[:3]
        )
        raise InterceptError(400, f"The request is no valid {kind.__name__}: {wrong}.") from error


def _checked(result: Any) -> Any:
    if isinstance(result, ErrorResponse):
        raise InterceptError(result.error.code, result.error.message)
    return result


def _only_tokens(inputs: Sequence[Any]) -> list[int]:
    if len(inputs) != 1 or inputs[0].get("type") != "token":
        raise InterceptError(
            400, "An intercept continues one text without images, audio or embeddings."
        )
    return list(inputs[0]["prompt_token_ids"])
