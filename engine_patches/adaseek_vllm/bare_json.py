"""Tool calls that a model writes as plain JSON in its text, found while the text arrives.

Some instruct models (Qwen2.5-Coder is one) write a call as `{"name": ..., "arguments": {...}}`,
bare, in a Markdown fence, as a list, or in `<tool_call>` tags, whatever their chat template says.

Start a vLLM server whose clients get them as tool calls with the flags in `TOOL_FLAGS`. For models
that speak ChatML, `CHATML_FLAGS` beside them shows the model its earlier calls as it wrote them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CHATML_FLAGS", "TOOL_FLAGS", "CallScanner", "FoundCall"]

TOOL_FLAGS = (
    "--enable-auto-tool-choice",
    "--tool-call-parser",
    "bare_json",
    "--tool-parser-plugin",
    str(Path(__file__).with_name("bare_json_tool_parser.py")),
)
CHATML_FLAGS = ("--chat-template", str(Path(__file__).with_name("bare_json_chatml.jinja")))

_OPENER = re.compile(r"(?P<fence>```\w*\s*)|(?P<tag><tool_call>\s*)|(?=[{\[])")
_OPENING_TAG = "<tool_call>"
_CLOSERS = {"fence": "```", "tag": "</tool_call>", None: ""}
# How the text of a call begins; the whitespace is taken out first.
_BEGINNINGS = tuple(
    f'{before}"{key}"'
    for before in ("{", "[{")
    for key in ("name", "arguments", "parameters", "function", "type")
)


@dataclass(frozen=True)
class FoundCall:
    """A call of one of the request's tools.

    Attributes:
        name: the tool's.
        arguments: a JSON object as text.
    """

    name: str
    arguments: str


class CallScanner:
    """Splits the text of one reply into text and calls; what may still become a call is kept back.

    A JSON object is a call if it names one of the `tools` and holds an object of arguments.
    Anything else stays text, character by character.
    """

    def __init__(self, tools: Collection[str]) -> None:
        self._tools = frozenset(tools)
        self._rest = ""
        # What ends the wrapper of the last call, "" if it had none; None while we are in text.
        self._closer: str | None = None
        # How much of the rest is text for certain, after no call was found at its start.
        self._num_text = 0

    def feed(self, text: str, *, last: bool = False) -> list[str | FoundCall]:
        """Returns the pieces that are certain now, in order.

        Args:
            text: what has arrived since the last call.
            last: whether nothing will follow; nothing is kept back then.
        """
        self._rest += text
        if not self._tools:
            pieces: list[str | FoundCall] = [self._rest] if self._rest else []
            self._rest = ""
            return pieces
        pieces = []
        while self._rest:
            found = self._next(last=last)
            if found is None:
                break
            pieces += found
        return pieces

    def _next(self, *, last: bool) -> list[str | FoundCall] | None:
        """Takes something off the rest and returns what it is; None if more text is needed."""
        if self._closer is not None:
            return self._after_a_call(last=last)
        opener = _OPENER.search(self._rest)
        start = opener.start() if opener else len(self._rest) - _unfinished_opener(self._rest)
        if opener is None and last:
            start = len(self._rest)
        if start > 0:
            return [self._take(start)]
        if opener is None:
            return None
        # If there is no call the opener is text, and so is at least one character.
        self._num_text = max(1, opener.end())
        found = self._calls(opener.end(), last=last)
        if found is None:
            return None
        if found:
            self._closer = _CLOSERS[opener.lastgroup]
            return [*found]
        return [self._take(self._num_text)]

    def _after_a_call(self, *, last: bool) -> list[str | FoundCall] | None:
        """Drops the end of the wrapper, or finds a further call within it."""
        assert self._closer is not None
        start = len(self._rest) - len(self._rest.lstrip(" \t\r\n,;"))
        rest = self._rest[start:]
        if self._closer and rest.startswith(self._closer):
            self._take(start + len(self._closer))
            self._closer = None
            return []
        if not last and self._closer.startswith(rest):
            return None
        found = self._calls(start, last=last) if rest[:1] in ("{", "[") else []
        if found == []:
            self._closer = None
        return None if found is None else [*found]

    def _calls(self, start: int, *, last: bool) -> list[FoundCall] | None:
        """Takes the calls that begin at `start`; [] if there is none, None if it is too early."""
        rest = self._rest[start:]
        beginning = "".join(rest[:200].split())
        if not beginning.startswith(_BEGINNINGS):
            possible = any(whole.startswith(beginning) for whole in _BEGINNINGS)
            return None if possible and not last else []
        end = _end_of_json(rest)
        if end is None:
            return [] if last else None
        try:
            # Not strict: models write line breaks into strings, in SQL above all.
            value = json.loads(rest[:end], strict=False)
        except ValueError:
            return []
        values = value if isinstance(value, list) else [value]
        calls = [call for item in values if (call := self._call(item)) is not None]
        if not calls or len(calls) < len(values):
            self._num_text = start + end
            return []
        self._take(start + end)
        return calls

    def _call(self, value: object) -> FoundCall | None:
        """Returns the call that `value` describes, if it is one of a tool that there is."""
        if isinstance(value, dict) and isinstance(value.get("function"), dict):
            value = value["function"]
        if not isinstance(value, dict) or value.get("name") not in self._tools:
            return None
        arguments = value.get("arguments", value.get("parameters"))
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments, strict=False)
            except ValueError:
                return None
        if not isinstance(arguments, dict):
            return None
        return FoundCall(value["name"], json.dumps(arguments, ensure_ascii=False))

    def _take(self, length: int) -> str:
        taken, self._rest = self._rest[:length], self._rest[length:]
        return taken


def _unfinished_opener(text: str) -> int:
    """Returns how many characters at the end of `text` may be the beginning of an opener."""
    for length in range(min(len(text), len(_OPENING_TAG) - 1), 0, -1):
        tail = text[-length:]
        if _OPENING_TAG.startswith(tail) or "```".startswith(tail):
            return length
    return 0


def _end_of_json(text: str) -> int | None:
    """Returns where the JSON object or list at the start of `text` ends; None if it does not."""
    depth, in_string, escaped = 0, False, False
    for index, character in enumerate(text):
        if in_string:
            in_string = escaped or character != '"'
            escaped = not escaped and character == "\\"
        elif character == '"':
            in_string = True
        elif character in "{[":
            depth += 1
        elif character in "}]":
            depth -= 1
            if depth == 0:
                return index + 1
    return None
