"""Ensembles: members run at once, and their answers are combined."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from adaseek.errors import ConfigurationError
from adaseek.evaluation.base import RunContext
from adaseek.plugins import load_plugins
from adaseek.program import Program
from adaseek.recipe import Demo, Ensemble, Recipe, Setting
from adaseek.testing.loopback import LoopbackServer, Reply
from adaseek.workflow import ModelRef

dspy = pytest.importorskip("dspy")

from adaseek_dspy import _hooks, apply, translate  # noqa: E402
from adaseek_dspy._convert import core_example  # noqa: E402
from adaseek_dspy._run import run  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
EXAMPLE = core_example(dspy.Example(q="?", a="!").with_inputs("q"))


def formatted(**fields: str) -> Reply:
    parts = [f"[[ ## {name} ## ]]\n{value}\n" for name, value in fields.items()]
    return Reply("\n".join([*parts, "[[ ## completed ## ]]"]))


def answering(*answers: str) -> Callable[[Mapping[str, Any]], Reply]:
    """Returns a server's answers by member: the model `m<i>` gives the answer i."""

    def answer(body: Mapping[str, Any]) -> Reply:
        if "numbered answers" in str(body["messages"][0]):
            return formatted(choice="2")
        text = answers[int(body["model"][1:])]
        return Reply("nothing usable") if text == "BAD" else formatted(a=text)

    return answer


@pytest.fixture
def recipe(server: LoopbackServer) -> Callable[[Ensemble], Recipe]:
    """Each member calls a model of its own, so that the server can tell them apart."""

    def make(ensemble: Ensemble) -> Recipe:
        members = {
            f"self#{i}": Setting(model=ModelRef(f"openai/m{i}", server.url))
            for i in range(ensemble.num_members)
        }
        return Recipe({"self": Setting(ensemble=ensemble), **members})

    return make


@pytest.fixture
def program(lm: Any) -> Iterator[Any]:
    yield dspy.Predict("q -> a")


def test_the_majority_wins_whatever_its_case(
    program: Any, server: LoopbackServer, recipe: Callable[[Ensemble], Recipe]
) -> None:
    server.answer = answering("Rome", "Paris", "paris.")
    tuned = apply(program, recipe(Ensemble(3)))
    assert tuned(q="?").a == "Paris"
    assert asyncio.run(tuned.acall(q="?")).a == "Paris"


def test_members_are_sampled_apart_at_the_ensembles_temperature(
    program: Any, server: LoopbackServer, lm: Any
) -> None:
    program.config = {"temperature": 0.0}
    recipe = Recipe(
        {
            "self": Setting(ensemble=Ensemble(3, temperature=0.9), params={"temperature": 0.0}),
            "self#2": Setting(params={"temperature": 0.2}, instructions="Third."),
        }
    )
    tuned = apply(program, recipe)
    assert [m.config["temperature"] for m in tuned.members] == [0.9, 0.9, 0.2]
    assert len({m.config["rollout_id"] for m in tuned.members}) == 3
    tuned(q="?")
    third = [b for b in server.bodies if "Third." in str(b["messages"])]
    assert [b["temperature"] for b in third] == [0.2]
    assert all("rollout_id" not in body for body in server.bodies)


def test_members_run_at_the_same_time(
    program: Any, server: LoopbackServer, recipe: Callable[[Ensemble], Recipe]
) -> None:
    met = threading.Barrier(3)
    reply = answering("x", "x", "x")

    def together(body: Mapping[str, Any]) -> Reply:
        met.wait(timeout=10)  # passes only if three requests are under way at once
        return reply(body)

    server.answer = together
    assert apply(program, recipe(Ensemble(3)))(q="?").a == "x"
    workflow = translate(program)
    trace = run(program, workflow, recipe(Ensemble(3)), EXAMPLE, RunContext())
    assert [c.step for c in sorted(trace.calls, key=lambda c: c.step)] == [
        "self#0",
        "self#1",
        "self#2",
    ]
    longest = max(call.duration_s for call in trace.calls)
    assert trace.latency_s == pytest.approx(longest)


def test_the_judge_chooses_and_is_a_step_of_its_own(
    program: Any, server: LoopbackServer, recipe: Callable[[Ensemble], Recipe]
) -> None:
    server.answer = answering("one", "two", "one")
    judged = recipe(Ensemble(3, "judge"))
    settings = {**judged.settings, "self#judge": Setting(model=ModelRef("openai/m9", server.url))}
    trace = run(program, translate(program), Recipe(settings), EXAMPLE, RunContext())
    assert trace.output.a == "two"
    assert trace.calls[-1].step == "self#judge"
    assert trace.calls[-1].model == ModelRef("openai/m9", server.url)
    assert "one" in str(server.bodies[-1]["messages"][-1])


def test_equal_answers_need_no_judge(
    program: Any, server: LoopbackServer, recipe: Callable[[Ensemble], Recipe]
) -> None:
    server.answer = answering("same", "same")
    assert apply(program, recipe(Ensemble(2, "judge")))(q="?").a == "same"
    assert len(server.requests) == 2


def test_best_of_takes_what_the_reward_rates_highest(
    program: Any, server: LoopbackServer, recipe: Callable[[Ensemble], Recipe]
) -> None:
    server.answer = answering("short", "the longest", "longer")
    best = recipe(Ensemble(3, "best_of", reward="length"))
    rewards = {"length": lambda inputs, prediction: len(prediction.a) + 0 * len(inputs["q"])}
    assert apply(program, best, rewards=rewards)(q="?").a == "the longest"
    context = RunContext(rewards=rewards)
    assert run(program, translate(program), best, EXAMPLE, context).output.a == "the longest"
    bound = Program(program, load_plugins([_hooks]))
    assert bound.apply(best, {}, rewards)(q="?").a == "the longest"
    server.clear()
    for refused in (lambda: apply(program, best), lambda: bound.apply(best, {})):
        with pytest.raises(ConfigurationError, match="'length' rates highest, but `rewards` has"):
            refused()
    assert server.requests == ()


def test_a_member_that_gives_no_usable_answer_is_left_out(
    program: Any, server: LoopbackServer, recipe: Callable[[Ensemble], Recipe]
) -> None:
    server.answer = answering("BAD", "good")
    assert apply(program, recipe(Ensemble(2)))(q="?").a == "good"
    server.answer = answering("BAD", "BAD")
    trace = run(program, translate(program), recipe(Ensemble(2)), EXAMPLE, RunContext())
    assert trace.error_kind == "model"


def test_a_refusing_endpoint_fails_the_ensemble(
    program: Any, server: LoopbackServer, recipe: Callable[[Ensemble], Recipe]
) -> None:
    reply = answering("good", "good")

    def refusing(body: Mapping[str, Any]) -> Reply:
        return Reply("no", status=401) if body["model"] == "m1" else reply(body)

    server.answer = refusing
    trace = run(program, translate(program), recipe(Ensemble(2)), EXAMPLE, RunContext())
    assert trace.error_kind == "endpoint"


def test_an_ensemble_stands_where_its_step_stood(lm: Any, server: LoopbackServer) -> None:
    def search(q: str) -> str:
        """Finds something."""
        return f"found:{q}"

    class Outer(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.agent = dspy.ReAct("q -> a", tools=[search], max_iters=2)
            self.more = [(dspy.Predict("a -> b"),)]

        def forward(self, q: str) -> Any:
            return self.more[0][0](a=self.agent(q=q).a)

    recipe = Recipe(
        {
            "agent.react": Setting(ensemble=Ensemble(2)),
            "more[0][0]": Setting(
                ensemble=Ensemble(2), demos=(Demo({"a": "1", "b": "2"}),), reasoning="plan"
            ),
        }
    )
    program = Outer()
    trace = run(program, translate(program), recipe, EXAMPLE, RunContext())
    assert trace.error is None
    assert trace.output.b == "v-b"
    steps = [call.step for call in trace.calls if call.kind == "lm"]
    assert steps.count("agent.react#0") == steps.count("agent.react#1") == 2
    assert {"more[0][0]#0", "more[0][0]#1", "agent.extract.predict"} <= set(steps)
    tuned = apply(program, recipe)
    assert tuned.agent.react.signature is program.agent.react.signature
    assert tuned.more[0][0].demos[0].a == "1"
    assert len(tuned.more[0][0].config) == 2
    assert tuned.more[0][0].lm is None


def test_the_order_of_dspys_trace_does_not_depend_on_the_threads(
    program: Any, server: LoopbackServer, recipe: Callable[[Ensemble], Recipe]
) -> None:
    reply = answering("a", "b", "c")

    def first_is_last(body: Mapping[str, Any]) -> Reply:
        return Reply(reply(body).text, delay_s=0.05 if body["model"] == "m0" else 0.0)

    server.answer = first_is_last
    tuned = apply(program, recipe(Ensemble(3)))
    with dspy.context(trace=[]):
        tuned(q="?")
        stages = [predictor.stage for predictor, _, _ in dspy.settings.trace]
    assert stages == ["self#0", "self#1", "self#2"]
