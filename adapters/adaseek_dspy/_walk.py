"""Finds what a DSPy program consists of: its predictors, tools and language models, by path."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any  # Any: a program's attributes are the user's own objects

import dspy

from adaseek_dspy._compat import BaseLM, BaseModule

__all__ = ["Found", "walk"]

_OWN_STATE = frozenset(
    {"callbacks", "history", "signature", "demos", "traces", "train", "config", "fields"}
)
"""Attributes of DSPy's own bookkeeping; nothing to run is kept in them."""


@dataclass
class Found:
    """What `walk` saw, in program order, each object under the first path that reaches it.

    Attributes:
        predictors: path -> predictor; the path of a program that is itself one is `self`.
        tools: path -> tool.
        retrievers: path -> retriever.
        modules: path -> module with steps inside (the program itself is the empty path).
        frozen: paths of the modules that a `_compiled` flag freezes.
        lms: every language model that an attribute holds.
        hidden: predictors that only the functions behind the tools hold.
    """

    predictors: dict[str, Any] = field(default_factory=dict)
    tools: dict[str, Any] = field(default_factory=dict)
    retrievers: dict[str, Any] = field(default_factory=dict)
    modules: dict[str, Any] = field(default_factory=dict)
    frozen: list[str] = field(default_factory=list)
    lms: list[Any] = field(default_factory=list)
    hidden: list[Any] = field(default_factory=list)

    def containers(self, path: str) -> Iterator[tuple[str, Any]]:
        """Yields path and module of everything around `path`, innermost first."""
        inside = [name for name in self.modules if name != path and is_inside(path, name)]
        for name in sorted(inside, key=len, reverse=True):
            yield name, self.modules[name]


def is_inside(path: str, container: str) -> bool:
    """Returns whether `path` lies below `container`; everything lies below the empty path."""
    if not container:
        return True
    return path.startswith(container) and path[len(container) : len(container) + 1] in (".", "[")


def walk(program: Any) -> Found:
    """Returns what is inside `program`, through modules (frozen ones too), lists and dicts.

    DSPy's own `named_predictors` leaves out frozen modules and containers inside containers.
    """
    found = Found()
    seen: set[int] = set()
    _visit(program, "", found, seen)
    for tool in list(found.tools.values()):
        behind = Found()
        for value in _held_by(tool.func):
            _visit(value, "", behind, seen)
        found.hidden.extend(behind.predictors.values())
    return found


def _held_by(function: Any) -> Iterator[Any]:
    """Yields the programs that a function can reach: its object, closure and module's names."""
    while isinstance(function, functools.partial):
        yield from (*function.args, *function.keywords.values())
        function = function.func
    function = inspect.unwrap(function)
    yield getattr(function, "__self__", None)
    function = getattr(function, "__func__", function)
    if inspect.isfunction(function):
        yield from inspect.getclosurevars(function).nonlocals.values()
        names = function.__code__.co_names
        held = [function.__globals__.get(name) for name in names]
        yield from (value for value in held if isinstance(value, BaseModule))


def _visit(value: Any, path: str, found: Found, seen: set[int]) -> None:
    if isinstance(value, str | bytes | int | float | type) or value is None or id(value) in seen:
        return
    if isinstance(value, BaseLM):
        seen.add(id(value))
        found.lms.append(value)
    elif isinstance(value, dspy.Tool):
        seen.add(id(value))
        found.tools[path] = value
    elif isinstance(value, dspy.Retrieve):
        seen.add(id(value))
        found.retrievers[path] = value
    elif isinstance(value, BaseModule):
        seen.add(id(value))
        _visit_module(value, path, found, seen)
    elif isinstance(value, list | tuple | dict):
        seen.add(id(value))
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in list(items):
            _visit(item, f"{path}[{_key(key)}]", found, seen)


def _visit_module(module: Any, path: str, found: Found, seen: set[int]) -> None:
    if isinstance(module, dspy.Predict):
        found.predictors[path or "self"] = module
    else:
        found.modules[path] = module
    if path and getattr(module, "_compiled", False):
        found.frozen.append(path)
    for name, value in list(vars(module).items()):
        if name not in _OWN_STATE:
            _visit(value, f"{path}.{name}" if path else name, found, seen)


def _key(key: object) -> str:
    # `#` separates an ensemble's members from their step, so it may not occur in a path.
    return repr(key).replace("#", "\\x23")
