"""Every name that lies deeper in LangChain than its documented modules, and how to do without it.

Supported: langchain-core from 1.4 on; the tests ran on 1.4.0 (langchain 1.3.7) and 1.8.3 (1.5.2). A
name that is gone is None here, and what needs it degrades: without the context of child runs, only
handlers in `config` are found; without LangGraph's error classes, an interrupt reads as an error.
Each name has a canary test.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import types
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, cast  # Any: deep names have no stable types

from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool

__all__ = ["CHILD_CONFIG", "GRAPH_PAUSES", "effective_config", "is_pause", "stand_ins"]

StandIn = Callable[[Any, str, str], Any]
"""Tool or retriever, its name, `tool` or `retriever` -> its result; None: it runs itself."""

try:
    from langchain_core.runnables.config import var_child_runnable_config

    CHILD_CONFIG: ContextVar[Any] | None = var_child_runnable_config
except ImportError:  # pragma: no cover  (no known version)
    CHILD_CONFIG = None


def effective_config(config: RunnableConfig | None) -> RunnableConfig:
    """Returns callbacks and tags of a call under `config`, those of its context where it has none.

    What `ensure_config` finds too, without the rest: a hook asks it for every model call.
    """
    found = RunnableConfig()
    outer = CHILD_CONFIG.get() if CHILD_CONFIG is not None else None
    for given in (outer or {}, config or {}):
        callbacks, tags = given.get("callbacks"), given.get("tags")
        if callbacks is not None:
            found["callbacks"] = callbacks
        if tags is not None:
            found["tags"] = tags
    return found


try:
    from langgraph.errors import GraphBubbleUp

    GRAPH_PAUSES: tuple[type[BaseException], ...] = (GraphBubbleUp,)
    """How LangGraph ends a run that waits for a person, or that a parent graph takes over."""
except ImportError:
    GRAPH_PAUSES = ()


def is_pause(error: BaseException | None) -> bool:
    """Returns whether `error` only says that a run waits, or that control went elsewhere."""
    return isinstance(error, GRAPH_PAUSES)


_STAND_INS: list[StandIn] = []
_LOCK = threading.Lock()


@contextlib.contextmanager
def stand_ins(result: StandIn) -> Iterator[None]:
    """Lets `result` answer for tools and retrievers, whoever calls them, while it is entered.

    The entry points are wrapped for that time only, and call a copy of the tool whose own code is
    replaced, so that callbacks and the checking of arguments stay as they are.
    """
    with _LOCK:
        _STAND_INS.append(result)
        if len(_STAND_INS) == 1:
            _wrap()
    try:
        yield
    finally:
        with _LOCK:
            _STAND_INS.remove(result)
            if not _STAND_INS:
                _unwrap()


_ENTRIES: tuple[tuple[type, str, str], ...] = (
    (BaseTool, "run", "tool"),
    (BaseTool, "arun", "tool"),
    (BaseRetriever, "invoke", "retriever"),
    (BaseRetriever, "ainvoke", "retriever"),
)


def _wrap() -> None:
    for cls, name, kind in _ENTRIES:
        setattr(cls, name, _standing_in(getattr(cls, name), kind))


def _unwrap() -> None:
    for cls, name, _ in _ENTRIES:
        setattr(cls, name, getattr(cls, name).__wrapped__)


def _standing_in(original: Any, kind: str) -> Any:
    @functools.wraps(original)
    def entry(self: Any, *args: Any, **kwargs: Any) -> Any:
        # Not decided here: a stand-in is asked inside the run, whose id it may need.
        is_wanted = bool(_STAND_INS) and "adaseek_twin" not in self.__dict__
        return original(_twin(self, kind) if is_wanted else self, *args, **kwargs)

    return entry


def _twin(part: Any, kind: str) -> Any:
    twin = part.model_copy()
    twin.__dict__["adaseek_twin"] = part
    object.__setattr__(twin, "__class__", _twin_class(cast("Any", type(part)), kind))
    return twin


@functools.cache
def _twin_class(cls: Any, kind: str) -> Any:
    names = ("_run", "_arun") if kind == "tool" else _RETRIEVE
    made = {name: _answering(getattr(cls, name), kind) for name in names}
    kept = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return types.new_class(cls.__name__, (cls,), exec_body=lambda ns: ns.update({**kept, **made}))


_RETRIEVE = ("_get_relevant_documents", "_aget_relevant_documents")


def _answering(original: Any, kind: str) -> Any:
    def known(part: Any) -> Any:
        name = part.get_name() if kind == "retriever" else part.name
        answers = (answer(part, name, kind) for answer in tuple(_STAND_INS))
        return next((found for found in answers if found is not None), None)

    if original.__name__.startswith("_a"):

        @functools.wraps(original)
        async def aanswer(self: Any, *args: Any, **kwargs: Any) -> Any:
            found = known(self)
            return await original(self, *args, **kwargs) if found is None else found

        return aanswer

    @functools.wraps(original)
    def answer(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = known(self)
        return original(self, *args, **kwargs) if found is None else found

    return answer
