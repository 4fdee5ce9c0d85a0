"""DSPy's examples, metrics and models as core types."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import pytest
from adaseek.errors import EndpointError, ExampleError, MetricError
from adaseek.evaluation.scoring import score_run
from adaseek.testing.loopback import LoopbackServer, Reply
from adaseek.workflow import Example, ModelRef, Score, Trace

dspy = pytest.importorskip("dspy")
from adaseek_dspy._convert import (  # noqa: E402
    check_model,
    complete,
    core_example,
    core_metric,
    model_reference,
)
from pydantic import BaseModel  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Person(BaseModel):
    name: str
    born: int = 0


def test_inputs_and_labels_are_told_apart_and_the_object_is_kept() -> None:
    raw = dspy.Example(q="?", n=3, answer=["a"], person=Person(name="Ada")).with_inputs("q", "n")
    example = core_example(raw)
    assert example.inputs == {"q": "?", "n": 3}
    assert example.labels == {"answer": ["a"], "person": {"name": "Ada", "born": 0}}
    assert example.raw is raw


def test_equal_examples_have_equal_ids_whatever_their_order() -> None:
    one = core_example(dspy.Example(q="?", n=3, a="x").with_inputs("q", "n"))
    two = core_example(dspy.Example(a="x", n=3, q="?").with_inputs("n", "q"))
    other = core_example(dspy.Example(q="?", n=3, a="x").with_inputs("q"))
    assert one.id == two.id
    assert one.id != other.id


def test_dspys_own_types_have_a_json_form() -> None:
    history = dspy.History(messages=[{"q": "1", "a": "2"}])
    raw = dspy.Example(history=history, tags={"b", "a"}, pair=(1, 2.5)).with_inputs("history")
    example = core_example(raw)
    assert example.inputs["history"]["messages"] == [{"q": "1", "a": "2"}]
    assert example.labels == {"tags": ["a", "b"], "pair": [1, 2.5]}


@pytest.mark.parametrize(
    ("value", "kind"),
    [(datetime.date(2020, 1, 1), "date"), (object(), "object"), (float("nan"), "float")],
)
def test_a_value_without_json_form_is_named_with_field_type_and_cure(value: Any, kind: str) -> None:
    with pytest.raises(ExampleError, match=rf"`when`.* {kind} .*\n?.*isoformat"):
        core_example(dspy.Example(q="?", when=value).with_inputs("q"))


def test_an_example_without_declared_inputs_names_the_cure() -> None:
    with pytest.raises(ExampleError, match="with_inputs"):
        core_example(dspy.Example(q="?"))


RAW = dspy.Example(q="?", a="x").with_inputs("q")
EXAMPLE = core_example(RAW)
TRACE = Trace(output=dspy.Prediction(a="x"))


def gepa(gold: Any, pred: Any, trace: Any, pred_name: Any, pred_trace: Any) -> Any:
    assert (trace, pred_name, pred_trace) == (None, None, None)
    return dspy.Prediction(score=0.5, feedback="close")


class Callable5:
    def __call__(self, gold: Any, pred: Any, trace: Any = None) -> float:
        return 0.25


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (lambda example, pred: pred.a == example.a, Score(1.0)),
        (lambda example, pred, trace=None: trace is not None, Score(0.0)),
        (lambda example, pred, trace: 1 if trace is None else 0, Score(1.0)),
        (lambda *arguments: float(len(arguments)), Score(2.0)),
        (lambda example, pred, **_: 0.75, Score(0.75)),
        (gepa, Score(0.5, "close")),
        (lambda example, pred: {"score": True, "feedback": "good"}, Score(1.0, "good")),
        (Callable5(), Score(0.25)),
        (dspy.evaluate.answer_exact_match, None),
    ],
)
def test_both_forms_of_a_metric_are_taken(metric: Any, expected: Score | None) -> None:
    wrapped = core_metric(metric)
    if expected is not None:
        assert score_run(wrapped, EXAMPLE, TRACE) == expected
    else:
        raw = dspy.Example(question="?", answer="x").with_inputs("question")
        trace = Trace(output=dspy.Prediction(answer="X"))
        assert score_run(wrapped, core_example(raw), trace) == Score(1.0)


def test_a_numpy_number_is_a_score() -> None:
    numpy = pytest.importorskip("numpy")
    metric = core_metric(lambda e, p: numpy.float64(0.5))
    assert score_run(metric, EXAMPLE, TRACE) == Score(0.5)


@pytest.mark.parametrize("verdict", [None, "good", [1], float("nan"), {"feedback": "x"}])
def test_what_is_no_score_is_refused(verdict: Any) -> None:
    with pytest.raises(MetricError, match="must return a bool, a finite number"):
        score_run(core_metric(lambda e, p: verdict), EXAMPLE, TRACE)


def test_a_metric_that_raises_is_named() -> None:
    def exact(example: Any, prediction: Any) -> bool:
        return bool(prediction.missing == example.a)

    with pytest.raises(MetricError, match=r"`exact` raised AttributeError.*missing"):
        score_run(core_metric(exact), EXAMPLE, TRACE)


@pytest.mark.parametrize("metric", [lambda: 1.0, lambda e: 1.0, lambda a, b, c, d, e, f: 1.0])
def test_a_metric_of_another_form_is_refused_before_the_run(metric: Any) -> None:
    with pytest.raises(MetricError, match="must take"):
        core_metric(metric)


def test_a_reference_holds_no_secret() -> None:
    lm = dspy.LM("openai/m", api_base="http://user:pass@host:1/v1/?token=x", api_key="secret")
    assert model_reference(lm) == ModelRef("openai/m", "http://host:1/v1")
    assert model_reference(dspy.LM("openai/gpt-5-mini", api_key="s")).endpoint == ""


def test_the_tuners_own_prompt_is_answered_with_its_usage(
    make_lm: Callable[..., Any], server: LoopbackServer
) -> None:
    completion = complete(make_lm(cache=True), "Propose.", seed=7, max_tokens=20)
    assert completion.text == "raw answer to Propose."
    assert completion.usage.input_tokens == server.usage()["input_tokens"]
    assert completion.usage.requests == 1
    body = server.bodies[0]
    assert body["seed"] == 7
    assert 20 in (body.get("max_tokens"), body.get("max_completion_tokens"))
    complete(make_lm(cache=True), "Propose.", seed=7, max_tokens=20)
    assert len(server.requests) == 2


def test_a_failing_prompt_is_an_endpoint_error(
    make_lm: Callable[..., Any], server: LoopbackServer
) -> None:
    server.answer = lambda body: Reply("out of order", status=500)
    with pytest.raises(EndpointError, match="openai/m"):
        complete(make_lm(num_retries=0), "Propose.", seed=0, max_tokens=5)


def test_a_served_model_can_be_called(make_lm: Callable[..., Any]) -> None:
    assert check_model(make_lm("openai/m")) is None
    assert check_model(dspy.LM("openai/gpt-5-mini")) is None


def test_a_model_that_is_not_served_is_named_with_those_that_are(
    make_lm: Callable[..., Any],
) -> None:
    reason = check_model(make_lm("openai/other"))
    assert reason is not None
    assert "`other`" in reason
    assert "m, m2, m3" in reason


def test_an_endpoint_that_is_down_is_named(
    make_lm: Callable[..., Any], server: LoopbackServer
) -> None:
    lm = make_lm("openai/m")
    server.__exit__(None, None, None)
    reason = check_model(lm)
    assert reason is not None
    assert "does not answer" in reason
    assert "secret-key" not in reason


def test_something_else_than_a_model_is_said_to_be_none() -> None:
    assert "not a dspy.LM" in str(check_model("openai/m"))


def test_an_example_of_the_core_needs_no_framework_object() -> None:
    metric = core_metric(lambda example, pred: example is None)
    assert score_run(metric, Example("id", {}), TRACE) == Score(1.0)
