"""The conformance suite: a good adapter passes it, and each broken promise fails its check."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from adaseek._canonical import fingerprint
from adaseek.errors import AdaseekError
from adaseek.evaluation.base import RunContext
from adaseek.hooks import hookimpl
from adaseek.recipe import Recipe
from adaseek.testing.conformance import AdapterConformance
from adaseek.testing.loopback import LoopbackServer
from adaseek.workflow import (
    Call,
    Edge,
    Example,
    Field,
    ModelRef,
    Signature,
    Step,
    Trace,
    Usage,
    Workflow,
)

COGS = frozenset({"instructions", "few_shot", "model"})
FIELDS = (Field("q", "input"), Field("a", "output"))


@dataclass
class Asker:
    """The smallest program there is: one request."""

    url: str
    told: str = "Answer."
    error: BaseException | None = None
    recipe: Recipe = field(default_factory=Recipe)

    def body(self, q: str) -> dict[str, Any]:
        setting = self.recipe.setting("ask")
        model = setting.model or ModelRef("m")
        turns = [(d.values["q"], d.values["a"]) for d in setting.demos or ()]
        shown = [
            {"role": role, "content": text}
            for turn in turns
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
        told = {"role": "system", "content": setting.instructions or self.told}
        return {"model": model.id, "messages": [told, *shown, {"role": "user", "content": q}]}

    def post(self, body: Mapping[str, Any]) -> Any:
        request = urllib.request.Request(
            f"{self.url}/chat/completions", json.dumps(body).encode(), method="POST"
        )
        return urllib.request.urlopen(request)

    def answer(self, q: str) -> dict[str, Any]:
        with self.post(self.body(q)) as response:
            found: dict[str, Any] = json.load(response)
        if self.error is not None:
            raise self.error
        return found

    def stream(self, q: str) -> Iterator[str]:
        with self.post({**self.body(q), "stream": True}) as response:
            for line in response:
                if line.startswith(b"data: {"):
                    yield line.decode()

    def __call__(self, q: str) -> str:
        return str(self.answer(q)["choices"][0]["message"]["content"])


class Adapter:
    """An adapter that keeps every promise; tests break one at a time."""

    @hookimpl
    def adaseek_translate(self, obj: Any) -> Workflow:
        signature = Signature(obj.told, FIELDS)
        step = Step("ask", signature=signature, model=ModelRef("m", obj.url), allowed=COGS)
        edges = frozenset({Edge("INPUT", "ask"), Edge("ask", "OUTPUT")})
        return Workflow("asker", {"ask": step}, edges)

    @hookimpl
    def adaseek_apply(self, obj: Any, workflow: Workflow, recipe: Recipe) -> Any:
        recipe.check(workflow)
        return replace(obj, recipe=recipe)

    @hookimpl
    def adaseek_run(
        self, obj: Any, recipe: Recipe, example: Example, context: RunContext
    ) -> Trace | None:
        usage, output, error, kind, done = Usage(), None, None, None, None
        try:
            done = replace(obj, recipe=recipe, error=None).answer(**example.inputs)
            output = done["choices"][0]["message"]["content"]
            if obj.error is not None:
                raise obj.error
        except Exception as raised:
            told = raised.read().decode() if hasattr(raised, "read") else ""
            error, output = f"{type(raised).__name__}: {raised} {told}", None
            kind = "program" if raised is obj.error else "endpoint"
        if done is not None:
            usage = self.usage(done["usage"], context)
        call = Call("0", "ask", None, "lm", 0.0, 1.0, 1.0, dict(example.inputs), {"a": output})
        call = replace(call, model=ModelRef("m", obj.url), usage=usage)
        return Trace((call,), output, 1.0, error, kind)

    def usage(self, told: Mapping[str, Any], context: RunContext) -> Usage:
        cached = told["prompt_tokens_details"]["cached_tokens"]
        usage = Usage(told["prompt_tokens"], told["completion_tokens"], cached, 1, None)
        price = context.price
        return replace(usage, cost_usd=price(ModelRef("m"), usage, 1.0)) if price else usage

    @hookimpl
    def adaseek_example(self, obj: Any, raw: Any) -> Example:
        return Example(fingerprint(raw), {"q": raw["q"]}, {}, raw)


class Suite(AdapterConformance):
    plugins = (Adapter(),)

    def program(self, url: str) -> Any:
        return Asker(url)

    def changed(self, url: str) -> Any:
        return Asker(url, "Reply.")

    def failing(self, url: str, error: BaseException) -> Any:
        return Asker(url, error=error)

    def example(self) -> Any:
        return {"q": "what"}

    def call(self, program: Any, example: Example) -> Any:
        return program(**example.inputs)

    def stream(self, program: Any, example: Example) -> Iterable[Any]:
        return program.stream(**example.inputs)


class TestAGoodAdapter(Suite):
    """Passes every check."""


class Guessing(Adapter):
    @hookimpl
    def adaseek_translate(self, obj: Any) -> Workflow:
        workflow = super().adaseek_translate(obj)
        (step,) = workflow.steps.values()
        return replace(workflow, steps={f"ask{id(obj)}": replace(step, id=f"ask{id(obj)}")})


class Chatty(Adapter):
    @hookimpl
    def adaseek_translate(self, obj: Any) -> Workflow:
        obj("hello")
        return super().adaseek_translate(obj)


class Deaf(Adapter):
    @hookimpl
    def adaseek_apply(self, obj: Any) -> Any:
        return replace(obj)


class Blind(Adapter):
    @hookimpl
    def adaseek_translate(self, obj: Any) -> Workflow:
        return super().adaseek_translate(replace(obj, told="Whatever."))


class Meddling(Adapter):
    @hookimpl
    def adaseek_apply(self, obj: Any, workflow: Workflow, recipe: Recipe) -> Any:
        recipe.check(workflow)
        obj.recipe = recipe
        return obj


class Adding(Adapter):
    @hookimpl
    def adaseek_apply(self, obj: Any, workflow: Workflow, recipe: Recipe) -> Any:
        return replace(super().adaseek_apply(obj, workflow, recipe), told=f"{obj.told} ")


class Miscounting(Adapter):
    def usage(self, told: Mapping[str, Any], context: RunContext) -> Usage:
        return replace(super().usage(told, context), input_tokens=1)


class Free(Adapter):
    def usage(self, told: Mapping[str, Any], context: RunContext) -> Usage:
        return replace(super().usage(told, context), cost_usd=0.0)


class Swallowing(Adapter):
    @hookimpl
    def adaseek_run(
        self, obj: Any, recipe: Recipe, example: Example, context: RunContext
    ) -> Trace | None:
        return super().adaseek_run(replace(obj, error=None), recipe, example, context)


class Collecting(Asker):
    def stream(self, q: str) -> Iterator[str]:
        return iter(list(super().stream(q)))


class Leaking(Adapter):
    @hookimpl
    def adaseek_translate(self, obj: Any) -> Workflow:
        workflow = super().adaseek_translate(obj)
        (step,) = workflow.steps.values()
        step = replace(step, model=ModelRef("m", "http://secret-key@host"))
        return replace(workflow, steps={"ask": step})


class Lost(Adapter):
    @hookimpl
    def adaseek_translate(self, obj: Any) -> Workflow:
        return replace(super().adaseek_translate(obj), edges=frozenset({Edge("ask", "nobody")}))


BROKEN: list[tuple[type[Adapter], str]] = [
    (Guessing, "test_the_steps_are_found_and_keep_their_ids"),
    (Chatty, "test_the_steps_are_found_and_keep_their_ids"),
    (Lost, "test_the_edges_join_known_steps"),
    (Leaking, "test_no_secret_enters_workflow_recipe_or_trace"),
    (Adding, "test_an_empty_recipe_sends_the_same_bytes"),
    (Deaf, "test_a_recipe_reaches_the_calls"),
    (Blind, "test_a_recipe_of_another_program_is_refused_with_the_difference"),
    (Meddling, "test_the_original_is_unchanged"),
    (Miscounting, "test_the_usage_is_what_the_server_counted"),
    (Free, "test_a_price_is_charged_and_an_unknown_one_stays_unknown"),
    (Swallowing, "test_an_error_of_the_program_is_recorded_by_a_run"),
    (Swallowing, "test_an_interruption_is_not_swallowed"),
]


@pytest.mark.parametrize(
    ("adapter", "check"), BROKEN, ids=lambda value: getattr(value, "__name__", value)
)
def test_a_broken_promise_fails_its_check(adapter: type[Adapter], check: str) -> None:
    suite = _suite(adapter())
    kept_from = pytest.raises((AssertionError, AdaseekError, pytest.fail.Exception))
    with LoopbackServer(suite.answer) as server, kept_from:
        getattr(suite, check)(server)


def test_a_stream_that_is_collected_first_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adaseek.testing._stream_gate.WAIT_S", 0.2)
    suite = _suite(Adapter(), Collecting)
    too_late = pytest.raises(AssertionError, match="before the model's answer had ended")
    with LoopbackServer(suite.answer) as server, too_late:
        suite.test_a_tuned_program_still_streams(server)


def _suite(adapter: Adapter, build: Callable[[str], Any] = Asker) -> Suite:
    class Broken(Suite):
        plugins = (adapter,)

        def program(self, url: str) -> Any:
            return build(url)

    return Broken()
