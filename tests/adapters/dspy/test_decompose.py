"""Decomposition: subtasks are asked first, and the step answers from their results."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from adaseek.evaluation.base import RunContext
from adaseek.recipe import Demo, Ensemble, Recipe, Setting, Subtask
from adaseek.testing.loopback import LoopbackServer, Reply
from adaseek.workflow import ModelRef

dspy = pytest.importorskip("dspy")

from adaseek_dspy import apply, translate  # noqa: E402
from adaseek_dspy._convert import core_example  # noqa: E402
from adaseek_dspy._run import run  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
EXAMPLE = core_example(dspy.Example(q="?", a="!").with_inputs("q"))
SPLIT = (Subtask("facts", "List the facts."), Subtask("check", "Check the facts."))
RECIPE = Recipe({"self": Setting(decompose=SPLIT)})


@pytest.fixture
def program(lm: Any) -> Any:
    return dspy.Predict(dspy.Signature("q -> a", "Answer it."))


def texts(body: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the system message and the last message of a request."""
    return str(body["messages"][0]["content"]), str(body["messages"][-1]["content"])


def test_subtasks_come_first_and_the_step_is_given_their_results(
    program: Any, server: LoopbackServer
) -> None:
    assert apply(program, RECIPE)(q="how?").a == "v-a"
    facts, check, answer = map(texts, server.bodies)
    for system, _ in (facts, check):
        assert "Answer it." in system and "Do not do it now." in system
    assert "List the facts." in facts[0] and "`facts` (str): the result" in facts[0]
    assert "[[ ## q ## ]]\nhow?" in facts[1]
    assert "[[ ## facts ## ]]\nv-facts" in check[1]
    assert "Check the facts." in check[0] and "List the facts." in check[0]  # what `facts` are
    assert "Answer it." in answer[0] and "Do not do it now." not in answer[0]
    assert "[[ ## facts ## ]]\nv-facts\n\n[[ ## check ## ]]\nv-check" in answer[1]


def test_async_calls_do_the_same(program: Any, server: LoopbackServer) -> None:
    tuned = apply(program, RECIPE)
    tuned(q="how?")
    bodies, _ = server.bodies, server.clear()
    assert asyncio.run(tuned.acall(q="how?")).a == "v-a"
    assert [b["messages"] for b in server.bodies] == [b["messages"] for b in bodies]


def test_each_is_a_step_of_the_trace(program: Any, server: LoopbackServer) -> None:
    trace = run(program, translate(program), RECIPE, EXAMPLE, RunContext())
    assert [call.step for call in trace.calls] == ["self#facts", "self#check", "self"]
    assert sum(call.usage.requests for call in trace.calls) == len(server.requests) == 3
    assert trace.calls[-1].inputs == {"q": "?", "facts": "v-facts", "check": "v-check"}
    assert trace.latency_s == pytest.approx(sum(call.duration_s for call in trace.calls))


def test_subtasks_follow_the_model_of_their_step_unless_they_have_one(
    program: Any, server: LoopbackServer
) -> None:
    def model(name: str) -> Setting:
        return Setting(model=ModelRef(f"openai/{name}", server.url))

    step = Setting(decompose=SPLIT).merge(model("large"))
    apply(program, Recipe({"self": step, "self#facts": model("small")}))(q="?")
    assert [body["model"] for body in server.bodies] == ["small", "large", "large"]


def test_what_else_is_tuned_goes_to_the_answer(program: Any, server: LoopbackServer) -> None:
    setting = Setting(
        instructions="Sing it.",
        decompose=SPLIT[:1],
        demos=(Demo({"q": "1", "a": "2"}),),
        reasoning="plan",
        params={"temperature": 0.25},
    )
    assert apply(program, Recipe({"self": setting}))(q="?").a == "v-a"
    facts, answer = server.bodies
    assert "Sing it." in texts(facts)[0] and "Answer it." not in texts(facts)[0]
    assert len(facts["messages"]) == 2 and facts.get("temperature") != 0.25
    assert len(answer["messages"]) == 4 and answer["temperature"] == 0.25
    assert "`plan`" in texts(answer)[0] and "`plan`" not in texts(facts)[0]


def test_an_ensemble_shares_the_results(program: Any, server: LoopbackServer) -> None:
    recipe = Recipe({"self": Setting(decompose=SPLIT[:1], ensemble=Ensemble(2))})
    trace = run(program, translate(program), recipe, EXAMPLE, RunContext())
    assert trace.output.a == "v-a"
    assert sorted(call.step for call in trace.calls) == ["self#0", "self#1", "self#facts"]
    assert all("v-facts" in texts(body)[1] for body in server.bodies[1:])


def test_a_subtask_named_like_a_field_of_the_step_gets_another_one(
    program: Any, server: LoopbackServer
) -> None:
    split = tuple(Subtask(name, f"Do {name}.") for name in ("q", "a", "reasoning"))
    recipe = Recipe({"self": Setting(decompose=split, reasoning="chain_of_thought")})
    assert apply(program, recipe)(q="how?").a == "v-a"
    asked = texts(server.bodies[-1])[1]
    assert "[[ ## q_ ## ]]\nv-q_\n\n[[ ## a_ ## ]]\nv-a_\n\n[[ ## reasoning_ ## ]]" in asked


def test_an_unusable_result_is_left_empty_and_an_outage_is_raised(
    program: Any, server: LoopbackServer
) -> None:
    answer = server.answer

    def spoiled(reply: Reply) -> None:
        server.answer = lambda body: reply if "Do not do it now." in str(body) else answer(body)

    one = Recipe({"self": Setting(decompose=SPLIT[:1])})
    spoiled(Reply("nothing usable"))
    assert apply(program, one)(q="?").a == "v-a"
    assert "[[ ## facts ## ]]\n\n" in texts(server.bodies[-1])[1]
    spoiled(Reply("no", status=401))
    trace = run(program, translate(program), one, EXAMPLE, RunContext())
    assert trace.error_kind == "endpoint"


def test_a_split_step_stands_where_its_step_stood(lm: Any, server: LoopbackServer) -> None:
    def search(q: str) -> str:
        """Finds something."""
        return f"found:{q}"

    program = dspy.ReAct("q -> a", tools=[search], max_iters=2)
    recipe = Recipe({"react": Setting(decompose=SPLIT[:1], demos=(Demo({"q": "1"}),))})
    trace = run(program, translate(program), recipe, EXAMPLE, RunContext())
    assert trace.error is None and trace.output.a == "v-a"
    steps = [call.step for call in trace.calls if call.kind == "lm"]
    assert steps == ["react#facts", "react", "react#facts", "react", "extract.predict"]
    tuned = apply(program, recipe)
    assert tuned.react.signature is program.react.signature
    assert tuned.react.demos[0].q == "1" and tuned.react.lm is None
    assert "facts" not in program.react.signature.fields


def test_the_split_program_saves_and_loads_its_state(program: Any, tmp_path: Any) -> None:
    recipe = Recipe({"self": Setting(decompose=SPLIT, demos=(Demo({"q": "1", "a": "2"}),))})
    tuned, other = apply(program, recipe), apply(program, RECIPE)
    tuned.save(tmp_path / "state.json")
    other.load(tmp_path / "state.json")
    assert dict(other.demos[0])["a"] == "2"
    assert other.deepcopy()(q="?").a == "v-a"


def test_where_a_step_cannot_be_split_is_said(program: Any) -> None:
    def length(inputs: Any, prediction: Any) -> float:
        return len(prediction.a)

    (step,) = translate(program).steps.values()
    assert "decompose" in step.allowed
    (step,) = translate(dspy.BestOfN(program, 2, length, 1.0)).steps.values()
    assert "its subtasks for each sample" in step.blocked["decompose"]
