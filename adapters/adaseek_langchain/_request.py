"""Rewrites one chat request as a setting says: messages and call arguments in, new ones out.

Pure: nothing is called, and no message is changed in place. What needs more than one request
(reasoning beside bound tools, ensembles) is put together from these parts in `_flow`.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from itertools import pairwise

from adaseek.errors import ConfigurationError
from adaseek.recipe import Demo, Setting
from adaseek.workflow import Step
from langchain_core.messages import BaseMessage, SystemMessage

from adaseek_langchain._chat import (
    ChatRequest,
    is_constrained,
    leading_text,
    num_leading,
    text_of,
    with_text,
)
from adaseek_langchain._demos import demo_messages

__all__ = ["fills_in", "rewritten"]


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


def _with_demos(
    messages: Sequence[BaseMessage], demos: Sequence[Demo], step: Step | None, *, inline: bool
) -> tuple[BaseMessage, ...]:
    """Returns `messages` with the demos behind the leading system messages, before the history.

    There they stay at the same place in every turn, so that a server keeps their prefix cached.
    """
    start = num_leading(messages)
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
    if step is None and num_leading(messages):
        return (with_text(messages[0], new), *messages[1:])
    return (SystemMessage(new), *messages)


def _exchanged(
    messages: Sequence[BaseMessage], original: str, new: str, step: str
) -> tuple[BaseMessage, ...]:
    leading = num_leading(messages)
    if leading > 1:
        values = _filled_in(original, leading_text(messages))
        if values is not None:
            text = _rendered(new, values, original)
            return (with_text(messages[0], text), *messages[leading:])
    # Behind the system messages the latest one is asked first: a history comes before the turn.
    for index in (*range(leading), *reversed(range(leading, len(messages)))):
        values = _filled_in(original, text_of(messages[index]))
        if values is not None:
            changed = with_text(messages[index], _rendered(new, values, original))
            return (*messages[:index], changed, *messages[index + 1 :])
    raise ConfigurationError(
        f"The prompt of step `{step}` no longer holds the instructions that the recipe replaces "
        f"({original[:60]!r}). Tune again, or apply the recipe to the program it was made for."
    )


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
