"""What every adapter must do: inherit `AdapterConformance`, say which program to try, run pytest.

Experimental. The program under test talks to a loopback server that records every request, so
that an adapter's promises are compared with what was really sent and billed:

    class TestMyAdapter(AdapterConformance):
        plugins = (my_adapter,)          # leave out if an entry point registers it
        framework = "my_framework"

        def program(self, url):          # builds a program that asks the models at `url`
            ...

        def example(self):               # one example, in the framework's own form
            ...

        def call(self, program, example):  # calls it as its users do
            ...

Optional parts (`changed`, `failing`, `stream`, `answer`, `snapshot`) open more checks; a check
whose part is missing is skipped, with the reason.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar  # Any: programs and examples are the framework's own objects

import pytest

from adaseek.errors import RecipeMismatchError
from adaseek.evaluation.base import RunContext
from adaseek.plugins import load_plugins
from adaseek.program import Program
from adaseek.recipe import Demo, Recipe, Setting
from adaseek.testing._new_process import in_new_process
from adaseek.testing._stream_gate import StreamGate
from adaseek.testing.loopback import LoopbackServer, Reply, echo
from adaseek.workflow import Example, ModelRef, Step, Trace, Workflow

__all__ = ["DEMO", "INSTRUCTIONS", "MODELS", "AdapterConformance", "marking_recipe"]

INSTRUCTIONS = "Instructions of the conformance suite."
DEMO = "demo value"
MODELS = ("m", "m2", "m3")
"""What the server lists; a program under test may ask any of them but `m2`, the tuned one."""

_SECRET = "secret-key"


def marking_recipe(workflow: Workflow, model: ModelRef) -> Recipe:
    """Returns a recipe that marks each step of `workflow`: all of instructions, a demo and the
    model that the step allows."""
    return Recipe({step.id: _marked(step, model) for step in workflow.lm_steps()}).bind(workflow)


def _marked(step: Step, model: ModelRef) -> Setting:
    fields = step.signature.fields if step.signature else ()
    # Of texts only: what a tool call or a typed field may hold, the suite cannot know.
    demo = Demo({f.name: f"{DEMO} {f.name}" for f in fields if f.type == "str"})
    return Setting(
        instructions=INSTRUCTIONS if "instructions" in step.allowed else None,
        demos=(demo,) if "few_shot" in step.allowed else None,
        model=model if "model" in step.allowed else None,
    )


class AdapterConformance:
    """The checks; see the module's docstring for what to override.

    Attributes:
        plugins: plugin objects of the adapter, if no entry point registers them.
        framework: root module of the framework, which the core must not import.
        model_prefix: what the framework puts before the model's name on the server.
    """

    plugins: ClassVar[Sequence[object]] = ()
    framework: ClassVar[str] = ""
    model_prefix: ClassVar[str] = ""

    # What the adapter's author gives ----------------------------------------------------------

    @abstractmethod
    def program(self, url: str) -> Any:
        """Returns a new program whose models are at `url`, given the key "secret-key"."""
        raise NotImplementedError

    @abstractmethod
    def example(self) -> Any:
        """Returns one example for the program, in the framework's own form."""
        raise NotImplementedError

    @abstractmethod
    def call(self, program: Any, example: Example) -> Any:
        """Calls the program with the inputs of `example`, as its users do."""
        raise NotImplementedError

    def answer(self, body: Mapping[str, Any]) -> Reply:
        """Returns the server's reply; override it if the framework expects a format."""
        return echo(body)

    def changed(self, url: str) -> Any | None:
        """Returns the program with other instructions in at least one step."""
        return None

    def failing(self, url: str, error: BaseException) -> Any | None:
        """Returns the program with user code in it that raises `error` after the first request."""
        return None

    def stream(self, program: Any, example: Example) -> Iterable[Any] | None:
        """Returns the chunks of a streamed call; None: the framework does not stream."""
        return None

    def streaming_program(self, url: str) -> Any:
        """Returns the program that `stream` streams, if it is another one than `program`."""
        return self.program(url)

    def snapshot(self, program: Any) -> Any:
        """Returns what tuning might change in the program, as a comparable value."""
        return repr(program)

    # Fixtures ---------------------------------------------------------------------------------

    @pytest.fixture
    def server(self) -> Iterator[LoopbackServer]:
        """A model server that records every request."""
        with LoopbackServer(self.answer, models=MODELS, keep_alive=False) as running:
            yield running

    def bound(self, obj: Any) -> Program:
        """Returns `obj` behind the hooks of the adapter."""
        return Program(obj, load_plugins(self.plugins))

    def tuned_model(self, server: LoopbackServer) -> ModelRef:
        """Returns the model that the marking recipe asks for."""
        return ModelRef(f"{self.model_prefix}m2", server.url)

    def core_example(self, program: Program) -> Example:
        (example,) = program.examples("examples", [self.example()])
        return example

    def run(self, program: Program, recipe: Recipe | None = None) -> Trace:
        """Runs the program on the example through `adaseek_run`."""
        return program.run(recipe or Recipe(), self.core_example(program), RunContext())

    # Translation ------------------------------------------------------------------------------

    def test_the_steps_are_found_and_keep_their_ids(self, server: LoopbackServer) -> None:
        obj = self.program(server.url)
        first, again, other = (
            self.bound(given).workflow for given in (obj, obj, self.program(server.url))
        )
        assert first.lm_steps()
        for workflow in (again, other, Workflow.from_json(first.to_json())):
            assert list(workflow.steps) == list(first.steps)
            assert workflow.fingerprint == first.fingerprint
        assert server.requests == (), "translation must not ask a model"

    def test_another_process_finds_the_same_steps(self, server: LoopbackServer) -> None:
        here = self.bound(self.program(server.url)).workflow
        told = in_new_process(_TRANSLATE, type(self), server.url)
        assert told == {
            "steps": {step.id: step.fingerprint for step in here.steps.values()},
            "fingerprint": here.fingerprint,
        }

    def test_every_step_says_what_may_be_tuned(self, server: LoopbackServer) -> None:
        for step in self.bound(self.program(server.url)).workflow.lm_steps():
            assert not step.allowed & step.blocked.keys(), step.id
            assert step.allowed or step.blocked, f"{step.id} neither allows nor blocks a cog"
            assert all(reason.strip() for reason in step.blocked.values())

    def test_the_edges_join_known_steps(self, server: LoopbackServer) -> None:
        obj = self.program(server.url)
        hooks = load_plugins(self.plugins)
        workflow = Program(obj, hooks).workflow
        probed = hooks.hook.adaseek_probe(obj=obj, workflow=workflow) or frozenset()
        known = {*workflow.steps, "INPUT", "OUTPUT"}
        for edge in {*workflow.edges, *probed}:
            assert {edge.source, edge.target} <= known, edge
        assert server.requests == (), "probing must not ask a model"

    def test_no_secret_enters_workflow_recipe_or_trace(self, server: LoopbackServer) -> None:
        program = self.bound(self.program(server.url))
        recipe = marking_recipe(program.workflow, self.tuned_model(server))
        trace = self.run(program, recipe)
        for artifact in (program.workflow.to_json(), recipe.to_json(), trace.calls):
            assert _SECRET not in str(artifact)

    # Applying a recipe ------------------------------------------------------------------------

    def test_an_empty_recipe_sends_the_same_bytes(self, server: LoopbackServer) -> None:
        obj = self.program(server.url)
        program = self.bound(obj)
        example = self.core_example(program)
        original = self.sent(server, lambda: self.call(obj, example))
        assert original, "the program asked no model"
        applied = program.apply(Recipe(), {})
        assert self.sent(server, lambda: self.call(applied, example)) == original
        assert self.sent(server, lambda: self.run(program)) == original

    def test_a_recipe_reaches_the_calls(self, server: LoopbackServer) -> None:
        program = self.bound(self.program(server.url))
        example = self.core_example(program)
        recipe = marking_recipe(program.workflow, self.tuned_model(server))
        applied = program.apply(recipe, {})
        for tuned in (lambda: self.call(applied, example), lambda: self.run(program, recipe)):
            server.clear()
            tuned()
            self.check_marks(server.bodies, recipe)

    def test_a_recipe_survives_a_file(self, server: LoopbackServer, tmp_path: Any) -> None:
        obj = self.program(server.url)
        program = self.bound(obj)
        example = self.core_example(program)
        recipe = marking_recipe(program.workflow, self.tuned_model(server))
        loaded = Recipe.load(recipe.save(tmp_path / "recipe.json"))
        sent = [
            self.sent(server, lambda r=given: self.call(program.apply(r, {}), example))
            for given in (recipe, loaded)
        ]
        assert sent[0] == sent[1]

    def test_the_original_is_unchanged(self, server: LoopbackServer) -> None:
        obj = self.program(server.url)
        program = self.bound(obj)
        example = self.core_example(program)
        before = self.snapshot(obj)
        original = self.sent(server, lambda: self.call(obj, example))
        recipe = marking_recipe(program.workflow, self.tuned_model(server))
        self.call(program.apply(recipe, {}), example)
        self.run(program, recipe)
        assert self.snapshot(obj) == before
        assert self.sent(server, lambda: self.call(obj, example)) == original

    def test_a_recipe_of_another_program_is_refused_with_the_difference(
        self, server: LoopbackServer
    ) -> None:
        other = self.given(self.changed(server.url), "changed")
        program, strange = self.bound(self.program(server.url)), self.bound(other)
        assert strange.workflow.fingerprint != program.workflow.fingerprint
        recipe = marking_recipe(strange.workflow, self.tuned_model(server))
        with pytest.raises(RecipeMismatchError) as refused:
            program.apply(recipe, {})
        assert any(step in str(refused.value) for step in recipe.settings)

    def test_a_tuned_program_still_streams(self, server: LoopbackServer) -> None:
        """The server keeps the end of the stream back until the caller has seen its start."""
        obj = self.streaming_program(server.url)
        program = self.bound(obj)
        example = self.core_example(program)
        recipe = marking_recipe(program.workflow, self.tuned_model(server))
        sent = self.sent(server, lambda: list(self.given(self.stream(obj, example), "stream")))
        for given in (obj, program.apply(Recipe(), {}), program.apply(recipe, {})):
            gate = StreamGate(self.answer, len(sent))
            server.answer = gate.answer
            assert gate.read(self.stream(given, example) or ()) > 1
            assert gate.passed, "no chunk arrived before the model's answer had ended"

    # Observing a run --------------------------------------------------------------------------

    def test_the_usage_is_what_the_server_counted(self, server: LoopbackServer) -> None:
        trace = self.run(self.bound(self.program(server.url)))
        assert trace.error is None
        _check_usage(trace, server)

    def test_parallel_runs_do_not_mix(self, server: LoopbackServer) -> None:
        program = self.bound(self.program(server.url))
        alone = self.run(program)
        server.clear()
        with ThreadPoolExecutor(4) as pool:
            traces = list(pool.map(lambda _: self.run(program), range(8)))
        for trace in traces:
            assert sorted(c.step for c in trace.calls) == sorted(c.step for c in alone.calls)
            assert trace.usage.input_tokens == alone.usage.input_tokens
        assert sum(t.usage.requests for t in traces) == server.usage()["requests"]

    def test_a_trace_says_which_step_did_what(self, server: LoopbackServer) -> None:
        program = self.bound(self.program(server.url))
        trace = self.run(program)
        calls = [call for call in trace.calls if call.kind == "lm"]
        assert {call.step for call in calls} & program.workflow.steps.keys()
        ids = [call.id for call in trace.calls]
        assert len(set(ids)) == len(ids)
        for call in calls:
            assert call.inputs and call.outputs and call.model is not None
            assert call.parent is None or call.parent in ids
            assert call.end_s - call.start_s >= 0 and call.duration_s > 0
        assert trace.latency_s is not None and trace.latency_s > 0
        assert trace.output is not None

    def test_a_price_is_charged_and_an_unknown_one_stays_unknown(
        self, server: LoopbackServer
    ) -> None:
        program = self.bound(self.program(server.url))
        example = self.core_example(program)
        priced = program.run(Recipe(), example, RunContext(price=lambda *_: 0.25))
        assert priced.usage.cost_usd == 0.25 * server.usage()["requests"]
        assert self.run(program).usage.cost_usd is None

    # Failures ---------------------------------------------------------------------------------

    def test_an_error_of_the_program_is_recorded_by_a_run(self, server: LoopbackServer) -> None:
        obj = self.given(self.failing(server.url, ValueError("the user's own")), "failing")
        program = self.bound(obj)
        trace = self.run(program)
        assert trace.error_kind == "program"
        assert "the user's own" in str(trace.error)
        assert trace.output is None
        _check_usage(trace, server)

    def test_an_error_of_the_program_leaves_a_tuned_program(self, server: LoopbackServer) -> None:
        obj = self.given(self.failing(server.url, ValueError("the user's own")), "failing")
        program = self.bound(obj)
        applied = program.apply(marking_recipe(program.workflow, self.tuned_model(server)), {})
        with pytest.raises(ValueError, match="the user's own"):
            self.call(applied, self.core_example(program))

    def test_an_interruption_is_not_swallowed(self, server: LoopbackServer) -> None:
        obj = self.given(self.failing(server.url, KeyboardInterrupt()), "failing")
        with pytest.raises(KeyboardInterrupt):
            self.run(self.bound(obj))  # an adapter may run the program to translate it

    def test_an_error_of_the_endpoint_is_recorded_as_such(self, server: LoopbackServer) -> None:
        program = self.bound(self.program(server.url))
        server.answer = lambda body: Reply("no such key", status=401)
        trace = self.run(program)
        assert trace.error_kind == "endpoint"
        assert "no such key" in str(trace.error)
        assert trace.output is None

    # The core ---------------------------------------------------------------------------------

    def test_the_core_and_the_plugin_import_no_framework(self) -> None:
        if not self.framework:
            pytest.skip("`framework` is not given")
        assert in_new_process(_IMPORT, type(self), self.framework) == []

    # Parts of checks --------------------------------------------------------------------------

    def given(self, value: Any, part: str) -> Any:
        """Returns `value`, or skips the check that needs it."""
        if value is None:
            pytest.skip(f"`{part}` is not given")
        return value

    def sent(self, server: LoopbackServer, action: Any) -> list[bytes]:
        """Returns the requests that `action` sends, sorted: threads race."""
        server.clear()
        action()
        return sorted(request.raw for request in server.requests)

    def check_marks(self, bodies: Sequence[Mapping[str, Any]], recipe: Recipe) -> None:
        """Raises AssertionError unless the requests carry what the recipe says."""
        settings = recipe.settings.values()
        assert bodies and settings
        if all(setting.instructions for setting in settings):
            assert all(INSTRUCTIONS in str(body["messages"]) for body in bodies)
        if all(setting.demos for setting in settings):
            assert all(DEMO in str(body["messages"]) for body in bodies)
        if all(setting.model for setting in settings):
            assert {body["model"] for body in bodies} == {"m2"}
        marked = [b for b in bodies if INSTRUCTIONS in str(b["messages"]) or b["model"] == "m2"]
        assert marked, "no request carries anything of the recipe"


def _check_usage(trace: Trace, server: LoopbackServer) -> None:
    counted = server.usage()
    usage = trace.usage
    told = {name: getattr(usage, name) for name in counted}
    assert told == counted
    assert usage.requests > 0


_TRANSLATE = """
workflow = suite.bound(suite.program(argument)).workflow
steps = {step.id: step.fingerprint for step in workflow.steps.values()}
print(json.dumps({"steps": steps, "fingerprint": workflow.fingerprint}))
"""

_IMPORT = """
print(json.dumps([name for name in sys.modules if name.partition(".")[0] == argument]))
"""
