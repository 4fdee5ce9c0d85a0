"""What clients send to the intercept door, checked. No vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["InterceptError", "NewIntercept", "Release", "Resume", "Triggers"]

_MAX_TRIGGERS = 64
_MAX_TRIGGER_CHARACTERS = 128
_TRIGGER_KEYS = ("stop_token_ids", "stop", "tool_call")
_RESUME_KEYS = ("text", "token_ids", "stream", "cache_salt", "max_tokens")
# Each would have to carry state from before the pause to after it, or has no place in the answer.
_UNSUPPORTED = (
    *("n", "echo", "suffix", "best_of", "use_beam_search", "prompt_embeds"),
    *("logprobs", "top_logprobs", "prompt_logprobs", "truncate_prompt_tokens"),
    *(
        "response_format",
        "structured_outputs",
        "min_tokens",
        "kv_transfer_params",
        "ec_transfer_params",
    ),
)


class InterceptError(Exception):
    """A request that cannot be served; the message says why and how to cure it.

    Args:
        status: the HTTP status of the answer.
        message: name, value, rule and cure.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Triggers:
    """Where a generation pauses instead of ending.

    Args:
        stop_token_ids: after one of these tokens.
        stop: after one of these texts; the token that completes it stays in the context.
        tool_call: where the model ends its turn and the turn ends in a tool call.
    """

    stop_token_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    tool_call: bool = False

    @classmethod
    def read(cls, value: object) -> Triggers:
        """Returns the triggers in a request's body.

        Raises:
            InterceptError: they are missing, or one is wrong.
        """
        if not isinstance(value, Mapping) or not value:
            raise _wrong("triggers", value, f"an object with one of {', '.join(_TRIGGER_KEYS)}")
        _check_keys("triggers", value, _TRIGGER_KEYS)
        stop = value.get("stop", [])
        read = cls(
            stop_token_ids=_tokens("triggers.stop_token_ids", value.get("stop_token_ids", [])),
            stop=_texts("triggers.stop", [stop] if isinstance(stop, str) else stop),
            tool_call=_flag("triggers.tool_call", value.get("tool_call", False)),
        )
        if len(read.stop_token_ids) + len(read.stop) > _MAX_TRIGGERS:
            rule = f"no more than {_MAX_TRIGGERS} tokens and texts together"
            raise _wrong("triggers", f"{len(read.stop_token_ids) + len(read.stop)} of them", rule)
        if read == cls():
            raise _wrong("triggers", dict(value), "such that the generation can pause somewhere")
        return read


@dataclass(frozen=True)
class NewIntercept:
    """A request for a new intercept.

    Args:
        body: the rest of it: a chat completion's body if it holds `messages`, else a completion's.
        triggers: where to pause.
        max_tokens: tokens that the model may write in all; None for as many as fit.
        stream: whether to answer token by token.
        tenant: its cache salt; "" without one.
    """

    body: dict[str, object]
    triggers: Triggers
    max_tokens: int | None
    stream: bool
    tenant: str

    @classmethod
    def read(cls, body: Mapping[str, object]) -> NewIntercept:
        """Returns the request.

        Raises:
            InterceptError: a field that only this door knows is wrong, or one that completions
                know has no meaning here.
        """
        rest = dict(body)
        _check_supported(rest)
        if ("messages" in rest) == ("prompt" in rest):
            raise InterceptError(400, "An intercept needs either `messages` or `prompt`.")
        limits = [rest.pop(name, None) for name in ("max_completion_tokens", "max_tokens")]
        limit = next((limit for limit in limits if limit is not None), None)
        rest.pop("stream_options", None)  # the usage is always in the answer
        return cls(
            triggers=Triggers.read(rest.pop("triggers", None)),
            max_tokens=None if limit is None else _count("max_tokens", limit),
            stream=_flag("stream", rest.pop("stream", None) or False),
            tenant=_text("cache_salt", rest.get("cache_salt") or ""),
            body=rest,
        )


@dataclass(frozen=True)
class Resume:
    """A tool's answer.

    Args:
        text: as text, or
        token_ids: as tokens, which join the context as they are.
        max_tokens: tokens that the model may write from now on; None for what is left.
        stream: whether to answer token by token.
        tenant: the intercept's cache salt; "" without one.
    """

    text: str | None
    token_ids: tuple[int, ...]
    max_tokens: int | None
    stream: bool
    tenant: str

    @classmethod
    def read(cls, body: Mapping[str, object]) -> Resume:
        """Returns the request.

        Raises:
            InterceptError: a field is unknown or wrong.
        """
        _check_keys("body", body, _RESUME_KEYS)
        if ("text" in body) == ("token_ids" in body):
            raise InterceptError(400, "A resume needs either `text` or `token_ids`.")
        limit = body.get("max_tokens")
        return cls(
            text=_text("text", body["text"]) if "text" in body else None,
            token_ids=_tokens("token_ids", body.get("token_ids", [])),
            max_tokens=None if limit is None else _count("max_tokens", limit),
            stream=_flag("stream", body.get("stream") or False),
            tenant=_text("cache_salt", body.get("cache_salt") or ""),
        )


@dataclass(frozen=True)
class Release:
    """An order to let a session's KV cache go.

    Args:
        session: the session.
        tenant: its cache salt; "" without one.
    """

    session: str
    tenant: str

    @classmethod
    def read(cls, body: Mapping[str, object]) -> Release:
        """Returns the order.

        Raises:
            InterceptError: a field is unknown or wrong.
        """
        _check_keys("body", body, ("session_id", "cache_salt"))
        return cls(
            session=_text("session_id", body.get("session_id")),
            tenant=_text("cache_salt", body.get("cache_salt") or ""),
        )


def _check_supported(body: Mapping[str, object]) -> None:
    for name in _UNSUPPORTED:
        if (value := body.get(name)) and not (name in ("n", "best_of") and value == 1):
            raise _wrong(name, value, "left out: an intercept continues one plain text")
    if body.get("tool_choice") not in (None, "auto", "none"):
        rule = "`auto` or `none`: a forced call cannot be continued after a pause"
        raise _wrong("tool_choice", body["tool_choice"], rule)


def _check_keys(name: str, value: Mapping[str, object], known: tuple[str, ...]) -> None:
    if unknown := sorted(str(key) for key in value if key not in known):
        raise _wrong(name, unknown, f"an object of {', '.join(known)}")


def _tokens(name: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(token) is int and token >= 0 for token in value):
        raise _wrong(name, value, "a list of token ids")
    return tuple(value)


def _texts(name: str, value: object) -> tuple[str, ...]:
    def is_fit(text: object) -> bool:
        return isinstance(text, str) and 0 < len(text) <= _MAX_TRIGGER_CHARACTERS

    if not isinstance(value, list) or not all(map(is_fit, value)):
        rule = f"a text or a list of texts of 1 to {_MAX_TRIGGER_CHARACTERS} characters"
        raise _wrong(name, value, rule)
    return tuple(value)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise _wrong(name, value, "a text")
    return value


def _count(name: str, value: object) -> int:
    if type(value) is not int or value < 1:
        raise _wrong(name, value, "a whole number >= 1")
    return value


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise _wrong(name, value, "true or false")
    return value


def _wrong(name: str, value: object, rule: str) -> InterceptError:
    return InterceptError(400, f"`{name}` is {str(value)[:120]!r}, but must be {rule}.")
