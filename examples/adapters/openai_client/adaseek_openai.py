"""AdaSeek for plain functions that call `openai.OpenAI().chat.completions.create`.

An adapter in one file. A function becomes a program with `@tunable`; each place in it that asks a
model is a step, named by its position in the code or by `with step("name")`.
"""

from __future__ import annotations

import functools
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from inspect import signature
from typing import Any

import openai
from adaseek import workflow as core
from adaseek._canonical import fingerprint
from adaseek.evaluation.base import RunContext
from adaseek.evaluation.latency import critical_path
from adaseek.hooks import hookimpl
from adaseek.recipe import Recipe, Setting
from openai.resources.chat.completions import Completions
from openai.types.chat import ChatCompletion

COGS = frozenset({"model", "params", "few_shot", "instructions"})
BLOCKED = dict.fromkeys(("ensemble", "reasoning"), "this adapter only changes single requests")
FIELDS = (core.Field("prompt", "input"), core.Field("text", "output"))

_run: ContextVar[_Run | None] = ContextVar("adaseek_openai_run", default=None)
_name: ContextVar[str] = ContextVar("adaseek_openai_step", default="")


def _create(self: Completions, **request: Any) -> Any:
    run = _run.get()
    return run.create(self._client, request) if run else _send(self, **request)


_send = Completions.create
Completions.create = functools.wraps(_send)(_create)  # type: ignore[method-assign]


class tunable:  # noqa: N801 - a decorator
    """Makes a function a program that AdaSeek can tune; called, it behaves as the function."""

    def __init__(self, function: Callable[..., Any], recipe: Recipe | None = None) -> None:
        self.function, self.recipe = function, recipe or Recipe()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _Run(self.recipe).of(self.function, *args, **kwargs)


@contextmanager
def step(name: str) -> Iterator[None]:
    """Names the calls inside, in place of their position in the code."""
    token = _name.set(name)
    try:
        yield
    finally:
        _name.reset(token)


class _Run:
    """One run of a function: decides what its requests say, and notes the calls."""

    def __init__(self, recipe: Recipe, context: RunContext | None = None) -> None:
        self.recipe, self.context, self.count = recipe, context or RunContext(), itertools.count()
        self.calls: list[core.Call] = []

    def of(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        token = _run.set(self)
        try:
            return function(*args, **kwargs)
        finally:
            _run.reset(token)

    def create(self, client: Any, request: dict[str, Any]) -> Any:
        where, base, messages = _place(), str(client.base_url).rstrip("/"), request["messages"]
        setting = self.recipe.setting(where)
        model = setting.model or core.ModelRef(str(request["model"]), base)
        request = {**request, **(setting.params or {}), "model": model.id}
        if model.endpoint not in ("", base):
            client = client.with_options(base_url=model.endpoint)
        if setting.instructions is not None or setting.demos:
            request["messages"] = _rewritten(messages, setting)
        inputs = {"prompt": messages[-1]["content"]}
        call = core.Call(str(next(self.count)), where, inputs=inputs, model=model)
        answer, start = None, time.monotonic()
        try:
            answer = _send(Completions(client), **request)
            return answer
        finally:
            self.note(call, answer, start, time.monotonic())

    def note(self, call: core.Call, answer: Any, start: float, end: float) -> None:
        usage, outputs, price = core.Usage(cost_usd=None), {}, self.context.price
        error = None if answer is not None else repr(sys.exception())
        if isinstance(answer, ChatCompletion):  # a stream's answer is not known yet
            outputs = {"text": answer.choices[0].message.content}
            if (told := answer.usage) is not None:
                cached = told.prompt_tokens_details and told.prompt_tokens_details.cached_tokens
                usage = core.Usage(told.prompt_tokens, told.completion_tokens, cached or 0, 1, None)
        if price and call.model and usage.requests:
            usage = replace(usage, cost_usd=price(call.model, usage, end - start))
        call = replace(call, start_s=start, end_s=end, duration_s=end - start)
        self.calls.append(replace(call, outputs=outputs, usage=usage, error=error))


class _Probe(_Run):
    """A run that sends nothing: each answer is a marker, found again in what it flows into."""

    def __init__(self, inputs: Mapping[str, str]) -> None:
        super().__init__(Recipe())
        self.steps: dict[str, core.Step] = {}
        self.edges: set[core.Edge] = set()
        self.marks = dict.fromkeys(inputs.values(), "INPUT")

    def create(self, client: Any, request: dict[str, Any]) -> Any:
        where, messages = _place(), request["messages"]
        system = "\n".join(str(m["content"]) for m in messages if m["role"] == "system")
        holds = any(mark in system for mark in self.marks)
        blocked = BLOCKED | ({"instructions": "its system message holds data"} if holds else {})
        model = core.ModelRef(str(request["model"]), str(client.base_url).rstrip("/"))
        told, allowed = core.Signature("" if holds else system, FIELDS, "text"), COGS - set(blocked)
        found = core.Step(where, signature=told, model=model, allowed=allowed, blocked=blocked)
        self.steps.setdefault(where, found)
        self.link(messages, where)
        message = {"role": "assistant", "content": f"<<{next(self.count)}:{where}>>"}
        self.marks[message["content"]] = where
        return ChatCompletion.construct(choices=[{"index": 0, "message": message}])

    def link(self, value: Any, target: str) -> None:
        sources = {source for mark, source in self.marks.items() if mark in str(value)}
        self.edges |= {core.Edge(source, target, evidence="probe") for source in sources}


def _place() -> str:
    frame: Any = sys._getframe(1)
    while frame.f_globals["__name__"].partition(".")[0] in ("openai", __name__):
        frame = frame.f_back
    line = frame.f_lineno - frame.f_code.co_firstlineno
    return _name.get() or f"{frame.f_code.co_qualname}+{line}"


def _rewritten(messages: Sequence[Any], setting: Setting) -> list[Any]:
    system = [message for message in messages if message["role"] == "system"]
    rest = [message for message in messages if message["role"] != "system"]
    if setting.instructions is not None:
        system = [{"role": "system", "content": setting.instructions}]
    for demo in setting.demos or ():
        system += [{"role": "user", "content": demo.values["prompt"]}]
        system += [{"role": "assistant", "content": demo.values["text"]}]
    return [*system, *rest]


@hookimpl
def adaseek_translate(obj: Any) -> core.Workflow | None:
    if not isinstance(obj, tunable):
        return None
    inputs = {name: f"<<{name}>>" for name in signature(obj.function).parameters}
    probe, notes = _Probe(inputs), list[core.Note]()
    try:
        probe.link(probe.of(obj.function, **inputs), "OUTPUT")
    except Exception as error:  # the user's code may refuse a marker; what came before it is known
        notes.append(core.Note("warning", f"probing ended with {type(error).__name__}: {error}"))
    edges = frozenset(probe.edges)
    return core.Workflow("openai", probe.steps, edges, tuple(inputs), notes=tuple(notes))


@hookimpl
def adaseek_apply(obj: Any, workflow: core.Workflow, recipe: Recipe) -> Any:
    recipe.check(workflow)
    return tunable(obj.function, recipe) if isinstance(obj, tunable) else None


@hookimpl
def adaseek_run(obj: Any, recipe: Recipe, example: Any, context: RunContext) -> Any:
    if not isinstance(obj, tunable):
        return None
    run, output, error, failed = _Run(recipe, context), None, None, False
    try:
        output = run.of(obj.function, **example.inputs)
    except Exception as raised:  # whatever the user's function raises is the run's result
        error, failed = f"{type(raised).__name__}: {raised}", isinstance(raised, openai.OpenAIError)
    kind: core.ErrorKind | None = "endpoint" if failed else "program" if error else None
    return core.Trace(tuple(run.calls), output, critical_path(run.calls), error, kind)


@hookimpl
def adaseek_example(obj: Any, raw: Any) -> core.Example | None:
    if not isinstance(obj, tunable):
        return None
    inputs = {name: raw[name] for name in signature(obj.function).parameters}
    labels = {name: value for name, value in raw.items() if name not in inputs}
    return core.Example(fingerprint([inputs, labels]), inputs, labels, raw)
