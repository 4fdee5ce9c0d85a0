"""Messages as JSON values for traces, demos and the memo; and answers made from them again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any  # Any: message contents are JSON of the provider's making

from adaseek._canonical import canonical_json
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    message_chunk_to_message,
    message_to_dict,
    messages_from_dict,
)
from langchain_core.messages.tool import tool_call_chunk

from adaseek_langchain._seam import INPUT, OUTPUT, TOOL_CALLS
from adaseek_langchain._turns import split_reasoning

__all__ = [
    "answer_chunk",
    "answer_fields",
    "input_fields",
    "json_value",
    "num_leading_system",
    "restored_answer",
    "stored_answer",
    "wire",
]


def num_leading_system(messages: Sequence[BaseMessage]) -> int:
    """Returns how many system messages stand in front."""
    is_system = [
        m.type == "system" or getattr(m, "role", "") in ("system", "developer") for m in messages
    ]
    return next((i for i, system in enumerate(is_system) if not system), len(messages))


def input_fields(messages: Sequence[BaseMessage]) -> dict[str, Any]:
    """Returns what a call was given behind its system messages: a text, or a list of messages."""
    rest = messages[num_leading_system(messages) :]
    if len(rest) == 1 and isinstance(rest[0], HumanMessage):
        return {INPUT: json_value(rest[0].content)}
    return {INPUT: [wire(message) for message in rest]}


def answer_fields(message: BaseMessage, *, always_tools: bool = False) -> dict[str, Any]:
    """Returns what a call answered: text, the reasoning in front of it, tool calls.

    Args:
        always_tools: whether to say that no tool is called, too: it could have been.
    """
    text = str(message.text)
    parts = split_reasoning(text)
    fields: dict[str, Any] = {OUTPUT: text}
    if parts is not None:
        fields = {"reasoning": parts[0], OUTPUT: parts[1]}
    calls = getattr(message, "tool_calls", None)
    if calls or always_tools:
        shown = [{"name": c["name"], "args": json_value(c["args"])} for c in calls or ()]
        fields[TOOL_CALLS] = shown
    return fields


def wire(message: BaseMessage) -> dict[str, Any]:
    """Returns `message` as role, content and tool calls; without ids, which differ by run."""
    body: dict[str, Any] = {"role": message.type, "content": json_value(message.content)}
    calls = getattr(message, "tool_calls", None)
    if calls:
        body[TOOL_CALLS] = [{"name": c["name"], "args": json_value(c["args"])} for c in calls]
    return body


def json_value(value: Any) -> Any:
    """Returns `value` as JSON values; what has no JSON form is shown as text."""
    if isinstance(value, BaseMessage):
        return wire(value)
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else str(value)
    if isinstance(value, Mapping):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((json_value(item) for item in value), key=canonical_json)
    fields = getattr(value, "model_dump", None)
    return json_value(fields()) if callable(fields) and not isinstance(value, type) else str(value)


def stored_answer(message: BaseMessage) -> dict[str, Any]:
    """Returns a model's answer as JSON values that `restored_answer` reads."""
    whole = message_chunk_to_message(message)
    stored: dict[str, Any] = json_value(message_to_dict(whole))
    return stored


def restored_answer(stored: Mapping[str, Any]) -> AIMessage:
    """Returns the answer that `stored_answer` wrote, without its id: it is a new message.

    Raises:
        TypeError: if it is no answer of a model.
    """
    (message,) = messages_from_dict([dict(stored)])
    if not isinstance(message, AIMessage):
        raise TypeError(f"a {type(message).__name__} is stored as a model's answer")
    return message.model_copy(update={"id": None})


def answer_chunk(message: AIMessage) -> AIMessageChunk:
    """Returns a whole answer as the only chunk of a stream."""
    chunks = [
        tool_call_chunk(
            name=call["name"], args=json.dumps(call["args"]), id=call["id"], index=index
        )
        for index, call in enumerate(message.tool_calls)
    ]
    return AIMessageChunk(
        content=message.content,
        additional_kwargs=message.additional_kwargs,
        response_metadata=message.response_metadata,
        usage_metadata=message.usage_metadata,
        tool_call_chunks=chunks,
    )
