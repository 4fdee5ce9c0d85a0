"""Thirty shapes of DSPy programs: every one is translated, observed and tuned."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from adaseek.evaluation.base import RunContext
from adaseek.recipe import Demo, Recipe, Setting
from adaseek.testing.loopback import LoopbackServer
from adaseek.workflow import ModelRef, Workflow

dspy = pytest.importorskip("dspy")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20"),
]

from adaseek_dspy import apply, translate  # noqa: E402
from adaseek_dspy._convert import core_example  # noqa: E402
from adaseek_dspy._probe import discover  # noqa: E402
from adaseek_dspy._run import run  # noqa: E402

MARK, DEMO, MODEL = "TUNED INSTRUCTIONS", "DEMO VALUE", "m2"


def search(q: str) -> str:
    """Finds something."""
    return f"found:{q}"


class Program(dspy.Module):
    """A program whose parts and forward function are given."""

    def __init__(self, forward: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.forward_function = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, q: str) -> Any:
        return self.forward_function(self, q)


def two_steps() -> Any:
    return Program(
        lambda p, q: p.b(x=p.a(q=q).x), a=dspy.Predict("q -> x"), b=dspy.Predict("x -> y")
    )


class AsyncSteps(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = dspy.Predict("q -> x")
        self.b = dspy.Predict("x -> y")

    async def aforward(self, q: str) -> Any:
        first = await self.a.acall(q=q)
        return await self.b.acall(x=first.x)


class ToyInterpreter:
    """Stands for a sandbox: runs nothing, and submits when it is asked to."""

    execution_instructions = "toy"

    def __init__(self, **_: Any) -> None:
        self.tools: dict[str, Any] = {}
        self.output_fields: Any = None

    def start(self) -> None:
        """Nothing to start."""

    def shutdown(self) -> None:
        """Nothing to stop."""

    def execute(self, code: str, variables: Any = None) -> Any:
        if "SUBMIT" in code:
            from dspy.primitives.code_interpreter import FinalOutput

            return FinalOutput({"a": "done"})
        return "1"


def nested() -> Any:
    return Program(lambda p, q: p.c(y=p.inner(q=q).y), inner=two_steps(), c=dspy.Predict("y -> z"))


def containers() -> Any:
    return Program(
        lambda p, q: p.t[0](b=p.d["k"](a=p.l[0](q=q).a).b),
        l=[dspy.Predict("q -> a")],
        d={"k": dspy.Predict("a -> b")},
        t=(dspy.Predict("b -> c"),),
    )


def multi_hop(p: Any, q: str) -> Any:
    context: list[str] = []
    for _ in range(3):
        context.append(search(p.hop(context=context, q=q).query))
    return p.answer(context=context, q=q)


def compared(p: Any, q: str) -> Any:
    return p.compare([p.c1(q=q), p.c2(q=q)], q=q)


def in_parallel(p: Any, q: str) -> Any:
    parallel = dspy.Parallel(num_threads=3, disable_progress_bar=True)
    found = parallel([(p.a, {"q": f"{q}{i}"}) for i in range(3)])
    return p.b(x=" ".join(item.x for item in found))


def sub_in_closure() -> Any:
    sub = dspy.Predict("q -> hint")

    def ask(q: str) -> str:
        """Asks another step."""
        return str(sub(q=q).hint)

    return dspy.ReAct("q -> a", tools=[ask], max_iters=3)


def with_own_model() -> Any:
    program = two_steps()
    program.a.lm = dspy.settings.lm.copy(model="openai/m3")
    return program


def frozen() -> Any:
    inner = two_steps()
    inner._compiled = True
    return Program(lambda p, q: p.c(y=p.t(q=q).y), t=inner, c=dspy.Predict("y -> z"))


class Route(dspy.Signature):
    """Chooses who answers."""

    q: str = dspy.InputField()
    to: Literal["math", "text"] = dspy.OutputField()


def branching() -> Any:
    def forward(p: Any, q: str) -> Any:
        return (p.math if p.router(q=q).to == "math" else p.text)(q=q)

    return Program(
        forward,
        router=dspy.Predict(Route),
        math=dspy.Predict("q -> a"),
        text=dspy.Predict("q -> a"),
    )


class Typed(dspy.Signature):
    """Answers in several types."""

    q: str = dspy.InputField()
    flag: bool = dspy.OutputField()
    num: int = dspy.OutputField()
    kind: Literal["x", "y"] = dspy.OutputField()
    names: list[str] = dspy.OutputField()


class Chat(dspy.Signature):
    """Answers in a conversation."""

    q: str = dspy.InputField()
    history: dspy.History = dspy.InputField()
    a: str = dspy.OutputField()


def chat() -> Any:
    turns = dspy.History(messages=[{"q": "hello", "a": "hi"}])
    return Program(lambda p, q: p.p(q=q, history=turns), p=dspy.Predict(Chat))


def streamed() -> Any:
    def forward(p: Any, q: str) -> Any:
        chunks = list(dspy.streamify(p.inner, async_streaming=False)(q=q))
        return chunks[-1]

    return Program(forward, inner=two_steps())


def own_threads() -> Any:
    def forward(p: Any, q: str) -> Any:
        with ThreadPoolExecutor(2) as pool:
            jobs = [pool.submit(contextvars.copy_context().run, p.a, q=f"{q}{i}") for i in range(2)]
            return jobs[0].result() if jobs[1].result() else None

    return Program(forward, a=dspy.Predict("q -> x"))


def interpreted(kind: str) -> Any:
    import inspect

    cls = getattr(dspy, kind)
    taken = inspect.signature(cls.__init__).parameters
    once = {name: 1 for name in ("max_iters", "max_iterations") if name in taken}
    if "interpreter_factory" not in taken:
        return cls("q -> a", interpreter=ToyInterpreter(), **once)
    return cls("q -> a", interpreter_factory=ToyInterpreter, **once)


def sampler(kind: str) -> Any:
    return getattr(dspy, kind)(two_steps(), N=2, reward_fn=lambda args, pred: 0.0, threshold=1.0)


def aliased() -> Any:
    program = Program(lambda p, q: p.b(q=p.a(q=q).x), a=dspy.Predict("q -> x"))
    program.b = program.a
    return program


def twice_the_same() -> Any:
    first = two_steps()
    return dspy.teleprompt.Ensemble(reduce_fn=dspy.majority).compile([first, first.deepcopy()])


def bare_call(p: Any, q: str) -> Any:
    raw = dspy.settings.lm("raw " + q)[0]
    return p.a(q=raw)


@dataclass(frozen=True)
class Shape:
    """A program with what is required of its translation, its baseline and its tuning.

    `requests` is the number of requests of the original program, `reached` how many of the tuned
    one's requests carry the recipe, `dynamic` the steps that only exist at run time.
    """

    id: str
    build: Callable[[], Any]
    steps: tuple[str, ...]
    requests: int
    reached: int | None = None
    dynamic: tuple[str, ...] = ()
    context: Callable[[], dict[str, Any]] = field(default=dict)
    needs: str = ""


IS_NATIVE = tuple(int(part) for part in dspy.__version__.split(".")[:2]) >= (3, 4)
"""DSPy speaks to the server itself; before 3.4 LiteLLM does."""

SHAPES = [
    Shape("D01_root_predict", lambda: dspy.Predict("q -> a"), ("self",), 1),
    Shape("D02_root_chain_of_thought", lambda: dspy.ChainOfThought("q -> a"), ("predict",), 1),
    Shape("D03_two_steps", two_steps, ("a", "b"), 2),
    Shape("D04_nested_modules", nested, ("inner.a", "inner.b", "c"), 3),
    Shape("D05_containers", containers, ("l[0]", "d['k']", "t[0]"), 3),
    Shape(
        "D06_list_of_lists",
        lambda: Program(lambda p, q: p.l[0][0](q=q), l=[[dspy.Predict("q -> a")]]),
        ("l[0][0]",),
        1,
    ),
    Shape("D07_aliased_predictor", aliased, ("a",), 2),
    Shape(
        "D08_multi_hop_loop",
        lambda: Program(
            multi_hop,
            hop=dspy.Predict("context, q -> query"),
            answer=dspy.Predict("context, q -> a"),
        ),
        ("hop", "answer"),
        4,
    ),
    Shape(
        "D09_react",
        lambda: dspy.ReAct("q -> a", tools=[search], max_iters=3),
        ("react", "extract.predict"),
        3,
    ),
    Shape(
        "D10_react_v2",
        lambda: dspy.ReActV2("q -> a", tools=[search]),
        ("react",),
        2,
        needs="ReActV2",
    ),
    Shape(
        "D11_multi_chain_comparison",
        lambda: Program(
            compared,
            c1=dspy.ChainOfThought("q -> a"),
            c2=dspy.ChainOfThought("q -> a"),
            compare=dspy.MultiChainComparison("q -> a", M=2),
        ),
        ("c1.predict", "c2.predict", "compare.predict"),
        3,
    ),
    Shape("D12_best_of_n", lambda: sampler("BestOfN"), ("module.a", "module.b"), 4),
    Shape(
        "D13_refine",
        lambda: sampler("Refine"),
        ("module.a", "module.b"),
        5,
        reached=4,
        dynamic=("<OfferFeedback>",),
    ),
    Shape(
        "D14_parallel",
        lambda: Program(in_parallel, a=dspy.Predict("q -> x"), b=dspy.Predict("x -> y")),
        ("a", "b"),
        4,
    ),
    Shape("D15_async", AsyncSteps, ("a", "b"), 2),
    Shape("D16_typed_outputs", lambda: dspy.Predict(Typed), ("self",), 1),
    Shape(
        "D17_predictor_in_tool_closure",
        sub_in_closure,
        ("react", "extract.predict"),
        4,
        dynamic=("<q -> hint>",),
    ),
    Shape(
        "D18_predictor_made_in_forward",
        lambda: Program(
            lambda p, q: dspy.Predict("x -> y")(x=p.a(q=q).x), a=dspy.Predict("q -> x")
        ),
        ("a",),
        2,
        dynamic=("<x -> y>",),
    ),
    Shape(
        "D19_direct_model_call",
        lambda: Program(bare_call, a=dspy.Predict("q -> x")),
        ("a",),
        2,
        reached=1,
        dynamic=("<lm>",),
    ),
    Shape("D20_own_model_per_predictor", with_own_model, ("a", "b"), 2),
    Shape("D21_frozen_sub_module", frozen, ("t.a", "t.b", "c"), 3),
    Shape("D22_branch", branching, ("router", "math", "text"), 2),
    Shape("D23_history", chat, ("p",), 1),
    Shape("D24_streamed", streamed, ("inner.a", "inner.b"), 2),
    Shape("D25_own_threads", own_threads, ("a",), 2),
    Shape(
        "D26_program_of_thought",
        lambda: interpreted("ProgramOfThought"),
        ("code_generate.predict", "code_regenerate.predict", "generate_output.predict"),
        2,
    ),
    Shape("D27_rlm", lambda: interpreted("RLM"), ("generate_action", "extract"), 1),
    Shape("D28_several_candidates", lambda: dspy.Predict("q -> a", n=2), ("self",), 1 + IS_NATIVE),
    Shape(
        "D29_json_adapter",
        two_steps,
        ("a", "b"),
        2,
        context=lambda: {"adapter": dspy.JSONAdapter()},
    ),
    Shape(
        "D30_ensemble_of_programs",
        twice_the_same,
        ("programs[0].a", "programs[0].b", "programs[1].a", "programs[1].b"),
        4,
    ),
]


@pytest.fixture(params=SHAPES, ids=lambda shape: shape.id)
def shape(request: pytest.FixtureRequest, lm: Any) -> Any:
    chosen: Shape = request.param
    if chosen.needs and not hasattr(dspy, chosen.needs):
        pytest.skip(f"this DSPy has no {chosen.needs}")
    with dspy.context(**chosen.context()):
        yield chosen


def called(program: Any, q: str = "what") -> Any:
    with contextlib.redirect_stdout(None):
        if getattr(type(program), "forward", None) is not None:
            return program(q=q)
        return asyncio.run(program.acall(q=q))


def bodies(server: LoopbackServer, *, without: bytes = b"") -> list[bytes]:
    """Returns the requests since the last call of this function, sorted: threads race.

    `without` is left out where DSPy itself did not send it: a run asks LiteLLM for the usage of
    a stream.
    """
    raw = [request.raw for request in server.requests]
    raw = sorted(body if IS_NATIVE else body.replace(without, b"") for body in raw)
    server.clear()
    return raw


EXAMPLE = core_example(dspy.Example(q="what", a="label").with_inputs("q"))


def recipe_for(workflow: Workflow, endpoint: str) -> Recipe:
    """Returns a recipe that marks every step, with all that its cogs allow."""
    settings = {}
    for step in workflow.lm_steps():
        if step.signature is None or not step.allowed:
            continue
        first = {f.name: DEMO for f in step.signature.inputs[:1]}
        last = {f.name: "demo answer" for f in step.signature.outputs[-1:]}
        settings[step.id] = Setting(
            instructions=MARK,
            demos=(Demo({**first, **last}),) if "few_shot" in step.allowed else None,
            model=ModelRef(f"openai/{MODEL}", endpoint),
        )
    return Recipe(settings)


def test_the_steps_are_found_twice_alike(shape: Shape) -> None:
    program = shape.build()
    workflow = translate(program, include_frozen=True)
    again = translate(program, include_frozen=True)
    assert tuple(s.id for s in workflow.lm_steps() if not s.dynamic) == shape.steps
    assert workflow.fingerprint == again.fingerprint
    assert list(workflow.steps) == list(again.steps)
    assert Workflow.from_json(workflow.to_json()).fingerprint == workflow.fingerprint


def test_an_empty_recipe_sends_the_same_bytes(shape: Shape, server: LoopbackServer) -> None:
    program = shape.build()
    called(program)
    original = bodies(server)
    assert len(original) == shape.requests
    called(apply(program, Recipe()))
    assert bodies(server) == original
    trace = run(program, translate(program), Recipe(), EXAMPLE, RunContext())
    assert trace.error is None
    assert bodies(server, without=b',"stream_options":{"include_usage":true}') == original


def test_the_recipe_reaches_the_requests(shape: Shape, server: LoopbackServer) -> None:
    program = shape.build()
    workflow = discover(program, translate(program, include_frozen=True))
    recipe = recipe_for(workflow, server.url).bind(workflow)
    required = shape.requests if shape.reached is None else shape.reached
    for tuned in (
        lambda: called(apply(program, recipe)),
        lambda: run(program, workflow, recipe, EXAMPLE, RunContext()),
    ):
        tuned()
        reached = [body for body in server.bodies if MARK in str(body["messages"][0])]
        server.clear()
        assert len(reached) == required
        assert {body["model"] for body in reached} == {MODEL}
        if all("few_shot" in workflow.steps[step].allowed for step in shape.steps):
            assert all(DEMO in str(body["messages"]) for body in reached)


def test_the_usage_is_what_the_server_counted(shape: Shape, server: LoopbackServer) -> None:
    program = shape.build()
    workflow = translate(program)
    trace = run(program, workflow, Recipe(), EXAMPLE, RunContext())
    counted = server.usage()
    assert trace.usage.input_tokens == counted["input_tokens"] > 0
    assert trace.usage.output_tokens == counted["output_tokens"]
    assert trace.usage.cached_tokens == counted["cached_tokens"]
    assert trace.usage.requests == counted["requests"] == shape.requests
    assert trace.usage.cost_usd is None
    assert trace.latency_s is not None and trace.latency_s > 0


def test_every_call_belongs_to_a_step_or_is_named(shape: Shape, server: LoopbackServer) -> None:
    program = shape.build()
    workflow = translate(program)
    trace = run(program, workflow, Recipe(), EXAMPLE, RunContext())
    seen = {call.step for call in trace.calls if call.kind == "lm"}
    assert seen <= set(shape.steps) | set(shape.dynamic)
    assert set(shape.dynamic) <= seen
    for call in trace.calls:
        if call.kind == "lm" and call.step != "<lm>":
            assert call.inputs and call.outputs


def test_the_program_stays_as_it_was(shape: Shape, server: LoopbackServer) -> None:
    program = shape.build()
    workflow = discover(program, translate(program, include_frozen=True))
    before = state(program)
    recipe = recipe_for(workflow, server.url)
    apply(program, recipe)
    run(program, workflow, recipe, EXAMPLE, RunContext())
    assert state(program) == before


def state(program: Any) -> list[tuple[Any, ...]]:
    """Returns all that a tuner could change in `program`, by identity where that is stronger."""
    found = [(id(program), type(program))]
    for name, predictor in program.named_sub_modules(dspy.Predict):
        found.append(
            (
                name,
                id(predictor),
                type(predictor),
                predictor.signature,
                predictor.signature.instructions,
                copy.copy(predictor.demos),
                id(predictor.lm),
                dict(predictor.config),
                predictor.stage,
                len(predictor.history),
            )
        )
    return found
