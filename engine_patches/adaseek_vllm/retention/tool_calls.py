"""Recognises a tool call at the end of a model's answer, as far as the engine can see it.

The engine ends a turn before anything parses it, so this looks only for how calls begin in the
formats of vLLM's tool parsers, and for a bare JSON call. A miss costs little: the turn then counts
as one that may or may not be followed by another.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["NUM_TAIL_TOKENS", "ToolCall", "find_tool_call", "tool_call_at_end"]

NUM_TAIL_TOKENS = 256
"""How many tokens of an answer's end are looked at."""

_MARKERS = (
    "<tool_call>",
    "<tool_calls>",
    "<longcat_tool_call>",
    "<dots_function_call>",
    "<minimax:tool_call>",
    "<start_function_call>",
    "<function_call>",
    "<function=",
    "<|tool_call_start|>",
    "<|tool_call|>",
    "<|tool_calls_section_begin|>",
    "<|python_tag|>",
    "<\uff5ctool\u2581calls\u2581begin\uff5c>",
    "<\uff5ctool\u2581call\u2581begin\uff5c>",
    "[TOOL_CALLS]",
    "functools[",
)
_MARKER = re.compile("|".join(re.escape(marker) for marker in _MARKERS))
_QUOTED_NAME = re.compile(r'"name"\s*:\s*"([^"\\]{1,128})"')
_NAME_AFTER_MARKER = re.compile(r"\s*(?:<function=|\[)?([A-Za-z_][\w.-]{0,127})\s*[>({\[]")
_BARE_CALL = re.compile(
    r'\{\s*"name"\s*:\s*"([^"\\]{1,128})"\s*,\s*"(?:arguments|parameters)"\s*:.*[}\]]\s*(?:```)?\s*\Z',
    re.DOTALL,
)


@dataclass(frozen=True)
class ToolCall:
    """A call that an answer ends with; `name` is "" where it could not be read."""

    name: str


def tool_call_at_end(
    token_ids: Sequence[int], text_of: Callable[[Sequence[int]], str]
) -> ToolCall | None:
    """Returns the tool call that an answer ends with, None if there seems to be none.

    Args:
        token_ids: the answer, the token that ended it included.
        text_of: returns the text of tokens, with special ones.
    """
    tail = token_ids[-NUM_TAIL_TOKENS:]
    # A bare call is known by its end, after which the model still writes that its turn is over.
    return find_tool_call(text_of(tail)) or find_tool_call(text_of(tail[:-1]))


def find_tool_call(text: str) -> ToolCall | None:
    """Returns the first tool call in the end of an answer, None if there seems to be none.

    Args:
        text: the end of the answer, with special tokens.
    """
    marker = _MARKER.search(text)
    if marker is None:
        bare = _BARE_CALL.search(text)
        return None if bare is None else ToolCall(bare.group(1))
    after = text[marker.end() :]
    if marker.group() == "<function=":
        after = marker.group() + after
    quoted, plain = _QUOTED_NAME.search(after), _NAME_AFTER_MARKER.match(after)
    name = plain or quoted
    return ToolCall(name.group(1) if name is not None else "")
