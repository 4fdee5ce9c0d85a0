"""Language models and adapters that report to a run's recorder, and answer from its memo.

Nothing of DSPy is patched. A model is observed through a shallow copy whose class is a subclass of
its own; the copy shares the original's connections. The adapter does the same to each model that
it is handed, which reaches models that no attribute of the program holds.
"""

from __future__ import annotations

import copy
import functools
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any  # Any: DSPy is untyped

import dspy
from adaseek._canonical import fingerprint

from adaseek_dspy._compat import BaseLM
from adaseek_dspy._dynamic import adapter_class
from adaseek_dspy._recorder import Recorder
from adaseek_dspy._requests import ObservedCall, RequestTracker, arguments, memo_body

__all__ = ["SETTINGS_KEY", "Observer", "observed_adapter"]

SETTINGS_KEY = "adaseek_observer"
"""Key of DSPy's settings that holds the observer of the current run. DSPy carries its settings
into the threads of `dspy.Parallel`, which it does not do with other context variables."""


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
                self._wrapped[id(lm)] = (lm, self._observed(lm))
            return self._wrapped[id(lm)][1]

    def _observed(self, lm: Any) -> Any:
        twin = _observed_lm(lm)
        if self.recorder.context.timeout_s is not None and hasattr(twin, "num_retries"):
            # Each try of the client would have all of the run's time; the run is tried again.
            twin.num_retries = 0
        return twin

    def call(self, lm: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ObservedCall:
        """Returns the record of a request that is about to be made; perhaps it is answered."""
        key = self._memo_key(lm, arguments(args, kwargs))
        return ObservedCall(self.recorder, lm, kwargs, key=key)

    def _memo_key(self, lm: Any, given: Mapping[str, Any]) -> str | None:
        """Returns what identifies the answer to a request, None if that cannot be told."""
        if self.recorder.context.memo is None:
            return None
        try:
            body = memo_body(lm, given, self.recorder.context.replicate)
            key = fingerprint(body, length=64)
        except (TypeError, ValueError):
            return None
        if given.get("cache", lm.cache) or "replicate" not in body:
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
        call = observer.call(self, args, kwargs)
        with call.answered() as is_answered:
            if not is_answered:
                with call.real():
                    call.outputs = super().__call__(*args, **call.kwargs)
        return call.outputs

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        observer = dspy.settings.get(SETTINGS_KEY)
        if observer is None:
            return await super().acall(*args, **kwargs)
        call = observer.call(self, args, kwargs)
        async with call.aanswered() as is_answered:
            if not is_answered:
                async with call.areal():
                    call.outputs = await super().acall(*args, **call.kwargs)
        return call.outputs

    def update_history(self, entry: dict[str, Any]) -> None:
        tracker = dspy.settings.get("usage_tracker")
        if isinstance(tracker, RequestTracker):
            tracker.entry = entry
        super().update_history(entry)

    def __deepcopy__(self, _memo: dict[int, Any]) -> Any:
        # Samplers copy whole modules for each attempt; a deep copy would open new connections.
        return _shallow(self)


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
