"""AdaSeek for LangChain and LangGraph: observe, tune and apply through one callback hook."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any  # Any: module attributes have no narrower type

if TYPE_CHECKING:
    from adaseek_langchain._apply import apply
    from adaseek_langchain._enable import disable, enable
    from adaseek_langchain._translate import translate
    from adaseek_langchain.hook import AdaSeekHook
    from adaseek_langchain.middleware import AdaSeekMiddleware
    from adaseek_langchain.tuning import AdaSeek, compile  # noqa: A004  (the public name)

__all__ = [
    "AdaSeek",
    "AdaSeekHook",
    "AdaSeekMiddleware",
    "apply",
    "compile",
    "disable",
    "enable",
    "translate",
]

_HOMES = {
    "AdaSeek": "adaseek_langchain.tuning",
    "AdaSeekHook": "adaseek_langchain.hook",
    "AdaSeekMiddleware": "adaseek_langchain.middleware",
    "apply": "adaseek_langchain._apply",
    "compile": "adaseek_langchain.tuning",
    "disable": "adaseek_langchain._enable",
    "enable": "adaseek_langchain._enable",
    "translate": "adaseek_langchain._translate",
}


def __getattr__(name: str) -> Any:
    # Lazy: plugin discovery imports this package for its hooks, which must not pull in LangChain,
    # and LangChain without LangGraph must still be observable.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
