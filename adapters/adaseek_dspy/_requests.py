"""One request of an observed model: answered from the memo, or made for real and recorded."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any  # Any: DSPy is untyped

import dspy
from adaseek._canonical import canonical_json
from adaseek.evaluation.base import CallRecord
from adaseek.workflow import Usage
from pydantic import BaseModel

from adaseek_dspy._compat import plain, restored_outputs, usage_of
from adaseek_dspy._frames import Request
from adaseek_dspy._recorder import Recorder

__all__ = ["ObservedCall", "RequestTracker", "arguments", "memo_body"]

_UNKEYED = frozenset(
    {"api_key", "headers", "extra_headers", "cache", "rollout_id", "num_retries", "timeout"}
)
"""Call arguments that do not determine the answer (or do so apart, see `memo_body`)."""

_INSIDE_REQUEST = "adaseek_inside_request"
"""Key of DSPy's settings, set while a model makes a request: models may call models."""

_HEAD_START_S = 0.01
"""What a request in a thread of the program's own waits before the memo answers: threads that were
started together so begin together, as they would if the answer took its time. Only then it shows
that they ran side by side (see `_overlap`)."""

_ROLLOUTS_PER_REPLICATE = 1_000_003


class RequestTracker:
    """DSPy's usage tracker for a single request; passes the report on to the user's own."""

    def __init__(self, outer: Any) -> None:
        self.reports: list[Mapping[str, Any]] = []
        self.entry: Mapping[str, Any] = {}
        self._outer = outer

    def add_usage(self, lm: str, entry: Mapping[str, Any]) -> None:
        if entry:
            self.reports.append(entry)
        if self._outer is not None:
            self._outer.add_usage(lm, entry)

    def usage(self) -> Usage | None:
        """Returns what the server reported; None if no server was asked.

        DSPy asks for several candidates one by one and reports once: it then keeps one response
        per candidate.
        """
        responses = self.entry.get("response")
        num_asked = len(responses) if isinstance(responses, tuple) else 1
        reports = self.reports or [self.entry.get("usage") or {}]
        if not any(reports):
            return None
        parts = [usage_of(report, requests=0) for report in reports]
        total = Usage.total(parts)
        return Usage(total.input_tokens, total.output_tokens, total.cached_tokens, num_asked, None)


class ObservedCall:
    """One request: answered from the memo under `key`, if it has one, or made for real."""

    def __init__(
        self, recorder: Recorder, lm: Any, kwargs: dict[str, Any], *, key: str | None
    ) -> None:
        self.outputs: Any = None
        self.kwargs = kwargs
        self._lm = lm
        self._recorder = recorder
        self._context = recorder.context
        self._key = key
        self._request: Request = self._recorder.open_request(lm)
        self._tracker = RequestTracker(dspy.settings.get("usage_tracker"))
        if isinstance(lm, dspy.LM):
            self.kwargs = self._cache_arguments(kwargs)

    @contextlib.contextmanager
    def answered(self) -> Iterator[bool]:
        """Yields whether the memo answers; if not, make the request inside this block.

        Waits while another thread is making an equal request.
        """
        memo, flights, key = self._context.memo, self._context.flights, self._key
        if memo is None or key is None:
            yield False
            return
        if not self._recorder.is_in_own_thread():
            time.sleep(_HEAD_START_S)
        if flights is None:
            yield self._replay(memo.get(key))
        else:
            with flights.answer(memo, key, **self._waiting()) as record:
                yield self._replay(record)

    @contextlib.asynccontextmanager
    async def aanswered(self) -> AsyncIterator[bool]:
        """As `answered`, while the event loop goes on."""
        memo, flights, key = self._context.memo, self._context.flights, self._key
        if memo is None or key is None:
            yield False
            return
        await asyncio.sleep(0)  # as the head start of threads
        if flights is None:
            yield self._replay(memo.get(key))
        else:
            async with flights.aanswer(memo, key, **self._waiting()) as record:
                yield self._replay(record)

    def _waiting(self) -> dict[str, Any]:
        inside = bool(dspy.settings.get(_INSIDE_REQUEST, False))
        return {"may_wait": not inside, "wait_s": self._recorder.seconds_left}

    def _replay(self, record: CallRecord | None) -> bool:
        if record is None:
            return False
        self.outputs = restored_outputs(record.outputs)
        request, usage = self._request, record.usage
        request.cached, request.duration_s = True, record.duration_s
        request.run, request.real_start_s = record.run, record.start_s
        priced = self._recorder.priced(request.model, usage, record.duration_s, usage.cost_usd)
        request.usage = priced if priced.cost_usd is not None else usage
        request.end_s = self._recorder.now_s()
        return True

    def _cache_arguments(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        if not self._context.use_cache:
            return {**kwargs, "cache": False}
        settings = {**self._lm.kwargs, **kwargs}
        if self._context.replicate == 0 or settings.get("temperature") == 0:
            return kwargs
        rollout = settings.get("rollout_id") or 0
        moved = rollout + _ROLLOUTS_PER_REPLICATE * self._context.replicate
        return {**kwargs, "rollout_id": moved}

    @contextlib.contextmanager
    def real(self) -> Iterator[None]:
        """Makes the request inside the gate, and records it when it ends."""
        gate = self._context.gate
        slot = gate.slot(self._request.model.endpoint) if gate else contextlib.nullcontext()
        with slot, self._recorded():
            yield

    @contextlib.asynccontextmanager
    async def areal(self) -> AsyncIterator[None]:
        """As `real`; waits for the gate in a thread, so that the event loop goes on."""
        gate = self._context.gate
        if gate is None:
            with self._recorded():
                yield
            return
        slot = gate.slot(self._request.model.endpoint)
        await asyncio.to_thread(slot.__enter__)
        with contextlib.ExitStack() as stack:
            stack.push(slot.__exit__)
            with self._recorded():
                yield

    @contextlib.contextmanager
    def _recorded(self) -> Iterator[None]:
        request = self._request
        self._recorder.check_time()  # it may have waited, for a slot or for another request
        self._limit_time()
        request.start_s = self._recorder.now_s()
        try:
            with dspy.context(**self._tracking()):
                yield
        except BaseException as error:
            request.failure = error
            raise
        finally:
            request.end_s = self._recorder.now_s()
            self._finish()

    def _limit_time(self) -> None:
        """Gives the client what is left of the run's time, so that a request cannot hang."""
        rest_s = self._recorder.seconds_left
        # DSPy's cache counts the time limit as part of the request, so it would never answer.
        if rest_s is None or not isinstance(self._lm, dspy.LM) or self._may_be_cached():
            return
        own = {**self._lm.kwargs, **self.kwargs}.get("timeout")
        is_shorter = isinstance(own, int | float) and own < rest_s
        self.kwargs = {**self.kwargs, "timeout": own if is_shorter else rest_s}

    def _tracking(self) -> dict[str, Any]:
        # LiteLLM asks a stream for its usage only if DSPy tracks usage. It changes the request by
        # `stream_options`, which no answer depends on; without it the run would seem free.
        streams = dspy.settings.get("send_stream") is not None
        tracking = {"usage_tracker": self._tracker, _INSIDE_REQUEST: True}
        return {**tracking, "track_usage": True} if streams else tracking

    def _finish(self) -> None:
        request = self._request
        elapsed = request.end_s - request.start_s
        usage = self._tracker.usage()
        own_cost = self._tracker.entry.get("cost")
        if usage is None and request.failure is None and self._may_be_cached():
            # DSPy's cache keeps the price of the real request, but neither tokens nor duration.
            request.cached, request.duration_s = True, None
            usage = Usage(requests=1)
        else:
            request.duration_s = elapsed
        failed = request.failure is not None
        usage = usage or Usage(requests=0 if failed else 1, cost_usd=0.0 if failed else None)
        request.usage = self._recorder.priced(request.model, usage, elapsed, own_cost)
        self._remember(request)

    def _may_be_cached(self) -> bool:
        return bool(self._context.use_cache and self.kwargs.get("cache", self._lm.cache))

    def _remember(self, request: Request) -> None:
        memo, key = self._context.memo, self._key
        if memo is None or key is None or request.failure is not None or request.duration_s is None:
            return
        outputs = plain(self.outputs)
        try:
            canonical_json(outputs)
        except (TypeError, ValueError):
            return  # a typed response object; it is asked for again next time
        record = CallRecord(
            outputs=outputs,
            usage=request.usage,
            duration_s=request.duration_s,
            model=request.model,
            run=self._recorder.run_id,
            start_s=request.start_s,
        )
        memo.put(key, record)


def arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a model was called with, by name."""
    names = ("prompt", "messages")
    return {**dict(zip(names, args, strict=False)), **kwargs}


def memo_body(lm: Any, arguments: Mapping[str, Any], replicate: int) -> dict[str, Any]:
    """Returns everything that determines the answer to a request, as JSON values.

    It has `replicate` if answers are drawn. What has no JSON form is left in, to be refused by
    the encoder.
    """
    settings = {**lm.kwargs, **arguments}
    body: dict[str, Any] = {
        "model": lm.model,
        "type": lm.model_type,
        "arguments": {
            name: _keyed(value)
            for name, value in settings.items()
            if name not in _UNKEYED and value is not None
        },
    }
    if settings.get("temperature") != 0:
        body["rollout"] = settings.get("rollout_id")
        body["replicate"] = replicate
    return body


def _keyed(value: Any) -> Any:
    """Returns a call argument as JSON values; classes stand for their schema.

    Raises:
        TypeError: by the caller's JSON encoder, for anything else that is not JSON.
    """
    if isinstance(value, type) and issubclass(value, BaseModel):
        return value.model_json_schema()
    if isinstance(value, Mapping):
        return {str(key): _keyed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_keyed(item) for item in value]
    return plain(value)
