"""The hook for a whole process: every call of LangChain gets it, without touching a config."""

from __future__ import annotations

import threading
from contextvars import ContextVar
from typing import Any, cast  # Any: arguments are those of `AdaSeekHook`

from adaseek.recipe import Recipe
from langchain_core.tracers import context as tracer_context
from langchain_core.tracers.context import register_configure_hook

from adaseek_langchain._interpose import install, release
from adaseek_langchain.hook import AdaSeekHook

__all__ = ["disable", "enable"]


class _Switch:
    """Stands in LangChain's list of hooks where a context variable is expected.

    A context variable shows new threads and tasks nothing but its default, which is fixed when it
    is made; this one shows every one of them the hook that is on now, or None.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.hook: AdaSeekHook | None = None

    def get(self) -> AdaSeekHook | None:
        return self.hook


_SWITCH = _Switch()
"""Global as LangChain's own list of hooks is: there is one per process."""


def enable(recipe: Recipe | None = None, **settings: Any) -> AdaSeekHook:
    """Returns a hook that from now on sees every LangChain call of this process, in any thread.

    A hook that was enabled before is replaced. Experimental.

    Args:
        recipe: what to change at which step; None: nothing is changed.
        settings: further arguments of `AdaSeekHook`.
    """
    hook = AdaSeekHook(recipe, **settings)
    with _SWITCH.lock:
        before, _SWITCH.hook = _SWITCH.hook, hook
        if not _is_registered():
            register_configure_hook(cast("ContextVar[Any]", _SWITCH), inheritable=True)
    install(hook)
    if before is not None:
        release(before)
    return hook


def disable() -> None:
    """Takes back what `enable` did; without it, nothing changes."""
    with _SWITCH.lock:
        hook, _SWITCH.hook = _SWITCH.hook, None
        for entry in [e for e in _registered() if e[0] is _SWITCH]:
            _registered().remove(entry)
    if hook is not None:
        release(hook)


def _registered() -> list[Any]:
    # LangChain has no way to take a hook back. Where its list has moved, our entry stays in it
    # and shows nothing.
    found: list[Any] = getattr(tracer_context, "_configure_hooks", [])
    return found


def _is_registered() -> bool:
    return any(entry[0] is _SWITCH for entry in _registered())
