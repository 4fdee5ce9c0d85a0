"""The hook for a whole process: every call of LangChain gets it, without touching a config."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, cast  # Any: arguments are those of `AdaSeekHook`

from adaseek.recipe import Recipe
from langchain_core.tracers import context as tracer_context
from langchain_core.tracers.context import register_configure_hook

from adaseek_langchain._interpose import EVERYWHERE, install, release
from adaseek_langchain.hook import AdaSeekHook

__all__ = ["disable", "enable"]


def enable(recipe: Recipe | None = None, **settings: Any) -> AdaSeekHook:
    """Returns a hook that from now on sees every LangChain call of this process, in any thread.

    A hook that was enabled before is replaced. Experimental.

    Args:
        recipe: what to change at which step; None: nothing is changed.
        settings: further arguments of `AdaSeekHook`.
    """
    hook = AdaSeekHook(recipe, **settings)
    with EVERYWHERE.lock:
        before, EVERYWHERE.carrier = EVERYWHERE.carrier, hook
        if not any(entry[0] is EVERYWHERE for entry in _registered()):
            register_configure_hook(cast("ContextVar[Any]", EVERYWHERE), inheritable=True)
    install(hook)
    if before is not None:
        release(before)
    return hook


def disable() -> None:
    """Takes back what `enable` did; without it, nothing changes."""
    with EVERYWHERE.lock:
        hook, EVERYWHERE.carrier = EVERYWHERE.carrier, None
        for entry in [e for e in _registered() if e[0] is EVERYWHERE]:
            _registered().remove(entry)
    if hook is not None:
        release(hook)


def _registered() -> list[Any]:
    # LangChain has no way to take a hook back. Where its list has moved, our entry stays in it
    # and shows nothing.
    found: list[Any] = getattr(tracer_context, "_configure_hooks", [])
    return found
