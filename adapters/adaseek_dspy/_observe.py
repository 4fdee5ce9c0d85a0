"""Language models and adapters that report to a run's recorder, and answer from its memo.

Nothing of DSPy is patched. A model is observed through a shallow copy whose class is a subclass of
its own; the copy shares the original's connections. The adapter does the same to each model that
it is handed, which reaches models that no attribute of the program holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any  # Any: DSPy is untyped

import dspy
from adaseek._canonical import canonical_json, fingerprint
from adaseek.evaluation.base import CallRecord
from adaseek.workflow import Usage
from pydantic import BaseModel

from adaseek_dspy._compat import BaseLM, plain, restored_outputs, usage_of
from adaseek_dspy._dynamic import adapter_class
from adaseek_dspy._recorder import Recorder, Request

__all__ = ["SETTINGS_KEY", "Observer", "anchor", "observed_adapter"]

SETTINGS_KEY = "adaseek_observer"
"""Key of DSPy's settings that holds the observer of the current run. DSPy carries its settings
into the threads of `dspy.Parallel`, which it does not do with other context variables."""

_UNKEYED = frozenset(
    {"api_key", "headers", "extra_headers", "cache", "rollout_id", "num_retries", "timeout"}
)
"""Call arguments that do not determine the answer (or do so apart, see `_memo_key`)."""

_ROLLOUTS_PER_REPLICATE = 1_000_003


@dataclass
class Observer:
    """What the observed models of one run share."""

    recorder: Recorder
    _wrapped: dict[int, tuple[Any, Any]] = field(default_factory=dict)
    _draws: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def wrap(self, lm: Any) -> Any:
        """Returns the observed form of `lm`: one object per model, since DSPy compares by id."""
        if not isinstance(lm, BaseLM) or isinstance(lm, _ObservedLM):
            return lm
        with self._lock:
            if id(lm) not in self._wrapped:
                self._wrapped[id(lm)] = (lm, _observed_lm(lm))
            return self._wrapped[id(lm)][1]

    def memo_key(self, lm: Any, arguments: Mapping[str, Any]) -> str | None:
        """Returns what identifies the answer to a request, None if that cannot be told."""
        if self.recorder.context.memo is None:
            return None
        try:
            body = _memo_body(lm, arguments, self.recorder.context.replicate)
            key = fingerprint(body, length=64)
        except (TypeError, ValueError):
            return None
        if arguments.get("cache", lm.cache) or "replicate" not in body:
            return key
        # The user switched DSPy's cache off, so equal requests are meant to be separate draws.
        with self._lock:
            self._draws[key] += 1
            return f"{key}/{self._draws[key]}"

    def __deepcopy__(self, _memo: dict[int, Any]) -> Observer:
        return self


class _ObservedLM(BaseLM):  # type: ignore[misc]  # DSPy is untyped
    """Mixed in before the model's own class; inert unless a run is being observed."""

    observed_by_adaseek = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        observer = dspy.settings.get(SETTINGS_KEY)
        if observer is None:
            return super().__call__(*args, **kwargs)
        call = _ObservedCall(observer, self, args, kwargs)
        if call.replayed:
            return call.outputs
        with call.real():
            call.outputs = super().__call__(*args, **call.kwargs)
        return call.outputs

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        observer = dspy.settings.get(SETTINGS_KEY)
        if observer is None:
            return await super().acall(*args, **kwargs)
        call = _ObservedCall(observer, self, args, kwargs)
        if call.replayed:
            return call.outputs
        async with call.areal():
            call.outputs = await super().acall(*args, **call.kwargs)
        return call.outputs

    def update_history(self, entry: dict[str, Any]) -> None:
        tracker = dspy.settings.get("usage_tracker")
        if isinstance(tracker, _RequestTracker):
            tracker.entry = entry
        super().update_history(entry)

    def __deepcopy__(self, _memo: dict[int, Any]) -> Any:
        # Samplers copy whole modules for each attempt; a deep copy would open new connections.
        return _shallow(self)


class _RequestTracker:
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


class _ObservedCall:
    """One request of an observed model: answered from the memo, or made for real and recorded."""

    def __init__(
        self, observer: Observer, lm: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.outputs: Any = None
        self.kwargs = kwargs
        self._lm = lm
        self._recorder = observer.recorder
        self._context = observer.recorder.context
        self._key = observer.memo_key(lm, _arguments(args, kwargs))
        self._request: Request = self._recorder.open_request(lm)
        self._tracker = _RequestTracker(dspy.settings.get("usage_tracker"))
        self.replayed = self._replay()
        if isinstance(lm, dspy.LM):
            self.kwargs = self._cache_arguments(kwargs)

    def _replay(self) -> bool:
        memo = self._context.memo
        record = memo.get(self._key) if memo is not None and self._key is not None else None
        if record is None:
            return False
        self.outputs = restored_outputs(record.outputs)
        request, usage = self._request, record.usage
        request.cached, request.duration_s = True, record.duration_s
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

    def _tracking(self) -> dict[str, Any]:
        # LiteLLM asks a stream for its usage only if DSPy tracks usage. It changes the request by
        # `stream_options`, which no answer depends on; without it the run would seem free.
        streams = dspy.settings.get("send_stream") is not None
        return {"usage_tracker": self._tracker, **({"track_usage": True} if streams else {})}

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
        memo.put(key, CallRecord(outputs, request.usage, request.duration_s, request.model))


def _arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    names = ("prompt", "messages")
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _memo_body(lm: Any, arguments: Mapping[str, Any], replicate: int) -> dict[str, Any]:
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


def _shallow(lm: Any) -> Any:
    """Returns a copy of `lm` that shares its connections, with settings and history of its own."""
    if hasattr(lm, "__copy__"):
        twin = copy.copy(lm)
    else:
        twin = lm.__class__.__new__(lm.__class__)
        twin.__dict__.update(lm.__dict__)
    twin.kwargs = dict(lm.kwargs)
    twin.history = []
    if hasattr(lm, "callbacks"):
        twin.callbacks = list(lm.callbacks or [])
    return twin


def _observed_lm(lm: Any) -> Any:
    twin = _shallow(lm)
    twin.__class__ = _observed_class(lm.__class__)
    return twin


@functools.cache
def _observed_class(cls: type) -> type:
    # Under the name of the original class, so that a state saved by the program loads again. DSPy
    # 3.3 looks for `forward_contract` in the class itself, not in its bases.
    kept = ("__module__", "__qualname__", "forward_contract")
    own = {name: value for name, value in vars(cls).items() if name in kept}
    return type(cls.__name__, (_ObservedLM, cls), {"__qualname__": cls.__qualname__, **own})


@dataclass(frozen=True)
class _Anchor:
    """DSPy's settings of a run, for predictors that are called outside of its context."""

    settings: Mapping[str, Any]

    def __deepcopy__(self, _memo: dict[int, Any]) -> _Anchor:
        return self


class _Anchored:
    """Mixed in before a predictor's own class: keeps it in its run in every thread.

    A thread that the user's code starts has DSPy's global settings, not those of the run, unless
    the code copies the context.
    """

    adaseek_anchor: _Anchor

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with _in_run(self.adaseek_anchor):
            return super().__call__(*args, **kwargs)  # type: ignore[misc]

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        with _in_run(self.adaseek_anchor):
            return await super().acall(*args, **kwargs)  # type: ignore[misc]


def _in_run(anchor: _Anchor) -> contextlib.AbstractContextManager[None]:
    if dspy.settings.get(SETTINGS_KEY) is not None:
        return contextlib.nullcontext()
    context: contextlib.AbstractContextManager[None] = dspy.context(**anchor.settings)
    return context


def anchor(predictors: Iterable[Any], settings: Mapping[str, Any]) -> None:
    """Keeps each of `predictors`, which belong to a run's copy, under the run's `settings`."""
    shared = _Anchor(settings)
    for predictor in predictors:
        predictor.adaseek_anchor = shared
        predictor.__class__ = _anchored_class(predictor.__class__)


@functools.cache
def _anchored_class(cls: type) -> type:
    own = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return type(cls.__name__, (_Anchored, cls), own)


class _ObservingAdapter:
    """Mixed in before an adapter's own class: hands it observed models only."""

    def __call__(self, lm: Any, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(_wrapped(lm), *args, **kwargs)  # type: ignore[misc]

    async def acall(self, lm: Any, *args: Any, **kwargs: Any) -> Any:
        return await super().acall(_wrapped(lm), *args, **kwargs)  # type: ignore[misc]


def _wrapped(lm: Any) -> Any:
    observer = dspy.settings.get(SETTINGS_KEY)
    return observer.wrap(lm) if observer is not None else lm


def observed_adapter(adapter: Any) -> Any:
    """Returns a copy of `adapter` (DSPy's default for None) that observes the models it calls."""
    twin = copy.copy(adapter) if adapter is not None else dspy.ChatAdapter()
    twin.__class__ = _observing_class(twin.__class__)
    return twin


@functools.cache
def _observing_class(cls: type) -> type:
    return adapter_class(cls, _ObservingAdapter)
