"""Every name that lies deeper in LangChain than its documented modules, and how to do without it.

Supported: langchain-core 1.2 to 1.x. A name that is gone is None here, and what needs it degrades:
without the context of child runs, only handlers in `config` are found; without LangGraph's error
classes, an interrupt reads as an error. Each name has a canary test.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any  # Any: deep names have no stable types

__all__ = ["CHILD_CONFIG", "GRAPH_PAUSES", "is_pause"]

try:
    from langchain_core.runnables.config import var_child_runnable_config

    CHILD_CONFIG: ContextVar[Any] | None = var_child_runnable_config
except ImportError:  # pragma: no cover  (no known version)
    CHILD_CONFIG = None

try:
    from langgraph.errors import GraphBubbleUp

    GRAPH_PAUSES: tuple[type[BaseException], ...] = (GraphBubbleUp,)
    """How LangGraph ends a run that waits for a person, or that a parent graph takes over."""
except ImportError:
    GRAPH_PAUSES = ()


def is_pause(error: BaseException | None) -> bool:
    """Returns whether `error` only says that a run waits, or that control went elsewhere."""
    return isinstance(error, GRAPH_PAUSES)
