"""The data flow of programs, found without a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
from adaseek.testing.loopback import LoopbackServer

dspy = pytest.importorskip("dspy")

from adaseek_dspy import discover, translate  # noqa: E402
from adaseek_dspy._probe import probe  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Program(dspy.Module):
    def __init__(self, forward: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.forward_function = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, q: str) -> Any:
        return self.forward_function(self, q)


def edges(program: Any) -> set[tuple[str, str, str, str]]:
    found = probe(program, translate(program))
    assert all(edge.evidence == "probe" for edge in found)
    return {(e.source, e.source_field, e.target, e.target_field) for e in found}


def test_fields_are_followed_through_steps(two_steps: Any, lm: Any, server: LoopbackServer) -> None:
    assert edges(two_steps) == {
        ("INPUT", "q", "a", "q"),
        ("a", "x", "c.predict", "x"),
        ("c.predict", "y", "OUTPUT", "y"),
        ("c.predict", "reasoning", "OUTPUT", "reasoning"),
    }
    assert server.requests == ()


def test_values_are_recognised_in_changed_text_and_other_types() -> None:
    class Rate(dspy.Signature):
        """Rates."""

        text: str = dspy.InputField()
        stars: int = dspy.OutputField()
        share: float = dspy.OutputField()
        names: list[str] = dspy.OutputField()

    def forward(p: Any, q: str) -> Any:
        rated = p.rate(text=f"Text: {q.upper()}!")
        joined = ", ".join(name.title() for name in rated.names)
        return p.last(stars=str(rated.stars), share=rated.share, names=joined)

    program = Program(forward, rate=dspy.Predict(Rate), last=dspy.Predict("stars,share,names->a"))
    found = edges(program)
    assert ("INPUT", "q", "rate", "text") in found
    assert {("rate", n, "last", n) for n in ("stars", "share", "names")} <= found


def test_every_branch_on_a_choice_is_visited() -> None:
    class Route(dspy.Signature):
        """Routes."""

        q: str = dspy.InputField()
        to: Literal["math", "text", "code"] = dspy.OutputField()

    names = ("math", "text", "code")
    parts = {name: dspy.Predict("q -> a") for name in names}
    program = Program(
        lambda p, q: getattr(p, p.router(q=q).to)(q=q), router=dspy.Predict(Route), **parts
    )
    assert {("INPUT", "q", name, "q") for name in names} <= edges(program)


def test_tools_are_not_executed_but_their_edges_are_found() -> None:
    executed: list[str] = []

    def search(query: str) -> str:
        """Finds something."""
        executed.append(query)
        return "x"

    program = Program(
        lambda p, q: p.last(a=p.agent(q=q).a),
        agent=dspy.ReAct("q -> a", tools=[search], max_iters=2),
        last=dspy.Predict("a -> b"),
    )
    found = edges(program)
    tool = "agent.tools['search']"
    assert ("agent.react", "next_tool_args", tool, "args") in found
    assert (tool, "result", "agent.extract.predict", "trajectory") in found
    assert ("agent.extract.predict", "a", "last", "a") in found
    assert executed == []


def test_steps_made_at_run_time_are_discovered(lm: Any, server: LoopbackServer) -> None:
    def forward(p: Any, q: str) -> Any:
        made = dspy.Predict("x -> y")
        raw = dspy.settings.lm(f"Summarise {made(x=p.a(q=q).x).y}")[0]
        return dspy.Prediction(summary=raw)

    workflow = discover(Program(forward, a=dspy.Predict("q -> x")))
    assert list(workflow.steps) == ["a", "<x -> y>", "<lm>"]
    made, direct = workflow.steps["<x -> y>"], workflow.steps["<lm>"]
    assert made.dynamic and "few_shot" in made.allowed
    assert direct.dynamic and not direct.allowed
    assert {note.step for note in workflow.notes} == {"<x -> y>", "<lm>"}
    assert workflow.outputs == ("summary",)
    flow = {(edge.source, edge.target) for edge in workflow.edges}
    assert {("a", "<x -> y>"), ("<x -> y>", "<lm>"), ("<lm>", "OUTPUT")} <= flow
    assert server.requests == ()


def test_a_program_that_cannot_take_marked_values_gives_what_was_found_before() -> None:
    def forward(p: Any, q: str) -> Any:
        return p.b(x=str(float(p.a(q=q).x)))

    program = Program(forward, a=dspy.Predict("q -> x"), b=dspy.Predict("x -> y"))
    assert edges(program) == {("INPUT", "q", "a", "q")}


def test_a_program_that_never_ends_on_marked_values_is_stopped() -> None:
    def forward(p: Any, q: str) -> Any:
        while p.a(q=q).x != "done":
            pass

    assert edges(Program(forward, a=dspy.Predict("q -> x"))) == {("INPUT", "q", "a", "q")}


def test_the_program_is_not_changed(two_steps: Any, lm: Any) -> None:
    two_steps.a.lm = lm
    stage = two_steps.a.stage
    edges(two_steps)
    assert two_steps.a.lm is lm
    assert two_steps.a.stage == stage
    assert lm.history == []


@pytest.mark.parametrize("kind", ["BestOfN", "Refine"])
def test_samplers_are_followed_inside(kind: str) -> None:
    inner = Program(
        lambda p, q: p.b(x=p.a(q=q).x), a=dspy.Predict("q -> x"), b=dspy.Predict("x -> y")
    )
    sampled = getattr(dspy, kind)(inner, N=2, reward_fn=lambda args, pred: 0.0, threshold=1.0)
    outer = Program(lambda p, q: p.s(q=q), s=sampled)
    assert ("s.module.a", "x", "s.module.b", "x") in edges(outer)
