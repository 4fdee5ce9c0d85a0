"""Translates a DSPy program into a workflow: its steps, which cogs may touch them, and why not."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterable
from typing import Any, Union, get_args, get_origin, get_type_hints  # Any: DSPy is untyped

import dspy
from adaseek.errors import TranslationError
from adaseek.voting import UNVOTED_FIELDS
from adaseek.workflow import Field, Note, Signature, Step, Workflow

from adaseek_dspy._compat import BaseModule
from adaseek_dspy._convert import model_reference
from adaseek_dspy._naming import dynamic_step
from adaseek_dspy._walk import Found, is_inside, walk

__all__ = [
    "FRAMEWORK",
    "core_signature",
    "dynamic_lm_step",
    "input_types",
    "is_program",
    "reasoning_fields",
    "translate",
]

FRAMEWORK = "dspy"
COGS: tuple[str, ...] = (
    *("ensemble", "decompose", "model", "params", "reasoning", "few_shot", "instructions"),
)
REASONING_FIELDS = {"chain_of_thought": "reasoning", "plan": "plan"}
"""Setting.reasoning -> the output field that is put before the answer."""

_SAMPLERS = ("BestOfN", "Refine")
_INTERNAL = {"<OfferFeedback>": "dspy.Refine makes it to advise the steps inside"}
_OWN_TOOLS = {"ReAct": "finish", "ReActV2": "submit"}


def is_program(obj: object) -> bool:
    """Returns whether `obj` is a DSPy program."""
    return isinstance(obj, BaseModule)


def translate(program: Any, *, include_frozen: bool = False) -> Workflow:
    """Returns `program` as a workflow; translating it again gives the same ids.

    The id of a step is its path in the program (`a`, `l[0]`, `d['k']`, `agent.react`). Steps that
    only exist at run time (predictors made in `forward`, direct calls of a language model) are
    not found here: `adaseek_dspy.discover` looks for them.

    Args:
        include_frozen: let cogs touch the steps of sub-modules that are marked `_compiled`.

    Raises:
        TranslationError: if `program` is not a DSPy program, or has no predictor.
    """
    if not is_program(program):
        raise TranslationError(
            f"`program` is a {type(program).__name__}, but must be a dspy.Module. If it is a "
            "streaming or async wrapper, pass the module that it wraps."
        )
    found = walk(program)
    if not found.predictors:
        raise TranslationError(
            f"`program` ({type(program).__name__}) holds no dspy.Predict in its attributes, so "
            "there is nothing to tune. Create the predictors in __init__ and keep them on self."
        )
    hidden = [dynamic_lm_step(predictor.signature) for predictor in found.hidden]
    steps = [*_lm_steps(found, include_frozen), *_other_steps(found), *hidden]
    return Workflow(
        framework=FRAMEWORK,
        name=type(program).__name__,
        steps={step.id: step for step in steps},
        inputs=tuple(input_types(program)),
        notes=tuple(_notes(found, include_frozen)),
    )


def reasoning_fields(signature: Any) -> list[str]:
    """Returns the fields of `signature` in which a model already reasons before it answers."""
    named = [
        name
        for name in signature.fields
        if name in UNVOTED_FIELDS or name in REASONING_FIELDS.values() or name == "next_thought"
    ]
    reasoning = getattr(dspy, "Reasoning", None)
    typed = [
        name
        for name, field in signature.output_fields.items()
        if reasoning is not None and field.annotation is reasoning
    ]
    return list(dict.fromkeys([*named, *typed]))


def _lm_steps(found: Found, include_frozen: bool) -> Iterable[Step]:
    for path, predictor in found.predictors.items():
        blocked = dict(_blocked(path, predictor, found, include_frozen))
        parent = next(found.containers(path), None)
        yield Step(
            id=path,
            name=path.rpartition(".")[2],
            parent=parent[0] or None if parent else None,
            signature=core_signature(predictor.signature),
            model=_model(predictor),
            tools=_tool_names(path, found),
            num_demos=len(predictor.demos),
            allowed=frozenset(COGS) - blocked.keys(),
            blocked=blocked,
        )


def dynamic_lm_step(signature: Any) -> Step:
    """Returns the step of a predictor that no attribute of the program holds.

    Its settings are put into each of its calls; there is no object in the program to replace.
    """
    step = dynamic_step(signature)
    blocked = dict(_blocked_by_signature(signature))
    absent = "it is not part of the program's attributes, so it cannot be replaced"
    blocked |= dict.fromkeys(("ensemble", "decompose"), absent)
    if step in _INTERNAL:
        blocked = dict.fromkeys(COGS, _INTERNAL[step])
    return Step(
        id=step,
        name=step.strip("<>"),
        signature=core_signature(signature),
        allowed=frozenset(COGS) - blocked.keys(),
        blocked=blocked,
        dynamic=True,
    )


def _other_steps(found: Found) -> Iterable[Step]:
    for path, tool in found.tools.items():
        if not _is_own_tool(path, tool, found):
            parent = next(found.containers(path), None)
            owner = parent[0] or None if parent else None
            yield Step(id=path, kind="tool", name=tool.name, parent=owner)
    for path in found.retrievers:
        yield Step(id=path, kind="retriever", name=path.rpartition(".")[2])


def _is_own_tool(path: str, tool: Any, found: Found) -> bool:
    """Returns whether `tool` is how an agent says that it is done, not a tool of the user."""
    parent = next(found.containers(path), None)
    return parent is not None and _OWN_TOOLS.get(type(parent[1]).__name__) == tool.name


def _tool_names(path: str, found: Found) -> tuple[str, ...]:
    """Returns the tools that the agent around `path` offers to the predictor that chooses them."""
    if path.rpartition(".")[2] != "react":
        return ()
    owner = path.rpartition(".")[0]
    inside = {p: tool for p, tool in found.tools.items() if is_inside(p, owner)}
    return tuple(t.name for p, t in inside.items() if not _is_own_tool(p, t, found))


def _blocked(
    path: str, predictor: Any, found: Found, include_frozen: bool
) -> Iterable[tuple[str, str]]:
    frozen = next((name for name in found.frozen if name == path or is_inside(path, name)), None)
    if frozen is not None and not include_frozen:
        reason = f"`{frozen}` is frozen (`_compiled` is set); translate with include_frozen=True"
        yield from ((cog, reason) for cog in COGS)
        return
    yield from _blocked_by_signature(predictor.signature)
    for name, module in found.containers(path):
        kind = type(module).__name__
        if kind in _SAMPLERS:
            yield "ensemble", f"`{name or 'self'}` ({kind}) already samples this step several times"
            yield "decompose", f"`{name or 'self'}` ({kind}) would do its subtasks for each sample"
            num_inside = sum(is_inside(other, name) for other in found.predictors)
            if num_inside > 1:
                yield (
                    "model",
                    f"`{name or 'self'}` ({kind}) runs all of its {num_inside} steps on one model",
                )


def _blocked_by_signature(signature: Any) -> Iterable[tuple[str, str]]:
    present = reasoning_fields(signature)
    if present:
        yield "reasoning", f"it already has the field `{present[0]}`, in which it reasons"
    calls = [n for n, f in signature.output_fields.items() if f.annotation is dspy.ToolCalls]
    if calls:
        yield "ensemble", f"its field `{calls[0]}` holds tool calls, which may have effects"
        yield "few_shot", f"its field `{calls[0]}` holds tool calls, which only fit their own run"
        if not present:
            yield "reasoning", f"its field `{calls[0]}` is filled by native tool calling"


def core_signature(signature: Any) -> Signature:
    """Returns a DSPy signature as a core one."""
    fields = [
        Field(
            name,
            "input" if name in signature.input_fields else "output",
            type_name(info.annotation),
            _description(info, name),
        )
        for name, info in signature.fields.items()
    ]
    tool_calls = any(f.annotation is dspy.ToolCalls for f in signature.output_fields.values())
    return Signature(
        instructions=signature.instructions,
        fields=tuple(fields),
        output="tool_calls" if tool_calls else "fields",
    )


def _description(info: Any, name: str) -> str:
    text = str((info.json_schema_extra or {}).get("desc") or "")
    return "" if text == f"${{{name}}}" else text  # DSPy's placeholder for "no description"


def type_name(annotation: Any) -> str:
    """Returns `annotation` as short text that is the same in every process."""
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation is None or annotation is types.NoneType:
        return "None"
    if origin in (Union, types.UnionType):
        return " | ".join(type_name(arg) for arg in args)
    if origin is not None:
        name = getattr(origin, "__name__", str(origin))
        inner = ", ".join(type_name(a) if _is_type(a) else repr(a) for a in args)
        return f"{name}[{inner}]"
    return getattr(annotation, "__qualname__", None) or str(annotation)


def _is_type(value: object) -> bool:
    return isinstance(value, type) or get_origin(value) is not None or value is Any


def _model(predictor: Any) -> Any:
    lm = predictor.lm or dspy.settings.lm
    return model_reference(lm) if lm is not None else None


def input_types(program: Any) -> dict[str, Any]:
    """Returns the inputs of `program` by name, with their types as far as they are declared."""
    function = getattr(type(program), "forward", None) or getattr(type(program), "aforward", None)
    parameters = list(inspect.signature(function).parameters.values())[1:] if function else []
    named = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if named:
        hints = _hints(function)
        return {name: hints.get(name, str) for name in named}
    for holder in (program, getattr(program, "predict", None)):
        fields = getattr(getattr(holder, "signature", None), "input_fields", None)
        if fields is not None:
            return {name: field.annotation for name, field in fields.items()}
    inner = getattr(program, "module", None)  # what BestOfN and Refine run
    return input_types(inner) if isinstance(inner, BaseModule) else {}


def _hints(function: Any) -> dict[str, Any]:
    try:
        return get_type_hints(function)
    except (NameError, TypeError):
        return {}  # annotations that only a type checker can resolve


def _notes(found: Found, include_frozen: bool) -> Iterable[Note]:
    if not include_frozen:
        for path in found.frozen:
            yield Note(
                "info",
                f"`{path}` is frozen (`_compiled` is set), so its steps are not tuned; translate "
                "with include_frozen=True to tune them.",
                step=path,
            )
    for path, module in found.modules.items():
        if type(module).__name__ == "Flex":
            name = path or "self"
            text = f"`{name}` (Flex) makes its predictors at run time; they stay as they are."
            yield Note("warning", text, step=path)
