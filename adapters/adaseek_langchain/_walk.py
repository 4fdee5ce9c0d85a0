"""Reads a program without running it: its chat models, their places, tools and retrievers.

Where LangChain's own structure decides the place of a call, its step id is known beforehand; a
model that the user's own code calls is found as well, but its id shows only when it runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any  # Any: programs are arbitrary graphs of objects

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.output_parsers import BaseOutputParser
from langchain_core.prompts.base import BasePromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import (
    Runnable,
    RunnableBranch,
    RunnableLambda,
    RunnableParallel,
    RunnableSequence,
    RunnableWithFallbacks,
)
from langchain_core.runnables.base import RunnableBindingBase, RunnableEachBase
from langchain_core.runnables.configurable import (
    RunnableConfigurableAlternatives,
    RunnableConfigurableFields,
)
from langchain_core.runnables.passthrough import RunnableAssign
from langchain_core.runnables.retry import RunnableRetry
from langchain_core.tools import BaseTool

from adaseek_langchain._keys import StepId, child_path, step_id
from adaseek_langchain._reports import model_reference

__all__ = ["FoundModel", "Walk", "walk"]

_MAX_DEPTH = 40
_AGENT_NODES = "langchain.agents"

Path = tuple[str, ...]


@dataclass(frozen=True)
class FoundModel:
    """A chat model in the program.

    Attributes:
        step: the id that its call will have; None if the user's own code makes the call.
        kwargs: what is bound to it.
        prompt, parser: the template in front of it, and what reads its answer, if known.
        where: its place, for people.
    """

    model: BaseChatModel
    step: StepId | None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    prompt: BasePromptTemplate[Any] | None = None
    parser: BaseOutputParser[Any] | None = None
    where: str = ""


@dataclass(frozen=True)
class _Around:
    """What stands around a model: bound arguments, the prompt before it, the parser behind it."""

    kwargs: Mapping[str, Any] = field(default_factory=dict)
    prompt: BasePromptTemplate[Any] | None = None
    parser: BaseOutputParser[Any] | None = None

    def bound(self, kwargs: Mapping[str, Any]) -> _Around:
        return replace(self, kwargs={**self.kwargs, **kwargs})


_NOTHING = _Around()


@dataclass
class Walk:
    """What was found.

    Attributes:
        asking_tools: names of tools that ask models themselves.
        async_only: some part of it has no sync form.
        starts_threads: the user's code seems to start threads of its own.
    """

    models: list[FoundModel] = field(default_factory=list)
    tools: dict[str, BaseTool] = field(default_factory=dict)
    asking_tools: set[str] = field(default_factory=set)
    retrievers: list[BaseRetriever] = field(default_factory=list)
    async_only: bool = False
    starts_threads: bool = False
    _seen: set[tuple[int, Path | None]] = field(default_factory=set)
    _kept: list[Any] = field(default_factory=list)  # ids stay those of living objects

    # Places whose ids are known ---------------------------------------------------------------

    def visit(
        self,
        node: Any,
        parent: Path | None,
        tags: Sequence[str] = (),
        *,
        around: _Around = _NOTHING,
        name: str = "",
        is_root: bool = False,
        where: str = "",
        depth: int = 0,
    ) -> None:
        """Looks at `node`, called by a run with path `parent` (None: not known) under `tags`."""
        if depth > _MAX_DEPTH or not self._is_new(node, parent):
            return
        rest: dict[str, Any] = {"where": where, "depth": depth + 1}
        if isinstance(node, BaseChatModel):
            step = None if parent is None else step_id(parent, tags)
            self._model(node, step, around, where)
            return
        if isinstance(node, RunnableRetry):
            inner = None if parent is None or not is_root else ()
            self.visit(node.bound, inner, (), **rest)
            return
        if isinstance(node, RunnableBindingBase):
            rest |= {"around": around.bound(node.kwargs), "is_root": is_root}
            named = str((node.config or {}).get("run_name") or name)
            self.visit(node.bound, parent, tags, name=named, **rest)
            return
        if isinstance(node, RunnableConfigurableFields | RunnableConfigurableAlternatives):
            rest |= {"around": around, "is_root": is_root, "name": name}
            self.visit(node.default, parent, tags, **rest)
            for option in getattr(node, "alternatives", {}).values():
                if isinstance(option, Runnable):
                    self.visit(option, parent, tags, **{**rest, "is_root": False})
            return
        path = self._path(node, parent, tags, name, is_root)
        self._inside(node, path, (parent, tags), around, rest)

    def _model(
        self, model: BaseChatModel, step: StepId | None, around: _Around, where: str
    ) -> None:
        found = FoundModel(model, step, around.kwargs, around.prompt, around.parser, where)
        self.models.append(found)

    def _path(
        self, node: Any, parent: Path | None, tags: Sequence[str], name: str, is_root: bool
    ) -> Path | None:
        if is_root:
            return ()
        if parent is None or not isinstance(node, Runnable):
            return None
        return child_path(parent, name or node.get_name(), tags)

    def _inside(
        self,
        node: Any,
        path: Path | None,
        place: tuple[Path | None, Sequence[str]],
        around: _Around,
        rest: Mapping[str, Any],
    ) -> None:
        if isinstance(node, RunnableSequence):
            for index, step in enumerate(node.steps):
                inner = _between(node.steps, index)
                self.visit(step, path, [f"seq:step:{index + 1}"], around=inner, **rest)
        elif isinstance(node, RunnableParallel):
            for key, step in node.steps__.items():
                self.visit(step, path, [f"map:key:{key}"], **rest)
        elif isinstance(node, RunnableAssign):
            self.visit(node.mapper, path, **rest)
        elif isinstance(node, RunnableBranch):
            for index, (condition, step) in enumerate(node.branches, 1):
                self.visit(condition, path, [f"condition:{index}"], **rest)
                self.visit(step, path, [f"branch:{index}"], **rest)
            self.visit(node.default, path, ["branch:default"], **rest)
        elif isinstance(node, RunnableWithFallbacks):
            for option in node.runnables:
                self._fallback(option, *place, around, rest)
        elif isinstance(node, RunnableEachBase):
            self.visit(node.bound, None, **rest)
        elif hasattr(node, "nodes") and hasattr(node, "builder"):
            self._graph(node, path, rest)
        else:
            self._opaque(node, rest)

    def _fallback(
        self,
        option: Any,
        parent: Path | None,
        tags: Sequence[str],
        around: _Around,
        rest: Mapping[str, Any],
    ) -> None:
        bound: Any = option
        inner = around
        while isinstance(bound, RunnableBindingBase):
            bound, inner = bound.bound, inner.bound(bound.kwargs)
        if isinstance(bound, BaseChatModel):
            variant = model_reference(bound).id
            step = None if parent is None else step_id(parent, tags, variant=variant)
            self._model(bound, step, inner, str(rest["where"]))
        else:
            self.visit(option, parent, tags, around=around, **rest)

    def _graph(self, graph: Any, path: Path | None, rest: Mapping[str, Any]) -> None:
        for name, node in graph.nodes.items():
            bound = getattr(node, "bound", None)
            if bound is None or name.startswith("__"):
                continue
            inside = None if path is None else child_path(path, name, ())
            where = f"node `{name}`"
            inner = {**rest, "where": where}
            if isinstance(bound, Runnable) and not _functions(bound):
                self.visit(bound, inside, ["seq:step:1"], **inner)
            else:
                self._function_node(bound, inside, inner)

    def _function_node(self, bound: Any, inside: Path | None, rest: Mapping[str, Any]) -> None:
        functions = _functions(bound)
        if functions and not any(not inspect.iscoroutinefunction(f) for f in functions):
            self.async_only = True
        for function in functions:
            self.starts_threads |= _starts_threads(function)
            # An agent's own node calls its model itself; other functions are the user's code.
            is_agent = function.__module__.startswith(_AGENT_NODES)
            for value in _held_by_function(function):
                path = inside if is_agent and isinstance(value, BaseChatModel) else None
                self.visit(value, path, ["seq:step:1"], **rest)
        self._attributes(bound, rest)

    # Everything else --------------------------------------------------------------------------

    def _opaque(self, node: Any, rest: Mapping[str, Any]) -> None:
        if isinstance(node, BaseTool):
            self._tool(node, rest)
            return
        if isinstance(node, BaseRetriever):
            self.retrievers.append(node)
        functions = _functions(node)
        if isinstance(node, RunnableLambda) and not hasattr(node, "func"):
            self.async_only = True
        for function in functions:
            where = {**rest, "where": f"function `{function.__qualname__}`"}
            self.starts_threads |= _starts_threads(function)
            for value in _held_by_function(function):
                self.visit(value, None, **where)
        self._attributes(node, rest)

    def _tool(self, tool: BaseTool, rest: Mapping[str, Any]) -> None:
        self.tools.setdefault(tool.name, tool)
        if getattr(tool, "func", True) is None and getattr(tool, "coroutine", None) is not None:
            self.async_only = True
        inner = {**rest, "where": f"tool `{tool.name}`"}
        values = [v for function in _functions(tool) for v in _held_by_function(function)]
        apart = Walk()
        for value in values:
            apart.visit(value, None, **inner)
            self.visit(value, None, **inner)
        if apart.models:
            self.asking_tools.add(tool.name)

    def _attributes(self, node: Any, rest: Mapping[str, Any]) -> None:
        if isinstance(node, list | tuple | set | frozenset):
            values: Iterable[Any] = node
        elif isinstance(node, Mapping):
            values = node.values()
        elif _is_data(node):
            return
        else:
            values = _own_values(node)
        for value in list(values):
            if not _is_data(value):
                self.visit(value, None, **rest)

    def of(self, model: BaseChatModel, step: str) -> FoundModel | None:
        """Returns what is known about the call `step` of `model`; None if it could be several."""
        same = [f for f in self.models if f.model is model]
        named = [f for f in same if f.step == step]
        candidates = named or [f for f in same if f.step is None]
        return candidates[0] if len(candidates) == 1 else None

    def _is_new(self, node: Any, parent: Path | None) -> bool:
        key = (id(node), parent)
        if key in self._seen:
            return False
        self._seen.add(key)
        self._kept.append(node)
        return True


def walk(program: Any) -> Walk:
    """Returns what `program` consists of; it is not run."""
    found = Walk()
    found.visit(program, None if isinstance(program, BaseChatModel) else (), is_root=True)
    return found


def _between(steps: Sequence[Any], index: int) -> _Around:
    before = steps[index - 1] if index else None
    after = steps[index + 1] if index + 1 < len(steps) else None
    return _Around(
        prompt=before if isinstance(before, BasePromptTemplate) else None,
        parser=after if isinstance(after, BaseOutputParser) else None,
    )


def _functions(node: Any) -> list[Callable[..., Any]]:
    """Returns the plain functions that `node` runs."""
    if inspect.isfunction(node) or inspect.ismethod(node):
        return [node]
    names = ("func", "afunc", "coroutine", "_func", "_transform", "_atransform")
    held = (node.__dict__.get(name) for name in names) if hasattr(node, "__dict__") else ()
    return [f for f in map(_unwrapped, held) if inspect.isfunction(f) or inspect.ismethod(f)]


def _unwrapped(function: Any) -> Any:
    while hasattr(function, "func") and not inspect.isfunction(function):
        function = function.func  # functools.partial
    return function


def _held_by_function(function: Any) -> Iterator[Any]:
    """Yields what `function` can reach: closure, globals that it names, its object, defaults."""
    owner = getattr(function, "__self__", None)
    if owner is not None:
        yield owner
    inner = inspect.unwrap(getattr(function, "__func__", function))
    code = getattr(inner, "__code__", None)
    if code is None:
        return
    for cell in inner.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:
            continue  # not filled yet
    names = _names_used(code)
    for name in sorted(names & inner.__globals__.keys()):
        yield inner.__globals__[name]
    yield from inner.__defaults__ or ()
    yield from (inner.__kwdefaults__ or {}).values()


def _starts_threads(function: Any) -> bool:
    """Returns whether the user's `function` names what starts threads without its context."""
    inner = inspect.unwrap(getattr(function, "__func__", function))
    code = getattr(inner, "__code__", None)
    module = str(getattr(inner, "__module__", "")).partition(".")[0]
    if code is None or module.startswith(("langchain", "langgraph")):
        return False
    return bool(_names_used(code) & {"ThreadPoolExecutor", "Thread", "run_in_executor"})


def _names_used(code: Any) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if inspect.iscode(constant):
            names |= _names_used(constant)
    return names


def _own_values(node: Any) -> list[Any]:
    """Returns the attributes of an object that may hold a part of the program."""
    if inspect.isclass(node) or inspect.ismodule(node):
        return []
    module = type(node).__module__.partition(".")[0]
    is_part = isinstance(node, Runnable) or hasattr(node, "invoke")
    is_foreign = module in ("openai", "httpx", "threading", "logging", "sqlite3", "builtins")
    if is_foreign and not is_part:
        return _held_values(node)
    return list(getattr(node, "__dict__", {}).values())


def _held_values(node: Any) -> list[Any]:
    return list(_held_by_function(node)) if inspect.isfunction(node) else []


def _is_data(value: Any) -> bool:
    plain = isinstance(value, str | bytes | int | float | bool | type(None) | type)
    return plain or inspect.ismodule(value)
