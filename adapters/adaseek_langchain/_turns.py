"""What is asked around the answer of a step: reasoning before it, and subtasks before that."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from adaseek.recipe import Reasoning
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

from adaseek_langchain._chat import CONSTRAINTS, ChatRequest, with_added_instructions

__all__ = [
    "MARKER",
    "REASONING_KEY",
    "answer_after",
    "asks_for_reasoning",
    "reasoning_alone",
    "split_reasoning",
    "subtask_alone",
    "with_results",
]

REASONING_KEY = "adaseek_reasoning"
"""Where an answer keeps the reasoning that was cut off it, in `additional_kwargs`."""

MARKER = "=== ANSWER ==="
_MARKER_LINE = re.compile(r"^[\s*_#>`-]*={2,} *ANSWER *={2,}[*_`:]*[ \t]*\n?", re.MULTILINE)

_HOW = {
    "chain_of_thought": "First think step by step, in writing.",
    "plan": "First write a short plan of the steps that lead to the answer, and carry it out.",
}
_THEN_MARKER = (
    f"Then write a line with only {MARKER} and below it your answer: exactly in the form that "
    "was asked for, and nothing else."
)
_ALONE = "Do not answer and do not call a tool yet."
_GO_ON = (
    "Now respond, with this in mind: exactly in the form that was asked for, without repeating "
    "the reasoning."
)
_PART = (
    "First do only this part of the task, which prepares the rest: {instructions}\n\nDo not "
    "respond to the whole task yet and do not call a tool."
)
_WHOLE = (
    "Now respond to the whole task, with these results in mind: exactly in the form that was "
    "asked for, without repeating them."
)


def asks_for_reasoning(request: ChatRequest, reasoning: Reasoning) -> ChatRequest:
    """Returns `request` asking for reasoning, a marker, and then the answer in one reply."""
    text = f"{_HOW[reasoning]} {_THEN_MARKER}"
    return replace(request, messages=with_added_instructions(request.messages, text))


def reasoning_alone(request: ChatRequest, reasoning: Reasoning) -> ChatRequest:
    """Returns `request` asking for nothing but reasoning, free of every constraint of form."""
    return _free(request).with_messages(HumanMessage(f"{_HOW[reasoning]} {_ALONE}"))


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


def subtask_alone(
    request: ChatRequest, instructions: str, results: Sequence[tuple[str, str]]
) -> ChatRequest:
    """Returns `request` asking for nothing but a subtask, free of every constraint of form.

    Args:
        results: instructions and answer of each subtask before it.
    """
    part = HumanMessage(_PART.format(instructions=instructions))
    return _free(request).with_messages(*_told(results), part)


def with_results(request: ChatRequest, results: Sequence[tuple[str, str]]) -> ChatRequest:
    """Returns `request` with the `results` of subtasks behind it, and asked once more."""
    return request.with_messages(*_told(results), HumanMessage(_WHOLE)) if results else request


def _told(results: Sequence[tuple[str, str]]) -> Iterator[BaseMessage]:
    for instructions, answer in results:
        yield HumanMessage(_PART.format(instructions=instructions))
        yield AIMessage(answer or "...")


def _free(request: ChatRequest) -> ChatRequest:
    kept = {name: value for name, value in request.kwargs.items() if name not in CONSTRAINTS}
    return ChatRequest(request.messages, kept)
