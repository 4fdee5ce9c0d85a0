"""One chat request: its messages and call arguments, and what is read from and put into them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any  # Any: call arguments are whatever the user's model class takes

from langchain_core.messages import BaseMessage, SystemMessage

__all__ = [
    "CONSTRAINTS",
    "ChatRequest",
    "is_constrained",
    "leading_text",
    "num_leading",
    "text_of",
    "with_added_instructions",
    "with_text",
]

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


def is_constrained(kwargs: Mapping[str, Any]) -> bool:
    """Returns whether the call's arguments fix the form of the answer."""
    return any(kwargs.get(name) for name in CONSTRAINTS)


def num_leading(messages: Sequence[BaseMessage]) -> int:
    """Returns how many system messages stand in front."""
    return next((i for i, message in enumerate(messages) if not _is_system(message)), len(messages))


def _is_system(message: BaseMessage) -> bool:
    return message.type == "system" or getattr(message, "role", "") in ("system", "developer")


def leading_text(messages: Sequence[BaseMessage]) -> str:
    """Returns the text of the leading system messages: the instructions as they were sent."""
    return "\n\n".join(text_of(message) for message in messages[: num_leading(messages)])


def with_added_instructions(messages: Sequence[BaseMessage], text: str) -> tuple[BaseMessage, ...]:
    """Returns `messages` with `text` behind the first system message, or as one in front."""
    if not num_leading(messages):
        return (SystemMessage(text), *messages)
    first = messages[0]
    return (with_text(first, f"{text_of(first)}\n\n{text}"), *messages[1:])


def text_of(message: BaseMessage) -> str:
    """Returns what `message` says, its blocks of text one after the other."""
    content = message.content
    if isinstance(content, str):
        return content
    return "".join(block if isinstance(block, str) else _block_text(block) for block in content)


def _block_text(block: Mapping[str, Any]) -> str:
    return str(block.get("text", "")) if block.get("type") == "text" else ""


def with_text(message: BaseMessage, text: str) -> BaseMessage:
    """Returns a copy of `message` that says `text`; blocks that are not text stay."""
    if isinstance(message.content, str):
        return message.model_copy(update={"content": text})
    texts = [b for b in message.content if isinstance(b, str) or b.get("type") == "text"]
    others = [b for b in message.content if isinstance(b, dict) and b.get("type") != "text"]
    # The last block's extra keys (a cache mark, for one) belong to the end of the text.
    last = texts[-1] if texts and isinstance(texts[-1], dict) else {"type": "text"}
    return message.model_copy(update={"content": [{**last, "text": text}, *others]})
