"""Calls a program whether it is written as ordinary or as async code."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any  # Any: programs return what they like

__all__ = ["called"]


def called(program: Any, inputs: Mapping[str, Any]) -> Any:
    """Returns what `program` returns; its `aforward` is used only if it has no `forward`."""
    if getattr(type(program), "forward", None) is not None:
        return program(**inputs)
    return _finished(program.acall(**inputs))


def _finished(coroutine: Coroutine[Any, Any, Any]) -> Any:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    # A notebook runs its cells inside an event loop, and one thread cannot run two of them.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(contextvars.copy_context().run, asyncio.run, coroutine).result()
