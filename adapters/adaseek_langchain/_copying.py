"""Copies of LangChain objects in which every chat model is exchanged, wherever it is held.

What leads to a chat model is copied (sequences, bindings, graphs with their nodes, tools, closures
of functions, objects behind bound methods); everything else is shared with the original, which is
never changed.
"""

from __future__ import annotations

import copy
import functools
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any  # Any: every kind of object is walked

from langchain_core.callbacks import BaseCallbackHandler, BaseCallbackManager
from langchain_core.language_models import BaseChatModel

try:
    from langgraph.pregel import Pregel
except ImportError:  # LangChain without LangGraph has no graphs to copy
    Pregel = None  # type: ignore[assignment,misc]

__all__ = ["Copied", "copy_with_models"]

_MAX_OBJECTS = 100_000
_SKIPPED_ROOTS = frozenset({"openai", "httpx", "httpcore", "anyio", "pydantic", "numpy", "torch"})


@dataclass(frozen=True)
class Copied:
    """A copy, and what it could not reach.

    Attributes:
        num_models: how many distinct chat models were exchanged.
        out_of_reach: module-level names that functions use and that lead to a chat model, as
            `name (used by function)`; the copy calls the originals there.
    """

    obj: Any
    num_models: int
    out_of_reach: tuple[str, ...]


def copy_with_models(obj: Any, exchange: Callable[[BaseChatModel], BaseChatModel]) -> Copied:
    """Returns a copy of `obj` with `exchange(model)` in place of each chat model.

    A model held at several places stays one object.
    """
    graph = _Graph()
    graph.add(obj)
    leading = graph.leading_to_models()
    copier = _Copier(leading, exchange)
    made = copier.copy_of(obj)
    return Copied(made, copier.num_models, tuple(sorted(set(_out_of_reach(graph)))))


class _Graph:
    """Which object holds which, from one root on."""

    def __init__(self) -> None:
        self.objects: dict[int, Any] = {}
        self.holders: dict[int, set[int]] = {}

    def add(self, root: Any) -> None:
        """Notes everything that can be reached from `root`."""
        waiting = [root]
        self.objects[id(root)] = root
        while waiting and len(self.objects) < _MAX_OBJECTS:
            holder = waiting.pop()
            for part in _parts(holder):
                self.holders.setdefault(id(part), set()).add(id(holder))
                if id(part) not in self.objects:
                    self.objects[id(part)] = part
                    waiting.append(part)

    def leading_to_models(self) -> set[int]:
        """Returns the ids of the chat models and of everything that holds one."""
        waiting = [key for key, obj in self.objects.items() if isinstance(obj, BaseChatModel)]
        found = set(waiting)
        while waiting:
            for holder in self.holders.get(waiting.pop(), ()):
                if holder not in found:
                    found.add(holder)
                    waiting.append(holder)
        return found


def _parts(obj: Any) -> list[Any]:
    """Returns the objects that `obj` holds and that a copy of it could hold instead."""
    if isinstance(obj, BaseChatModel):
        return []
    if isinstance(obj, Mapping):
        return list(obj.values())
    if isinstance(obj, list | tuple | set | frozenset):
        return list(obj)
    if isinstance(obj, types.FunctionType):
        defaults = [*(obj.__defaults__ or ()), *(obj.__kwdefaults__ or {}).values()]
        return [*_contents(obj), *defaults, *vars(obj).values()]
    if isinstance(obj, types.MethodType):
        return [obj.__self__, obj.__func__]
    if isinstance(obj, functools.partial):
        return [obj.func, obj.args, obj.keywords]
    if Pregel is not None and isinstance(obj, Pregel):
        return [obj.nodes]
    return list(vars(obj).values()) if _is_walked(obj) else []


def _contents(function: types.FunctionType) -> Iterable[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # assigned later, in a function that is still being defined
            continue


def _is_walked(obj: Any) -> bool:
    if isinstance(obj, type | types.ModuleType | BaseCallbackHandler | BaseCallbackManager):
        return False
    root = type(obj).__module__.partition(".")[0]
    if root in sys.stdlib_module_names or root in _SKIPPED_ROOTS:
        return False
    return hasattr(obj, "__dict__")


class _Copier:
    """Makes the copies; each object is copied once, cycles included."""

    def __init__(
        self, leading: set[int], exchange: Callable[[BaseChatModel], BaseChatModel]
    ) -> None:
        self.num_models = 0
        self._leading = leading
        self._exchange = exchange
        self._made: dict[int, Any] = {}
        self._cells: dict[int, types.CellType] = {}

    def copy_of(self, obj: Any) -> Any:
        """Returns the copy of `obj`, or `obj` itself if it leads to no chat model."""
        if id(obj) not in self._leading:
            return obj
        if id(obj) not in self._made:
            self._made[id(obj)] = made = self._copy(obj)
            return made
        return self._made[id(obj)]

    def _copy(self, obj: Any) -> Any:
        if isinstance(obj, BaseChatModel):
            self.num_models += 1
            return self._exchange(obj)
        if isinstance(obj, tuple):
            items = [self.copy_of(item) for item in obj]
            return type(obj)(*items) if hasattr(obj, "_fields") else type(obj)(items)
        if isinstance(obj, set | frozenset):
            return type(obj)(self.copy_of(item) for item in obj)
        if isinstance(obj, types.MethodType):
            return types.MethodType(self.copy_of(obj.__func__), self.copy_of(obj.__self__))
        if isinstance(obj, functools.partial):
            args, keywords = self.copy_of(obj.args), self.copy_of(obj.keywords)
            return functools.partial(self.copy_of(obj.func), *args, **keywords)
        if isinstance(obj, types.FunctionType):
            return self._function(obj)
        if Pregel is not None and isinstance(obj, Pregel):
            # Channels of its own: a graph that is made puts one into the dict that it is given.
            return obj.copy({"nodes": self.copy_of(obj.nodes), "channels": dict(obj.channels)})
        return self._object(obj)

    def _object(self, obj: Any) -> Any:
        clone = self._made[id(obj)] = copy.copy(obj)
        if isinstance(obj, list):
            clone[:] = [self.copy_of(item) for item in obj]
        elif isinstance(obj, Mapping):
            for key, value in obj.items():
                clone[key] = self.copy_of(value)
        else:
            for name, value in list(vars(obj).items()):
                if id(value) in self._leading:
                    clone.__dict__[name] = self.copy_of(value)
            _forget_derived(clone)
        return clone

    def _function(self, function: types.FunctionType) -> types.FunctionType:
        closure = tuple(self._cell(cell) for cell in function.__closure__ or ())
        made = types.FunctionType(
            function.__code__, function.__globals__, function.__name__, None, closure or None
        )
        self._made[id(function)] = made  # first: a recursive function holds itself
        for new, old in zip(closure, function.__closure__ or (), strict=True):
            if new is not old:
                new.cell_contents = self.copy_of(old.cell_contents)
        made.__defaults__ = self.copy_of(function.__defaults__)
        made.__kwdefaults__ = self.copy_of(function.__kwdefaults__)
        made.__qualname__, made.__module__ = function.__qualname__, function.__module__
        made.__doc__, made.__annotations__ = function.__doc__, dict(function.__annotations__)
        made.__dict__.update({n: self.copy_of(value) for n, value in vars(function).items()})
        return made

    def _cell(self, cell: types.CellType) -> types.CellType:
        """Returns the cell to use in place of `cell`: functions that share one go on sharing it.

        A cell that leads to no model stays the same, so that `nonlocal` counters are not split.
        """
        try:
            is_kept = id(cell.cell_contents) not in self._leading
        except ValueError:  # as in `_contents`
            is_kept = True
        if is_kept:
            return cell
        return self._cells.setdefault(id(cell), types.CellType())


def _forget_derived(clone: Any) -> None:
    """Drops what an object has worked out from its old parts and would not work out again."""
    for kind in type(clone).__mro__:
        for name, attribute in vars(kind).items():
            if isinstance(attribute, functools.cached_property):
                clone.__dict__.pop(name, None)


def _out_of_reach(graph: _Graph) -> Iterable[str]:
    """Yields the module-level names that lead from the user's functions to a chat model."""
    for obj in list(graph.objects.values()):
        if not isinstance(obj, types.FunctionType) or _is_host(obj.__module__ or ""):
            continue
        for name in _global_names(obj.__code__):
            value = obj.__globals__.get(name)
            if value is None or isinstance(value, type | types.ModuleType):
                continue
            inner = _Graph()
            inner.add(value)
            if inner.leading_to_models():
                yield f"`{name}` (used by `{obj.__qualname__}`)"


def _global_names(code: types.CodeType) -> set[str]:
    nested = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return set(code.co_names).union(*(_global_names(inner) for inner in nested))


def _is_host(module: str) -> bool:
    root = module.partition(".")[0]
    return root in sys.stdlib_module_names or root.startswith(("langchain", "langgraph"))
