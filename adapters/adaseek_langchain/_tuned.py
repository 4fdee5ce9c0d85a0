"""A chat model that does by itself what the interposition does to every chat model.

A copy of the user's model whose class is a subclass made for it: it is an instance of everything
that the original is, binds tools and formats output in the same way, and shares its connections.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast  # Any: entry points take and return what the user's model does

from langchain_core.language_models import BaseChatModel

from adaseek_langchain._entry_points import ENTRY_POINTS, Find, wrapped

__all__ = ["is_tuned", "tuned"]

_FIND = "_adaseek_find"


def tuned(model: BaseChatModel, find: Find) -> BaseChatModel:
    """Returns a copy of `model` each of whose calls asks `find` what becomes of it.

    `find` is given the original, so that what it plans is sent by an ordinary model.
    """
    copied = model.model_copy()

    def asked(_: BaseChatModel, given: Any, config: Any, kwargs: Any) -> Any:
        return find(model, given, config, kwargs)

    # Past pydantic, which lets no class and no undeclared attribute be set.
    object.__setattr__(copied, "__class__", _tuned_class(type(model)))
    object.__setattr__(copied, _FIND, asked)
    return copied


def is_tuned(model: Any) -> bool:
    """Returns whether `model` was made by `tuned`."""
    return _FIND in getattr(model, "__dict__", {})


def _find(model: BaseChatModel, given: Any, config: Any, kwargs: Any) -> Any:
    # A copy made by renaming (`_menu`) drops to the class without its own `find`.
    find = model.__dict__.get(_FIND)
    return None if find is None else find(model, given, config, kwargs)


@cache
def _tuned_class(kind: type[BaseChatModel]) -> type[BaseChatModel]:
    """Returns the subclass of `kind` with our entry points; one per class, under its own name."""
    methods = {
        name: wrapped(name, getattr(kind, name), _find)
        for name in ENTRY_POINTS
        if hasattr(kind, name)
    }
    # The names of the original: traces and serialised forms show the class by them.
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    metaclass: Any = type(kind)
    made = metaclass(kind.__name__, (kind,), {**names, "__doc__": kind.__doc__, **methods})
    return cast("type[BaseChatModel]", made)
