"""Chat models of one tuning run: answered from the run's memo, or asked through its gate.

Nothing of the user's model is changed, and nothing of its class: the twin is a shallow copy whose
class is a subclass that overrides the methods which every chat model implements for itself
(`_generate`, `_stream` and their async forms). Callbacks, parsers and retries around it stay.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import threading
import time
import types
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any  # Any: the arguments of a chat model are those of its provider
from uuid import UUID

from adaseek._canonical import fingerprint
from adaseek.evaluation.base import CallRecord, RunContext
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from adaseek_langchain._messages import (
    answer_chunk,
    json_value,
    restored_answer,
    stored_answer,
    wire,
)
from adaseek_langchain._recorder import Recorder
from adaseek_langchain._reports import copied, model_reference, usage_of_message
from adaseek_langchain._seam import MODEL_RUN

__all__ = ["Served"]

_UNKEYED = frozenset(
    {
        *("stream", "stream_options", "stream_usage", "timeout", "request_timeout"),
        *("max_retries", "extra_headers", "headers", "default_headers", "api_key"),
    }
)
"""Arguments that do not determine the answer."""

_OURS = "adaseek_served"

_INSIDE: ContextVar[bool] = ContextVar("adaseek_langchain_inside_request", default=False)
"""Set while a model makes a request: its own methods call each other, and models call models."""


class Served:
    """What the models of one workflow run share."""

    def __init__(self, context: RunContext, recorder: Recorder) -> None:
        self.context = context
        self.recorder = recorder
        self._began = time.monotonic()
        self._draws: Counter[str] = Counter()
        self._lock = threading.Lock()

    def twin(self, model: BaseChatModel) -> BaseChatModel:
        """Returns the form of `model` that answers for this run."""
        if _OURS in model.__dict__:
            return model
        changes = {} if self.context.use_cache else {"cache": False}
        twin = copied(model, changes)
        vars(twin)[_OURS] = self
        object.__setattr__(twin, "__class__", _twin_class(type(model)))
        return twin

    def check_time(self) -> None:
        """Raises `TimeoutError` if the run has used up its time."""
        limit = self.context.timeout_s
        if limit is not None and time.monotonic() - self._began > limit:
            raise TimeoutError(f"The workflow run took longer than `timeout_s`, {limit:g} s.")

    def key(
        self, model: BaseChatModel, messages: Sequence[BaseMessage], kwargs: Mapping[str, Any]
    ) -> str | None:
        """Returns what identifies the answer to a request; None if that cannot be told.

        Equal requests of one run at a temperature above zero are separate draws.
        """
        if self.context.memo is None:
            return None
        own = getattr(model, "asdict", model.dict)()
        settings = {**own, **{k: v for k, v in kwargs.items() if v is not None}}
        if (settings.get("n") or 1) > 1:
            return None  # several answers; the memo keeps one
        settings = {k: _keyed(v) for k, v in settings.items() if k not in _UNKEYED}
        body: dict[str, Any] = {
            "model": model_reference(model).key,
            "settings": settings,
            "messages": [{**wire(m), "name": m.name} for m in messages],
        }
        if settings.get("temperature") == 0:
            return fingerprint(body, length=64)
        key = fingerprint({**body, "replicate": self.context.replicate}, length=64)
        with self._lock:
            self._draws[key] += 1
            return f"{key}/{self._draws[key]}"


def _keyed(value: Any) -> Any:
    schema = getattr(value, "model_json_schema", None)
    if isinstance(value, type) and callable(schema):
        return schema()
    if isinstance(value, Mapping):
        return {str(k): _keyed(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_keyed(item) for item in value]
    return json_value(value)


class _Call:
    """One request of a twin: answered from the memo, or made for real and remembered."""

    def __init__(
        self,
        model: BaseChatModel,
        messages: Sequence[BaseMessage],
        stop: Any,
        manager: Any,
        kwargs: Mapping[str, Any],
    ) -> None:
        self._served: Served = model.__dict__[_OURS]
        self._served.check_time()
        self._context = self._served.context
        self._model = model_reference(model)
        self._key = self._served.key(model, messages, {**kwargs, "stop": stop})
        run_id: UUID | None = getattr(manager, "run_id", None) or MODEL_RUN.get()
        self._run = self._served.recorder.find(run_id)
        self._began = time.perf_counter()

    @contextlib.contextmanager
    def answered(self) -> Iterator[AIMessage | None]:
        """Yields the memo's answer; None: make the request inside this block."""
        memo, flights, key = self._context.memo, self._context.flights, self._key
        if memo is None or key is None:
            yield None
        elif flights is None:
            yield self._replay(memo.get(key))
        else:
            with flights.answer(memo, key) as record:
                yield self._replay(record)

    @contextlib.asynccontextmanager
    async def aanswered(self) -> AsyncIterator[AIMessage | None]:
        """As `answered`, while the event loop goes on."""
        memo, flights, key = self._context.memo, self._context.flights, self._key
        if memo is None or key is None:
            yield None
        elif flights is None:
            yield self._replay(memo.get(key))
        else:
            async with flights.aanswer(memo, key) as record:
                yield self._replay(record)

    @contextlib.contextmanager
    def real(self) -> Iterator[None]:
        """Makes the request inside the gate."""
        gate = self._context.gate
        with gate.slot(self._model.endpoint) if gate else contextlib.nullcontext():
            self._starts()
            yield

    @contextlib.asynccontextmanager
    async def areal(self) -> AsyncIterator[None]:
        """As `real`; waits for the gate in a thread, so that the event loop goes on."""
        gate = self._context.gate
        if gate is None:
            self._starts()
            yield
            return
        slot = gate.slot(self._model.endpoint)
        await asyncio.to_thread(slot.__enter__)
        with contextlib.ExitStack() as stack:
            stack.push(slot.__exit__)
            self._starts()
            yield

    def remember(self, message: BaseMessage | None) -> None:
        """Puts a real answer into the memo."""
        memo, key = self._context.memo, self._key
        if memo is None or key is None or message is None:
            return
        elapsed = time.perf_counter() - self._began
        usage = self._served.recorder.priced(self._model, usage_of_message(message), elapsed)
        memo.put(key, CallRecord(stored_answer(message), usage, elapsed, self._model))

    def _starts(self) -> None:
        now = time.perf_counter()
        if self._run is not None:
            self._run.waited_s = now - self._run.start_s
        self._began = now

    def _replay(self, record: CallRecord | None) -> AIMessage | None:
        if record is None:
            return None
        if self._run is not None:
            self._run.replayed = (record.usage, record.duration_s)
        return restored_answer(record.outputs)


@contextlib.contextmanager
def _inside() -> Iterator[None]:
    token = _INSIDE.set(True)
    try:
        yield
    finally:
        _INSIDE.reset(token)


def _managed(method: Any, manager: Any) -> dict[str, Any]:
    """Returns the argument for the callbacks of a run, if `method` takes it."""
    takes = "run_manager" in inspect.signature(method).parameters
    return {"run_manager": manager} if takes and manager is not None else {}


def _generate(base: Any) -> Any:
    def _generate(
        self: Any, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        more = _managed(base, run_manager)
        if _INSIDE.get():
            inner: ChatResult = base(self, messages, stop=stop, **more, **kwargs)
            return inner
        call = _Call(self, messages, stop, run_manager, kwargs)
        with call.answered() as known:
            if known is not None:
                return _result(known)
            with call.real(), _inside():
                result: ChatResult = base(self, messages, stop=stop, **more, **kwargs)
            call.remember(result.generations[0].message if result.generations else None)
            return result

    return _generate


def _agenerate(base: Any) -> Any:
    async def _agenerate(
        self: Any, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        more = _managed(base, run_manager)
        if _INSIDE.get():
            inner: ChatResult = await base(self, messages, stop=stop, **more, **kwargs)
            return inner
        call = _Call(self, messages, stop, run_manager, kwargs)
        async with call.aanswered() as known:
            if known is not None:
                return _result(known)
            async with call.areal():
                with _inside():
                    result: ChatResult = await base(self, messages, stop=stop, **more, **kwargs)
            call.remember(result.generations[0].message if result.generations else None)
            return result

    return _agenerate


def _stream(base: Any) -> Any:
    def _stream(
        self: Any, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        more = _managed(base, run_manager)
        if _INSIDE.get():
            yield from base(self, messages, stop=stop, **more, **kwargs)
            return
        call = _Call(self, messages, stop, run_manager, kwargs)
        with call.answered() as known:
            if known is not None:
                yield ChatGenerationChunk(message=answer_chunk(known))
                return
            whole: ChatGenerationChunk | None = None
            with call.real():
                for chunk in base(self, messages, stop=stop, **more, **kwargs):
                    whole = _added(whole, chunk)
                    yield chunk
            call.remember(whole.message if whole is not None else None)

    return _stream


def _astream(base: Any) -> Any:
    async def _astream(
        self: Any, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        more = _managed(base, run_manager)
        if _INSIDE.get():
            async for chunk in base(self, messages, stop=stop, **more, **kwargs):
                yield chunk
            return
        call = _Call(self, messages, stop, run_manager, kwargs)
        async with call.aanswered() as known:
            if known is not None:
                yield ChatGenerationChunk(message=answer_chunk(known))
                return
            whole: ChatGenerationChunk | None = None
            async with call.areal():
                async for chunk in base(self, messages, stop=stop, **more, **kwargs):
                    whole = _added(whole, chunk)
                    yield chunk
            call.remember(whole.message if whole is not None else None)

    return _astream


_OVERRIDES = {
    "_generate": _generate,
    "_agenerate": _agenerate,
    "_stream": _stream,
    "_astream": _astream,
}


@functools.cache
def _twin_class(cls: type[BaseChatModel]) -> type[BaseChatModel]:
    # Only what the class implements itself: LangChain tells by it whether a model streams, and
    # its defaults (async through a thread) call the others.
    made = {
        name: override(getattr(cls, name))
        for name, override in _OVERRIDES.items()
        if getattr(cls, name) is not getattr(BaseChatModel, name)
    }
    kept = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    made_class: type[BaseChatModel] = types.new_class(
        cls.__name__, (cls,), exec_body=lambda body: body.update({**kept, **made})
    )
    return made_class


def _result(message: AIMessage) -> ChatResult:
    return ChatResult(generations=[ChatGeneration(message=message)])


def _added(whole: ChatGenerationChunk | None, chunk: ChatGenerationChunk) -> ChatGenerationChunk:
    return chunk if whole is None else whole + chunk
