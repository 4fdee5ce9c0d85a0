"""Finds steps and data flow without asking a model: the program runs on marked values.

Each chat model answers with a new marked text, each tool and retriever with a marked result. A
mark that comes up in a later request names where it came from. The user's own code between the
calls does run, on these values; tools do not, unless they ask models themselves or the user
allows it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any  # Any: programs, inputs and call arguments are the user's

from adaseek.errors import AdaseekError
from adaseek.recipe import owner_id
from adaseek.workflow import Edge
from langchain_core.documents import Document
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from adaseek_langchain._compat import stand_ins
from adaseek_langchain._copying import copy_with_models
from adaseek_langchain._markers import Markers, resolved
from adaseek_langchain._messages import json_value, num_leading_system
from adaseek_langchain._program import input_schema, isolated
from adaseek_langchain._prompts import is_task
from adaseek_langchain._recorder import Run
from adaseek_langchain._reports import copied
from adaseek_langchain._seam import MODEL_RUN, OUTPUT, Request, active, current_request
from adaseek_langchain._steps import Observation, observations, output_form, tool_names
from adaseek_langchain._walk import Walk
from adaseek_langchain.hook import AdaSeekHook

__all__ = ["Probed", "probe"]

_MAX_CALLS = 60
_MAX_RESUMES = 3
_TURNS = 2
"""Marked runs of a program: choices and flags take another value in each."""


class _ProbeEnd(Exception):  # noqa: N818  (no error of anybody's)
    """The probe has seen enough calls; a loop waits for an answer that no mark can give."""


@dataclass
class Probed:
    """What marked runs showed.

    Attributes:
        observations: the chat-model calls, with the templates of their instructions.
        others: step id -> kind of tools, retrievers and code.
        models: ids of the chat models that were asked.
        detached: steps whose calls belong to no run of the program.
        troubles: how runs on marked values ended early.
    """

    observations: list[tuple[Observation, str]] = field(default_factory=list)
    others: dict[str, str] = field(default_factory=dict)
    edges: set[Edge] = field(default_factory=set)
    models: set[int] = field(default_factory=set)
    detached: set[str] = field(default_factory=set)
    troubles: list[str] = field(default_factory=list)


def probe(
    program: Any,
    found: Walk,
    examples: Sequence[Any] = (),
    *,
    live_tools: bool | Collection[str] = False,
) -> Probed:
    """Returns what runs of `program` on marked values show; no model is asked.

    Args:
        examples: inputs whose shape to follow; without any, the input schema is.
        live_tools: True, or the names of the tools that may really run.
    """
    probed = Probed()
    for turn in range(_TURNS):
        for attempt in _attempts(program, found, examples):
            marks = Markers(turn)
            trouble = _run(program, found, marks, attempt, live_tools, probed)
            if trouble is None:
                break
            probed.troubles.append(trouble)
    if probed.observations:
        reached = {seen.step for seen, _ in probed.observations}
        probed.edges = {e for e in probed.edges if e.source in {*reached, *probed.others, "INPUT"}}
    return probed


def _attempts(program: Any, found: Walk, examples: Sequence[Any]) -> list[Any]:
    """Returns ways to make a marked input, the likeliest first."""
    ways: list[Any] = [lambda marks, e=example: _marked(e, marks, "") for example in examples[:2]]
    schema = resolved(input_schema(program))
    names = {n for f in found.models if f.prompt for n in f.prompt.input_variables}

    def by_schema(marks: Markers) -> Any:
        made: Any = _Anything(marks)
        for name, part in (schema.get("properties") or {}).items():
            made[name] = _of_part(name, part, marks)
        for name in sorted(names - made.keys()):
            made[name] = marks.text("INPUT", name)
        return made

    def bare(marks: Markers) -> Any:
        return marks.text("INPUT", "input")

    def messages(marks: Markers) -> Any:
        return [HumanMessage(marks.text("INPUT", "input"))]

    takes_text = schema.get("type") == "string"
    takes_list = schema.get("type") == "array"
    last = [bare, by_schema] if takes_text else [by_schema, bare]
    return [*ways, *([messages] if takes_list else []), *last]


def _of_part(name: str, part: Mapping[str, Any], marks: Markers) -> Any:
    if name == "messages" or "Message" in json.dumps(part, default=str)[:4000]:
        return [HumanMessage(marks.text("INPUT", name))]
    if part.get("type") == "integer":
        return marks.turn  # counters begin small; a large mark would end a loop at once
    return marks.of_schema(part, "INPUT", name)


class _Anything(dict[str, Any]):
    """An input that has every key: a function may read what no schema declares."""

    def __init__(self, marks: Markers) -> None:
        super().__init__()
        self._marks = marks

    def __missing__(self, name: str) -> str:
        self[name] = text = self._marks.text("INPUT", str(name))
        return text

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if default is None or name in self else default

    def pop(self, name: str, default: Any = None) -> Any:
        found = self.get(name, default)
        super().pop(name, None)
        return found


def _marked(value: Any, marks: Markers, name: str) -> Any:
    """Returns an example's input with each of its texts replaced by a mark."""
    if isinstance(value, str):
        return marks.text("INPUT", name or "input")
    if isinstance(value, Mapping):
        kept = ("role", "type")
        return {k: v if k in kept else _marked(v, marks, name or str(k)) for k, v in value.items()}
    if isinstance(value, BaseMessage):
        return value.model_copy(update={"content": marks.text("INPUT", name or "input")})
    if isinstance(value, tuple) and len(value) == 2 and value[0] in ("user", "human", "system"):
        return (value[0], _marked(value[1], marks, name))
    if isinstance(value, list | tuple):
        return [_marked(item, marks, name) for item in value]
    return value


def _run(
    program: Any,
    found: Walk,
    marks: Markers,
    make_input: Any,
    live_tools: bool | Collection[str],
    probed: Probed,
) -> str | None:
    """Adds what one marked run shows to `probed`; returns how it ended early, or None."""
    hook = _ProbeHook(marks, found)
    apart, config = isolated(_carrying(program, hook), [hook])
    config["recursion_limit"] = 30
    output, trouble = None, None
    stubs = _Stubs(marks, found, live_tools, hook)
    with stubs.active(), active(hook):
        try:
            output = _invoked(apart, make_input(marks), config, is_async=found.async_only)
        except Exception as error:
            # The user's code on values it was not made for: what it raises says how far it got.
            trouble = f"{type(error).__name__}: {error}"
    trees = hook._recorder.trees()
    runs = [run for tree in trees for run in tree.runs]
    probed.detached |= {t.root.step for t in trees if t.root.kind == "lm" and len(trees) > 1}
    _collect(runs, marks, hook, probed)
    shown = json.dumps(json_value(output), ensure_ascii=False, default=str)
    for mark in marks.found(shown):
        if mark.source != "INPUT":
            probed.edges.add(Edge(mark.source, "OUTPUT", mark.field, evidence="probe"))
    return trouble


def _carrying(program: Any, hook: _ProbeHook) -> Any:
    """Returns a copy of `program` whose models carry `hook` themselves, else `program`.

    So that not even a call in a thread of the program's own, which has no context, asks a model.
    """
    if isinstance(program, BaseChatModel):
        return program

    def carry(model: BaseChatModel) -> BaseChatModel:
        twin = copied(model, {"callbacks": [hook]})
        hook.originals[id(twin)] = model
        return twin

    try:
        return copy_with_models(program, carry).obj
    except (AdaseekError, TypeError, ValueError, AttributeError, RecursionError):
        return program  # something in it cannot be copied; its context carries the hook


def _invoked(program: Any, given: Any, config: Any, *, is_async: bool) -> Any:
    output = _call(program, given, config, is_async=is_async)
    for _ in range(_MAX_RESUMES):
        if not (isinstance(output, Mapping) and output.get("__interrupt__")):
            break
        if "configurable" not in config:
            break
        from langgraph.types import Command

        output = _call(program, Command(resume=True), config, is_async=is_async)
    return output


def _call(program: Any, given: Any, config: Any, *, is_async: bool) -> Any:
    if not is_async:
        return program.invoke(given, config)
    return asyncio.run(program.ainvoke(given, config))


def _collect(runs: Sequence[Run], marks: Markers, hook: _ProbeHook, probed: Probed) -> None:
    for seen in observations(runs):
        probed.observations.append((seen, template_of(seen, marks)))
    for run in sorted(runs, key=lambda r: r.start_s):
        if run.kind is None:
            continue
        if run.request is not None:
            model = run.request.model
            probed.models.add(id(hook.originals.get(id(model), model)))
        step = owner_id(run.step or "/".join(run.path))
        if run.kind != "lm":
            probed.others[step] = run.kind
        given: Any = run.request.messages if run.request is not None else run.given
        text = json.dumps(json_value(given), ensure_ascii=False, default=str)
        for mark in marks.found(text):
            if mark.source != step:
                edge = Edge(mark.source, step, mark.field, evidence="probe")
                probed.edges.add(edge)


def template_of(seen: Observation, marks: Markers) -> str:
    """Returns the constant part of a prompt: of its system messages, or else of its last text."""
    num_system = num_leading_system(seen.messages)
    if num_system:
        return "\n\n".join(marks.template(str(m.text)) for m in seen.messages[:num_system])
    last = str(seen.messages[-1].text) if seen.messages else ""
    template = marks.template(last)
    is_asked = template != last and is_task(template)
    return template if is_asked and isinstance(seen.messages[-1], HumanMessage) else ""


class _ProbeHook(AdaSeekHook):
    """Answers in place of every model."""

    decides_alone = True

    def __init__(self, marks: Markers, found: Walk) -> None:
        super().__init__(max_traces=1000)
        self.marks = marks
        self.found = found
        self.originals: dict[int, BaseChatModel] = {}
        self.visits: Counter[str] = Counter()
        self.num_calls = 0

    def serving(self, model: BaseChatModel, request: Request) -> BaseChatModel:
        return _MarkedModel(hook=self, callbacks=model.callbacks)

    def answer(self, kwargs: Mapping[str, Any]) -> AIMessage:
        """Returns a marked answer in the form that the call's arguments ask for."""
        request = current_request()
        step = owner_id(request.step) if request is not None else "lm"
        self.num_calls += 1
        if self.num_calls > _MAX_CALLS:
            raise _ProbeEnd(f"more than {_MAX_CALLS} calls on marked values")
        form = output_form(kwargs)
        tools = list(kwargs.get("tools") or ())
        visit = self.visits[step]
        self.visits[step] += 1
        if tools and (visit < len(tools) or form == "tool_calls"):
            return self._tool_call(step, kwargs, tools[min(visit, len(tools) - 1)], visit)
        if form == "json_schema":
            value = self.marks.of_schema(_schema(kwargs["response_format"]), step, OUTPUT)
            return AIMessage(json.dumps(value), additional_kwargs={"parsed": value})
        return AIMessage(self._text(step, request.model if request is not None else None))

    def _tool_call(self, step: str, kwargs: Mapping[str, Any], tool: Any, visit: int) -> AIMessage:
        chosen = kwargs.get("tool_choice")
        if isinstance(chosen, Mapping):
            chosen = (chosen.get("function") or chosen).get("name")
        named = [t for t in kwargs["tools"] if tool_names({"tools": [t]}) == (chosen,)]
        body = named[0] if named else tool
        function = (body.get("function") or body) if isinstance(body, Mapping) else {}
        schema = resolved(function.get("parameters") or function.get("input_schema") or {})
        args = self.marks.of_schema(schema, step, "tool_calls") if schema else {}
        name = tool_names({"tools": [body]})[0]
        call = {"name": name, "args": args or {}, "id": f"probe_{visit}_{self.num_calls}"}
        return AIMessage("", tool_calls=[call])

    def _text(self, step: str, model: BaseChatModel | None) -> str:
        original = self.originals.get(id(model), model)
        known = self.found.of(original, step) if original is not None else None
        schema = getattr(known.parser if known is not None else None, "pydantic_object", None)
        if schema is not None and hasattr(schema, "model_json_schema"):
            body = resolved(schema.model_json_schema())
            return json.dumps(self.marks.of_schema(body, step, OUTPUT))
        return self.marks.text(step, OUTPUT)


def _schema(response_format: Any) -> dict[str, Any]:
    if isinstance(response_format, type) and hasattr(response_format, "model_json_schema"):
        return resolved(response_format.model_json_schema())
    if isinstance(response_format, Mapping):
        body = response_format.get("json_schema") or response_format
        found = body.get("schema") or {"type": "object", "properties": {OUTPUT: {}}}
        return resolved(found)
    return {"type": "object", "properties": {OUTPUT: {}}}


class _MarkedModel(BaseChatModel):
    """Stands for any chat model during a probe."""

    hook: Any

    @property
    def _llm_type(self) -> str:
        return "adaseek-probe"

    def _generate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self.hook.answer(kwargs))])


_ACTIVE: ContextVar[_Stubs | None] = ContextVar("adaseek_langchain_stubs", default=None)


class _Stubs:
    """Marked results in place of those of tools and retrievers."""

    def __init__(
        self,
        marks: Markers,
        found: Walk,
        live_tools: bool | Collection[str],
        hook: _ProbeHook,
    ) -> None:
        self._hook = hook
        self._marks = marks
        self._live = live_tools
        self._asking = found.asking_tools

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Makes the stubs answer in this context."""
        token = _ACTIVE.set(self)
        try:
            with stand_ins(_stub_result):
                yield
        finally:
            _ACTIVE.reset(token)

    def result(self, part: Any, name: str, kind: str) -> Any:
        """Returns what stands for the result of a tool or retriever; None: it runs itself."""
        if kind == "retriever":
            run = self._hook._recorder.find(MODEL_RUN.get())
            step = "/".join(run.path) if run is not None and run.path else name
            return [Document(self._marks.text(step, "result"))]
        allowed = self._live if isinstance(self._live, bool) else name in self._live
        if allowed or name in self._asking:
            return None
        text = self._marks.text(f"tool:{name}", "result")
        has_artifact = getattr(part, "response_format", "content") == "content_and_artifact"
        return (text, None) if has_artifact else text


def _stub_result(part: Any, name: str, kind: str) -> Any:
    stubs = _ACTIVE.get()
    return None if stubs is None else stubs.result(part, name, kind)
