"""What a translation says about a program's steps."""

from __future__ import annotations

import enum
from typing import Any, Literal

import pytest
from adaseek.errors import TranslationError
from adaseek.workflow import ModelRef

dspy = pytest.importorskip("dspy")

from adaseek_dspy import translate  # noqa: E402
from adaseek_dspy._translate import type_name  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Holder(dspy.Module):
    def __init__(self, **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, question: str, limit: int = 3) -> Any:
        return self.a(q=question)


def search(q: str) -> str:
    """Finds something."""
    return q


def test_ids_are_the_names_that_dspy_gives_where_it_gives_one() -> None:
    program = Holder(
        a=dspy.Predict("q -> x"),
        l=[dspy.Predict("q -> x")],
        d={"k": dspy.Predict("q -> x")},
        c=dspy.ChainOfThought("q -> x"),
    )
    named = [name for name, _ in program.named_predictors()]
    assert list(translate(program).steps) == named


def test_a_hash_in_a_key_does_not_look_like_an_ensemble_member() -> None:
    (step,) = translate(Holder(d={"a#0": dspy.Predict("q -> x")})).steps
    assert "#" not in step


def test_signature_inputs_and_model_are_kept(lm: Any) -> None:
    class Judge(dspy.Signature):
        """Judges."""

        text: str = dspy.InputField(desc="what to judge")
        ok: bool = dspy.OutputField()

    program = Holder(a=dspy.Predict(Judge))
    program.a.demos = [dspy.Example(text="t", ok=True)]
    workflow = translate(program)
    step = workflow.steps["a"]
    assert workflow.inputs == ("question", "limit")
    assert step.signature is not None
    assert step.signature.instructions == "Judges."
    fields = [(f.name, f.role, f.type, f.description) for f in step.signature.fields]
    assert fields == [("text", "input", "str", "what to judge"), ("ok", "output", "bool", "")]
    assert step.model == ModelRef("openai/m", lm.kwargs["api_base"])
    assert step.num_demos == 1
    assert "secret-key" not in str(workflow.to_json())


@pytest.mark.parametrize(
    "program",
    [
        dspy.Predict("q -> a"),
        dspy.ChainOfThought("q -> a"),
        dspy.ReAct("q -> a", tools=[search]),
        dspy.BestOfN(dspy.ChainOfThought("q -> a"), 2, lambda a, p: 0.0, 1.0),
    ],
)
def test_inputs_are_found_where_forward_takes_anything(program: Any) -> None:
    assert translate(program).inputs == ("q",)


def test_a_step_without_any_model_has_none() -> None:
    with dspy.context(lm=None):
        assert translate(dspy.Predict("q -> a")).steps["self"].model is None


@pytest.mark.parametrize(
    ("program", "step", "cog", "reason"),
    [
        (dspy.ChainOfThought("q -> a"), "predict", "reasoning", "`reasoning`"),
        (dspy.Predict("q, plan -> a"), "self", "reasoning", "`plan`"),
        (dspy.ReAct("q -> a", tools=[search]), "react", "reasoning", "`next_thought`"),
        (
            dspy.BestOfN(Holder(a=dspy.Predict("q -> a")), 2, lambda a, p: 0.0, 1.0),
            "module.a",
            "ensemble",
            "already samples",
        ),
    ],
)
def test_a_cog_that_cannot_work_is_blocked_with_its_reason(
    program: Any, step: str, cog: str, reason: str
) -> None:
    found = translate(program).steps[step]
    assert cog not in found.allowed
    assert reason in found.blocked[cog]
    assert "instructions" in found.allowed


def test_one_step_in_a_sampler_may_change_its_model_but_two_may_not() -> None:
    def sampled(**parts: Any) -> Any:
        return dspy.BestOfN(Holder(**parts), 2, lambda a, p: 0.0, 1.0)

    alone = translate(sampled(a=dspy.Predict("q -> a")))
    assert "model" in alone.steps["module.a"].allowed
    both = translate(sampled(a=dspy.Predict("q -> a"), b=dspy.Predict("q -> a")))
    assert "one model" in both.steps["module.a"].blocked["model"]


@pytest.mark.skipif(not hasattr(dspy, "ReActV2"), reason="this DSPy has no ReActV2")
def test_a_step_that_answers_with_tool_calls_says_so() -> None:
    step = translate(dspy.ReActV2("q -> a", tools=[search])).steps["react"]
    assert step.signature is not None and step.signature.output == "tool_calls"
    assert step.tools == ("search",)
    assert {"ensemble", "few_shot", "reasoning"} <= step.blocked.keys()


def test_the_users_tools_are_steps_and_the_agents_own_are_not() -> None:
    workflow = translate(Holder(agent=dspy.ReAct("q -> a", tools=[search])))
    tools = {s.id: s.parent for s in workflow.steps.values() if s.kind == "tool"}
    assert tools == {"agent.tools['search']": "agent"}
    assert workflow.steps["agent.react"].tools == ("search",)
    assert workflow.steps["agent.extract.predict"].tools == ()


def test_a_frozen_sub_module_is_found_but_left_alone_unless_asked() -> None:
    inner = Holder(a=dspy.Predict("q -> x"))
    inner._compiled = True
    program = Holder(inner=inner, b=dspy.Predict("x -> y"))
    workflow = translate(program)
    assert workflow.steps["inner.a"].allowed == frozenset()
    assert "include_frozen" in workflow.steps["inner.a"].blocked["instructions"]
    assert "inner" in {note.step for note in workflow.notes}
    assert translate(program, include_frozen=True).steps["inner.a"].allowed


def test_the_flag_on_the_program_itself_freezes_nothing() -> None:
    program = Holder(a=dspy.Predict("q -> x"))
    program._compiled = True
    assert translate(program).steps["a"].allowed


def test_a_predictor_behind_a_tool_is_a_dynamic_step() -> None:
    sub = dspy.Predict("q -> hint")

    def ask(q: str) -> str:
        """Asks."""
        return str(sub(q=q).hint)

    workflow = translate(dspy.ReAct("q -> a", tools=[ask]))
    step = workflow.steps["<q -> hint>"]
    assert step.dynamic
    assert "instructions" in step.allowed
    assert "ensemble" in step.blocked
    without = translate(dspy.ReAct("q -> a", tools=[search]))
    assert "<q -> hint>" not in without.steps


@pytest.mark.parametrize("wrong", ["text", 3, lambda q: q, dspy.Predict])
def test_something_else_is_refused_with_the_cure(wrong: Any) -> None:
    with pytest.raises(TranslationError, match=r"must be a dspy\.Module"):
        translate(wrong)


def test_a_program_without_predictors_is_refused_with_the_cure() -> None:
    with pytest.raises(TranslationError, match="__init__"):
        translate(Holder(other=[1, "x"]))


class Color(enum.Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (str, "str"),
        (list[str], "list[str]"),
        (dict[str, list[int]], "dict[str, list[int]]"),
        (Literal["a", 1], "Literal['a', 1]"),
        (int | None, "int | None"),
        (tuple[int, ...], "tuple[int, Ellipsis]"),
        (Color, "Color"),
        (Any, "Any"),
    ],
)
def test_types_are_named_alike_in_every_process(annotation: Any, expected: str) -> None:
    assert type_name(annotation) == expected
