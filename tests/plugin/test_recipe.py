"""Recipes as JSON and files, their fingerprints and differences, and what they refuse."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from adaseek._canonical import fingerprint
from adaseek.errors import ConfigurationError, RecipeMismatchError
from adaseek.recipe import (
    SCHEMA_VERSION,
    Demo,
    Ensemble,
    Recipe,
    Setting,
    Subtask,
    member_id,
    owner_id,
)
from adaseek.workflow import Field, ModelRef, Signature, Step, Workflow
from hypothesis import assume, given
from hypothesis import strategies as st

ids = st.text(st.characters(exclude_characters="#", codec="utf-8"), min_size=1, max_size=8)
words = st.text(st.characters(codec="utf-8"), max_size=8)
scalars = st.none() | st.booleans() | st.integers() | st.floats(-10, 10) | words
demos = st.builds(Demo, st.dictionaries(words, scalars, max_size=3), st.sampled_from("abc"))
params = st.dictionaries(words, scalars, max_size=3)
subtasks = st.builds(
    Subtask, st.sampled_from(["facts", "draft", "step_2"]), words.map("Do {}".format)
)
settings = st.builds(
    Setting,
    instructions=st.none() | words,
    demos=st.none() | st.lists(demos, max_size=3).map(tuple),
    reasoning=st.sampled_from([None, "off", "chain_of_thought", "plan"]),
    model=st.none() | st.builds(ModelRef, words, words),
    params=st.none() | params,
    ensemble=st.none()
    | st.builds(
        Ensemble,
        st.integers(1, 5),
        st.sampled_from(["majority", "judge", "best_of"]),
        st.floats(0, 2),
        words,
    ),
    decompose=st.none()
    | st.lists(subtasks, min_size=1, max_size=2, unique_by=lambda s: s.name).map(tuple),
    engine=st.none() | params,
)
recipes = st.builds(
    Recipe,
    st.dictionaries(ids, settings, max_size=3),
    workflow=words,
    steps=st.dictionaries(ids, words, max_size=2),
    scores=st.dictionaries(words, st.floats(0, 1), max_size=2),
    made_with=st.dictionaries(words, words, max_size=2),
)


@given(recipes)
def test_a_recipe_survives_json(recipe: Recipe) -> None:
    again = Recipe.from_json(json.loads(json.dumps(recipe.to_json())))
    assert again == recipe
    assert again.fingerprint == recipe.fingerprint
    assert again.diff(recipe) == ()


@given(recipes)
def test_a_recipe_can_be_pickled_and_deep_copied(recipe: Recipe) -> None:
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    assert copy.deepcopy(recipe) == recipe


@given(recipes, recipes)
def test_fingerprint_and_diff_agree_on_what_is_equal(one: Recipe, two: Recipe) -> None:
    assert (one.fingerprint == two.fingerprint) == (one.diff(two) == ())


@given(recipes)
def test_fingerprint_covers_the_settings_alone(recipe: Recipe) -> None:
    other = replace(recipe, workflow="other", scores={"quality": 1.0}, made_with={"seed": "1"})
    assert other.fingerprint == recipe.fingerprint


def test_order_of_steps_does_not_change_the_fingerprint() -> None:
    plan, off = Setting(reasoning="plan"), Setting(reasoning="off")
    assert Recipe({"a": plan, "b": off}).fingerprint == Recipe({"b": off, "a": plan}).fingerprint


def test_order_of_demos_changes_the_fingerprint() -> None:
    one, two = Demo({"q": "1"}), Demo({"q": "2"})
    first, second = Setting(demos=(one, two)), Setting(demos=(two, one))
    assert Recipe({"a": first}).fingerprint != Recipe({"a": second}).fingerprint


def test_empty_settings_are_dropped() -> None:
    recipe = Recipe({"a": Setting(), "b": Setting(demos=())})
    assert list(recipe.settings) == ["b"]
    assert Recipe({"a": Setting()}).is_empty
    assert not Recipe({"b": Setting(demos=())}).is_empty
    assert Recipe({"a": Setting()}).fingerprint == Recipe().fingerprint


def test_setting_of_a_step_that_the_recipe_leaves_alone_is_empty() -> None:
    assert Recipe().setting("anything").is_empty


@given(settings, settings)
def test_merge_takes_what_the_other_sets(mine: Setting, other: Setting) -> None:
    merged = mine.merge(other)
    for name in ("instructions", "demos", "reasoning", "model", "ensemble", "decompose"):
        theirs = getattr(other, name)
        assert getattr(merged, name) == (getattr(mine, name) if theirs is None else theirs)
    assert mine.merge(Setting()) == mine == Setting().merge(mine)


def test_merge_keeps_parameters_that_the_other_does_not_name() -> None:
    mine = Setting(params={"temperature": 0.0, "top_p": 0.9}, engine={"a": 1})
    merged = mine.merge(Setting(params={"temperature": 0.7}))
    assert merged.params == {"temperature": 0.7, "top_p": 0.9}
    assert merged.engine == {"a": 1}


@given(recipes, st.sampled_from("abc"))
def test_no_demo_of_the_example_is_left_anywhere(recipe: Recipe, example: str) -> None:
    left = recipe.for_example(example)
    assert f'"source": "{example}"' not in json.dumps(left.to_json())
    for step, setting in left.settings.items():
        before = recipe.settings[step]
        kept = [demo for demo in before.demos or () if demo.source != example]
        assert list(setting.demos or ()) == kept
        assert replace(setting, demos=None) == replace(before, demos=None)


@given(recipes)
def test_a_recipe_without_demos_of_the_example_is_left_as_it_is(recipe: Recipe) -> None:
    assert recipe.for_example("not an example") is recipe


def test_leaving_the_only_demo_out_does_not_bring_the_users_own_back() -> None:
    recipe = Recipe({"a": Setting(demos=(Demo({"q": "1"}, "x"),))})
    assert recipe.for_example("x").settings["a"].demos == ()


def workflow(instructions: str = "Answer.", *, extra: bool = False) -> Workflow:
    qa = Step("qa", signature=Signature(instructions, (Field("answer", "output"),)))
    steps = {"qa": qa} | ({"more": Step("more")} if extra else {})
    return Workflow("dspy", steps)


BOUND = Recipe({"qa": Setting(reasoning="plan")}).bind(workflow())


def test_a_bound_recipe_fits_its_workflow_and_ignores_changes_elsewhere() -> None:
    BOUND.check(workflow())
    BOUND.check(workflow(extra=True))


def test_bind_names_the_owner_of_a_member() -> None:
    recipe = Recipe({member_id("qa", 1): Setting(reasoning="plan")}).bind(workflow())
    assert recipe.steps == {"qa": workflow().steps["qa"].fingerprint}
    recipe.check(workflow())


def test_a_changed_step_is_refused_with_what_it_is_now() -> None:
    with pytest.raises(RecipeMismatchError, match=r"`qa` has changed[^\n]*Answer in French"):
        BOUND.check(workflow("Answer in French."))


def test_a_missing_step_is_refused_with_the_steps_there_are() -> None:
    gone = Workflow("dspy", {"other": Step("other")})
    with pytest.raises(RecipeMismatchError, match=r"step `qa` is gone \(the program has 'other'\)"):
        BOUND.check(gone)
    with pytest.raises(RecipeMismatchError, match="the program has no steps"):
        BOUND.check(Workflow("dspy", {}))


def test_an_unbound_recipe_is_refused_by_a_workflow_without_its_step() -> None:
    with pytest.raises(RecipeMismatchError, match="`rerank` is gone"):
        Recipe({"rerank#0": Setting(reasoning="plan")}).check(workflow())


def test_a_reward_that_is_missing_is_refused_with_those_there_are() -> None:
    recipe = Recipe({"answer": Setting(ensemble=Ensemble(3, "best_of", reward="short"))})
    recipe.check_rewards({"short": len})
    Recipe({"answer": Setting(ensemble=Ensemble(3))}).check_rewards({})
    with pytest.raises(ConfigurationError, match="'short' rates highest, but `rewards` has none"):
        recipe.check_rewards({})
    with pytest.raises(ConfigurationError, match="'long', 'wide'"):
        recipe.check_rewards({"wide": len, "long": len})


def test_diff_names_step_setting_and_both_values() -> None:
    one = Recipe({"qa": Setting(reasoning="plan", instructions="a" * 200)})
    two = Recipe({"qa": Setting(reasoning="off"), "x": Setting(params={"top_p": 0.5})})
    lines = one.diff(two)
    assert lines[1:] == (
        'qa.reasoning: "plan" -> "off"',
        'x.params: unchanged -> {"top_p": 0.5}',
    )
    assert lines[0].startswith('qa.instructions: "aaa')
    assert lines[0].endswith("... -> unchanged")
    assert len(lines[0]) < 130


@given(recipe=recipes)
def test_a_saved_recipe_loads(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> None:
    folder = tmp_path_factory.mktemp("run")
    path = recipe.save(folder / "nested" / "recipe.json")
    assert Recipe.load(path) == recipe == Recipe.load(path.parent)


def test_save_leaves_the_old_file_whole_if_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = BOUND.save(tmp_path / "recipe.json")

    def full_disk(self: Path, text: str, encoding: str) -> int:
        with self.open("w", encoding=encoding) as file:
            file.write(text[:10])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="No space"):
        Recipe({"qa": Setting(reasoning="off")}).save(path)
    monkeypatch.undo()
    assert Recipe.load(path) == BOUND
    assert [file.name for file in tmp_path.iterdir()] == ["recipe.json"]


def test_save_refuses_values_that_json_cannot_hold_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        Recipe({"qa": Setting(params={"temperature": float("nan")})}).save(tmp_path / "r.json")
    assert list(tmp_path.iterdir()) == []


def test_a_saved_recipe_has_the_usual_permissions(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("")
    assert BOUND.save(tmp_path / "recipe.json").stat().st_mode == plain.stat().st_mode


def test_another_schema_is_refused() -> None:
    body = {**BOUND.to_json(), "schema": SCHEMA_VERSION + 1}
    with pytest.raises(RecipeMismatchError, match=f"reads {SCHEMA_VERSION}"):
        Recipe.from_json(body)


@pytest.mark.parametrize("body", [{}, {"schema": 1}, {"settings": {}}, [], "text", None])
def test_json_that_is_no_recipe_is_refused(body: object) -> None:
    with pytest.raises(ConfigurationError, match="not a recipe"):
        Recipe.from_json(body)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"temprature": 1}, "`temprature` is unknown; known are 'decompose', 'demos'"),
        ({"reasoning": "tree"}, "must be one of 'off', 'chain_of_thought', 'plan'"),
        ({"ensemble": {"num_members": 3, "aggregate": "vote"}}, "must be one of 'majority'"),
        ({"ensemble": {"num_members": 0}}, "`num_members` is 0"),
        ({"ensemble": {"size": 3}}, "`ensemble` is"),
        ({"model": {"name": "m"}}, "`model` is"),
        ({"demos": [{"question": "q"}]}, "`demos` is"),
        ({"decompose": []}, r"`decompose` is \(\), but must hold a subtask"),
        ({"decompose": {"a": "Do."}}, "`decompose` is .*, but must be a list"),
        ({"decompose": ["Do."]}, "`decompose` is"),
        ({"decompose": [{"name": "a"}]}, "`decompose` is"),
        ({"decompose": [{"name": "A b", "instructions": "Do."}]}, "`subtask.name` is 'A b'"),
        ({"decompose": [{"name": "judge", "instructions": "Do."}]}, "not 'all', 'judge'"),
        ({"decompose": [{"name": "a", "instructions": " "}]}, "`subtask.instructions` is ' '"),
        ({"decompose": [{"name": "a", "instructions": "Do."}] * 2}, "must have distinct names"),
        ({"demos": {}}, "`demos` is {}, but must be a list"),
        ({"params": 3}, "`params` is 3, but must be an object"),
        ({"instructions": 3}, "`instructions` is 3, but must be a text"),
    ],
)
def test_unknown_settings_and_values_are_refused(setting: object, message: str) -> None:
    body = {"schema": SCHEMA_VERSION, "settings": {"qa": setting}}
    with pytest.raises(ConfigurationError, match=message):
        Recipe.from_json(body)


@pytest.mark.parametrize("part", ["settings", "steps", "scores", "made_with"])
def test_a_part_of_the_wrong_shape_is_named(part: str) -> None:
    body = {"schema": SCHEMA_VERSION, "settings": {}, part: [1]}
    with pytest.raises(ConfigurationError, match=rf"`{part}` is \[1\], but must be an object"):
        Recipe.from_json(body)


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"recipe\.json.*no such file"):
        Recipe.load(tmp_path)
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with pytest.raises(ConfigurationError, match=r"broken\.json is not JSON"):
        Recipe.load(broken)


@given(ids, st.integers(0, 9) | st.just("judge"))
def test_the_owner_of_a_member_is_its_step(step: str, member: int | str) -> None:
    assert owner_id(member_id(step, member)) == step
    assert owner_id(step) == step


@given(ids, ids, st.integers(0, 9), st.integers(0, 9))
def test_members_have_distinct_ids(one: str, two: str, i: int, j: int) -> None:
    assume((one, i) != (two, j))
    assert member_id(one, i) != member_id(two, j)


@given(recipes)
def test_fingerprint_is_that_of_the_settings_as_json(recipe: Recipe) -> None:
    # Journals keep outcomes by it, so it must never change between versions.
    body = {step: setting.to_json() for step, setting in recipe.settings.items()}
    assert recipe.fingerprint == fingerprint(body, length=32)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(ConfigurationError, match="is not JSON"):
        Recipe.load(path)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").mkdir()
    with pytest.raises(ConfigurationError, match=r"recipe\.json cannot be read"):
        Recipe.load(tmp_path)
