"""The run tree of each invocation, from callback events; turned into a `Trace` when it is read.

An event stores references and two clock readings, nothing more: a hook sits in programs that
serve users. What costs time (JSON values, prices, the critical path) is done for who asks.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any  # Any: inputs and outputs belong to the user's program
from uuid import UUID

from adaseek.workflow import ModelRef, StepKind, Trace, Usage
from langchain_core.language_models import BaseChatModel
from langchain_core.outputs import LLMResult

from adaseek_langchain._compat import CHILD_CONFIG
from adaseek_langchain._keys import (
    StepId,
    call_site,
    child_path,
    position,
    step_id,
    user_frame,
)
from adaseek_langchain._reports import (
    message_of,
)
from adaseek_langchain._seam import Request

__all__ = ["Recorder", "Run", "Tree"]

Price = Callable[[ModelRef, Usage, float], float | None]

_MAX_OPEN = 1000
"""Invocations whose end was never told (abandoned tasks) are forgotten beyond this number."""

_FALLBACKS = "RunnableWithFallbacks"


@dataclass(slots=True)
class Run:
    """One run of LangChain: a model, tool or retriever call, or (kind None) what encloses some.

    `root` is the id of the run that the invocation began with. `frame` is the identity of the
    running frame of the user's code in which it began, 0 if it began in a task or thread of its
    own. `report` is what the provider told about usage: with the answer, and beside it.

    No run refers to its tree or to the runs inside it, so that an invocation that is no longer
    kept is gone at once, without work for the garbage collector.
    """

    id: UUID
    root: UUID
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
    parameters: Mapping[str, Any] | None = None
    settings: Mapping[str, Any] | None = None
    report: tuple[Any, Any] | None = None
    replayed: tuple[Usage, float] | None = None
    waited_s: float = 0.0


@dataclass(slots=True)
class Tree:
    """One invocation: the runs below (and including) `root`, in the order in which they began.

    `thread` is what LangGraph calls the conversation that it belongs to.
    """

    start_s: float
    runs: list[Run] = field(default_factory=list)
    trace: Trace | None = None
    thread: str = ""

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
        self._open: OrderedDict[UUID, Tree] = OrderedDict()
        self._expected: OrderedDict[UUID, Request] = OrderedDict()
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
        request: Request | None = None,
    ) -> Run | None:
        """Returns the run that begins now; None if it is known (a handler that is given twice)."""
        if run_id in self._runs:
            return None
        now = time.perf_counter()
        parent = self._runs.get(parent_id) if parent_id is not None else None
        if parent is None and self._adopts:
            parent = self._open_root()
        tree = self._open.get(parent.root) if parent is not None else None
        if tree is None:
            parent = None
        place = 0
        path: tuple[str, ...] = ()
        if request is not None:
            place = request.frame
        else:
            frame = user_frame()
            place = id(frame) if frame is not None else 0
            if parent is not None and kind != "lm":
                path = _path(parent, kind, name, tags, frame)
        root = parent.root if parent is not None else run_id
        run = Run(run_id, root, parent, kind, name, path, place, now)
        run.given, run.tags, run.request = _snapshot(given), tags or (), request
        self._runs[run_id] = run
        if tree is None:
            self._opened(Tree(now, [run]))
        else:
            tree.runs.append(run)
        return run

    def end(
        self, run_id: UUID, output: Any = None, error: BaseException | None = None
    ) -> Tree | None:
        """Notes that a run ends now; returns its invocation if that ends with it."""
        run = self._runs.pop(run_id, None)
        if run is None:
            return None
        run.end_s = time.perf_counter()
        run.error = error
        if isinstance(output, LLMResult):
            # Not the result: LangChain's cache changes it when it answers with it again.
            run.output = message = message_of(output)
            run.report = (getattr(message, "usage_metadata", None), output.llm_output)
        else:
            run.output = output
        return self._closed(run.root) if run.parent is None else None

    def expects(self, run_id: UUID, request: Request) -> None:
        """Notes that the run `run_id`, which begins later, is a call of `request`."""
        with self._lock:
            self._expected[run_id] = request
            if len(self._expected) > _MAX_OPEN:
                self._expected.popitem(last=False)

    def expected(self, run_id: UUID) -> Request | None:
        """Returns whose call the run `run_id` was expected to be, once."""
        return self._expected.pop(run_id, None) if self._expected else None

    def first_token(self, run_id: UUID) -> None:
        """Notes when the first token of a stream came."""
        run = self._runs.get(run_id)
        if run is not None and run.first_token_s is None:
            run.first_token_s = time.perf_counter()

    def find(self, run_id: UUID | None) -> Run | None:
        """Returns the running run `run_id`."""
        return self._runs.get(run_id) if run_id is not None else None

    def tree(self, run_id: UUID | None) -> Tree | None:
        """Returns the invocation that the running run `run_id` is part of."""
        run = self.find(run_id)
        return self._open.get(run.root) if run is not None else None

    def step_of(
        self,
        parent_id: UUID | None,
        tags: Sequence[str] | None,
        frame: FrameType | None,
        variant: Callable[[], str],
        called: BaseChatModel | str,
    ) -> StepId:
        """Returns the id of the chat-model call that is made now.

        Args:
            frame: the user's innermost frame.
            variant: tells the model from others at its place; asked only where there may be some.
            called: the model, or what its run is called.
        """
        parent = self.find(parent_id)
        if parent is None:
            site = call_site(frame) if frame is not None else ""
            return step_id((), tags, site, variant() if self._in_fallbacks(None) else "")
        site = call_site(frame) if frame is not None and id(frame) != parent.frame else ""
        told = variant() if self._in_fallbacks(parent) else ""
        path = parent.path
        if not site and parent.kind is None:
            name = called if isinstance(called, str) else called.get_name()
            if _only_wraps(parent, name, tags):
                path = parent.parent.path if parent.parent is not None else ()
                site, tags = _site(parent), parent.tags
        return step_id(path, tags, site, told)

    def _in_fallbacks(self, parent: Run | None) -> bool:
        """Returns whether the call is one of several models that stand in for each other.

        LangChain runs them as children of what encloses the fallbacks; only the context of child
        runs tells them.
        """
        if parent is not None and parent.name == _FALLBACKS:
            return True
        config = CHILD_CONFIG.get() if CHILD_CONFIG is not None else None
        if config is None:
            return False
        inner = self.find(getattr(config.get("callbacks"), "parent_run_id", None))
        return inner is not None and inner.parent is parent and inner.name == _FALLBACKS

    def _open_root(self) -> Run | None:
        with self._lock:
            tree = next(iter(self._open.values()), None)
        return tree.root if tree is not None else None

    def _opened(self, tree: Tree) -> None:
        with self._lock:
            self._open[tree.root.id] = tree
            lost = self._open.popitem(last=False)[1] if len(self._open) > _MAX_OPEN else None
        if lost is not None:
            self._forget(lost)

    def _closed(self, root: UUID) -> Tree | None:
        with self._lock:
            tree = self._open.pop(root, None)
            if tree is not None:
                self.finished.append(tree)
        if tree is not None:
            self._forget(tree)
        return tree

    def _forget(self, tree: Tree) -> None:
        for run in tree.runs:
            self._runs.pop(run.id, None)

    # -- results ---------------------------------------------------------------------------

    def trees(self) -> list[Tree]:
        """Returns the finished invocations, newest last."""
        with self._lock:
            return list(self.finished)

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


def _path(
    parent: Run,
    kind: StepKind | None,
    name: str,
    tags: Sequence[str] | None,
    frame: FrameType | None,
) -> tuple[str, ...]:
    """Returns the path of a run that `parent` makes from `frame`."""
    site = call_site(frame) if frame is not None and id(frame) != parent.frame else ""
    if not site and _only_wraps(parent, name, tags):
        return _unwrapped(parent, name)
    return child_path(parent.path, f"tool:{name}" if kind == "tool" else name, tags, site)


def _snapshot(given: Any) -> Any:
    """Returns `given`, its lists and mappings copied one level deep: the program may go on to
    change them."""
    if type(given) is dict:
        return {k: v[:] if type(v) is list else v for k, v in given.items()}
    return given[:] if type(given) is list else given
