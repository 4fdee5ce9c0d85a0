"""`AdaSeek(metric=...).compile(program)`: DSPy's conventions, a real gain, bad input."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from adaseek import Recipe
from adaseek.cogs import FewShotCog, ReasoningCog
from adaseek.errors import (
    ConfigurationError,
    EndpointError,
    ExampleError,
    JournalError,
    MetricError,
    RecipeMismatchError,
    TranslationError,
)
from adaseek.testing.loopback import LoopbackServer, Reply
from adaseek.tuner import Tuner

dspy = pytest.importorskip("dspy")

from adaseek_dspy import AdaSeek, apply, translate  # noqa: E402  # only where DSPy is


def answer(body: dict[str, Any]) -> Reply:
    """Says whether a number is even; right 40 times in 100, with reasoning 95 times."""
    text = json.dumps(body["messages"])
    number = int(re.findall(r"number (\d+)", text)[-1])
    reasons = "`reasoning`" in text
    draw = int(hashlib.sha256(f"{number}{reasons}".encode()).hexdigest()[:6], 16) / 16**6
    is_right = draw < (0.95 if reasons else 0.4)
    word = "even" if (number % 2 == 0) == is_right else "odd"
    thought = "[[ ## reasoning ## ]]\nI look at the last digit.\n\n" if reasons else ""
    name = "note" if "`note`" in text else "answer"
    return Reply(f"{thought}[[ ## {name} ## ]]\n{word}\n\n[[ ## completed ## ]]")


class Parity(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.note = dspy.Predict("question -> note")
        self.answer = dspy.Predict("question, remark -> answer")

    def forward(self, question: str) -> Any:
        return self.answer(question=question, remark=self.note(question=question).note)


def examples(first: int, count: int) -> list[Any]:
    return [
        dspy.Example(
            question=f"Is number {n} even or odd?", answer="even" if n % 2 == 0 else "odd"
        ).with_inputs("question")
        for n in range(first, first + count)
    ]


def metric(example: Any, prediction: Any, trace: Any = None) -> bool:
    return example.answer == prediction.answer


@pytest.fixture
def server() -> Iterator[LoopbackServer]:
    with LoopbackServer(answer, models=("m", "m2")) as running:
        yield running


@pytest.fixture
def optimizer(tmp_path) -> Callable[..., AdaSeek]:
    def make(**changes: Any) -> AdaSeek:
        options = {
            "metric": metric,
            "budget": 150,
            "run_dir": tmp_path / "run",
            "prompt_model": False,
            "verbose": False,
            **changes,
        }
        return AdaSeek(**options)

    return make


TRAIN, VAL = examples(0, 16), examples(100, 30)


def test_tuned_program_is_better_and_callable_like_the_student(lm, optimizer):
    student = Parity()
    before = student.dump_state()
    tuned = optimizer().compile(student, trainset=TRAIN, valset=VAL)
    result = tuned.detailed_results
    assert result.recipe.settings["answer"].reasoning is not None
    assert result.improvement["quality"].low > 0
    assert tuned is not student
    assert student.dump_state() == before
    assert type(tuned) is Parity
    assert tuned(question="Is number 7 even or odd?").answer in ("even", "odd")
    test = examples(200, 60)
    scores = [[metric(e, p(**e.inputs())) for e in test] for p in (student, tuned)]
    assert sum(scores[1]) > sum(scores[0])


def test_budget_is_the_number_of_workflow_runs(lm, optimizer, server):
    cogs = [ReasoningCog(), FewShotCog()]
    tuned = optimizer(budget=80, cogs=cogs).compile(Parity(), trainset=TRAIN, valset=VAL)
    spending = tuned.detailed_results.spending
    assert spending.num_runs <= 80
    # Two requests a run at most: the memo answers what was asked before.
    assert len(server.requests) < 2 * spending.num_runs


def test_detailed_results_are_no_parameters_and_survive_a_copy(lm, optimizer):
    tuned = optimizer(budget=80).compile(Parity(), trainset=TRAIN, valset=VAL)
    assert [name for name, _ in tuned.named_parameters()] == ["note", "answer"]
    assert tuned.deepcopy().detailed_results.verdict == tuned.detailed_results.verdict


def test_statistics_can_be_left_out(lm, optimizer):
    tuned = optimizer(budget=80, track_stats=False).compile(Parity(), trainset=TRAIN, valset=VAL)
    assert not hasattr(tuned, "detailed_results")


def test_saved_recipe_gives_the_same_program(lm, optimizer, tmp_path, server):
    tuned = optimizer().compile(Parity(), trainset=TRAIN, valset=VAL)
    loaded = Recipe.load(tmp_path / "run")
    again = apply(Parity(), loaded)
    server.clear()
    for program in (tuned, again):
        program(question="Is number 12 even or odd?")
    half = len(server.bodies) // 2
    assert server.bodies[:half] == server.bodies[half:]


def test_recipe_of_another_program_is_refused_with_the_difference(lm, optimizer):
    class Other(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.answer = dspy.Predict("question -> verdict")

        def forward(self, question: str) -> Any:
            return self.answer(question=question)

    tuned = optimizer().compile(Parity(), trainset=TRAIN, valset=VAL)
    with pytest.raises(RecipeMismatchError, match="`answer` has changed"):
        apply(Other(), tuned.detailed_results.recipe)


def test_other_trade_offs_can_be_applied(lm, optimizer):
    student = Parity()
    result = optimizer().compile(student, trainset=TRAIN, valset=VAL).detailed_results
    best = result.select(min_quality=0.7)
    program = apply(student, best.recipe)
    assert program(question="Is number 3 even or odd?").answer in ("even", "odd")
    with pytest.raises(ConfigurationError, match="No candidate meets min_quality=2"):
        result.select(min_quality=2)


def test_five_argument_metric_with_feedback_is_taken(lm, optimizer):
    def judged(gold, pred, trace, pred_name, pred_trace):
        good = gold.answer == pred.answer
        return dspy.Prediction(score=float(good), feedback="" if good else "Wrong parity.")

    tuned = optimizer(metric=judged, budget=80).compile(Parity(), trainset=TRAIN, valset=VAL)
    assert tuned.detailed_results.original.train["quality"].num > 0


def test_works_as_a_step_of_better_together(lm, optimizer):
    together = dspy.BetterTogether(metric=metric, tuner=optimizer(budget=80))
    student = Parity()
    student.set_lm(lm)
    tuned = together.compile(student, trainset=TRAIN, valset=VAL, strategy="tuner")
    assert tuned(question="Is number 4 even or odd?").answer in ("even", "odd")


def test_compile_arguments_replace_those_of_the_constructor(lm, optimizer):
    tuned = optimizer(auto="heavy", budget=None).compile(
        Parity(), trainset=TRAIN, valset=VAL, budget=80, seed=3, num_threads=2
    )
    assert tuned.detailed_results.spending.budget == 80
    assert tuned.detailed_results.seed == 3


def test_a_smaller_model_of_the_menu_reaches_the_calls(lm, make_lm, optimizer, server):
    tuned = optimizer(models=[make_lm("openai/m2")]).compile(Parity(), trainset=TRAIN, valset=VAL)
    assert {body["model"] for body in server.bodies} == {"m", "m2"}
    assert "secret-key" not in json.dumps(tuned.detailed_results.to_json())


def test_prompt_model_proposes_instructions(lm, make_lm, optimizer, server):
    tuned = optimizer(prompt_model=None, budget=300).compile(Parity(), trainset=TRAIN, valset=VAL)
    dimensions = {name for c in tuned.detailed_results.candidates for name in c.config}
    assert "answer:instructions" in dimensions


def test_params_can_be_read_like_those_of_other_optimizers(optimizer):
    assert {"models", "tuner", "track_stats"} <= set(optimizer().get_params())


class Unwritable:
    pass


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"student": "a program"}, ConfigurationError, "`student` is a str"),
        ({"student": dspy.Module()}, TranslationError, "nothing to tune"),
        ({"teacher": Parity()}, ConfigurationError, "`teacher`"),
        ({"trainset": []}, ConfigurationError, "`trainset`"),
        ({"trainset": [{"question": "x"}]}, ConfigurationError, r"`trainset\[0\]` is a dict"),
        (
            {"trainset": [dspy.Example(question=Unwritable()).with_inputs("question")] * 2},
            ExampleError,
            "question",
        ),
    ],
)
def test_bad_input_is_refused_before_a_request_is_sent(
    lm, optimizer, server, changes, error, match
):
    student = changes.pop("student", Parity())
    with pytest.raises(error, match=match):
        optimizer().compile(student, **{"trainset": TRAIN, "valset": VAL, **changes})
    assert not server.requests


def test_a_program_without_a_model_is_refused(optimizer):
    with (
        dspy.context(lm=None),
        pytest.raises(ConfigurationError, match="model of step note"),
    ):
        optimizer().compile(Parity(), trainset=TRAIN, valset=VAL)


@pytest.mark.parametrize("as_text", [False, True])
def test_a_model_that_is_not_served_is_refused(lm, make_lm, optimizer, server, as_text):
    model = f"openai/nowhere@{server.url}" if as_text else make_lm("openai/nowhere")
    # A reference in text may be checked by another adapter, if its framework is loaded too.
    with pytest.raises(EndpointError, match=r"does not serve `(openai/)?nowhere`; it serves m, m2"):
        optimizer(models=[model]).compile(Parity(), trainset=TRAIN, valset=VAL)
    assert not server.requests


def test_an_endpoint_that_is_down_is_refused(lm, make_lm, optimizer, server):
    gone = make_lm("openai/m", api_base="http://127.0.0.1:9/v1")
    with pytest.raises(EndpointError, match=r"127\.0\.0\.1:9"):
        optimizer(models=[gone]).compile(Parity(), trainset=TRAIN, valset=VAL)
    assert not server.requests


def test_a_metric_that_returns_text_costs_one_run(lm, optimizer, server):
    with pytest.raises(MetricError, match="'good'"):
        optimizer(metric=lambda e, p, trace=None: "good").compile(
            Parity(), trainset=TRAIN, valset=VAL
        )
    assert len(server.requests) == 2


def test_a_run_is_not_resumed_after_the_code_between_the_steps_has_changed(lm, optimizer):
    class Changed(Parity):
        def forward(self, question: str) -> Any:
            return super().forward(question=question.upper())

    optimizer(budget=80).compile(Parity(), trainset=TRAIN, valset=VAL)
    # The steps are the same, so only the source of the program can tell.
    assert translate(Changed()).fingerprint == translate(Parity()).fingerprint
    with pytest.raises(JournalError, match="program"):
        optimizer(budget=80).compile(Changed(), trainset=TRAIN, valset=VAL)


def test_both_names_of_the_run_folder_are_refused():
    with pytest.raises(ConfigurationError, match="`log_dir`"):
        AdaSeek(metric=metric, run_dir="a", log_dir="b")


def test_a_menu_that_is_one_text_is_refused():
    with pytest.raises(ConfigurationError, match="`models` is 'm2', but must be a list"):
        AdaSeek(metric=metric, models="m2")


def test_translate_and_apply_are_exported(lm):
    assert list(translate(Parity()).steps) == ["note", "answer"]
    assert apply(Parity(), Recipe())(question="Is number 2 even or odd?").answer


def test_the_signature_shows_what_the_tuner_takes_with_the_same_defaults() -> None:
    shown = inspect.signature(AdaSeek.__init__).parameters
    fields = {field.name for field in dataclasses.fields(Tuner)}
    # These go by DSPy's own names (`callbacks`, `prompt_model`) or are not for DSPy programs.
    assert fields - set(shown) == {"listeners", "proposer", "members"}
    tuner, plain = AdaSeek(metric).tuner, Tuner(metric)
    for name in (fields & set(shown)) - {"models", "rewards"}:
        assert getattr(tuner, name) == getattr(plain, name), name


def test_settings_reach_the_tuner() -> None:
    given = {
        "objectives": ["quality"],
        "prices": {"openai/m": {"input": 1.0, "output": 2.0}},
        "seed": 7,
        "concurrency": {"http://h/v1": 2},
        "journal": "sqlite:///j.db",
        "max_cost_usd": 1.0,
        "max_tokens": 2,
        "max_seconds": 3.0,
        "max_errors": 4,
        "timeout_s": 5.0,
        "failure_score": -1.0,
        "score_span": 2.0,
        "verbose": False,
    }
    tuner = AdaSeek(metric, callbacks=[print], **given).tuner
    assert {name: getattr(tuner, name) for name in given} == given
    assert tuner.listeners == (print,)
