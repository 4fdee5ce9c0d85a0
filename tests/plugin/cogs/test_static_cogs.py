"""Cogs whose options are known before the search: ensemble, model, params, reasoning."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from adaseek.cogs import Cog, CogContext, EnsembleCog, ModelCog, ParamsCog, ReasoningCog
from adaseek.cogs.base import DynamicCog
from adaseek.errors import ConfigurationError
from adaseek.recipe import Ensemble, Setting
from adaseek.workflow import Field, ModelRef, Signature, Step, Workflow

SIGNATURE = Signature("Answer.", (Field("question", "input"), Field("answer", "output")))
STEP = Step(
    "qa",
    name="qa",
    signature=SIGNATURE,
    model=ModelRef("m"),
    tools=("search",),
    num_demos=2,
    allowed=frozenset({"ensemble", "model", "reasoning"}),
    blocked={"few_shot": "no"},
)
CONTEXT = CogContext(Workflow("dspy", {"qa": STEP}))


def shaped(output: Any, step: Step = STEP) -> Step:
    return replace(step, signature=replace(SIGNATURE, output=output))


def keys(cog: Cog, step: Step = STEP, context: CogContext = CONTEXT) -> list[str]:
    return [option.key for option in cog.options(step, context)]


@pytest.mark.parametrize(
    "cog", [EnsembleCog(), ModelCog(), ParamsCog({"top_p": (0.5,)}), ReasoningCog()]
)
def test_the_first_option_is_the_original_and_keys_are_distinct(cog: Cog) -> None:
    context = replace(CONTEXT, models=(ModelRef("other"),), rewards={"r": len})
    options = cog.options(STEP, context)
    assert len(options) >= 2
    assert options[0].setting.is_empty
    assert not options[0].members
    assert options[0].expected_cost == 1.0
    assert len({option.key for option in options}) == len(options)
    assert not isinstance(cog, DynamicCog)
    assert cog.refuses(STEP) is None
    assert cog.refuses(replace(STEP, kind="tool")) is not None


def test_ensemble_offers_each_size_with_each_aggregate() -> None:
    cog = EnsembleCog(sizes=(3, 5), aggregates=("majority", "judge"), temperature=0.9)
    options = {option.key: option for option in cog.options(STEP, CONTEXT)}
    assert list(options) == ["off", "majority-3", "judge-3", "majority-5", "judge-5"]
    assert options["judge-5"].setting == Setting(ensemble=Ensemble(5, "judge", 0.9))
    assert options["majority-3"].expected_cost == 3.0
    assert options["judge-5"].expected_cost == 6.0


def test_members_are_copies_of_the_step_that_cannot_be_copied_again() -> None:
    option = EnsembleCog().options(STEP, CONTEXT)[2]
    *copies, judge = option.members
    assert [copy.id for copy in copies] == ["qa#0", "qa#1", "qa#2"]
    for copy in copies:
        assert copy.parent == "qa"
        assert copy.allowed == {"model", "reasoning"}
        assert copy.blocked.keys() == {"few_shot", "ensemble"}
        assert copy.fingerprint == STEP.fingerprint
        assert (copy.model, copy.num_demos) == (STEP.model, STEP.num_demos)
    assert (judge.id, judge.parent, judge.allowed) == ("qa#judge", "qa", {"model"})
    assert judge.model == STEP.model


def test_best_of_is_offered_once_per_reward_function() -> None:
    context = replace(CONTEXT, rewards={"short": len, "long": len})
    assert keys(EnsembleCog(aggregates=("best_of",))) == ["off"]
    assert keys(EnsembleCog(aggregates=("best_of",)), context=context) == [
        "off",
        "best_of-3-long",
        "best_of-3-short",
    ]
    option = EnsembleCog(aggregates=("best_of",)).options(STEP, context)[1]
    assert option.setting.ensemble == Ensemble(3, "best_of", 0.7, "long")
    assert "qa#judge" not in [member.id for member in option.members]


def test_free_text_gets_no_majority_vote() -> None:
    assert keys(EnsembleCog(), shaped("text")) == ["off", "judge-3"]
    assert keys(EnsembleCog(), shaped("json_schema")) == ["off", "majority-3", "judge-3"]


@pytest.mark.parametrize("step", [shaped("tool_calls"), replace(STEP, signature=None)])
def test_ensemble_refuses_answers_that_cannot_be_combined(step: Step) -> None:
    assert EnsembleCog().refuses(step)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"sizes": ()}, "sizes"),
        ({"sizes": (3, 1)}, "sizes"),
        ({"aggregates": ()}, "aggregates"),
        ({"aggregates": ("vote",)}, "aggregates"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_ensemble_checks_its_arguments(arguments: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"`{name}` is"):
        EnsembleCog(**arguments)


def test_the_models_own_reference_is_no_option_but_its_twin_elsewhere_is() -> None:
    menu = (ModelRef("m"), ModelRef("m", "http://here"), ModelRef("n"), ModelRef("n"))
    context = replace(CONTEXT, models=menu)
    assert keys(ModelCog(), context=context) == ["original", "m@http://here", "n"]
    option = ModelCog().options(STEP, context)[1]
    assert option.setting == Setting(model=ModelRef("m", "http://here"))


def test_without_a_menu_there_is_one_model() -> None:
    assert keys(ModelCog()) == ["original"]


def test_of_a_step_with_an_unknown_model_every_model_is_an_option() -> None:
    context = replace(CONTEXT, models=(ModelRef("m"), ModelRef("n")))
    assert keys(ModelCog(), replace(STEP, model=None), context) == ["original", "m", "n"]


def test_params_offers_each_combination_a_parameter_left_alone_being_one() -> None:
    cog = ParamsCog({"temperature": (0.0, 0.7), "stop": (["\n"],)})
    assert keys(cog) == [
        "original",
        'stop=["\\n"]',
        "temperature=0.0",
        'temperature=0.0,stop=["\\n"]',
        "temperature=0.7",
        'temperature=0.7,stop=["\\n"]',
    ]
    assert cog.options(STEP, CONTEXT)[3].setting.params == {"temperature": 0.0, "stop": ["\n"]}


def test_params_has_nothing_to_choose_from_by_default_and_drops_repeated_values() -> None:
    assert keys(ParamsCog()) == ["original"]
    assert keys(ParamsCog({"n": (1, 1)})) == ["original", "n=1"]


@pytest.mark.parametrize("values", [{"t": ()}, {"t": "0.7"}, {c: range(3) for c in "abcd"}])
def test_params_checks_its_values(values: Any) -> None:
    with pytest.raises(ConfigurationError, match="`values"):
        ParamsCog(values)


def test_reasoning_offers_its_kinds() -> None:
    assert keys(ReasoningCog()) == ["off", "chain_of_thought", "plan"]
    assert keys(ReasoningCog(kinds=("plan",))) == ["off", "plan"]
    assert ReasoningCog().options(STEP, CONTEXT)[2].setting == Setting(reasoning="plan")


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (shaped("tool_calls"), "tool calls"),
        (shaped("json_schema"), "JSON schema"),
        (replace(STEP, signature=None), "not known"),
        (
            replace(STEP, signature=Signature("", (Field("reasoning", "output"),))),
            "already has a field `reasoning`",
        ),
    ],
)
def test_reasoning_refuses_steps_without_room_for_it(step: Step, reason: str) -> None:
    assert reason in (ReasoningCog().refuses(step) or "")


@pytest.mark.parametrize("kinds", [("off",), ("tree",), ("plan", "plan")])
def test_reasoning_checks_its_kinds(kinds: Any) -> None:
    with pytest.raises(ConfigurationError, match="`kinds` is"):
        ReasoningCog(kinds=kinds)
