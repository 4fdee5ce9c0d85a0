"""Worked examples as turns of a conversation."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any  # Any: demos hold JSON values

from adaseek.recipe import Demo
from adaseek.voting import UNVOTED_FIELDS
from adaseek.workflow import Step
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolCall, ToolMessage

from adaseek_langchain._turns import MARKER

__all__ = ["demo_messages"]

_REASONING_FIELDS = frozenset({*UNVOTED_FIELDS, "plan"})
_ANSWER_NAMES = ("output", "answer", "text", "content", "response")


def demo_messages(
    demo: Demo, step: Step | None = None, *, reasoning: bool = False, index: int = 0
) -> tuple[BaseMessage, ...]:
    """Returns `demo` as a user message and the assistant's answer to it.

    One input is shown as it is (an input that is a list of messages as those messages), several
    as `name: value` lines; the answer as text, or as JSON if it has several fields or a schema. A
    demo whose outputs hold `tool_calls` becomes tool calls with a result each, since an API
    refuses calls without results.

    Args:
        reasoning: whether the step reasons inline, so that answers are written in that form.
        index: position of the demo; part of the ids of its tool calls.
    """
    outputs = _output_names(demo, step)
    inputs = {n: v for n, v in demo.values.items() if n not in outputs | _REASONING_FIELDS}
    question = _question(inputs, index)
    calls = demo.values.get("tool_calls") if "tool_calls" in outputs else None
    if calls:
        return (*question, *_called(calls, f"demo_{index}_end"))
    answered = outputs - {"tool_calls"}  # empty here: nothing was called
    answer = _answer_text({n: demo.values[n] for n in demo.values if n in answered}, step)
    if reasoning:
        thoughts = [str(demo.values[n]) for n in demo.values if n in _REASONING_FIELDS]
        answer = "\n".join([*thoughts, MARKER, answer])
    return (*question, AIMessage(answer))


def _output_names(demo: Demo, step: Step | None) -> set[str]:
    declared = step.signature.outputs if step is not None and step.signature else ()
    names = {f.name for f in declared} & demo.values.keys()
    names |= {"tool_calls"} & demo.values.keys()
    if declared and names:
        return names
    known = [*names, *(name for name in _ANSWER_NAMES if name in demo.values)]
    candidates = [name for name in demo.values if name not in _REASONING_FIELDS]
    return set(known or candidates[-1:])


def _question(values: Mapping[str, Any], index: int) -> tuple[BaseMessage, ...]:
    if len(values) != 1:
        lines = [f"{name}: {_shown(value)}" for name, value in values.items()]
        return (HumanMessage("\n".join(lines)),)
    (value,) = values.values()
    if isinstance(value, list) and value and all(_is_wire(item) for item in value):
        return _replayed(value, index)
    return (HumanMessage(_shown(value)),)


def _is_wire(item: object) -> bool:
    return isinstance(item, Mapping) and {"role", "content"} <= item.keys()


def _replayed(turns: Sequence[Mapping[str, Any]], index: int) -> tuple[BaseMessage, ...]:
    """Returns recorded turns as messages; calls and results get ids again, in their order."""
    shown: list[BaseMessage] = []
    open_ids: list[str] = []
    for position, turn in enumerate(turns):
        role, content = turn["role"], turn["content"]
        if role == "tool" and open_ids:
            shown.append(ToolMessage(content, tool_call_id=open_ids.pop(0)))
        elif role == "ai":
            calls = _made(turn.get("tool_calls") or (), f"demo_{index}_{position}")
            open_ids = [str(call["id"]) for call in calls]
            shown.append(AIMessage(content, tool_calls=calls))
        else:
            shown.append(HumanMessage(content))
    return tuple(shown)


def _answer_text(values: Mapping[str, Any], step: Step | None) -> str:
    form = step.signature.output if step is not None and step.signature else "text"
    if len(values) == 1:
        name, value = next(iter(values.items()))
        if form == "text" or name in _ANSWER_NAMES:
            return _shown(value)
    return _shown(dict(values))


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _called(calls: Iterable[Mapping[str, Any]], prefix: str) -> tuple[BaseMessage, ...]:
    made = _made(calls, prefix)
    results = [ToolMessage("Done.", tool_call_id=str(call["id"])) for call in made]
    return (AIMessage("", tool_calls=made), *results)


def _made(calls: Iterable[Mapping[str, Any]], prefix: str) -> list[ToolCall]:
    return [
        ToolCall(name=call["name"], args=dict(call.get("args", {})), id=f"{prefix}_{number}")
        for number, call in enumerate(calls)
    ]
