"""Records what one run of a program does: its model requests, tool calls, and whose they are."""

from __future__ import annotations

import functools
import threading
import time
import uuid
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any  # Any: DSPy is untyped

import dspy
from adaseek.evaluation.base import RunContext
from adaseek.evaluation.latency import critical_path
from adaseek.workflow import Call, ModelRef, StepKind, Usage, Workflow

from adaseek_dspy._compat import BaseCallback, active_call_id, error_kind, usage_of
from adaseek_dspy._convert import json_value, model_reference
from adaseek_dspy._frames import Frame, Request
from adaseek_dspy._naming import DIRECT_CALL, dynamic_step
from adaseek_dspy._overlap import side_by_side

__all__ = ["OWN_TOOLS", "Recorder"]

_PRIVILEGED = frozenset({"signature", "demos", "config", "lm", "_trace"})
"""Arguments of a predictor that are not input fields."""

OWN_TOOLS = frozenset({"finish", "submit"})
"""How DSPy's agents say that they are done; reported as tools, but no work of the user's."""

_HISTORY_DEPTH = 16


class Recorder(BaseCallback):  # type: ignore[misc]  # DSPy is untyped
    """DSPy's callback for one run; thread-safe, since programs run steps in threads.

    Args:
        steps: ids of the language-model steps of the program that runs (its predictors' stages).
        workflow: names the tools.
    """

    def __init__(self, context: RunContext, steps: frozenset[str], workflow: Workflow) -> None:
        self.context = context
        self._steps = steps
        self._workflow = workflow
        self.run_id = uuid.uuid4().hex
        self._thread = threading.get_ident()
        self._origin = time.perf_counter()
        self._lock = threading.Lock()
        self._frames: dict[str, Frame] = {}
        self._requests: list[Request] = []
        self._unwrapped: dict[str, tuple[Request, Any]] = {}

    def now_s(self) -> float:
        """Returns the seconds since this run began."""
        return time.perf_counter() - self._origin

    @property
    def seconds_left(self) -> float | None:
        """What is left of the run's time, None if it has no limit."""
        limit = self.context.timeout_s
        return None if limit is None else limit - self.now_s()

    def check_time(self) -> None:
        """Raises if the run has used up its time.

        Raises:
            TimeoutError: naming the limit.
        """
        if self.is_out_of_time():
            limit = self.context.timeout_s
            raise TimeoutError(f"The workflow run took longer than `timeout_s`, {limit:g} s.")

    def is_out_of_time(self) -> bool:
        """Returns whether the run has used up its time."""
        rest = self.seconds_left
        return rest is not None and rest <= 0

    def is_in_own_thread(self) -> bool:
        """Returns whether the caller is in the thread in which the run began."""
        return threading.get_ident() == self._thread

    def open_request(self, lm: Any) -> Request:
        """Returns a new request of `lm`, recorded under the call that makes it.

        Raises:
            TimeoutError: if the run has used up its time.
        """
        self.check_time()
        now = self.now_s()
        with self._lock:
            request = Request(
                id=f"lm{len(self._requests)}",
                parent=active_call_id(),
                model=model_reference(lm),
                start_s=now,
            )
            self._requests.append(request)
        return request

    def priced(self, model: ModelRef, usage: Usage, duration_s: float, own: object) -> Usage:
        """Returns `usage` with its cost: by the price table, else the framework's own figure.

        DSPy's figure is a published price, so it says nothing about an endpoint given by URL.
        """
        if not usage.requests and not usage.input_tokens:
            return replace(usage, cost_usd=0.0)  # refused before any work was done
        price = self.context.price
        cost = price(model, usage, duration_s) if price is not None else None
        if cost is None and not model.endpoint and isinstance(own, int | float):
            cost = float(own)
        return replace(usage, cost_usd=cost)

    # -- DSPy's callback protocol ------------------------------------------------------------

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        kwargs = inputs.get("kwargs") or {}
        if isinstance(instance, dspy.Predict):
            signature = kwargs.get("signature") or instance.signature
            names = getattr(signature, "input_fields", {})
            given = {k: v for k, v in kwargs.items() if k in names and k not in _PRIVILEGED}
            step = self._step_of(instance)
            self._open(call_id, "lm", step, given, is_predictor=True)
        else:
            self._open(call_id, None, type(instance).__name__, {})

    def on_module_end(
        self, call_id: str, outputs: Any, exception: BaseException | None = None
    ) -> None:
        frame = self._close(call_id, exception)
        if frame is not None and frame.is_predictor and hasattr(outputs, "items"):
            frame.outputs = _json_fields(outputs.items())

    def on_tool_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        name = str(instance.name)
        own = name in OWN_TOOLS and self._tool_step(name) is None
        given = inputs.get("kwargs") or {}
        self._open(
            call_id,
            None if own else "tool",
            self._tool_step(name) or f"<tool {name}>",
            {k: v for k, v in given.items() if isinstance(k, str)},
        )

    def on_tool_end(
        self, call_id: str, outputs: Any, exception: BaseException | None = None
    ) -> None:
        frame = self._close(call_id, exception)
        if frame is not None and exception is None:
            frame.outputs = _json_fields([("result", outputs)])

    def on_interpreter_execute_start(
        self, call_id: str, instance: Any, inputs: dict[str, Any]
    ) -> None:
        self._open(call_id, "code", "<code>", {"code": inputs.get("code")})

    def on_interpreter_execute_end(
        self, call_id: str, outputs: Any, exception: BaseException | None = None
    ) -> None:
        self._close(call_id, exception)

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Records a model that could not be wrapped (held in a closure and called directly)."""
        if getattr(instance, "observed_by_adaseek", False):
            return
        _warn_of_hidden(model_reference(instance).key)
        request = self.open_request(instance)
        with self._lock:
            self._unwrapped[call_id] = (request, instance)

    def on_lm_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        with self._lock:
            request, lm = self._unwrapped.pop(call_id, (None, None))
        if request is None:
            return
        request.end_s = self.now_s()
        request.duration_s = request.end_s - request.start_s
        request.failure = exception
        recent = (getattr(lm, "history", None) or [])[-_HISTORY_DEPTH:]
        entry = next((e for e in reversed(recent) if e.get("outputs") is outputs), None)
        usage = (entry or {}).get("usage") or {}
        request.cached = exception is None and not usage
        report = usage_of(usage, requests=0 if exception else 1)
        cost = (entry or {}).get("cost")
        request.usage = self.priced(request.model, report, request.duration_s, cost)

    # -- the result --------------------------------------------------------------------------

    def calls(self) -> tuple[Call, ...]:
        """Returns what happened, in the order in which the calls began."""
        with self._lock:
            requests, frames = list(self._requests), dict(self._frames)
        last = {r.parent: r.id for r in requests}  # later requests overwrite earlier ones
        calls = [_lm_call(r, frames, is_last=last[r.parent] == r.id) for r in requests]
        others = [f for f in frames.values() if f.kind in ("tool", "code")]
        calls += [_other_call(frame, frames) for frame in others]
        parallel = self.parallel()
        calls = [_uncached(c, calls, parallel) if c.id in frames else c for c in calls]
        return tuple(sorted(calls, key=lambda call: (call.start_s, call.id)))

    def parallel(self) -> frozenset[tuple[str, str]]:
        """Returns pairs of ids of calls that only a memo made follow each other."""
        with self._lock:
            requests, frames = list(self._requests), dict(self._frames)
        return side_by_side(requests, frames)

    def was_answered(self) -> bool:
        """Returns whether an endpoint has answered a request of this run."""
        with self._lock:
            done = [r for r in self._requests if not r.cached and r.end_s]
        return any(request.failure is None for request in done)

    def saw_endpoint_fail(self) -> bool:
        """Returns whether a request ended with a failure of its endpoint."""
        with self._lock:
            failures = [request.failure for request in self._requests]
        return any(f is not None and error_kind(f) == "endpoint" for f in failures)

    def _step_of(self, predictor: Any) -> str:
        if predictor.stage in self._steps:
            return str(predictor.stage)
        return dynamic_step(predictor.signature)

    def _tool_step(self, name: str) -> str | None:
        steps = [s for s in self._workflow.steps.values() if s.kind == "tool" and s.name == name]
        if len(steps) > 1:
            owner = _owner_of_tool()
            steps = [s for s in steps if (s.parent or "") == owner] or steps
        return steps[0].id if steps else None

    def _open(
        self,
        call_id: str,
        kind: StepKind | None,
        step: str,
        inputs: Mapping[str, Any],
        *,
        is_predictor: bool = False,
    ) -> None:
        frame = Frame(
            id=call_id,
            parent=active_call_id(),
            kind=kind,
            step=step,
            start_s=self.now_s(),
            inputs=_json_fields(inputs.items()),
            is_predictor=is_predictor,
        )
        with self._lock:
            self._frames[call_id] = frame

    def _close(self, call_id: str, exception: BaseException | None) -> Frame | None:
        with self._lock:
            frame = self._frames.get(call_id)
        if frame is not None:
            frame.end_s = self.now_s()
            frame.error = _text(exception)
        return frame


@functools.cache
def _warn_of_hidden(model: str) -> None:
    # Remembered here: Python's own "once" starts anew whenever any library touches the filters.
    warnings.warn(
        f"The program calls the language model {model} directly, and no attribute of the program "
        "holds it (a closure or a global variable does). Its calls are counted, but always paid "
        "for: neither the journal's memo nor the limit on requests at once covers them. Hold it "
        "in an attribute (self.lm = ...), or call dspy.settings.lm.",
        RuntimeWarning,
        stacklevel=2,
    )


def _owner_of_tool() -> str:
    """Returns the path of the agent that calls a tool now, told from its predictors' stages."""
    callers = dspy.settings.get("caller_modules") or []
    held = vars(callers[-1]).values() if callers else ()
    stage = next((str(p.stage) for p in held if isinstance(p, dspy.Predict)), "")
    return stage.rpartition(".")[0]


def _lm_call(request: Request, frames: Mapping[str, Frame], *, is_last: bool) -> Call:
    frame = frames.get(request.parent or "")
    predictor = frame if frame is not None and frame.is_predictor else None
    error = _text(request.failure)
    if predictor is not None and error is None:
        error = predictor.error if is_last else "The answer could not be used; it asked again."
    return Call(
        id=request.id,
        step=predictor.step if predictor else DIRECT_CALL,
        parent=_enclosing(request.parent, frames),
        kind="lm",
        start_s=request.start_s,
        end_s=request.end_s,
        duration_s=request.duration_s or 0.0,
        inputs=predictor.inputs if predictor else {},
        outputs=predictor.outputs if predictor and is_last else {},
        model=request.model,
        usage=request.usage,
        cached=request.cached,
        error=error,
    )


def _other_call(frame: Frame, frames: Mapping[str, Frame]) -> Call:
    return Call(
        id=frame.id,
        step=frame.step,
        parent=_enclosing(frame.parent, frames),
        kind=frame.kind or "code",
        start_s=frame.start_s,
        end_s=frame.end_s,
        duration_s=max(0.0, frame.end_s - frame.start_s),
        inputs=frame.inputs,
        outputs=frame.outputs,
        error=frame.error,
    )


def _uncached(call: Call, calls: Sequence[Call], parallel: frozenset[tuple[str, str]]) -> Call:
    """Returns `call` with the time that it takes when no memo answers what is inside it."""
    inside, size = {call.id}, 0
    while len(inside) > size:
        size = len(inside)
        inside |= {c.id for c in calls if c.parent in inside}
    seconds = critical_path((c for c in calls if c.id in inside), parallel=parallel)
    return call if seconds is None else replace(call, duration_s=seconds)


def _ancestors(call_id: str | None, frames: Mapping[str, Frame]) -> Iterable[str]:
    while call_id is not None and call_id in frames:
        yield call_id
        call_id = frames[call_id].parent


def _enclosing(call_id: str | None, frames: Mapping[str, Frame]) -> str | None:
    """Returns the innermost call around `call_id`, or that one itself, that the trace shows."""
    shown = (c for c in _ancestors(call_id, frames) if frames[c].kind in ("tool", "code"))
    return next(shown, None)


def _json_fields(items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    return {name: _shown(value) for name, value in items}


def _shown(value: Any) -> Any:
    try:
        return json_value(value)
    except TypeError:
        return str(value)  # for people to read; such a value cannot become part of a demo


def _text(error: BaseException | None) -> str | None:
    return f"{type(error).__name__}: {error}" if error is not None else None
