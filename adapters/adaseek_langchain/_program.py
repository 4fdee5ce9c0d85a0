"""What is a program here, what it is called with, and how runs of it are kept apart."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import (
    Annotated,
    Any,  # Any: programs, inputs and outputs are the user's
    Literal,
    NotRequired,
    Required,
    get_args,
    get_origin,
    get_type_hints,
)

from adaseek.workflow import Workflow
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.base import RunnableBindingBase, coerce_to_runnable

__all__ = [
    "BARE_INPUT",
    "Translated",
    "as_program",
    "input_names",
    "input_schema",
    "is_program",
    "isolated",
    "own_copy",
]

BARE_INPUT = "input"
"""Name of the only input of an example whose program takes a value that is no mapping."""


@dataclass(frozen=True)
class Translated:
    """A program with the workflow that it was translated to, so that hooks need not do it again."""

    program: Any
    workflow: Workflow


def is_program(obj: object) -> bool:
    """Returns whether `obj` is a program of this framework."""
    return isinstance(obj, Runnable | Translated)


def as_program(obj: Any) -> Any:
    """Returns the Runnable in `obj`; functions and dicts become one, as in a chain.

    Raises:
        TypeError: if LangChain cannot make a Runnable of it.
    """
    if isinstance(obj, Translated):
        return obj.program
    return obj if isinstance(obj, Runnable) else coerce_to_runnable(obj)


def input_names(program: Any) -> tuple[str, ...]:
    """Returns the names that the program's input schema has; none if it takes no mapping."""
    return tuple(input_schema(program).get("properties") or ())


def input_schema(program: Any) -> dict[str, Any]:
    """Returns the program's input schema, empty if it has none."""
    runnable = as_program(program)
    try:
        schema: dict[str, Any] = runnable.get_input_jsonschema()
    except Exception:
        # Whatever the user's types do inside pydantic's schema machinery: a `typing.TypedDict`
        # before Python 3.12, for one.
        return _state_schema(_inner(runnable))
    return schema


def _state_schema(graph: Any) -> dict[str, Any]:
    """Returns the schema of a graph's state, read from its annotations."""
    state = getattr(getattr(graph, "builder", None), "state_schema", None)
    try:
        hints = get_type_hints(state) if state is not None else {}
    except (NameError, TypeError):
        hints = getattr(state, "__annotations__", {})
    return {"type": "object", "properties": {n: _type_schema(t) for n, t in hints.items()}}


def _type_schema(hint: Any) -> dict[str, Any]:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Annotated, Required, NotRequired):
        return _type_schema(arguments[0])
    if origin is Literal:
        return {"enum": list(arguments)}
    kind = _JSON_TYPES.get(origin or hint, "object" if origin is dict else "string")
    if kind == "array":
        return {"type": "array", "items": _type_schema(arguments[0]) if arguments else {}}
    return {"type": kind}


_JSON_TYPES: dict[Any, str] = {
    int: "integer",
    float: "number",
    bool: "boolean",
    str: "string",
    list: "array",
    tuple: "array",
    set: "array",
    Sequence: "array",
    dict: "object",
}


def isolated(program: Any, handlers: list[Any]) -> tuple[Any, RunnableConfig]:
    """Returns `program` and a config such that a run leaves nothing in the user's checkpointer.

    A graph that remembers gets a memory and a thread of its own for this run.
    """
    config = RunnableConfig(callbacks=handlers)
    graph = _inner(program)
    if getattr(graph, "checkpointer", None) in (None, False):
        return program, config
    config["configurable"] = {"thread_id": f"adaseek-{uuid.uuid4().hex}"}
    if program is not graph:
        return program, config  # bound arguments; its thread is its own at least
    from langgraph.checkpoint.memory import InMemorySaver

    return graph.copy(update={"checkpointer": InMemorySaver()}), config


def _inner(program: Any) -> Any:
    while isinstance(program, RunnableBindingBase):
        program = program.bound
    return program


def own_copy(value: Any) -> Any:
    """Returns a copy of an input: a program may change what it is called with."""
    try:
        return copy.deepcopy(value)
    except (TypeError, ValueError, RecursionError):
        return dict(value) if isinstance(value, Mapping) else value
