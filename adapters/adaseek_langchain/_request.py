"""Rewrites one chat request as a setting says: messages and call arguments in, new ones out.

Pure: nothing is called, and no message is changed in place. What needs more than one request
(reasoning beside bound tools, ensembles) is put together from these parts in `_flow`.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any  # Any: call arguments are whatever the user's model class takes

from adaseek.errors import ConfigurationError
from adaseek.recipe import Demo, Reasoning, Setting
from adaseek.voting import UNVOTED_FIELDS
from adaseek.workflow import Step
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolCall,
    ToolMessage,
)

__all__ = [
    "CONSTRAINTS",
    "REASONING_KEY",
    "ChatRequest",
    "answer_after",
    "asks_for_reasoning",
    "check_applicable",
    "demo_messages",
    "fills_in",
    "is_constrained",
    "leading_text",
    "reasoning_alone",
    "rewritten",
    "split_reasoning",
]

REASONING_KEY = "adaseek_reasoning"
"""Where an answer keeps the reasoning that was cut off it, in `additional_kwargs`."""

REASONING_FIELDS = frozenset({*UNVOTED_FIELDS, "plan"})

CONSTRAINTS = frozenset(
    {
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "functions",
        "function_call",
        "response_format",
        "ls_structured_output_format",
        "structured_output_format",
        "strict",
        "stop",
    }
)
"""Call arguments that decide the form of the answer, so that no reasoning fits in front of it."""

_ANSWER_NAMES = ("output", "answer", "text", "content", "response")
_MARKER = "=== ANSWER ==="
_MARKER_LINE = re.compile(r"^[\s*_#>`-]*={2,} *ANSWER *={2,}[*_`:]*[ \t]*\n?", re.MULTILINE)

_HOW = {
    "chain_of_thought": "First think step by step, in writing.",
    "plan": "First write a short plan of the steps that lead to the answer, and carry it out.",
}
_THEN_MARKER = (
    f"Then write a line with only {_MARKER} and below it your answer: exactly in the form that "
    "was asked for, and nothing else."
)
_ALONE = "Do not answer and do not call a tool yet."
_GO_ON = (
    "Now respond, with this in mind: exactly in the form that was asked for, without repeating "
    "the reasoning."
)


@dataclass(frozen=True)
class ChatRequest:
    """What one model call sends.

    Attributes:
        messages: the formatted messages.
        kwargs: the call's arguments (bound tools, response format, stop, parameters).
    """

    messages: tuple[BaseMessage, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def with_messages(self, *added: BaseMessage) -> ChatRequest:
        """Returns a copy with `added` behind the messages."""
        return replace(self, messages=(*self.messages, *added))


def check_applicable(step: str, setting: Setting) -> None:
    """Raises `ConfigurationError` if `setting` holds something that no chat request can take."""
    if setting.steps is not None:
        raise ConfigurationError(
            f"The recipe sets `steps` at step `{step}`: it splits one model call into several, "
            "which the LangChain adapter does not do. Remove `steps` from that step."
        )


def rewritten(request: ChatRequest, setting: Setting, step: Step | None = None) -> ChatRequest:
    """Returns `request` with the setting's instructions and demos; parameters are merged too.

    A setting without any of them gives `request` itself.

    Args:
        step: the step as translated, if it is known: its instructions tell the constant part of
            the prompt from what the program filled in, and `num_demos` the author's examples.

    Raises:
        ConfigurationError: if the prompt is not the one that `step` describes.
    """
    messages = request.messages
    if setting.instructions is not None:
        messages = _with_instructions(messages, setting.instructions, step)
    if setting.demos is not None:  # after the instructions, or a demo could be taken for them
        inline = setting.reasoning not in (None, "off") and not is_constrained(request.kwargs)
        messages = _with_demos(messages, setting.demos, step, inline=inline)
    kwargs = {**request.kwargs, **setting.params} if setting.params else request.kwargs
    if messages is request.messages and kwargs is request.kwargs:
        return request
    return ChatRequest(tuple(messages), kwargs)


def asks_for_reasoning(request: ChatRequest, reasoning: Reasoning) -> ChatRequest:
    """Returns `request` asking for reasoning, a marker, and then the answer in one reply."""
    text = f"{_HOW[reasoning]} {_THEN_MARKER}"
    return replace(request, messages=_with_added_instructions(request.messages, text))


def reasoning_alone(request: ChatRequest, reasoning: Reasoning) -> ChatRequest:
    """Returns `request` asking for nothing but reasoning, free of every constraint of form."""
    kwargs = {name: value for name, value in request.kwargs.items() if name not in CONSTRAINTS}
    return ChatRequest((*request.messages, HumanMessage(f"{_HOW[reasoning]} {_ALONE}")), kwargs)


def answer_after(request: ChatRequest, reasoning: str) -> ChatRequest:
    """Returns `request` with `reasoning` in front of the answer that it asks for."""
    return request.with_messages(AIMessage(reasoning or "..."), HumanMessage(_GO_ON))


def split_reasoning(text: str) -> tuple[str, str] | None:
    """Returns reasoning and answer of a reply to `asks_for_reasoning`.

    None if there is no marker or nothing behind it. The last marker counts: a model may name the
    marker while it plans.
    """
    found = list(_MARKER_LINE.finditer(text))
    if not found:
        return None
    answer = text[found[-1].end() :].strip()
    return (text[: found[-1].start()].strip(), answer) if answer else None


def is_constrained(kwargs: Mapping[str, Any]) -> bool:
    """Returns whether the call's arguments fix the form of the answer."""
    return any(kwargs.get(name) for name in CONSTRAINTS)


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
    inputs = {n: v for n, v in demo.values.items() if n not in outputs | REASONING_FIELDS}
    question = _question(inputs, index)
    calls = demo.values.get("tool_calls") if "tool_calls" in outputs else None
    if calls:
        return (*question, *_called(calls, f"demo_{index}_end"))
    answered = outputs - {"tool_calls"}  # empty here: nothing was called
    answer = _answer_text({n: demo.values[n] for n in demo.values if n in answered}, step)
    if reasoning:
        thoughts = [str(demo.values[n]) for n in demo.values if n in REASONING_FIELDS]
        answer = "\n".join([*thoughts, _MARKER, answer])
    return (*question, AIMessage(answer))


def _with_demos(
    messages: Sequence[BaseMessage], demos: Sequence[Demo], step: Step | None, *, inline: bool
) -> tuple[BaseMessage, ...]:
    """Returns `messages` with the demos behind the leading system messages, before the history.

    There they stay at the same place in every turn, so that a server keeps their prefix cached.
    """
    start = _num_leading(messages)
    own = 2 * (step.num_demos if step is not None else 0)
    shown: list[BaseMessage] = []
    rest = messages[start + own :]
    present = {_pair(a, b) for a, b in pairwise(rest)}
    for index, demo in enumerate(demos):
        made = demo_messages(demo, step, reasoning=inline, index=index)
        if len(made) != 2 or _pair(*made) not in present:  # the author shows it already
            shown.extend(made)
    return (*messages[:start], *shown, *rest)


def _pair(first: BaseMessage, second: BaseMessage) -> tuple[str, str, str, str]:
    return first.type, str(first.content), second.type, str(second.content)


def _num_leading(messages: Sequence[BaseMessage]) -> int:
    """Returns how many system messages stand in front."""
    return next((i for i, message in enumerate(messages) if not _is_system(message)), len(messages))


def _is_system(message: BaseMessage) -> bool:
    return message.type == "system" or getattr(message, "role", "") in ("system", "developer")


def _with_instructions(
    messages: Sequence[BaseMessage], new: str, step: Step | None
) -> tuple[BaseMessage, ...]:
    """Returns `messages` with the constant part of the prompt replaced by `new`.

    With a known step, that part is where its instructions are, whatever the role; what the
    program filled in is kept. Without one it is the first leading system message. A prompt
    without instructions gets a system message in front.
    """
    original = step.signature.instructions if step is not None and step.signature else ""
    if original:
        return _exchanged(messages, original, new, step.id if step else "")
    if step is None and _num_leading(messages):
        return (_with_text(messages[0], new), *messages[1:])
    return (SystemMessage(new), *messages)


def _exchanged(
    messages: Sequence[BaseMessage], original: str, new: str, step: str
) -> tuple[BaseMessage, ...]:
    num_leading = _num_leading(messages)
    if num_leading > 1:
        values = _filled_in(original, leading_text(messages))
        if values is not None:
            text = _rendered(new, values, original)
            return (_with_text(messages[0], text), *messages[num_leading:])
    # Behind the system messages the latest one is asked first: a history comes before the turn.
    for index in (*range(num_leading), *reversed(range(num_leading, len(messages)))):
        values = _filled_in(original, _text(messages[index]))
        if values is not None:
            changed = _with_text(messages[index], _rendered(new, values, original))
            return (*messages[:index], changed, *messages[index + 1 :])
    raise ConfigurationError(
        f"The prompt of step `{step}` no longer holds the instructions that the recipe replaces "
        f"({original[:60]!r}). Tune again, or apply the recipe to the program it was made for."
    )


def leading_text(messages: Sequence[BaseMessage]) -> str:
    """Returns the text of the leading system messages: the instructions as they were sent."""
    return "\n\n".join(_text(message) for message in messages[: _num_leading(messages)])


def fills_in(template: str, text: str) -> bool:
    """Returns whether `text` is `template` with something in place of each `{name}`."""
    return _filled_in(template, text) is not None


def _filled_in(template: str, text: str) -> dict[str, str] | None:
    """Returns what `text` has in place of the template's `{names}`; None if it is another text."""
    if template == text:
        return {}
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError:
        return None  # not a template: plain text with braces of its own
    names: list[str] = []
    pattern = ""
    for literal, name, _, _ in parts:
        pattern += re.escape(literal)
        if name is None:
            continue
        if name in names:
            pattern += f"(?P=v{names.index(name)})"
        else:
            pattern += f"(?P<v{len(names)}>.*?)"
            names.append(name)
    found = re.fullmatch(pattern, text, re.DOTALL)
    return None if found is None else {n: found[f"v{i}"] for i, n in enumerate(names)}


def _rendered(template: str, values: Mapping[str, str], original: str) -> str:
    """Returns `template` with `values` filled in; a value that it does not name is put behind it.

    New instructions may have lost a `{name}` of the original; the input must not be lost with it.
    """
    missing = [name for name in values if f"{{{name}}}" not in template]
    text = re.sub(
        r"\{(\w+)\}", lambda found: values.get(found[1], found[0]), template, flags=re.ASCII
    )
    if values and "{{" in original:
        text = text.replace("{{", "{").replace("}}", "}")
    kept = [values[name] if len(values) == 1 else f"{name}: {values[name]}" for name in missing]
    return "\n\n".join([text, *kept])


def _with_added_instructions(messages: Sequence[BaseMessage], text: str) -> tuple[BaseMessage, ...]:
    if not _num_leading(messages):
        return (SystemMessage(text), *messages)
    first = messages[0]
    return (_with_text(first, f"{_text(first)}\n\n{text}"), *messages[1:])


def _text(message: BaseMessage) -> str:
    content = message.content
    if isinstance(content, str):
        return content
    return "".join(block if isinstance(block, str) else _block_text(block) for block in content)


def _block_text(block: Mapping[str, Any]) -> str:
    return str(block.get("text", "")) if block.get("type") == "text" else ""


def _with_text(message: BaseMessage, text: str) -> BaseMessage:
    """Returns a copy of `message` that says `text`; blocks that are not text stay."""
    if isinstance(message.content, str):
        return message.model_copy(update={"content": text})
    texts = [b for b in message.content if isinstance(b, str) or b.get("type") == "text"]
    others = [b for b in message.content if isinstance(b, dict) and b.get("type") != "text"]
    # The last block's extra keys (a cache mark, for one) belong to the end of the text.
    last = texts[-1] if texts and isinstance(texts[-1], dict) else {"type": "text"}
    return message.model_copy(update={"content": [{**last, "text": text}, *others]})


def _output_names(demo: Demo, step: Step | None) -> set[str]:
    declared = step.signature.outputs if step is not None and step.signature else ()
    names = {f.name for f in declared} & demo.values.keys()
    names |= {"tool_calls"} & demo.values.keys()
    if declared and names:
        return names
    known = [*names, *(name for name in _ANSWER_NAMES if name in demo.values)]
    candidates = [name for name in demo.values if name not in REASONING_FIELDS]
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
