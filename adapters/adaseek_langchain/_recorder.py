"""The run tree of each invocation, from callback events; turned into a `Trace` when it is read.

An event stores references and two clock readings, nothing more: a hook sits in programs that
serve users. What costs time (JSON values, prices, the critical path) is done for who asks.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any  # Any: inputs and outputs belong to the user's program
from uuid import UUID

from adaseek.evaluation.latency import critical_path
from adaseek.workflow import Call, ModelRef, StepKind, Trace, Usage
from langchain_core.messages import BaseMessage
from langchain_core.outputs import LLMResult

from adaseek_langchain._compat import CHILD_CONFIG, is_pause
from adaseek_langchain._errors import error_kind
from adaseek_langchain._keys import (
    StepId,
    call_site,
    child_path,
    position,
    step_id,
    user_frame,
)
from adaseek_langchain._messages import answer_fields, input_fields, json_value
from adaseek_langchain._reports import (
    is_from_cache,
    message_of,
    model_reference,
    reference_from,
    usage_of,
)
from adaseek_langchain._seam import Request

__all__ = ["Recorder", "Run", "Tree"]

Price = Callable[[ModelRef, Usage, float], float | None]

_MAX_OPEN = 1000
"""Invocations whose end was never told (abandoned tasks) are forgotten beyond this number."""

_FALLBACKS = "RunnableWithFallbacks"
_PLUMBING = frozenset({"prompt", "parser"})
_HIDDEN = "langsmith:hidden"


@dataclass(slots=True)
class Run:
    """One run of LangChain: a model, tool or retriever call, or (kind None) what encloses some.

    `frame` is the identity of the running frame of the user's code in which it began, 0 if it
    began in a task or thread of its own.
    """

    id: UUID
    tree: Tree
    parent: Run | None
    kind: StepKind | None
    name: str
    path: tuple[str, ...]
    frame: int
    start_s: float
    step: str = ""
    end_s: float | None = None
    first_token_s: float | None = None
    given: Any = None
    output: Any = None
    error: BaseException | None = None
    tags: Sequence[str] = ()
    run_type: str = ""
    request: Request | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: ModelRef | None = None
    usage: Usage | None = None
    is_cached: bool = False
    replayed: tuple[Usage, float] | None = None
    waited_s: float = 0.0
    children: list[Run] = field(default_factory=list)


@dataclass(slots=True)
class Tree:
    """One invocation: the runs below (and including) `root`, in the order in which they began."""

    start_s: float
    runs: list[Run] = field(default_factory=list)
    trace: Trace | None = None

    @property
    def root(self) -> Run:
        return self.runs[0]


class Recorder:
    """Keeps the trees of the invocations that one handler sees; thread-safe.

    Args:
        max_trees: finished invocations to keep.
        price: turns the usage of one call into USD, None: unknown.
        adopts: whether a run without a parent belongs to the invocation that is open: a thread
            that the program starts without its context cannot name one.
    """

    def __init__(
        self,
        max_trees: int,
        price: Price | None = None,
        *,
        adopts: bool = False,
    ) -> None:
        self._adopts = adopts
        self.finished: deque[Tree] = deque(maxlen=max_trees)
        self._price = price
        self._runs: dict[UUID, Run] = {}
        self._open: OrderedDict[int, Tree] = OrderedDict()
        self._lock = threading.Lock()

    # -- events ----------------------------------------------------------------------------

    def begin(
        self,
        run_id: UUID,
        parent_id: UUID | None,
        kind: StepKind | None,
        name: str,
        tags: Sequence[str] | None,
        given: Any,
    ) -> Run | None:
        """Returns the run that begins now; None if it is known (a handler that is given twice)."""
        if run_id in self._runs:
            return None
        now = time.perf_counter()
        parent = self._runs.get(parent_id) if parent_id is not None else None
        if parent is None and self._adopts:
            parent = self._open_root()
        frame = user_frame()
        tree = parent.tree if parent is not None else Tree(now)
        path: tuple[str, ...] = ()
        if parent is not None and kind != "lm":
            site = call_site(frame) if frame is not None and id(frame) != parent.frame else ""
            label = f"tool:{name}" if kind == "tool" else name
            if not site and _only_wraps(parent, name, tags):
                path = _unwrapped(parent, name)
            else:
                path = child_path(parent.path, label, tags, site)
        run = Run(run_id, tree, parent, kind, name, path, id(frame) if frame else 0, now)
        run.given, run.tags = given, tags or ()
        if parent is not None:
            parent.children.append(run)
        tree.runs.append(run)
        self._runs[run_id] = run
        if parent is None:
            self._opened(tree)
        return run

    def end(
        self, run_id: UUID, output: Any = None, error: BaseException | None = None
    ) -> Run | None:
        """Returns the run that ends now; None if it is not known, or has ended."""
        run = self._runs.pop(run_id, None)
        if run is None:
            return None
        run.end_s = time.perf_counter()
        run.output, run.error = output, error
        if isinstance(output, LLMResult):
            # Read now: LangChain's cache changes the result when it answers with it again.
            run.usage, run.is_cached = usage_of(output), is_from_cache(output)
            run.output = message_of(output)
        if run.parent is None:
            self._closed(run.tree)
        return run

    def first_token(self, run_id: UUID) -> None:
        """Notes when the first token of a stream came."""
        run = self._runs.get(run_id)
        if run is not None and run.first_token_s is None:
            run.first_token_s = time.perf_counter()

    def find(self, run_id: UUID | None) -> Run | None:
        """Returns the running run `run_id`."""
        return self._runs.get(run_id) if run_id is not None else None

    def step_of(
        self,
        parent_id: UUID | None,
        tags: Sequence[str] | None,
        variant: Callable[[], str],
        name: str = "",
    ) -> StepId:
        """Returns the id of the chat-model call that the user's innermost frame makes now.

        Args:
            variant: tells the model from others at its place; asked only where there may be some.
            name: what the run of the model is called.
        """
        parent = self.find(parent_id)
        frame = user_frame()
        started = parent.frame if parent is not None else 0
        site = call_site(frame) if frame is not None and id(frame) != started else ""
        told = variant() if self._in_fallbacks(parent) else ""
        path = parent.path if parent is not None else ()
        if parent is not None and not site and _only_wraps(parent, name, tags):
            path = parent.parent.path if parent.parent is not None else ()
            site, tags = _site(parent), parent.tags
        return step_id(path, tags, site, told)

    def _in_fallbacks(self, parent: Run | None) -> bool:
        """Returns whether the call is one of several models that stand in for each other.

        LangChain runs them as children of what encloses the fallbacks; only the context of child
        runs tells them.
        """
        config = CHILD_CONFIG.get() if CHILD_CONFIG is not None else None
        inner = self.find(getattr((config or {}).get("callbacks"), "parent_run_id", None))
        found = (parent, inner if inner is not None and inner.parent is parent else None)
        return any(run is not None and run.name == _FALLBACKS for run in found)

    def _open_root(self) -> Run | None:
        with self._lock:
            tree = next(iter(self._open.values()), None)
        return tree.root if tree is not None else None

    def _opened(self, tree: Tree) -> None:
        with self._lock:
            self._open[id(tree)] = tree
            lost = self._open.popitem(last=False)[1] if len(self._open) > _MAX_OPEN else None
        for run in lost.runs if lost is not None else ():
            self._runs.pop(run.id, None)

    def _closed(self, tree: Tree) -> None:
        with self._lock:
            self._open.pop(id(tree), None)
            self.finished.append(tree)
        for run in tree.runs:
            self._runs.pop(run.id, None)

    # -- results ---------------------------------------------------------------------------

    def trees(self) -> list[Tree]:
        """Returns the finished invocations, newest last."""
        with self._lock:
            return list(self.finished)

    def trace(self, tree: Tree) -> Trace:
        """Returns what happened in `tree`; read once, then kept."""
        if tree.trace is None:
            tree.trace = self._trace(tree)
        return tree.trace

    def _trace(self, tree: Tree) -> Trace:
        shown = {run.id: run for run in tree.runs if run.kind is not None}
        shown |= {run.id: run for run in _code(tree.root)}
        runs = [run for run in tree.runs if run.id in shown]
        calls = tuple(self._call(run, shown) for run in runs)
        error = tree.root.error
        failed = error is not None and not is_pause(error)
        return Trace(
            calls=calls,
            output=None if failed else tree.root.output,
            latency_s=critical_path(calls),
            error=f"{type(error).__name__}: {error}" if failed else None,
            error_kind=error_kind(error) if error is not None and failed else None,
            id=str(tree.root.id),
        )

    def _call(self, run: Run, shown: Mapping[UUID, Run]) -> Call:
        start_s = run.start_s - run.tree.start_s
        end_s = (run.end_s or run.start_s) - run.tree.start_s
        error = None if run.error is None or is_pause(run.error) else run.error
        call = Call(
            id=str(run.id),
            step=run.step or _place(run),
            parent=_enclosing(run, shown),
            kind=run.kind or "code",
            start_s=start_s,
            end_s=end_s,
            duration_s=end_s - start_s + _saved_s(run),
            inputs=_inputs(run),
            outputs=_outputs(run),
            error=f"{type(error).__name__}: {error}" if error is not None else None,
        )
        return self._model_call(run, call) if run.kind == "lm" else call

    def _model_call(self, run: Run, call: Call) -> Call:
        model = run.model or _model_of(run)
        start_s = min(call.start_s + run.waited_s, call.end_s)
        duration_s, cached = call.end_s - start_s, False
        if run.replayed is not None:
            (usage, duration_s), cached = run.replayed, True
        elif run.usage is not None:
            usage, cached = run.usage, run.is_cached
            duration_s = 0.0 if cached else duration_s
        else:
            # Abandoned half-way, the server has worked; refused, it has not.
            usage = Usage(requests=1 if run.first_token_s is not None else 0, cost_usd=None)
        first_s = run.first_token_s
        return replace(
            call,
            model=model,
            start_s=start_s,
            duration_s=duration_s,
            usage=self.priced(model, usage, duration_s),
            cached=cached,
            first_token_s=None if first_s is None else first_s - run.start_s,
        )

    def priced(self, model: ModelRef, usage: Usage, duration_s: float) -> Usage:
        """Returns `usage` with its cost, None if its price, or what it consumed, is unknown."""
        if not usage.requests:
            return replace(usage, cost_usd=0.0)
        if usage.cost_usd is not None:
            return usage
        reported = usage.input_tokens or usage.output_tokens
        cost = self._price(model, usage, duration_s) if self._price and reported else None
        return replace(usage, cost_usd=cost)


def _only_wraps(parent: Run, name: str, tags: Sequence[str] | None) -> bool:
    """Returns whether `parent` is nothing but retries or fallbacks around a run called `name`.

    A stream has no run for retries, and other parents for fallbacks, so neither may be part of
    a step's id. Retries are called what they wrap.
    """
    return parent.kind is None and not position(tags) and parent.name in (name, _FALLBACKS)


def _unwrapped(wrapper: Run, name: str) -> tuple[str, ...]:
    """Returns the path that the run inside `wrapper` has where there is no wrapper."""
    if wrapper.parent is None:
        return ()
    return child_path(wrapper.parent.path, name, wrapper.tags, _site(wrapper))


def _site(run: Run) -> str:
    """Returns the place in the user's code that made `run`, as its path tells."""
    _, at, place = run.path[-1].partition("@") if run.path else ("", "", "")
    return at + place


def _code(root: Run) -> Iterator[Run]:
    """Yields the outermost runs of the user's own code that make no other call."""
    for run in root.children:
        if run.kind is not None or _works(run) or _is_plumbing(run):
            yield from _code(run)
        else:
            yield run


def _works(run: Run) -> bool:
    return run.kind is not None or any(_works(child) for child in run.children)


def _is_plumbing(run: Run) -> bool:
    is_structure = run.name.startswith("Runnable") and not run.name.startswith("RunnableLambda")
    return is_structure or run.run_type in _PLUMBING or _HIDDEN in run.tags or not run.path


def _model_of(run: Run) -> ModelRef:
    if run.request is not None:
        return model_reference(run.request.model)
    return reference_from(run.settings)


def _place(run: Run) -> str:
    """Returns the step id of a retriever, or of the user's own code."""
    is_bare = run.kind is None and run.name.startswith("Runnable")
    return "/".join(run.path) + (".code" if is_bare else "") if run.path else run.name


def _enclosing(run: Run, shown: Mapping[UUID, Run]) -> str | None:
    parent = run.parent
    while parent is not None and parent.id not in shown:
        parent = parent.parent
    return str(parent.id) if parent is not None else None


def _saved_s(run: Run) -> float:
    """Returns how much longer `run` takes if no request inside is answered from a memo."""
    saved = 0.0
    for child in run.children:
        if child.replayed is not None and child.end_s is not None:
            saved += child.replayed[1] - (child.end_s - child.start_s)
        saved += _saved_s(child)
    return max(saved, 0.0)


def _inputs(run: Run) -> dict[str, Any]:
    if run.kind == "lm":
        messages: Sequence[BaseMessage] = run.request.messages if run.request else run.given
        return input_fields(messages)
    if isinstance(run.given, Mapping):
        return {str(name): json_value(value) for name, value in run.given.items()}
    return {"input": json_value(run.given)}


def _outputs(run: Run) -> dict[str, Any]:
    if run.error is not None or run.output is None:
        return {}
    if run.kind == "lm":
        return answer_fields(run.output, always_tools=bool(run.parameters.get("tools")))
    content = getattr(run.output, "content", run.output)
    return {"result": json_value(content)}
