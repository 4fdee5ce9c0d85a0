"""The intercept door: generations that pause for a tool and go on with its answer. No vLLM.

Source: InferCept (arXiv 2402.01869), whose engine keeps an intercepted request in its queues. Here
the engine's request ends at the pause, and resuming starts one whose prompt is exactly the tokens
so far and the tool's: the scheduler knows both as turns of one session, so that the same policy
holds, copies or drops the KV cache between them. vLLM's own resumable requests were not used: a
parked one keeps its blocks whoever needs them, has no end, and two of them can block each other.
The price is that the last, unfilled block is computed again.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

from adaseek_vllm.retention.endpoint_requests import (
    InterceptError,
    NewIntercept,
    Resume,
    Triggers,
)
from adaseek_vllm.retention.endpoint_store import Intercept, InterceptStore, new_id
from adaseek_vllm.retention.tool_calls import tool_call_at_end

__all__ = ["Engine", "InterceptDoor", "Piece", "Prepared"]


@dataclass(frozen=True)
class Piece:
    """What the engine has written since the last piece.

    Args:
        token_ids: the tokens.
        text: their text, without special tokens.
        finish_reason: why the engine stopped: stop, length, or another word of vLLM's; None if it
            goes on.
        stop_reason: the token or text that it stopped at; None for the end of the model's turn.
        num_cached_tokens: tokens of the prompt that were in the prefix cache; None if unknown.
        report: what the scheduler did with the session; None if it did not say.
    """

    token_ids: Sequence[int]
    text: str
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    num_cached_tokens: int | None = None
    report: Mapping[str, object] | None = None


@dataclass(frozen=True)
class Prepared:
    """A first request as the engine takes it.

    Args:
        token_ids: its prompt.
        model: the served model's name.
        session: the session that its client said it belongs to; "" if it said none.
        plan: what `Engine` needs beside tokens; the door does not look into it.
    """

    token_ids: list[int]
    model: str
    session: str
    plan: Any


class Engine(Protocol):
    """What the door needs of vLLM."""

    max_model_len: int

    async def prepare(self, request: NewIntercept, raw_request: Any) -> Prepared:
        """Returns a new request in tokens.

        Raises:
            InterceptError: vLLM refuses it.
        """
        ...

    async def tokens_of(self, text: str) -> list[int]:
        """Returns the tokens of a tool's answer, without any that start a text.

        Raises:
            InterceptError: it is longer than the model's context.
        """
        ...

    def text_of(self, token_ids: Sequence[int]) -> str:
        """Returns the text of tokens, special ones included."""
        ...

    def generate(
        self, intercept: Intercept, prompt: list[int], *, max_tokens: int, stream: bool
    ) -> AsyncGenerator[Piece, None]:
        """Yields what the model writes after `prompt`; closing it early stops the engine."""
        ...

    async def stop(self, intercept: Intercept) -> None:
        """Ends a generation that runs, with the finish reason `abort`."""
        ...

    async def release(self, intercept: Intercept) -> None:
        """Lets the KV cache of a paused intercept go."""
        ...


class InterceptDoor:
    """Opens, resumes and ends intercepts.

    Args:
        engine: vLLM, or what stands for it in a test.
        store: the intercepts.
    """

    def __init__(self, engine: Engine, store: InterceptStore) -> None:
        self._engine = engine
        self._store = store

    async def open(
        self, request: NewIntercept, raw_request: Any = None
    ) -> AsyncGenerator[dict[str, object], None]:
        """Yields what a new intercept writes, and last how it stands.

        Raises:
            InterceptError: the request is refused, or there is no room.
        """
        prepared = await self._engine.prepare(request, raw_request)
        if len(prepared.token_ids) >= self._engine.max_model_len:
            raise InterceptError(
                400,
                f"The prompt has {len(prepared.token_ids)} tokens, which leaves none of the "
                f"model's {self._engine.max_model_len} to write: shorten it.",
            )
        await self._release(self._store.expire())
        intercept = Intercept(
            id=new_id(),
            tenant=request.tenant,
            session=prepared.session,
            model=prepared.model,
            plan=prepared.plan,
            triggers=request.triggers,
            token_ids=[],
            num_left=request.max_tokens or self._engine.max_model_len,
        )
        dropped = self._store.add(intercept)
        async with aclosing(
            self._run(intercept, prepared.token_ids, dropped, stream=request.stream)
        ) as answers:
            async for answer in answers:
                yield answer

    async def resume(
        self, intercept_id: str, request: Resume
    ) -> AsyncGenerator[dict[str, object], None]:
        """Yields what an intercept writes after its tool's answer, and last how it stands.

        A refused resume leaves the intercept paused.

        Raises:
            InterceptError: it is unknown, expired, running or another tenant's, or the tool's
                answer does not fit.
        """
        await self._release(self._store.expire())
        intercept = self._store.find(intercept_id, request.tenant)
        added = list(request.token_ids)
        if request.text:
            added = await self._engine.tokens_of(request.text)
        self._check_room(intercept, added)
        self._store.start(intercept_id, request.tenant)
        if request.max_tokens is not None:
            intercept.num_left = request.max_tokens
        async with aclosing(self._run(intercept, added, [], stream=request.stream)) as answers:
            async for answer in answers:
                yield answer

    async def status(self, intercept_id: str, tenant: str) -> dict[str, object]:
        """Returns how an intercept stands.

        Raises:
            InterceptError: as for `InterceptStore.find`.
        """
        await self._release(self._store.expire())
        return self._standing(self._store.find(intercept_id, tenant))

    async def cancel(self, intercept_id: str, tenant: str) -> dict[str, object]:
        """Ends an intercept, lets its KV cache go, and returns how it stands.

        Raises:
            InterceptError: as for `InterceptStore.find`.
        """
        intercept = self._store.find(intercept_id, tenant)
        was_running = intercept.state == "running"
        self._store.end(intercept, "cancelled")
        if was_running:
            await self._engine.stop(intercept)
        else:
            await self._release([intercept])
        return self._standing(intercept)

    def counts(self) -> dict[str, int]:
        """Returns how many intercepts there are."""
        return {"num_intercepts": len(self._store), "num_paused": self._store.num_paused}

    async def _run(
        self, intercept: Intercept, added: list[int], dropped: list[Intercept], *, stream: bool
    ) -> AsyncGenerator[dict[str, object], None]:
        """Yields a segment piece by piece, and last how the intercept stands after it.

        A client that goes away meanwhile leaves the intercept paused as it was; one that has not
        paused yet is dropped, as its client may not know its id.
        """
        prompt = [*intercept.token_ids, *added]
        max_tokens = min(intercept.num_left, self._engine.max_model_len - len(prompt))
        written: list[int] = []
        num_cached: int | None = None
        piece = Piece((), "")
        try:
            await self._release(dropped)
            pieces = self._engine.generate(intercept, prompt, max_tokens=max_tokens, stream=stream)
            async with aclosing(pieces):
                async for piece in pieces:
                    written += piece.token_ids
                    num_cached = piece.num_cached_tokens if num_cached is None else num_cached
                    if piece.finish_reason is None:
                        yield _part(intercept, piece)
            if piece.finish_reason not in ("stop", "length", "abort"):
                raise InterceptError(500, "The engine failed; resume again, or open a new one.")
            self._settle(intercept, prompt, written, piece)
        finally:
            if intercept.state == "running":
                self._leave(intercept)
        usage = {
            "prompt_tokens": len(prompt),
            "completion_tokens": len(written),
            "total_tokens": len(prompt) + len(written),
            "prompt_tokens_details": {"cached_tokens": num_cached},
        }
        yield {
            **self._standing(intercept),
            "finish_reason": piece.finish_reason if intercept.state == "finished" else None,
            "text": piece.text,
            "token_ids": list(piece.token_ids),
            "usage": usage,
            "kv_retention": piece.report,
        }

    def _settle(
        self, intercept: Intercept, prompt: list[int], written: list[int], last: Piece
    ) -> None:
        """Pauses or ends an intercept after a segment."""
        intercept.token_ids = [*prompt, *written]
        intercept.num_left -= len(written)
        intercept.num_segments += 1
        if last.finish_reason == "abort":
            self._store.end(intercept, "cancelled")
            return
        intercept.trigger = self._trigger(intercept.triggers, written, last)
        has_room = len(intercept.token_ids) < self._engine.max_model_len - 1
        if intercept.trigger is not None and intercept.num_left > 0 and has_room:
            self._store.pause(intercept)
        else:
            self._store.end(intercept, "finished")

    def _trigger(
        self, triggers: Triggers, written: list[int], last: Piece
    ) -> dict[str, object] | None:
        """Returns what a segment stopped at, as the client is told; None if it is no trigger."""
        if last.finish_reason != "stop":
            return None
        # At the end of the model's turn vLLM names no token, though it is one like any other.
        stopped_at = last.stop_reason
        if stopped_at is None and written:
            stopped_at = written[-1]
        if isinstance(stopped_at, str):
            return {"type": "stop", "text": stopped_at} if stopped_at in triggers.stop else None
        if stopped_at in triggers.stop_token_ids:
            return {"type": "stop_token", "token_id": stopped_at}
        if triggers.tool_call:
            call = tool_call_at_end(written, self._engine.text_of)
            if call is not None:
                return {"type": "tool_call", "tool": call.name}
        return None

    def _leave(self, intercept: Intercept) -> None:
        if intercept.num_segments:
            self._store.pause(intercept)
        else:
            self._store.end(intercept, "cancelled")

    def _check_room(self, intercept: Intercept, added: list[int]) -> None:
        num_room = max(0, self._engine.max_model_len - len(intercept.token_ids) - 1)
        if len(added) > num_room:
            raise InterceptError(
                400,
                f"The tool's answer has {len(added)} tokens, but beside the "
                f"{len(intercept.token_ids)} of the intercept only {num_room} fit into the "
                f"model's {self._engine.max_model_len}: resume with a shorter one.",
            )

    async def _release(self, intercepts: Sequence[Intercept]) -> None:
        for intercept in intercepts:
            await self._engine.release(intercept)

    def _standing(self, intercept: Intercept) -> dict[str, object]:
        is_paused = intercept.state == "paused"
        return {
            "id": intercept.id,
            "object": "intercept",
            "model": intercept.model,
            "state": intercept.state,
            "trigger": intercept.trigger if is_paused else None,
            "num_tokens": len(intercept.token_ids),
            "num_tokens_left": intercept.num_left,
            "expires_in_s": self._store.seconds_left(intercept) if is_paused else None,
        }


def _part(intercept: Intercept, piece: Piece) -> dict[str, object]:
    return {
        "id": intercept.id,
        "object": "intercept.chunk",
        "state": "running",
        "text": piece.text,
        "token_ids": list(piece.token_ids),
    }
