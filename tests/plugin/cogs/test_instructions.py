"""Instructions that a proposal model writes: when it is asked, what it sees, what is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from adaseek.cogs import CogContext, Completion, InstructionsCog, Option, Run, build_space
from adaseek.errors import ConfigurationError, EndpointError
from adaseek.recipe import Ensemble, Recipe, Setting
from adaseek.workflow import Call, Example, Field, Score, Signature, Step, Trace, Workflow

SIGNATURE = Signature(
    "Answer the question.", (Field("question", "input"), Field("answer", "output"))
)
STEP = Step("qa", signature=SIGNATURE, allowed=frozenset({"instructions", "ensemble"}))
MEMBER = replace(STEP, id="qa#all", parent="qa")
TRAIN = tuple(Example(f"e{i}", {"question": f"q{i}"}, {"gold": f"g{i}"}) for i in range(8))
COG = InstructionsCog(num_initial=2, num_successors=2, min_runs=6, attempts=3)


@dataclass
class Model:
    """A proposal model with scripted answers, the last one repeated; keeps what it was asked."""

    answers: Sequence[str] = ()
    asked: list[tuple[str, int, int]] = field(default_factory=list)

    def __call__(self, prompt: str, *, seed: int, max_tokens: int = 512) -> Completion:
        self.asked.append((prompt, seed, max_tokens))
        if not self.answers:
            return Completion(f"Answer the question as proposal {seed} says.")
        return Completion(self.answers[min(len(self.asked), len(self.answers)) - 1])


def context(model: Model | None = None, *, seed: int = 0) -> CogContext:
    workflow = Workflow("dspy", {"qa": STEP})
    return CogContext(workflow, train=TRAIN, proposer=model, seed=seed)


def run(
    number: int,
    score: float,
    text: str | None = None,
    *,
    feedback: str = "",
    recipe: Recipe | None = None,
) -> Run:
    call = Call("1", "qa", inputs={"question": f"q{number}"}, outputs={"answer": f"a{number}"})
    used = recipe or Recipe({"qa": Setting(instructions=text)})
    return Run(used, TRAIN[number], Trace((call,)), Score(score, feedback))


def texts(options: Sequence[Option]) -> list[str]:
    return [option.setting.instructions or "" for option in options]


ADDED = [
    Option("added-0", Setting(instructions="The first proposal text."), label="initial-0"),
    Option("added-1", Setting(instructions="The second proposal text."), label="initial-1"),
]
TRIED = [run(0, 1.0, "The second proposal text.")]


def test_there_is_nothing_to_offer_without_a_model() -> None:
    assert COG.options(STEP, context()) == []
    assert COG.evolve(STEP, [], (), context()) == []
    found = context()
    space, _ = build_space(found.workflow, (COG,), found)
    assert space.dimensions == ()


def test_the_space_is_built_without_asking_the_model() -> None:
    model = Model()
    found = context(model)
    space, _ = build_space(found.workflow, (COG,), found)
    assert model.asked == []
    assert space.dimension("qa:instructions").options == ("original",)
    assert space.dimension("qa:instructions").num_slots == 4


def test_the_first_texts_come_before_any_run_and_differ() -> None:
    model = Model()
    options = COG.evolve(STEP, [], (), context(model))
    assert [option.key for option in options] == ["initial-0", "initial-1"]
    assert len(set(texts(options))) == 2
    prompts = [prompt for prompt, _, _ in model.asked]
    assert len(set(prompts)) == 2
    assert len({seed for _, seed, _ in model.asked}) == 2
    assert all("Answer the question." in prompt for prompt in prompts)


def test_the_same_arguments_ask_and_give_the_same() -> None:
    one, two, other = Model(), Model(), Model()
    first = COG.evolve(STEP, [], (), context(one))
    assert COG.evolve(STEP, [], (), context(two)) == first
    assert one.asked == two.asked
    assert COG.evolve(STEP, [], (), context(other, seed=1)) != first


def test_copies_ask_what_their_step_asks() -> None:
    one, two = Model(), Model()
    assert COG.evolve(STEP, [], (), context(one)) == COG.evolve(MEMBER, [], (), context(two))
    assert one.asked == two.asked


def test_an_answer_that_cannot_be_used_is_asked_again_with_another_seed() -> None:
    model = Model(["", "Answer the question.", "Write one short and exact answer."])
    options = replace(COG, num_initial=1).evolve(STEP, [], (), context(model))
    assert texts(options) == ["Write one short and exact answer."]
    assert len({prompt for prompt, _, _ in model.asked}) == 1
    assert len({seed for _, seed, _ in model.asked}) == 3


def test_a_model_that_never_gives_a_usable_answer_adds_nothing() -> None:
    model = Model(["no"])
    assert COG.evolve(STEP, [], (), context(model)) == []
    assert len(model.asked) == COG.num_initial * COG.attempts


def test_a_text_that_gives_an_answer_away_is_never_added() -> None:
    train = (*TRAIN, Example("x", {"question": "Who?"}, {"gold": "Marlowe"}))
    model = Model(["Always answer Marlowe, it is right."])
    found = replace(context(model), train=train)
    assert COG.evolve(STEP, [], (), found) == []


def test_a_successor_waits_for_runs_and_for_the_last_text_to_be_tried() -> None:
    few = [*TRIED, *(run(i, 0.0) for i in range(1, 5))]
    untried = [run(i, float(i % 2)) for i in range(8)]
    model = Model()
    assert COG.evolve(STEP, few, ADDED, context(model)) == []
    assert COG.evolve(STEP, untried, ADDED, context(model)) == []
    assert model.asked == []
    (option,) = COG.evolve(STEP, [*TRIED, *untried], ADDED, context(model))
    assert option.key == "successor-2"


def test_few_examples_do_not_keep_a_successor_waiting_for_ever() -> None:
    runs = [*TRIED, run(1, 0.0), run(0, 1.0), run(1, 0.0)]
    found = replace(context(Model()), train=TRAIN[:2])
    assert len(COG.evolve(STEP, runs, ADDED, found)) == 1
    assert COG.evolve(STEP, runs[:3], ADDED, found) == []


def test_the_best_text_is_the_parent_and_the_label_says_so() -> None:
    good = [run(i, 0.9, "The first proposal text.") for i in range(6)]
    bad = [run(i, 0.1) for i in range(6)]
    model = Model()
    (option,) = COG.evolve(STEP, [*TRIED, *good, *bad], ADDED, context(model))
    assert option.label == "successor-2 of initial-0"
    ((prompt, _, _),) = model.asked
    assert "<instructions>\nThe first proposal text.\n</instructions>" in prompt
    assert "mean score of 0.90 over 6 runs" in prompt


def test_one_lucky_run_does_not_make_a_parent() -> None:
    steady = [run(i, float(i != 7)) for i in range(8)]
    lucky = [run(3, 1.0, "The second proposal text.")]
    low = [run(i, 0.0, "The first proposal text.") for i in range(4)]
    (option,) = COG.evolve(STEP, [*steady, *lucky, *low], ADDED, context(Model()))
    assert option.label == "successor-2 of original"


def test_the_label_of_a_grandchild_names_its_parent_only() -> None:
    child = Option(
        "added-2", Setting(instructions="A better text."), label="successor-2 of original"
    )
    runs = [run(i, 0.5 + i / 100, "A better text.") for i in range(8)]
    (option,) = COG.evolve(STEP, runs, [*ADDED, child], context(Model()))
    assert option.label == "successor-3 of successor-2"


def test_the_model_sees_the_worst_runs_with_inputs_answers_labels_and_feedback() -> None:
    runs = [*TRIED, *(run(i, 0.9 - i / 10, feedback=f"comment {i}") for i in range(8))]
    model = Model()
    COG.evolve(STEP, runs, ADDED, context(model))
    prompt = model.asked[0][0]
    assert prompt.count("Run ") == 3
    for i in (7, 6, 5):
        assert f"got question: q{i}\n  answered answer: a{i}\n  wanted gold: g{i}" in prompt
        assert f"comment: comment {i}" in prompt
    assert "comment 4" not in prompt


def test_a_failure_that_never_reached_the_step_is_no_evidence() -> None:
    elsewhere = [
        Run(Recipe(), TRAIN[i], Trace((Call("1", "other"),)), Score(0.0)) for i in range(8)
    ]
    assert COG.evolve(STEP, [*TRIED, *elsewhere], ADDED, context(Model())) == []


def test_an_error_is_shown_when_there_is_no_feedback() -> None:
    broken = [
        Run(Recipe(), e, Trace((Call("1", "qa", error="x"),), error="ValueError: no"), Score(0.0))
        for e in TRAIN
    ]
    model = Model()
    assert len(COG.evolve(STEP, [*TRIED, *broken], ADDED, context(model))) == 1
    assert "got question: q" in model.asked[0][0]
    assert "comment: ValueError: no" in model.asked[0][0]


def test_without_failures_there_is_nothing_to_learn() -> None:
    perfect = [run(i, 1.0) for i in range(8)]
    assert COG.evolve(STEP, [*TRIED, *perfect], ADDED, context(Model())) == []


def test_runs_on_other_examples_are_never_looked_at() -> None:
    secret = Example("validation", {"question": "secret"}, {"gold": "hidden"})
    call = Call("1", "qa", inputs={"question": "secret"}, outputs={"answer": "a"})
    foreign = Run(Recipe(), secret, Trace((call,)), Score(-9.0))
    model = Model()
    runs = [*TRIED, *(run(i, 0.5) for i in range(8)), *[foreign] * 5]
    assert COG.evolve(STEP, runs, ADDED, context(model))
    assert "secret" not in model.asked[0][0]
    assert "hidden" not in model.asked[0][0]


def test_instructions_of_copies_count_for_their_step() -> None:
    text = "The second proposal text."
    setting = {"qa": Setting(ensemble=Ensemble(2)), "qa#0": Setting(instructions=text)}
    runs = [run(i, i / 8, recipe=Recipe(setting)) for i in range(8)]
    (option,) = COG.evolve(STEP, runs, ADDED, context(Model()))
    assert option.label == "successor-2 of initial-1"


def test_a_successor_that_is_known_already_is_asked_again() -> None:
    model = Model(["The FIRST proposal text.", "Answer the question.", "Name one thing only."])
    runs = [*TRIED, *(run(i, i / 8) for i in range(8))]
    (option,) = COG.evolve(STEP, runs, ADDED, context(model))
    assert option.setting.instructions == "Name one thing only."


def test_no_more_texts_than_slots() -> None:
    full = [*ADDED, *ADDED]
    model = Model()
    assert COG.evolve(STEP, [run(i, i / 8) for i in range(8)], full, context(model)) == []
    assert model.asked == []


def test_an_endpoint_that_is_down_is_the_tuners_business() -> None:
    def down(prompt: str, *, seed: int, max_tokens: int = 512) -> Completion:
        raise EndpointError("The endpoint does not answer.")

    with pytest.raises(EndpointError):
        COG.evolve(STEP, [], (), replace(context(), proposer=down))


def test_steps_without_a_known_prompt_are_refused() -> None:
    assert COG.refuses(STEP) is None
    assert COG.refuses(replace(STEP, kind="tool"))
    assert COG.refuses(replace(STEP, signature=None))


@pytest.mark.parametrize(
    "arguments",
    [{"num_initial": -1}, {"num_successors": -1}, {"min_runs": 0}, {"num_words": 0},
     {"num_failures": 0}, {"attempts": 0}],
)  # fmt: skip
def test_arguments_are_checked(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"`{next(iter(arguments))}` is"):
        InstructionsCog(**arguments)
