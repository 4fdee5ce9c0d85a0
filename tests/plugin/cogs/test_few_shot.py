"""Worked examples: which runs they come from, how they are chosen, when a set is new."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from adaseek.cogs import CogContext, FewShotCog, Option, Run, build_space
from adaseek.errors import ConfigurationError
from adaseek.recipe import Demo, Ensemble, Recipe, Setting
from adaseek.workflow import Call, Example, Field, Score, Signature, Step, Trace, Workflow
from hypothesis import given
from hypothesis import strategies as st

SIGNATURE = Signature("Answer.", (Field("question", "input"), Field("answer", "output")))
STEP = Step("qa", signature=SIGNATURE, allowed=frozenset({"few_shot", "ensemble"}))
MEMBER = replace(STEP, id="qa#all", parent="qa")
NUM_EXAMPLES = 12


def example(number: int) -> Example:
    return Example(f"e{number}", {"question": f"q{number}"}, {"gold": "x"})


TRAIN = tuple(example(i) for i in range(NUM_EXAMPLES))
CONTEXT = CogContext(Workflow("dspy", {"qa": STEP}), train=TRAIN)
COG = FewShotCog(sizes=(2, 4), num_slots=4)


def run(
    number: int,
    score: float = 1.0,
    *,
    outputs: Mapping[str, Any] | None = None,
    step: str = "qa",
    error: str | None = None,
) -> Run:
    found = {"answer": f"a{number}"} if outputs is None else outputs
    call = Call("1", step, inputs={"question": f"q{number}", "extra": 1}, outputs=found)
    return Run(Recipe(), example(number), Trace((call,), error=error), Score(score))


def evolve(runs: Sequence[Run], added: Sequence[Option] = (), step: Step = STEP) -> list[Option]:
    return list(COG.evolve(step, runs, added, CONTEXT))


def demos(option: Option) -> tuple[Demo, ...]:
    assert option.setting.demos is not None
    return option.setting.demos


def sources(option: Option) -> set[str]:
    return {demo.source for demo in demos(option)}


def test_a_set_of_each_size_once_there_are_enough_good_runs() -> None:
    assert evolve([run(0)]) == []
    assert [len(demos(o)) for o in evolve([run(i) for i in range(3)])] == [2]
    assert [len(demos(o)) for o in evolve([run(i) for i in range(4)])] == [2, 4]


def test_a_demo_holds_the_fields_of_the_step_and_its_reasoning_and_names_its_example() -> None:
    outputs = {"answer": "a", "reasoning": "because", "confidence": 0.9}
    (option,) = evolve([run(i, outputs=outputs) for i in range(2)])
    assert {demo.source: demo.values for demo in demos(option)} == {
        f"e{i}": {"question": f"q{i}", "answer": "a", "reasoning": "because"} for i in range(2)
    }


def test_of_equally_good_runs_those_with_reasoning_come_first() -> None:
    plain = [run(i) for i in range(3)]
    explained = [run(i, outputs={"answer": f"a{i}", "plan": "p" * 50}) for i in (8, 9)]
    assert sources(evolve([*plain, *explained])[0]) == {"e8", "e9"}


def test_short_demos_come_first_and_long_ones_never() -> None:
    runs = [run(i, outputs={"answer": f"{i}" * (10 - i)}) for i in range(4)]
    assert sources(evolve(runs)[0]) == {"e2", "e3"}
    cog = replace(COG, max_characters=40)
    long = [run(i, outputs={"answer": f"{i}" * 50}) for i in range(4)]
    assert list(cog.evolve(STEP, long, (), CONTEXT)) == []


def test_answers_are_as_different_as_possible() -> None:
    answers = ["yes"] * 6 + ["no", "perhaps, perhaps"]
    runs = [run(i, outputs={"answer": answer}) for i, answer in enumerate(answers)]
    two, four = evolve(runs)
    assert {demo.values["answer"] for demo in demos(two)} == {"yes", "no"}
    assert {demo.values["answer"] for demo in demos(four)} == {"yes", "no", "perhaps, perhaps"}


def test_each_example_gives_one_demo_its_best() -> None:
    bad = [run(i, 0.0, outputs={"answer": "wrong"}) for i in range(4)]
    good = [run(i, 1.0, outputs={"answer": "right, but longer"}) for i in range(4)]
    (_, four) = evolve([*bad, *good, *good])
    assert sources(four) == {"e0", "e1", "e2", "e3"}
    assert {demo.values["answer"] for demo in demos(four)} == {"right, but longer"}


def test_of_a_yes_or_no_metric_only_successes_are_shown() -> None:
    runs = [run(i, float(i >= 9)) for i in range(12)]
    (option,) = evolve(runs)
    assert sources(option) < {"e9", "e10", "e11"}
    assert evolve([run(i, 0.0) for i in range(12)]) == []


def test_of_a_graded_metric_only_the_top_is_shown() -> None:
    runs = [run(i, i / 12) for i in range(12)]
    (option,) = evolve(runs)
    assert sources(option) == {"e11", "e10"}
    assert all(i >= 9 for o in evolve(runs) for d in demos(o) for i in [int(d.source[1:])])


def test_runs_that_all_score_the_same_are_shown_only_if_that_is_full_marks() -> None:
    assert evolve([run(i, 0.5) for i in range(4)]) == []
    assert len(evolve([run(i, 1.0) for i in range(4)])) == 2


def test_the_best_are_shown_even_if_most_runs_are_the_best() -> None:
    scores = [0.2, 0.6, 1.0, 1.0, 1.0, 1.0]
    options = evolve([run(i, score) for i, score in enumerate(scores)])
    assert sources(options[1]) == {"e2", "e3", "e4", "e5"}


def test_failed_runs_failed_calls_and_foreign_examples_teach_nothing() -> None:
    failed = [run(i, error="ValueError: no") for i in range(4)]
    assert evolve(failed) == []
    lost = [run(i, outputs={}) for i in range(4)]
    assert evolve(lost) == []
    foreign = [run(i) for i in range(NUM_EXAMPLES, NUM_EXAMPLES + 4)]
    assert evolve(foreign) == []
    unwritable = [run(i, outputs={"answer": object()}) for i in range(4)]
    assert evolve(unwritable) == []


def test_empty_and_false_answers_are_answers() -> None:
    assert len(evolve([run(i, outputs={"answer": [False, "", 0, []][i]}) for i in range(4)])) == 2


def test_copies_of_a_step_share_its_runs_and_the_judge_gives_none() -> None:
    plain = [run(i) for i in range(4)]
    copies = [run(i, step="qa#1") for i in range(4)]
    judge = [run(i, step="qa#judge") for i in range(4)]
    assert evolve(plain, step=MEMBER) == evolve(copies) == evolve(plain)
    assert evolve(judge, step=MEMBER) == []


def test_of_an_ensemble_the_copy_that_was_not_outvoted_is_shown() -> None:
    def voted(number: int) -> Run:
        found = [("qa#0", "odd"), ("qa#1", "Even."), ("qa#2", "even"), ("qa#judge", "x")]
        inputs = {"question": f"q{number}"}
        calls = [Call(step, step, inputs=inputs, outputs={"answer": text}) for step, text in found]
        recipe = Recipe({"qa": Setting(ensemble=Ensemble(3))})
        return Run(recipe, example(number), Trace(tuple(calls)), Score(1.0))

    (option,) = evolve([voted(0), voted(1)])
    assert [demo.values["answer"] for demo in demos(option)] == ["Even.", "Even."]


def test_of_a_step_in_a_loop_different_turns_are_shown() -> None:
    def looped(number: int) -> Run:
        calls = tuple(
            Call(str(t), "qa", inputs={"question": f"turn {t}"}, outputs={"answer": f"{t}"})
            for t in range(3)
        )
        return Run(Recipe(), example(number), Trace(calls), Score(1.0))

    (_, four) = evolve([looped(i) for i in range(NUM_EXAMPLES)])
    assert {demo.values["question"] for demo in demos(four)} == {"turn 0", "turn 1", "turn 2"}


def test_of_a_growing_conversation_the_last_turn_is_shown_since_it_holds_the_others() -> None:
    def agent(number: int) -> Run:
        opening: list[object] = [{"role": "human", "content": f"q{number}"}]
        later = [*opening, {"role": "ai", "content": "look"}, {"role": "tool", "content": "7"}]
        last = [*later, {"role": "ai", "content": "add"}, {"role": "tool", "content": "8"}]
        calls = tuple(
            Call(str(t), "qa", inputs={"question": given}, outputs={"answer": f"{t}"})
            for t, given in enumerate((f"q{number}", later, last))
        )
        return Run(Recipe(), example(number), Trace(calls), Score(1.0))

    (_, four) = evolve([agent(i) for i in range(NUM_EXAMPLES)])
    assert [demo.values["answer"] for demo in demos(four)] == ["2"] * 4


def test_the_same_runs_give_nothing_new() -> None:
    runs = [run(i) for i in range(6)]
    added = evolve(runs)
    assert evolve(runs, added) == []


def test_a_set_is_offered_again_when_half_of_it_is_new() -> None:
    long = {i: run(i, outputs={"answer": "a" * 30 + str(i)}) for i in range(4)}
    added = evolve(list(long.values()))
    one_new = [*long.values(), run(9)]
    assert [len(demos(o)) for o in evolve(one_new, added)] == [2]
    two_new = [*one_new, run(8)]
    assert [len(demos(o)) for o in evolve(two_new, added)] == [2, 4]


def test_no_more_sets_than_slots() -> None:
    runs = [run(i) for i in range(8)]
    filler = [Option(f"added-{i}", Setting(demos=(Demo({}, "x"),))) for i in range(3)]
    assert len(evolve(runs, filler)) == 1
    assert evolve(runs, [*filler, filler[0]]) == []


@given(st.lists(st.tuples(st.integers(0, 11), st.sampled_from([0.0, 0.3, 0.7, 1.0])), max_size=30))
def test_sets_do_not_depend_on_the_order_of_runs_and_sources_are_distinct(
    found: list[tuple[int, float]],
) -> None:
    runs = [run(i, score, outputs={"answer": f"{i % 3}{score}"}) for i, score in found]
    shuffled = random.Random(0).sample(runs, len(runs))
    options = evolve(runs)
    assert evolve(shuffled) == options
    for option in options:
        assert len(sources(option)) == len(demos(option)) in COG.sizes


def test_the_users_own_demos_can_be_left_out() -> None:
    with_demos = replace(STEP, num_demos=3)
    options = COG.options(with_demos, CONTEXT)
    assert [option.key for option in options] == ["original", "none"]
    assert options[1].setting.demos == ()
    assert [option.key for option in COG.options(STEP, CONTEXT)] == ["original"]


def labelled(context: CogContext) -> list[Option]:
    return [o for o in COG.options(STEP, context) if o.key.startswith("labelled")]


def test_labels_that_are_the_steps_outputs_give_demos_from_the_start() -> None:
    train = [replace(e, labels={"answer": f"gold {e.id}"}) for e in TRAIN]
    two, four = labelled(replace(CONTEXT, train=train))
    assert (two.key, four.key) == ("labelled-2", "labelled-4")
    for demo in demos(four):
        number = demo.source[1:]
        assert demo.values == {"question": f"q{number}", "answer": f"gold e{number}"}
    assert labelled(CONTEXT) == []


def test_labelled_demos_are_chosen_by_seed() -> None:
    train = [replace(e, labels={"answer": f"gold {e.id}"}) for e in TRAIN]
    context = replace(CONTEXT, train=train)
    assert labelled(context) == labelled(replace(context, train=train[::-1]))
    assert any(labelled(replace(context, seed=s)) != labelled(context) for s in (1, 2, 3))


def test_a_run_never_sees_a_demo_of_its_own_example() -> None:
    runs = [run(i) for i in range(4)]
    space, table = build_space(CONTEXT.workflow, (COG,), CONTEXT)
    table, counts = table.evolved(runs, CONTEXT)
    assert counts == {"qa:few_shot": 2}
    space = space.grown("qa:few_shot", 2)
    recipe = table.recipe({"qa:few_shot": "added-1"})
    for i in range(4):
        left = recipe.for_example(f"e{i}").settings["qa"].demos
        assert left is not None
        assert len(left) == 3
        assert f"e{i}" not in {demo.source for demo in left}


@pytest.mark.parametrize(
    "step",
    [
        replace(STEP, kind="tool"),
        replace(STEP, signature=None),
        replace(STEP, signature=Signature("Answer.")),
        replace(STEP, signature=replace(SIGNATURE, output="tool_calls")),
    ],
)
def test_steps_without_named_outputs_are_refused(step: Step) -> None:
    assert COG.refuses(step)
    assert COG.refuses(STEP) is None


def test_without_training_examples_there_is_nothing_to_offer() -> None:
    assert COG.options(STEP, replace(CONTEXT, train=())) == []


@pytest.mark.parametrize(
    "arguments", [{"sizes": ()}, {"sizes": (0,)}, {"num_slots": -1}, {"max_characters": 0}]
)
def test_arguments_are_checked(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"`{next(iter(arguments))}` is"):
        FewShotCog(**arguments)


def test_what_is_remembered_of_a_run_changes_nothing() -> None:
    runs = [run(i, score=i / 10) for i in range(10)]
    first = evolve(runs)
    assert all(one.derived for one in runs if one.score.value == 0.9)
    fresh = [run(i, score=i / 10) for i in range(10)]
    context = CogContext(Workflow("dspy", {"qa": STEP}), train=TRAIN)
    assert evolve(runs) == first == list(COG.evolve(STEP, fresh, (), context))
