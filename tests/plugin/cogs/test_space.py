"""The search space of a workflow, and the recipes that its configs stand for."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import pytest
from adaseek.cogs import (
    Cog,
    CogContext,
    EnsembleCog,
    ModelCog,
    Option,
    OptionTable,
    ParamsCog,
    ReasoningCog,
    Run,
    build_space,
    default_cogs,
)
from adaseek.cogs.base import Family
from adaseek.errors import ConfigurationError, PluginError
from adaseek.hooks import hookimpl
from adaseek.plugins import load_plugins
from adaseek.recipe import Ensemble, Recipe, Setting, owner_id
from adaseek.search.base import FAMILIES, Space
from adaseek.workflow import Field, ModelRef, Signature, Step, Workflow
from hypothesis import given
from hypothesis import strategies as st

SMALL, LARGE = ModelRef("small"), ModelRef("large")
ALL = frozenset({"ensemble", "model", "params", "reasoning", "few_shot", "instructions"})
SIGNATURE = Signature("Answer.", (Field("question", "input"), Field("answer", "output")))
QA = Step("qa", signature=SIGNATURE, model=SMALL, allowed=ALL)
TOOL = Step("search", kind="tool")


def context(*steps: Step, models: tuple[ModelRef, ...] = (SMALL, LARGE)) -> CogContext:
    return CogContext(Workflow("dspy", {step.id: step for step in steps}), models=models)


def build(cogs: Sequence[Cog], *steps: Step, members: str = "shared") -> tuple[Space, OptionTable]:
    found = context(*steps)
    return build_space(found.workflow, cogs, found, members=members)  # type: ignore[arg-type]


STATIC = (EnsembleCog(sizes=(2, 3)), ModelCog(), ReasoningCog(kinds=("plan",)))


def configs(space: Space) -> Iterator[dict[str, str]]:
    """Yields every config of `space`, by brute force."""
    names = [dimension.name for dimension in space.dimensions]
    seen = set()
    for keys in itertools.product(*(space.options(name) for name in names)):
        config = dict(zip(names, keys, strict=True))
        active = {d.name: config[d.name] for d in space.dimensions if space.is_active(d, config)}
        form = tuple(sorted(active.items()))
        if form not in seen:
            seen.add(form)
            yield active


def test_dimensions_of_one_step_with_shared_copies() -> None:
    space, _ = build(STATIC, QA)
    ensembles = {"majority-2", "judge-2", "majority-3", "judge-3"}
    assert [(d.name, d.parent, d.parent_options) for d in space.dimensions] == [
        ("qa:ensemble", None, frozenset()),
        ("qa:model", "qa:ensemble", {"off"}),
        ("qa#all:model", "qa:ensemble", ensembles),
        ("qa#judge:model", "qa:ensemble", {"judge-2", "judge-3"}),
        ("qa:reasoning", "qa:ensemble", {"off"}),
        ("qa#all:reasoning", "qa:ensemble", ensembles),
    ]


def test_dimensions_of_one_step_with_separate_copies() -> None:
    space, _ = build(STATIC, QA, members="separate")
    of_three = {"majority-3", "judge-3"}
    by_name = {d.name: d.parent_options for d in space.dimensions}
    assert by_name["qa#1:model"] == {"majority-2", "judge-2"} | of_three
    assert by_name["qa#2:model"] == of_three
    assert by_name["qa#2:reasoning"] == of_three
    assert "qa#all:model" not in by_name
    assert "qa#2:ensemble" not in by_name


def test_a_step_without_ensemble_has_dimensions_that_are_always_active() -> None:
    space, _ = build(STATIC, replace(QA, allowed=ALL - {"ensemble"}))
    assert [(d.name, d.parent) for d in space.dimensions] == [
        ("qa:model", None),
        ("qa:reasoning", None),
    ]


@pytest.mark.parametrize("members", ["shared", "separate"])
def test_parents_come_first_and_families_are_in_order(members: str) -> None:
    space, _ = build(STATIC, QA, replace(QA, id="rerank"), members=members)
    names = [d.name for d in space.dimensions]
    families = [FAMILIES.index(d.family) for d in space.dimensions]
    assert families == sorted(families)
    for d in space.dimensions:
        assert d.parent is None or names.index(d.parent) < names.index(d.name)


def test_costs_come_from_the_options() -> None:
    space, _ = build(STATIC, QA)
    assert space.dimension("qa:ensemble").costs == {
        "off": 1.0,
        "majority-2": 2.0,
        "judge-2": 3.0,
        "majority-3": 3.0,
        "judge-3": 4.0,
    }


@pytest.mark.parametrize("members", ["shared", "separate"])
def test_each_config_has_a_recipe_of_its_own_and_the_original_has_the_empty_one(
    members: str,
) -> None:
    cogs = (EnsembleCog(sizes=(2,)), ModelCog(), ReasoningCog(kinds=("plan",)))
    space, table = build(cogs, QA, members=members)
    found = list(configs(space))
    recipes = {table.recipe(config).fingerprint for config in found}
    assert len(recipes) == len(found) == space.size()
    assert table.recipe(space.original()).is_empty


def test_recipe_of_shared_copies_sets_each_copy_of_the_chosen_size() -> None:
    _, table = build(STATIC, QA)
    config = {"qa:ensemble": "judge-2", "qa#all:model": "large", "qa#all:reasoning": "plan"}
    copy = Setting(model=LARGE, reasoning="plan")
    assert dict(table.recipe(config).settings) == {
        "qa": Setting(ensemble=Ensemble(2, "judge")),
        "qa#0": copy,
        "qa#1": copy,
    }


def test_recipe_of_separate_copies_and_of_the_judge() -> None:
    _, table = build(STATIC, QA, members="separate")
    config = {"qa:ensemble": "judge-2", "qa#1:model": "large", "qa#judge:model": "large"}
    assert dict(table.recipe(config).settings) == {
        "qa": Setting(ensemble=Ensemble(2, "judge")),
        "qa#1": Setting(model=LARGE),
        "qa#judge": Setting(model=LARGE),
    }


def test_dimensions_that_are_not_active_have_no_effect() -> None:
    _, table = build(STATIC, QA)
    off = {"qa:ensemble": "off", "qa#all:model": "large", "qa#judge:model": "large"}
    assert table.recipe(off).is_empty
    on = {"qa:ensemble": "majority-3", "qa:model": "large", "qa#judge:model": "large"}
    assert list(table.recipe(on).settings) == ["qa"]
    assert table.recipe(on).settings["qa"].model is None


@given(st.data())
def test_a_recipe_touches_only_steps_of_the_program_and_their_copies(data: st.DataObject) -> None:
    space, table = build(STATIC, QA, replace(QA, id="rerank"), TOOL, members="separate")
    config = {
        d.name: data.draw(st.sampled_from(space.options(d.name)), label=d.name)
        for d in space.dimensions
    }
    recipe = table.recipe(config)
    for step in recipe.settings:
        ensemble = recipe.setting(owner_id(step)).ensemble
        _, is_member, member = step.partition("#")
        assert owner_id(step) in {"qa", "rerank"}
        assert bool(is_member) <= (ensemble is not None)
        if ensemble is not None and member == "judge":
            assert ensemble.aggregate == "judge"
        elif ensemble is not None and is_member:
            assert int(member) < ensemble.num_members


def test_an_unknown_dimension_or_option_is_refused() -> None:
    _, table = build(STATIC, QA)
    with pytest.raises(ConfigurationError, match=r"`dimension` is 'qa:colour'.*'qa:ensemble'"):
        table.recipe({"qa:colour": "red"})
    with pytest.raises(ConfigurationError, match=r"'huge', but must be one of 'original', 'large'"):
        table.recipe({"qa:model": "huge"})


def test_describe_says_why_and_spares_the_user_what_was_never_possible() -> None:
    frozen = replace(QA, id="frozen", allowed=frozenset({"model"}), blocked={"reasoning": "no."})
    space, table = build((ReasoningCog(), ModelCog(), ParamsCog()), QA, frozen, TOOL)
    assert [tuple(refusal) for refusal in table.describe()] == [
        ("qa", "params", "there is nothing to choose from"),
        ("frozen", "reasoning", "no."),
        ("frozen", "params", "this step does not support `params`"),
    ]
    assert [d.name for d in space.dimensions] == ["qa:model", "frozen:model", "qa:reasoning"]


def test_two_cogs_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="`cogs` is"):
        build((ModelCog(), ModelCog()), QA)


def test_two_params_cogs_with_names_of_their_own_both_apply() -> None:
    cogs = (
        ParamsCog({"temperature": (0.0,)}),
        ParamsCog({"max_tokens": (64,)}, name="params_length"),
    )
    _, table = build(cogs, QA)
    recipe = table.recipe({"qa:params": "temperature=0.0", "qa:params_length": "max_tokens=64"})
    assert recipe.settings["qa"].params == {"temperature": 0.0, "max_tokens": 64}


@dataclass(frozen=True)
class FakeCog:
    """A cog with given options, dynamic if it has slots."""

    found: tuple[Option, ...]
    family: Family = "weight"
    name: str = "fake"

    def refuses(self, step: Step) -> str | None:
        return None if step.kind == "lm" else "no"

    def options(self, step: Step, context: CogContext) -> Sequence[Option]:
        return self.found


@dataclass(frozen=True)
class GrowingCog(FakeCog):
    num_slots: int = 2
    grow: Callable[[int], Sequence[Option]] = lambda _: ()

    def evolve(
        self, step: Step, runs: Sequence[Run], added: Sequence[Option], context: CogContext
    ) -> Sequence[Option]:
        return self.grow(len(added))


ORIGINAL, PLAN = Option("original"), Option("plan", Setting(reasoning="plan"))


@pytest.mark.parametrize(
    ("cog", "message"),
    [
        (FakeCog((ORIGINAL, PLAN), family="colour"), "family of the cog `fake` is 'colour'"),
        (FakeCog((PLAN, ORIGINAL)), "leaves the step as it is"),
        (FakeCog((ORIGINAL, PLAN, PLAN)), "distinct keys"),
        (FakeCog((ORIGINAL, replace(PLAN, key="added-0"))), "'added-'"),
        (FakeCog((ORIGINAL, replace(PLAN, members=(QA,)))), "must not have members"),
    ],
)
def test_a_cog_that_breaks_its_contract_is_named(cog: Cog, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        build((cog,), QA)


def test_of_two_cogs_that_replace_a_step_the_second_is_left_out() -> None:
    other = FakeCog((ORIGINAL, replace(PLAN, members=(replace(QA, id="qa#x"),))), "structure")
    space, table = build((EnsembleCog(), other), QA)
    assert [d.name for d in space.dimensions] == ["qa:ensemble"]
    assert table.describe()[0].cog == "fake"
    assert "`ensemble` already replaces this step" in table.describe()[0].reason


def test_a_dynamic_cog_needs_slots_or_two_options() -> None:
    assert build((GrowingCog((ORIGINAL,)),), QA)[0].dimension("qa:fake").num_slots == 2
    assert build((GrowingCog((ORIGINAL,), num_slots=0),), QA)[0].dimensions == ()
    assert build((GrowingCog(()),), QA)[0].dimensions == ()


def test_added_options_get_the_keys_of_slots_and_keep_their_own_as_labels() -> None:
    space, before = build((GrowingCog((ORIGINAL,)),), QA)
    table = before.add("qa:fake", [PLAN]).add("qa:fake", [Option("b", label="the second")])
    space = space.grown("qa:fake", 2)
    assert space.options("qa:fake") == ("original", "added-0", "added-1")
    assert table.label("qa:fake", "added-0") == "plan"
    assert table.label("qa:fake", "added-1") == "the second"
    assert table.label("qa:fake", "original") == "original"
    assert table.recipe({"qa:fake": "added-0"}) == Recipe({"qa": PLAN.setting})
    assert list(before.knobs["qa:fake"].options) == ["original"]
    with pytest.raises(PluginError, match="`num_slots` is 2"):
        table.add("qa:fake", [PLAN])


def test_an_added_option_that_the_step_cannot_take_is_refused() -> None:
    _, table = build((GrowingCog((ORIGINAL,)),), replace(QA, allowed=frozenset({"model"})))
    with pytest.raises(PluginError, match="it would change `reasoning`"):
        table.add("qa:fake", [PLAN])
    with pytest.raises(PluginError, match="may have members"):
        table.add("qa:fake", [Option("x", members=(QA,))])


def test_evolved_asks_each_cog_for_no_more_than_its_free_slots() -> None:
    cog = GrowingCog((ORIGINAL,), grow=lambda n: [replace(PLAN, key=f"k{n + i}") for i in range(3)])
    _, table = build((cog,), QA, replace(QA, id="rerank"))
    grown, counts = table.evolved([], context(QA))
    assert counts == {"qa:fake": 2, "rerank:fake": 2}
    assert list(grown.knobs["qa:fake"].options) == ["original", "added-0", "added-1"]
    again, counts = grown.evolved([], context(QA))
    assert counts == {}
    assert again is grown


def test_default_cogs_tune_a_plain_step_without_any_choice_of_the_user() -> None:
    found = context(QA, models=())
    space, table = build_space(found.workflow, default_cogs(), found)
    assert [d.name for d in space.dimensions] == [
        "qa:ensemble",
        "qa:reasoning",
        "qa#all:reasoning",
    ]
    assert table.recipe(space.original()).is_empty


@dataclass(frozen=True)
class ToneCog:
    """What a third party writes: one class, one file."""

    name: str = "tone"
    family: Family = "weight"

    def refuses(self, step: Step) -> str | None:
        return None if step.signature else "it has no instructions"

    def options(self, step: Step, context: CogContext) -> Sequence[Option]:
        assert step.signature is not None
        polite = f"{step.signature.instructions} Be polite."
        return [Option("plain"), Option("polite", Setting(instructions=polite))]


class TonePlugin:
    @hookimpl
    def adaseek_cogs(self, add: Callable[[Cog], None]) -> None:
        add(ToneCog())


def test_a_cog_of_a_third_party_appears_in_the_space_and_in_the_recipe() -> None:
    cogs: list[Cog] = [EnsembleCog(sizes=(2,), aggregates=("majority",))]
    load_plugins([TonePlugin()]).hook.adaseek_cogs(add=cogs.append)
    space, table = build(cogs, QA, TOOL)
    assert [d.name for d in space.dimensions] == ["qa:ensemble", "qa:tone", "qa#all:tone"]
    polite = Setting(instructions="Answer. Be polite.")
    recipe = table.recipe({"qa:ensemble": "off", "qa:tone": "polite"})
    assert dict(recipe.settings) == {"qa": polite}
    both = table.recipe({"qa:ensemble": "majority-2", "qa#all:tone": "polite"})
    assert both.settings["qa#0"] == both.settings["qa#1"] == polite


def test_a_cog_of_a_third_party_is_kept_from_what_a_step_does_not_support() -> None:
    blocked = replace(QA, allowed=frozenset({"model"}), blocked={"instructions": "It is frozen."})
    space, table = build((ToneCog(),), blocked)
    assert space.dimensions == ()
    assert table.describe()[0].reason == "it would change `instructions`: It is frozen."
