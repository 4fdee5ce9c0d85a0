"""Every shape of LangChain and LangGraph programs, by a handler alone and by the global hook.

One promise, one parametrised test over all shapes and both doors. The last test prints the
coverage and names every miss.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.util
import io
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from adaseek.errors import AdaseekError
from adaseek.recipe import Recipe
from adaseek.testing.conformance import DEMO, INSTRUCTIONS, marking_recipe
from adaseek.testing.coverage import Finding, covered, print_coverage
from adaseek.testing.loopback import LoopbackServer
from adaseek.workflow import ModelRef, Usage, Workflow
from rich.console import Console

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

pytest.importorskip("langchain")
pytest.importorskip("langchain_openai")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings"),
]

import langchain_shapes as shapes  # noqa: E402
from adaseek_langchain import AdaSeekHook, apply, disable, enable, translate  # noqa: E402

HAS_DSPY = importlib.util.find_spec("dspy") is not None
ALL = [*shapes.SHAPES, *(shapes.MIXED if HAS_DSPY else ())]
MODEL = "m2"
STREAM_USAGE = b',"stream_options":{"include_usage":true}'
"""What observing adds to a streamed request: without it the server reports no usage."""

HANDLER, GLOBAL, COPY = "handler", "global hook", "copy"
"""A hook in the config, a hook for the process, and a rewritten copy without any hook."""


@contextlib.contextmanager
def door(
    name: str, recipe: Recipe | None = None, workflow: Workflow | None = None
) -> Iterator[tuple[AdaSeekHook, Any]]:
    """Yields a hook and the config to run the program with."""
    if name == HANDLER:
        hook = AdaSeekHook(recipe, workflow=workflow)
        yield hook, {"callbacks": [hook]}
        return
    hook = enable(recipe, workflow=workflow)
    try:
        yield hook, None
    finally:
        disable()


@dataclass
class Seen:
    """What one run of a shape gave."""

    output: Any
    raw: list[bytes]
    counted: dict[str, int]
    bodies: list[dict[str, Any]]
    hook: AdaSeekHook | None = None
    workflow: Workflow | None = None
    steps: tuple[str, ...] = ()
    usage: Usage = field(default_factory=Usage)
    stream: Seen | None = None


class Examination:
    """Runs one shape through one door, with and without a recipe, and keeps what was seen."""

    def __init__(self, shape: Any, name: str, server: LoopbackServer) -> None:
        self.shape, self.door, self.server = shape, name, server
        self.program = shape.build(server.url)
        self.workflow = translate(shapes.inside(self.program)) if shape.static else None
        self.plain = self._seen(None)
        self.plain_stream = self._streamed(None)
        self.empty = self._through(Recipe())
        self.again = self._through(None, program=shape.build(server.url))
        self.recipe = self._recipe()
        self.tuned = None if self.recipe is None else self._through(self.recipe)
        self.after = self._seen(None)

    def _recipe(self) -> Recipe | None:
        """Returns a recipe for the steps that the global hook sees: a handler may see fewer."""
        with door(GLOBAL, workflow=self.workflow) as (hook, config):
            self.shape.output(self.program, config)
            workflow = hook.workflow
        if not workflow.lm_steps():
            return None
        self.workflow = workflow
        return marking_recipe(workflow, ModelRef(MODEL, self.server.url))

    def _through(self, recipe: Recipe | None, *, program: Any = None) -> Seen:
        if self.door == COPY:
            return self._copied(recipe or Recipe())
        # A recipe alone, as in production: what it needs of the program it has with it.
        workflow = self.workflow if recipe is None or recipe.is_empty else None
        with door(self.door, recipe, workflow) as (hook, config):
            seen = self._seen(config, program)
            seen.hook, seen.workflow = hook, hook.workflow
            traces = hook.traces
        calls = [call for trace in traces for call in trace.calls if call.kind == "lm"]
        seen.steps = tuple(sorted({call.step for call in calls}))
        seen.usage = Usage.total(trace.usage for trace in traces)
        with door(self.door, recipe, workflow) as (_, config):
            seen.stream = self._streamed(config)
        return seen

    def _copied(self, recipe: Recipe) -> Seen:
        copied = apply(shapes.inside(self.program), recipe)
        if isinstance(self.program, shapes.Watched):
            copied = shapes.Watched(copied, self.program.log)
        seen = self._seen(None, copied)
        seen.stream = self._streamed(None, copied)
        return seen

    def _seen(self, config: Any, program: Any = None) -> Seen:
        self.server.clear()
        output = self.shape.output(program or self.program, config)
        raw = sorted(request.raw for request in self.server.requests)
        return Seen(output, raw, self.server.usage(), self.server.bodies)

    def _streamed(self, config: Any, program: Any = None) -> Seen | None:
        """Returns what a streamed run gave; the chunks sorted, since nodes may run side by side."""
        if self.shape.stream is None:
            return None
        self.server.clear()
        chunks = self.shape.stream(shapes.inside(program or self.program), self.shape.given, config)
        raw = sorted(request.raw for request in self.server.requests)
        return Seen(sorted(chunks), raw, self.server.usage(), self.server.bodies)

    # The promises; each raises AssertionError with the reason of a miss -------------------

    def steps_are_found_and_stable(self) -> None:
        assert len(self.empty.steps) == self.shape.sites, f"saw {self.empty.steps}"
        assert self.again.steps == self.empty.steps, f"then {self.again.steps}"
        assert self.empty.workflow is not None
        missing = set(self.empty.steps) - set(self.empty.workflow.steps)
        assert not missing, f"not in the workflow: {missing}"

    def the_same_bytes_are_sent(self) -> None:
        assert [raw.replace(STREAM_USAGE, b"") for raw in self.empty.raw] == self.plain.raw
        if all(not body.get("stream") for body in self.plain.bodies):
            assert self.empty.raw == self.plain.raw

    def the_output_is_the_same(self) -> None:
        assert self.empty.output == self.plain.output

    def usage_is_the_servers(self) -> None:
        counted, told = self.empty.counted, self.empty.usage
        assert told.requests == counted["requests"] - self.shape.foreign, f"{told.requests} calls"
        if not self.shape.foreign:
            assert told.input_tokens == counted["input_tokens"], f"{told} of {counted}"
            assert told.output_tokens == counted["output_tokens"], f"{told} of {counted}"
            assert told.cached_tokens == counted["cached_tokens"], f"{told} of {counted}"

    def the_recipe_reaches_the_calls(self) -> None:
        wanted = self.shape.requests - self.shape.foreign
        if self.tuned is None:
            assert wanted == 0, "no step was seen"
            return
        hook = self.tuned.hook
        misses = dict(hook.misses) if hook is not None else {}
        reached, num_shown = self.marked(self.tuned.bodies)
        assert reached == wanted, f"{reached} of {wanted} requests carry it, {misses}"
        assert hook is None or hook.missed == 0, f"missed {misses}"
        if self.recipe is not None and all(s.demos for s in self.recipe.settings.values()):
            assert num_shown == wanted, f"{num_shown} of {wanted} requests show the demo"

    def the_recipe_reaches_streamed_calls(self) -> None:
        if self.plain_stream is None or self.tuned is None or self.tuned.stream is None:
            return
        wanted = len(self.plain_stream.bodies) - self.shape.foreign
        reached, _ = self.marked(self.tuned.stream.bodies)
        assert reached == wanted, f"{reached} of {wanted} requests carry it"

    def marked(self, bodies: list[dict[str, Any]]) -> tuple[int, int]:
        """Returns how many requests have the recipe's instructions and model, and its demo."""
        own = [body for body in bodies if "Your output fields" not in str(body)]
        marked = [b for b in own if b["model"] == MODEL and INSTRUCTIONS in str(b["messages"])]
        return len(marked), sum(DEMO in str(body["messages"]) for body in own)

    def user_code_still_runs(self) -> None:
        assert self.plain.output[1] == self.empty.output[1]
        if self.tuned is not None:
            assert self.plain.output[1] == self.tuned.output[1]

    def streams_still_stream(self) -> None:
        if self.plain_stream is None:
            return
        assert self.empty.stream is not None
        assert self.empty.stream.output == self.plain_stream.output
        if self.tuned is not None and len(self.plain_stream.output) > 1:
            assert self.tuned.stream is not None
            assert len(self.tuned.stream.output) > 1, "the answer comes in one piece"

    def the_original_is_unchanged(self) -> None:
        assert self.after.raw == self.plain.raw
        assert self.after.output == self.plain.output


PROMISES: dict[str, Callable[[Examination], None]] = {
    name: getattr(Examination, name)
    for name in (
        "steps_are_found_and_stable",
        "the_same_bytes_are_sent",
        "the_output_is_the_same",
        "usage_is_the_servers",
        "the_recipe_reaches_the_calls",
        "the_recipe_reaches_streamed_calls",
        "user_code_still_runs",
        "streams_still_stream",
        "the_original_is_unchanged",
    )
}
NEEDS_CALLS = (
    "steps_are_found_and_stable",
    "usage_is_the_servers",
    "the_recipe_reaches_the_calls",
    "the_recipe_reaches_streamed_calls",
)
"""What cannot be kept for a program whose calls the door cannot reach."""


NOT_COPIED = {
    "L29_own_thread_pool": "the step is only known at run time, by the global hook",
    "L32_plain_function": "only a Runnable can be copied",
}
"""What `apply` refuses, with the error, and why."""

NEEDS_HOOK = ("steps_are_found_and_stable", "usage_is_the_servers")
"""What only a hook can promise, since a copy does not observe."""


@pytest.fixture(scope="module")
def examined() -> Iterator[Callable[[Any, str], Any]]:
    """Yields a function that examines a shape once per door, or returns why it failed."""
    known: dict[tuple[str, str], Any] = {}
    with LoopbackServer(shapes.answer, models=("m", "m2", "m3"), keep_alive=False) as server:

        def examine(shape: Any, name: str) -> Any:
            if (shape.id, name) not in known:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    try:
                        known[shape.id, name] = Examination(shape, name, server)
                    except Exception as error:  # a broken adapter must not hide other shapes
                        known[shape.id, name] = error
            return known[shape.id, name]

        yield examine
    gc.collect()


def finding(examination: Any, shape: Any, name: str, promise: str) -> Finding:
    """Returns whether a promise was kept, with the declared reason where there is one."""
    if name == COPY and shape.id in NOT_COPIED and isinstance(examination, AdaseekError):
        return Finding(shape.id, name, promise, NOT_COPIED[shape.id])
    try:
        if isinstance(examination, Exception):
            raise examination
        PROMISES[promise](examination)
    except AssertionError as error:
        reason = str(error).splitlines()[0]
        if name == HANDLER and shape.unreached and promise in NEEDS_CALLS:
            reason = shape.unreached
        return Finding(shape.id, name, promise, reason)
    except Exception as error:  # what broke is the reason
        return Finding(shape.id, name, promise, f"{type(error).__name__}: {error}")
    return Finding(shape.id, name, promise)


@pytest.mark.parametrize("shape", ALL, ids=lambda shape: shape.id)
@pytest.mark.parametrize("name", [HANDLER, GLOBAL])
@pytest.mark.parametrize("promise", PROMISES)
def test_a_promise_is_kept(promise: str, name: str, shape: Any, examined: Any) -> None:
    found = finding(examined(shape, name), shape, name, promise)
    if name == HANDLER and shape.unreached and promise in NEEDS_CALLS:
        assert found.reason in ("", shape.unreached)
    else:
        assert found.kept, found.reason


@pytest.mark.parametrize("shape", shapes.SHAPES, ids=lambda shape: shape.id)
@pytest.mark.parametrize("promise", [name for name in PROMISES if name not in NEEDS_HOOK])
def test_a_copy_keeps_its_promises(promise: str, shape: Any, examined: Any) -> None:
    found = finding(examined(shape, COPY), shape, COPY, promise)
    if shape.id in NOT_COPIED:
        assert found.reason == NOT_COPIED[shape.id]
    else:
        assert found.kept, found.reason


@pytest.mark.parametrize("shape", ALL, ids=lambda shape: shape.id)
def test_the_steps_are_found_without_a_request(shape: Any, examined: Any) -> None:
    with LoopbackServer(shapes.answer) as server:
        program = shapes.inside(shape.build(server.url))
        if not shape.static:
            return
        first, again = translate(program), translate(shapes.inside(shape.build(server.url)))
        assert len([s for s in first.lm_steps() if not s.dynamic]) == shape.static
        assert list(first.steps) == list(again.steps)
        assert first.fingerprint == again.fingerprint
        assert server.requests == ()


SYNC_ONLY = ("L21_agent_with_middleware", "L32_plain_function")
BY_HANDLER = [s for s in shapes.SHAPES if not s.unreached and s.id not in SYNC_ONLY]


@pytest.mark.parametrize("shape", BY_HANDLER, ids=lambda shape: shape.id)
def test_a_recipe_reaches_the_same_steps_of_an_async_run(shape: Any, examined: Any) -> None:
    examination = examined(shape, HANDLER)
    server, hook = examination.server, AdaSeekHook(examination.recipe)
    server.clear()
    asyncio.run(shapes.inside(examination.program).ainvoke(shape.given, {"callbacks": [hook]}))
    reached, _ = examination.marked(server.bodies)
    assert reached == len(server.bodies) > 0
    steps = {c.step for trace in hook.traces for c in trace.calls if c.kind == "lm"}
    assert steps == set(examination.tuned.steps)
    assert Usage.total(t.usage for t in hook.traces).requests == server.usage()["requests"]


def named(name: str) -> Any:
    return next(shape for shape in ALL if shape.id == name)


@pytest.mark.parametrize("name", [HANDLER, GLOBAL, COPY])
def test_demos_stand_before_the_history(name: str, examined: Any) -> None:
    (body,) = examined(named("L18_history"), name).tuned.bodies
    texts = [str(message["content"]) for message in body["messages"]]
    assert texts == [INSTRUCTIONS, f"{DEMO} input", f"{DEMO} output", "hello", "hi", "what is it"]


@pytest.mark.parametrize("name", [HANDLER, GLOBAL, COPY])
def test_new_demos_take_the_place_of_the_authors(name: str, examined: Any) -> None:
    (body,) = examined(named("L19_authors_few_shot"), name).tuned.bodies
    texts = [str(message["content"]) for message in body["messages"]]
    assert texts == [INSTRUCTIONS, f"{DEMO} input", f"{DEMO} output", "what is it"]


@pytest.mark.parametrize("name", [s.id for s in shapes.SHAPES if not s.unreached])
def test_without_usage_of_streams_every_byte_is_the_same(name: str, examined: Any) -> None:
    examination = examined(named(name), HANDLER)
    shape, server = examination.shape, examination.server
    server.clear()
    hook = AdaSeekHook(stream_usage=False)
    shape.output(examination.program, {"callbacks": [hook]})
    assert sorted(request.raw for request in server.requests) == examination.plain.raw


def test_the_coverage_is_printed_and_every_miss_has_a_reason(
    examined: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    findings = [
        finding(examined(shape, name), shape, name, promise)
        for shape in ALL
        for name in (HANDLER, GLOBAL, COPY)
        for promise in PROMISES
        if name != COPY or (shape in shapes.SHAPES and promise not in NEEDS_HOOK)
    ]
    title = "LangChain and LangGraph"
    if os.environ.get("ADASEEK_SHOW_COVERAGE"):
        with capsys.disabled():
            print_coverage(findings, title=title, console=Console(width=140))
    wide = io.StringIO()
    print_coverage(findings, title=title, console=Console(file=wide, width=4000))
    assert all(finding.reason in wide.getvalue() for finding in findings)
    totals = covered(f for f in findings if f.program.startswith("L"))
    assert totals[HANDLER][1] == totals[GLOBAL][1] == 41
    assert totals[HANDLER][0] >= 38
    assert totals[GLOBAL][0] == 41
    assert totals[COPY] == (41 - len(NOT_COPIED), 41)
