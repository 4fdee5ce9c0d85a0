"""The wire format in which a client tells a model server what its session does next.

A hint rides in a chat request beside the messages and never changes the answer: `session_id` at
the top of the body, the rest as flat values in `vllm_xargs`. A server that does not know them
ignores them. The sender's side is strict, so that a mistake shows; a server should read with
distrust and leave out what it cannot use.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any  # Any: a request's body holds JSON values
from urllib.parse import urlsplit

from adaseek.errors import ConfigurationError, require

__all__ = ["MAX_NAME_CHARACTERS", "MAX_SECONDS", "Hint", "is_name", "may_be_told"]

MAX_NAME_CHARACTERS = 128
"""Longest name of a session or tool: hints are kept by the server, so their size is bounded."""

MAX_SECONDS = 86_400.0
"""Longest duration that a hint may name: a day."""

_SESSION, _ARGUMENTS = "session_id", "vllm_xargs"
_TOOL, _EXPECT, _KEEP, _FINAL = "kvret_tool", "kvret_expect_s", "kvret_ttl_s", "kvret_final"


_REFUSE = ("openai.com", "azure.com")
"""Providers whose own servers refuse fields that they do not know."""


def may_be_told(url: object) -> bool:
    """Returns whether a server at `url` may be sent hints: one that is given by URL, and is not
    known to refuse them."""
    host = urlsplit(url).hostname if isinstance(url, str) else None
    if not host:
        return False
    return not any(host == name or host.endswith(f".{name}") for name in _REFUSE)


@dataclass(frozen=True)
class Hint:
    """What is known about the session that a request belongs to.

    Attributes:
        session: names the conversation; requests with the same name share their context. Choose
            names that tell nothing about a person.
        tool: the tool that will be called after this request.
        expected_s: how long that tool takes, in seconds.
        keep_s: longest time to keep the context for, in seconds.
        final: no request of this session follows.

    Raises:
        ConfigurationError: for a value that cannot be sent.
    """

    session: str = ""
    tool: str = ""
    expected_s: float | None = None
    keep_s: float | None = None
    final: bool = False

    def __post_init__(self) -> None:
        for name in ("session", "tool"):
            _check_name(name, getattr(self, name))
        for name in ("expected_s", "keep_s"):
            _check_seconds(name, getattr(self, name))
        require(isinstance(self.final, bool), "final", self.final, "must be True or False")

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to send."""
        return self == Hint()

    def to_body(self) -> dict[str, Any]:
        """Returns the fields to add to a request's body; none for an empty hint."""
        arguments: dict[str, Any] = {}
        if self.tool:
            arguments[_TOOL] = self.tool
        if self.expected_s is not None:
            arguments[_EXPECT] = self.expected_s
        if self.keep_s is not None:
            arguments[_KEEP] = self.keep_s
        if self.final:
            arguments[_FINAL] = 1  # the protocol takes texts, numbers and lists of them
        body: dict[str, Any] = {_SESSION: self.session} if self.session else {}
        return {**body, _ARGUMENTS: arguments} if arguments else body

    def added_to(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Returns `body` with this hint's fields; what the body itself says wins."""
        mine = self.to_body()
        if not mine:
            return dict(body)
        theirs = body.get(_ARGUMENTS)
        merged = {**mine, **body}
        if isinstance(theirs, Mapping) and _ARGUMENTS in mine:
            merged[_ARGUMENTS] = {**mine[_ARGUMENTS], **theirs}
        return merged

    @classmethod
    def from_body(cls, body: Mapping[str, Any]) -> Hint:
        """Returns the hint in a request's body, an empty one if there is none.

        Raises:
            ConfigurationError: for a field that `to_body` would not have written.
        """
        arguments = body.get(_ARGUMENTS) or {}
        if not isinstance(arguments, Mapping):
            raise ConfigurationError(
                f"`{_ARGUMENTS}` is {arguments!r}, but must be an object of flat values."
            )
        final = arguments.get(_FINAL, 0)
        require(final in (0, 1), _FINAL, final, "must be 0 or 1")
        return cls(
            session=body.get(_SESSION) or "",
            tool=arguments.get(_TOOL) or "",
            expected_s=arguments.get(_EXPECT),
            keep_s=arguments.get(_KEEP),
            final=bool(final),
        )


def is_name(text: str) -> bool:
    """Returns whether `text` may name a session or a tool in a hint."""
    return 0 < len(text) <= MAX_NAME_CHARACTERS and text.isprintable()


def _check_name(name: str, value: object) -> None:
    require(isinstance(value, str), name, value, "must be a text")
    text = str(value)
    rule = f"must have at most {MAX_NAME_CHARACTERS} characters"
    require(len(text) <= MAX_NAME_CHARACTERS, name, text, rule)
    require(text.isprintable(), name, text, "must hold printable characters only")


def _check_seconds(name: str, value: object) -> None:
    if value is None:
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    require(is_number, name, value, "must be a number of seconds")
    seconds = float(value) if isinstance(value, int | float) else math.nan
    rule = f"must be from 0 to {MAX_SECONDS:g}"
    require(0 <= seconds <= MAX_SECONDS, name, value, rule)
