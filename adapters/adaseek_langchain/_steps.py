"""Steps and edges from what was observed: messages, call arguments, and what flowed where."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal  # Any: call arguments are the provider's
from uuid import UUID

from adaseek.recipe import owner_id
from adaseek.workflow import Call, Edge, Field, ModelRef, Note, Signature, Step, Workflow
from langchain_core.messages import BaseMessage

from adaseek_langchain._messages import num_leading_system
from adaseek_langchain._prompts import template_of
from adaseek_langchain._recorder import Recorder, Run
from adaseek_langchain._seam import INPUT, OUTPUT, TOOL_CALLS
from adaseek_langchain._traces import model_of, trace_of

__all__ = [
    "COGS",
    "FRAMEWORK",
    "Observation",
    "data_edges",
    "lm_step",
    "observations",
    "observed_workflow",
    "short_name",
    "tool_names",
]

FRAMEWORK = "langchain"

COGS = frozenset(
    {"instructions", "few_shot", "reasoning", "model", "params", "ensemble", "decompose"}
)
"""The built-in cogs that the adapter can apply to a chat-model call."""

OutputForm = Literal["text", "fields", "json_schema", "tool_calls"]

_FEWEST_CHARACTERS = 24
"""A text this long in a later input came from there; a shorter one may be there by chance."""

_POSITION = re.compile(r"^\d+\.")

_FORCED = frozenset({"any", "required"})


@dataclass(frozen=True)
class Observation:
    """One call of a chat model: what the program sent, and with which arguments.

    `template` is what the prompt in front of it says, `{name}` for its variables; None: there is
    none, or it cannot be told.
    """

    step: str
    messages: Sequence[BaseMessage]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    model: ModelRef | None = None
    parent: str | None = None
    template: str | None = None


def observations(runs: Iterable[Run]) -> list[Observation]:
    """Returns the chat-model calls among `runs`; what an ensemble asks besides is left out."""
    found = []
    prompts: dict[UUID, Run] = {}
    for run in runs:
        if run.run_type == "prompt" and run.parent is not None:
            prompts[run.parent.id] = run
        if run.kind != "lm" or (run.request is not None and "#" in run.step):
            continue
        request = run.request
        messages = request.messages if request else run.given
        prompt = prompts.get(run.parent.id) if run.parent is not None else None
        found.append(
            Observation(
                step=run.step,
                messages=messages,
                kwargs=request.kwargs if request else run.parameters or {},
                model=model_of(run),
                parent=_container(run),
                template=template_of(prompt.settings, prompt.given, messages) if prompt else None,
            )
        )
    return found


def _container(run: Run) -> str | None:
    """Returns the tool that the call is made in, if any."""
    parent = run.parent
    while parent is not None and parent.kind != "tool":
        parent = parent.parent
    return parent.step if parent is not None else None


def lm_step(seen: Sequence[Observation], template: str | None = None, num_demos: int = 0) -> Step:
    """Returns the step that the observations `seen` (at least one) are calls of.

    Args:
        template: its instructions, `{name}` where the program fills something in; None: what
            the observations have in common.
    """
    first = seen[0]
    tools = tool_names(first.kwargs)
    instructions = template if template is not None else _common([_system(o) for o in seen])
    form = output_form(first.kwargs)
    outputs = [Field(OUTPUT, "output")]
    if tools and form == "text":
        outputs.append(Field(TOOL_CALLS, "output", "list"))
    blocked = dict(_blocked(form, first.kwargs, instructions))
    return Step(
        id=first.step,
        name=short_name(first.step),
        parent=first.parent,
        signature=Signature(instructions, (Field(INPUT, "input"), *outputs), form),
        model=first.model,
        tools=tools,
        num_demos=num_demos,
        allowed=COGS - blocked.keys(),
        blocked=blocked,
    )


def output_form(kwargs: Mapping[str, Any]) -> OutputForm:
    """Returns what decides the form of the answer: a forced tool, a schema, or nothing."""
    choice = kwargs.get("tool_choice")
    forced = isinstance(choice, Mapping) or choice in _FORCED or choice in tool_names(kwargs)
    if kwargs.get("tools") and choice and forced:
        return "tool_calls"
    return "json_schema" if kwargs.get("response_format") else "text"


def tool_names(kwargs: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the names of the tools that are bound to a call."""
    names = []
    for tool in kwargs.get("tools") or ():
        if isinstance(tool, Mapping):
            body = tool.get("function") or tool
            names.append(str(body.get("name") or body.get("type")))
        else:
            names.append(str(getattr(tool, "name", None) or getattr(tool, "__name__", tool)))
    return tuple(names)


def _blocked(
    form: OutputForm, kwargs: Mapping[str, Any], instructions: str
) -> Iterable[tuple[str, str]]:
    if form == "tool_calls":
        yield "reasoning", "it must answer with a tool call, and its parser reads nothing else"
        yield "few_shot", "it must answer with a tool call, which an example cannot hold"
        yield "ensemble", "it must answer with a tool call, and running it may have effects"
    elif form == "json_schema":
        yield "reasoning", "its answer is bound to a schema that has no field for reasoning"
    if kwargs.get("stop"):
        yield "reasoning", "it stops at given words, which reasoning might hold"


def _system(seen: Observation) -> str:
    messages = seen.messages[: num_leading_system(seen.messages)]
    return "\n\n".join(str(message.text) for message in messages)


def _common(texts: Sequence[str]) -> str:
    """Returns what `texts` have in common, `{varying}` in place of the rest."""
    distinct = sorted(set(texts))
    if len(distinct) == 1:
        return distinct[0]
    head = _common_start(distinct)
    tail = _common_start([text[len(head) :][::-1] for text in distinct])[::-1]
    return f"{_escaped(head)}{{varying}}{_escaped(tail)}"


def _common_start(texts: Sequence[str]) -> str:
    first, last = min(texts), max(texts)
    pairs = enumerate(zip(first, last, strict=False))
    return first[: next((i for i, (a, b) in pairs if a != b), min(len(first), len(last)))]


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def data_edges(calls: Sequence[Call], inputs: Mapping[str, Any], output: Any) -> set[Edge]:
    """Returns who got whose output, told by long texts that come up again, by `trace` evidence."""
    edges: set[Edge] = set()
    sources = [("INPUT", name, text) for name, value in inputs.items() for text in _texts(value)]
    for call in sorted(calls, key=lambda c: c.start_s):
        step = owner_id(call.step)
        given = json.dumps(dict(call.inputs), ensure_ascii=False, default=str)
        for source, name, text in sources:
            if source != step and _escaped_json(text) in given:
                edges.add(Edge(source, step, name, evidence="trace"))
        found = [(step, n, t) for n, value in call.outputs.items() for t in _texts(value)]
        sources.extend(found)
    shown = json.dumps(output, ensure_ascii=False, default=str)
    for source, name, text in sources:
        if source != "INPUT" and _escaped_json(text) in shown:
            edges.add(Edge(source, "OUTPUT", name, evidence="trace"))
    return edges


def _escaped_json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        if len(value) >= _FEWEST_CHARACTERS:
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def observed_workflow(recorder: Recorder, base: Workflow | None) -> Workflow:
    """Returns the workflow that finished invocations show, the steps of `base` kept as they are."""
    trees = recorder.trees()
    by_step: dict[str, list[Observation]] = {}
    for tree in trees:
        for seen in observations(tree.runs):
            by_step.setdefault(seen.step, []).append(seen)
    steps: dict[str, Step] = dict(base.steps) if base is not None else {}
    for step, seen_calls in by_step.items():
        if step not in steps:
            templates = {seen.template for seen in seen_calls}
            steps[step] = lm_step(seen_calls, templates.pop() if len(templates) == 1 else None)
    edges = set(base.edges) if base is not None else set()
    notes = {note.text: note for note in (base.notes if base is not None else ())}
    for tree in trees:
        trace = trace_of(tree, recorder.priced)
        for call in trace.calls:
            owner = owner_id(call.step)
            if owner not in steps:
                steps[owner] = Step(owner, call.kind, short_name(owner), dynamic=base is not None)
            if call.kind == "lm" and not call.error and not call.usage.input_tokens:
                text = f"The model of `{owner}` reports no usage: its tokens and cost are unknown."
                notes[text] = Note("warning", text, owner)
        given = tree.root.given if isinstance(tree.root.given, Mapping) else {}
        edges |= data_edges(trace.calls, given, trace.output)
    return replace(
        base or Workflow(FRAMEWORK, {}),
        steps=steps,
        edges=frozenset(edges),
        notes=tuple(notes.values()),
    )


def short_name(step: str) -> str:
    """Returns the last part of a step's path that the user named, without its position."""
    parts = [_POSITION.sub("", part) for part in step.split("/")]
    named = [part for part in parts if part != "lm"]
    return named[-1].removeprefix("tool:") if named else "lm"
