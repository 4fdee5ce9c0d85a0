"""Tells the model server which session a program's requests belong to, and what follows them."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any  # Any: DSPy is untyped

import dspy
from adaseek.forecast import Forecast
from adaseek.hints import Hint, may_be_told

from adaseek_dspy._compat import ENGINES, LEGACY_ENGINES, BaseCallback, active_call_id
from adaseek_dspy._recorder import OWN_TOOLS

__all__ = ["Hints"]

_KEY = "adaseek_session"
"""Key of DSPy's settings, which reach the threads of `dspy.Parallel`."""


@dataclass
class _Run:
    """One outermost call of the program, and what happened in it."""

    id: str
    session: str
    turns: list[tuple[str, list[str]]] = field(default_factory=list)
    tools: list[tuple[str, float]] = field(default_factory=list)
    num_open: int = 0
    ends: bool = True


@dataclass(frozen=True)
class _Session:
    hints: Hints
    name: str

    def __deepcopy__(self, _memo: dict[int, Any]) -> _Session:
        return self


class Hints(BaseCallback):  # type: ignore[misc]  # DSPy is untyped
    """Sends hints (`adaseek.hints`) with the requests of programs, to servers given by `api_base`.

        hints = Hints()
        with hints.session("conversation 7"):
            program(question="...")

    They ride below DSPy's response cache, change nothing else of a request and no answer. While
    a session is open, DSPy's engines are wrapped; before 3.4 there are none, and nothing is sent.
    Experimental.

    Args:
        foresees: whether to send, too, what will probably follow a request: the tool that is
            called then and how long it takes, as runs before have shown, or that the session
            ends. False: the session's name alone.
    """

    def __init__(self, *, foresees: bool = True) -> None:
        super().__init__()
        self._forecast = Forecast() if foresees else None
        self._runs: dict[str, _Run] = {}
        self._hints: dict[str, Hint] = {}
        self._began: dict[str, tuple[str, float]] = {}
        self._lock = threading.Lock()

    @contextmanager
    def session(self, name: str = "") -> Iterator[None]:
        """Makes the requests inside belong to the session `name`.

        Without a name, each outermost call of a program is a session, which ends with it.

        Raises:
            ConfigurationError: if `name` cannot be sent.
        """
        opened = _Session(self, Hint(session=name).session)
        known = list(dspy.settings.get("callbacks") or [])
        callbacks = known if self in known else [*known, self]
        with _wrapped_engines(), dspy.context(callbacks=callbacks, **{_KEY: opened}):
            yield

    # -- DSPy's callback protocol ----------------------------------------------------------

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        self._open(call_id)

    def on_module_end(
        self, call_id: str, outputs: Any, exception: BaseException | None = None
    ) -> None:
        self._close(call_id, exception)

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        run, step = self._open(call_id), _step()
        url = instance.kwargs.get("api_base") or instance.kwargs.get("base_url")
        with self._lock:
            if may_be_told(url):
                self._hints[call_id] = self._hint(run, step, is_bare=run.id == call_id)
            run.turns.append((step, []))
            run.ends = run.num_open == 0
            run.num_open += 1

    def on_lm_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        with self._lock:
            self._hints.pop(call_id, None)
            if call_id in self._runs:
                self._runs[call_id].num_open -= 1
        self._close(call_id, exception)

    def on_tool_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        run = self._open(call_id)
        if instance.name in OWN_TOOLS:
            return
        with self._lock:
            self._began[call_id] = (instance.name, time.perf_counter())
            if run.turns:
                run.turns[-1][1].append(instance.name)

    def on_tool_end(
        self, call_id: str, outputs: Any, exception: BaseException | None = None
    ) -> None:
        with self._lock:
            name, began_s = self._began.pop(call_id, ("", 0.0))
            if name and exception is None and call_id in self._runs:
                self._runs[call_id].tools.append((name, time.perf_counter() - began_s))
        self._close(call_id, exception)

    # -- runs ------------------------------------------------------------------------------

    def _open(self, call_id: str) -> _Run:
        opened = dspy.settings.get(_KEY)
        with self._lock:
            run = self._runs.get(active_call_id() or "")
            if run is None:
                run = _Run(call_id, opened.name if opened is not None else "")
            self._runs[call_id] = run
            return run

    def _close(self, call_id: str, exception: BaseException | None) -> None:
        with self._lock:
            run = self._runs.pop(call_id, None)
        if run is None or run.id != call_id or self._forecast is None:
            return
        self._forecast.learn(run.turns if exception is None else [], run.tools, ends=run.ends)

    def _hint(self, run: _Run, step: str, *, is_bare: bool) -> Hint:
        name = run.session or run.id
        if is_bare or self._forecast is None:
            # A bare model call is no session, unless it is said to belong to one.
            return Hint(session=run.session if is_bare else name)
        visit = sum(known == step for known, _ in run.turns)
        # A conversation goes on after a call of the program.
        return self._forecast.hint(name, step, visit, may_end=not run.session)

    def hint_now(self) -> Hint:
        """Returns what to tell with the request that is made now; an empty hint outside of one."""
        return self._hints.get(active_call_id() or "", Hint())


def _step() -> str:
    callers = dspy.settings.get("caller_modules") or []
    return str(getattr(callers[-1], "stage", "")) if callers else ""


def _told(body: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Returns `body` with the hint of the request that is made now; None if there is none."""
    opened = dspy.settings.get(_KEY)
    hint = Hint() if opened is None else opened.hints.hint_now()
    return None if hint.is_empty else hint.added_to(body or {})


def _typed(original: Any) -> Any:
    @functools.wraps(original)
    def entry(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        extensions = _told(request.config.extensions)
        if extensions is not None:
            request = replace(request, config=replace(request.config, extensions=extensions))
        return original(self, request, *args, **kwargs)

    return entry


def _legacy(original: Any) -> Any:
    @functools.wraps(original)
    def entry(self: Any, lm: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        extra = _told(request.get("extra_body"))
        if extra is not None:
            request = {**request, "extra_body": extra}
        return original(self, lm, request, *args, **kwargs)

    return entry


_ENTRIES = (
    *((cls, name, _typed) for cls in ENGINES for name in ("complete", "stream")),
    *((cls, "complete_legacy", _legacy) for cls in LEGACY_ENGINES),
)


class _Wrapping:
    """How many sessions are open. Global as the classes that are wrapped."""

    lock = threading.Lock()
    num_open = 0


@contextmanager
def _wrapped_engines() -> Iterator[None]:
    with _Wrapping.lock:
        _Wrapping.num_open += 1
        if _Wrapping.num_open == 1:
            for cls, name, wrapped in _ENTRIES:
                setattr(cls, name, wrapped(getattr(cls, name)))
    try:
        yield
    finally:
        with _Wrapping.lock:
            _Wrapping.num_open -= 1
            if _Wrapping.num_open == 0:
                for cls, name, _ in _ENTRIES:
                    setattr(cls, name, getattr(cls, name).__wrapped__)
