"""Decomposition: what the cog offers, what the space makes of it, and how proposals are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from adaseek.cogs import CogContext, Completion, DecomposeCog, EnsembleCog, ModelCog, build_space
from adaseek.cogs._splits import read_split, split_objection
from adaseek.cogs.base import DynamicCog
from adaseek.errors import ConfigurationError, PluginError
from adaseek.recipe import Ensemble, Recipe, Setting, Subtask
from adaseek.workflow import Example, Field, ModelRef, Signature, Step, Workflow

STEP = Step(
    "qa",
    signature=Signature(
        "Answer {topic} questions.", (Field("question", "input"), Field("answer", "output"))
    ),
    model=ModelRef("large"),
    allowed=frozenset({"decompose", "ensemble", "model"}),
)
WORKFLOW = Workflow("dspy", {"qa": STEP})
FACTS = Subtask("facts", "List the facts that decide it.")
CHECK = Subtask("check", "Check the listed facts once more.")
EXAMPLE = Example("1", {"question": "How high is the old tower of the castle?"}, {"answer": "9 m"})
SPLIT = """\
<subtask name="Key Facts">
List the facts that decide it.
</subtask>
<subtask name="2 check">Check the listed facts once more.</subtask>
"""


class Proposer:
    """Gives its answers in turn and remembers what it was asked."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, int]] = []

    def __call__(self, prompt: str, *, seed: int, max_tokens: int = 512) -> Completion:
        self.asked.append((prompt, seed))
        return Completion(self.answers.pop(0))


def context(*answers: str, models: Sequence[str] = ()) -> CogContext:
    proposer = Proposer(*answers) if answers else None
    menu = tuple(map(ModelRef, models))
    return CogContext(WORKFLOW, menu, train=(EXAMPLE,), proposer=proposer, seed=3)


def proposed(cog: DecomposeCog, at: CogContext) -> list[tuple[Subtask, ...]]:
    return [option.setting.decompose or () for option in cog.evolve(STEP, [], [], at)]


def test_two_splits_are_known_from_the_start() -> None:
    cog = DecomposeCog()
    off, facts, draft = cog.options(STEP, context())
    assert off.setting.is_empty and not off.extras
    assert (facts.key, draft.key) == ("facts", "draft")
    assert facts.expected_cost == 2.0
    (extra,) = facts.extras
    assert (extra.id, extra.parent, extra.model) == ("qa#facts", "qa", ModelRef("large"))
    assert isinstance(cog, DynamicCog)


def test_own_splits_replace_them() -> None:
    cog = DecomposeCog({"two": (FACTS, CHECK)})
    option = cog.options(STEP, context())[1]
    assert option.setting == Setting(decompose=(FACTS, CHECK))
    assert [step.id for step in option.extras] == ["qa#facts", "qa#check"]
    assert option.expected_cost == 3.0


def test_without_splits_and_proposer_there_is_nothing_to_offer() -> None:
    assert DecomposeCog({}).options(STEP, context()) == []
    assert [o.key for o in DecomposeCog({}).options(STEP, context("x"))] == ["off"]


@pytest.mark.parametrize("step", [replace(STEP, kind="tool"), replace(STEP, signature=None)])
def test_a_step_without_a_task_is_refused(step: Step) -> None:
    assert DecomposeCog().refuses(step)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"splits": {"off": (FACTS,)}}, "splits"),
        ({"splits": {"none": ()}}, "splits"),
        ({"num_proposals": -1}, "num_proposals"),
        ({"num_words": 0}, "num_words"),
        ({"attempts": 0}, "attempts"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"`{name}` is"):
        DecomposeCog(**arguments)


# The space


def test_a_subtask_gets_a_model_of_its_own_only_where_it_is_done() -> None:
    cogs = [DecomposeCog({"facts": (FACTS,), "two": (FACTS, CHECK)}), ModelCog()]
    space, table = build_space(WORKFLOW, cogs, context(models=["small"]))
    assert [d.name for d in space.dimensions] == [
        "qa:decompose",
        "qa:model",
        "qa#facts:model",
        "qa#check:model",
    ]
    by_name = {d.name: d for d in space.dimensions}
    assert by_name["qa:model"].parent is None  # the step itself stays as it is
    assert by_name["qa#facts:model"].parent_options == {"facts", "two"}
    assert by_name["qa#check:model"].parent_options == {"two"}
    recipe = table.recipe(
        {"qa:decompose": "facts", "qa#facts:model": "small", "qa#check:model": "small"}
    )
    assert recipe == Recipe(
        {
            "qa": Setting(decompose=(FACTS,)),
            "qa#facts": Setting(model=ModelRef("small")),
        }
    )


def test_a_split_step_can_be_an_ensemble_too() -> None:
    cogs = [DecomposeCog(), EnsembleCog(aggregates=("judge",)), ModelCog()]
    space, table = build_space(WORKFLOW, cogs, context(models=["small"]))
    assert not [refusal for refusal in table.describe() if refusal.cog != "model"]
    recipe = table.recipe({"qa:decompose": "facts", "qa:ensemble": "judge-3"})
    assert recipe.setting("qa").decompose is not None
    assert recipe.setting("qa").ensemble == Ensemble(3, "judge")
    assert {d.name for d in space.dimensions} >= {"qa#facts:model", "qa#all:model"}


def test_an_added_option_cannot_bring_steps() -> None:
    cog = DecomposeCog()
    _, table = build_space(WORKFLOW, [cog], context())
    with pytest.raises(PluginError, match="only options known at the start"):
        table.add("qa:decompose", cog.options(STEP, context())[1:2])


def test_a_step_that_does_not_allow_it_is_left_alone() -> None:
    workflow = Workflow("dspy", {"qa": replace(STEP, allowed=frozenset({"model"}))})
    _, table = build_space(workflow, [DecomposeCog()], CogContext(workflow))
    assert [refusal.cog for refusal in table.describe()] == ["decompose"]


# Proposals


def test_the_proposal_model_splits_the_task() -> None:
    at = context(SPLIT, SPLIT)
    splits = proposed(DecomposeCog(num_proposals=2), at)
    key_facts = replace(FACTS, name="key_facts")
    assert splits == [(key_facts,), (key_facts, replace(CHECK, name="part_2_check"))]
    assert isinstance(at.proposer, Proposer)
    prompts = [prompt for prompt, _ in at.proposer.asked]
    assert "Answer {topic} questions." in prompts[0] and "one subtask were done" in prompts[0]
    assert "up to 2 subtasks were done" in prompts[1]


def test_it_is_asked_once() -> None:
    cog, at = DecomposeCog(num_proposals=1), context(SPLIT)
    first = cog.evolve(STEP, [], [], at)
    assert cog.evolve(STEP, [], [], at) == first  # nothing was kept: the slots are still free
    assert cog.evolve(STEP, [], first, at) == []


def test_it_may_find_that_one_call_is_enough() -> None:
    at = context("<one_call/>", "I am sure: <one_call/>")
    assert proposed(DecomposeCog(num_proposals=2), at) == []
    assert isinstance(at.proposer, Proposer)
    assert len(at.proposer.asked) == 2


def test_an_unusable_answer_is_asked_for_again_with_another_seed() -> None:
    at = context("nonsense", SPLIT)
    assert len(proposed(DecomposeCog(num_proposals=1), at)) == 1
    assert isinstance(at.proposer, Proposer)
    (first, one), (second, two) = at.proposer.asked
    assert first == second and one != two


def test_a_split_that_is_offered_already_is_not_proposed() -> None:
    cog = DecomposeCog({"facts": (FACTS,)}, num_proposals=1, attempts=1)
    assert proposed(cog, context(SPLIT)) == []


@pytest.mark.parametrize(
    ("answer", "names"),
    [
        (SPLIT, ["key_facts", "part_2_check"]),
        ('<subtask name="a">Find it.</subtask><subtask name="A">Do it.</subtask>', ["a", "a_2"]),
        ("Sure!\n<subtask name=judge>Find it.\n<subtask name=''>Do.", ["part_judge", "part"]),
        ('<SUBTASK NAME="Ä b">**Find** it.</SUBTASK>', ["b"]),
        ('<subtask name="empty"> </subtask>', []),
        ("", []),
    ],
)
def test_names_become_what_can_stand_in_a_prompt(answer: str, names: list[str]) -> None:
    split = read_split(answer, num_subtasks=2, num_words=60)
    assert split is not None and [subtask.name for subtask in split] == names


def test_more_subtasks_than_asked_for_are_left_out() -> None:
    split = read_split(SPLIT, num_subtasks=1, num_words=60)
    assert split == (replace(FACTS, name="key_facts"),)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Short.", "too short"),
        ("List what {topic} says about it.", "template variables"),
        ("Answer topic questions.", "not new"),
        ("Find how high is the old tower of the castle first.", "gives away an example"),
    ],
)
def test_a_bad_subtask_spoils_its_split(text: str, reason: str) -> None:
    split = (FACTS, Subtask("bad", text))
    found = split_objection(split, step=STEP, known=[], train=[EXAMPLE])
    assert found is not None and reason in found


def test_a_good_split_has_no_objection() -> None:
    assert split_objection((FACTS, CHECK), step=STEP, known=[(FACTS,)], train=[EXAMPLE]) is None
    assert split_objection((), step=STEP, known=[], train=[EXAMPLE]) == "it names no subtask"
