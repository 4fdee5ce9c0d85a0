"""Templates of prompts that ran: what of a request is constant, and what the program filled in.

A run of a prompt template tells its own serialised form, so that an observer learns what a reader
of the program sees: `{name}` for variables and for partial variables (format instructions, say),
which new instructions must not lose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any  # Any: serialised forms are JSON of LangChain's making

from langchain_core.messages import BaseMessage, HumanMessage

from adaseek_langchain._messages import num_leading_system

__all__ = ["is_task", "template_of"]

_FILLED = ("SystemMessagePromptTemplate", "HumanMessagePromptTemplate")
_CONSTANT = ("SystemMessage", "HumanMessage")


def template_of(
    serialized: Mapping[str, Any] | None, given: Any, messages: Sequence[BaseMessage]
) -> str | None:
    """Returns the instructions that a prompt gave to a request, `{name}` for its variables.

    Args:
        serialized: the prompt's serialised form.
        given: what the prompt was given: name -> value.
        messages: the request. If it says something else than the prompt, there is no template.
    """
    body = _arguments(serialized)
    if not isinstance(given, Mapping):
        given = dict.fromkeys(body.get("input_variables") or (), given)
    values = {**(body.get("partial_variables") or {}), **given}
    num_system = num_leading_system(messages)
    texts = [str(message.text) for message in messages[: num_system or len(messages)]]
    if num_system:
        parts = [_template(part) for part in (body.get("messages") or ())[:num_system]]
        return _checked(parts, values, texts)
    if not messages or not isinstance(messages[-1], HumanMessage):
        return None
    # Without a system message the task stands in what is asked.
    last = body if "template" in body else (body.get("messages") or [None])[-1]
    found = _checked([_template(last)], values, texts[-1:])
    return found if found is None or (found != texts[-1] and is_task(found)) else ""


def is_task(template: str) -> bool:
    """Returns whether `template` says more than what is filled in."""
    return any(character.isalpha() for character in _without_names(template))


def _without_names(template: str) -> str:
    kept, depth = [], 0
    for character in template:
        depth += (character == "{") - (character == "}")
        if depth <= 0:
            kept.append(character)
    return "".join(kept)


def _arguments(serialized: Any) -> Mapping[str, Any]:
    body = serialized.get("kwargs") if isinstance(serialized, Mapping) else None
    return body if isinstance(body, Mapping) else {}


def _template(part: Any) -> str | None:
    """Returns the f-string that one message of a prompt is made by; None if it is no such."""
    name = (part.get("id") or [""])[-1] if isinstance(part, Mapping) else ""
    body = part if isinstance(part, Mapping) and "template" in part else _arguments(part)
    if name in _CONSTANT and isinstance(body.get("content"), str):
        return str(body["content"]).replace("{", "{{").replace("}", "}}")
    if name in _FILLED:
        body = _arguments(body.get("prompt"))
    is_plain = body.get("template_format", "f-string") == "f-string"
    return body["template"] if is_plain and isinstance(body.get("template"), str) else None


def _checked(
    parts: Sequence[str | None], values: Mapping[str, Any], texts: Sequence[str]
) -> str | None:
    """Returns `parts` as one template, if they give `texts`; a text without names as it is."""
    known = [part for part in parts if part is not None]
    if len(known) != len(texts):
        return None
    try:
        filled = [part.format(**values) for part in known]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return None
    if filled != list(texts):
        return None
    whole = "\n\n".join(known)
    is_constant = whole.replace("{{", "").replace("}}", "").find("{") < 0
    return "\n\n".join(texts) if is_constant else whole
