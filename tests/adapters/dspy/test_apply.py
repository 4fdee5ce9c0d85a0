"""What a recipe changes in a program, and what it never does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from adaseek.errors import ConfigurationError, RecipeMismatchError
from adaseek.recipe import Demo, Ensemble, Recipe, Setting
from adaseek.testing.loopback import LoopbackServer
from adaseek.workflow import ModelRef

dspy = pytest.importorskip("dspy")
from adaseek_dspy import apply, translate  # noqa: E402
from adaseek_dspy._apply import apply_to_copy  # noqa: E402
from pydantic import BaseModel  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def only(**settings: Any) -> Recipe:
    return Recipe({"self": Setting(**settings)})


def test_instructions_do_not_change_the_users_signature_class() -> None:
    class Ask(dspy.Signature):
        """Original."""

        q: str = dspy.InputField()
        a: str = dspy.OutputField()

    program = dspy.Predict(Ask)
    tuned = apply(program, only(instructions="New."))
    assert tuned.signature.instructions == "New."
    assert Ask.instructions == program.signature.instructions == "Original."


def test_demos_replace_the_users_own_and_an_empty_tuple_removes_them() -> None:
    program = dspy.Predict("q -> a")
    program.demos = [dspy.Example(q="own", a="own")]
    tuned = apply(program, only(demos=(Demo({"q": "1", "a": "2"}),)))
    assert [demo.toDict() for demo in tuned.demos] == [{"q": "1", "a": "2"}]
    assert apply(program, only(demos=())).demos == []
    assert len(apply(program, Recipe()).demos) == 1


class Person(BaseModel):
    name: str


class Find(dspy.Signature):
    """Finds people."""

    text: str = dspy.InputField()
    person: Person = dspy.OutputField()
    count: int = dspy.OutputField()


def test_demo_values_get_the_type_of_their_field() -> None:
    demo = Demo({"text": "Ada", "person": {"name": "Ada"}, "count": "not a number"})
    (made,) = apply(dspy.Predict(Find), only(demos=(demo,))).demos
    assert made.person == Person(name="Ada")
    assert made.count == "not a number"


@pytest.mark.parametrize(
    ("reasoning", "field"), [("chain_of_thought", "reasoning"), ("plan", "plan")]
)
def test_reasoning_is_a_first_output_field(lm: Any, reasoning: Any, field: str) -> None:
    tuned = apply(dspy.Predict("q -> a"), only(reasoning=reasoning))
    assert list(tuned.signature.output_fields) == [field, "a"]
    answer = tuned(q="?")
    assert answer[field] == f"v-{field}"
    assert answer.a == "v-a"


def test_the_path_of_a_recipe_is_no_recipe() -> None:
    with pytest.raises(ConfigurationError, match=r"must be a Recipe\. .*Recipe\.load"):
        apply(dspy.Predict("q -> a"), "runs/qa")


def test_reasoning_off_changes_nothing() -> None:
    program = dspy.Predict("q -> a")
    assert apply(program, only(reasoning="off")).signature is program.signature


def test_reasoning_where_there_is_some_is_refused(two_steps: Any) -> None:
    recipe = Recipe({"c.predict": Setting(reasoning="plan")})
    with pytest.raises(ConfigurationError, match=r"`c\.predict`.*`reasoning`"):
        apply(two_steps, recipe)


def test_a_given_model_is_used_as_it_is(lm: Any, make_lm: Callable[..., Any]) -> None:
    other = make_lm("openai/m2")
    reference = ModelRef("openai/m2", other.kwargs["api_base"])
    tuned = apply(dspy.Predict("q -> a"), only(model=reference), models={reference.key: other})
    assert tuned.lm is other


def test_a_model_that_is_not_given_is_made_from_the_steps_own(
    lm: Any, server: LoopbackServer
) -> None:
    tuned = apply(dspy.Predict("q -> a"), only(model=ModelRef("openai/m2", server.url)))
    tuned(q="?")
    assert server.requests[0].headers["authorization"] == "Bearer secret-key"
    assert server.bodies[0]["model"] == "m2"


def test_a_key_never_goes_to_another_endpoint(lm: Any) -> None:
    elsewhere = ModelRef("openai/m", "http://127.0.0.1:9/v1")
    tuned = apply(dspy.Predict("q -> a"), only(model=elsewhere))
    assert tuned.lm.kwargs["api_base"] == elsewhere.endpoint
    assert "secret-key" not in str(tuned.lm.kwargs)
    provider = apply(dspy.Predict("q -> a"), only(model=ModelRef("openai/gpt-5-mini")))
    assert not {"api_base", "api_key"} & provider.lm.kwargs.keys()
    assert lm.kwargs["api_key"] == "secret-key"


def test_a_model_without_anything_to_make_it_from_is_refused() -> None:
    with dspy.context(lm=None), pytest.raises(ConfigurationError, match="`models`"):
        apply(dspy.Predict("q -> a"), only(model=ModelRef("openai/m2")))


def test_parameters_are_merged_into_the_steps_own(lm: Any, server: LoopbackServer) -> None:
    program = dspy.Predict("q -> a", temperature=0.3, top_p=0.5)
    apply(program, only(params={"temperature": 0.9}))(q="?")
    body = server.bodies[0]
    assert (body["temperature"], body["top_p"]) == (0.9, 0.5)
    assert program.config == {"temperature": 0.3, "top_p": 0.5}


def test_models_and_callbacks_of_the_program_are_shared(two_steps: Any, lm: Any) -> None:
    callback = dspy.utils.BaseCallback()
    two_steps.a.lm = lm
    two_steps.helper_lm = lm
    two_steps.c.callbacks = [callback]
    tuned = apply(two_steps, Recipe())
    assert tuned.a.lm is lm and tuned.helper_lm is lm
    assert tuned.c.callbacks == [callback]
    assert tuned.c is not two_steps.c


def test_what_cannot_be_copied_is_shared_and_reported(two_steps: Any, lm: Any) -> None:
    two_steps.lock = threading.Lock()
    two_steps.a.demos = [dspy.Example(q="own", x="own")]
    applied = apply_to_copy(
        two_steps, Recipe({"a": Setting(instructions="New.")}), models={}, rewards={}
    )
    assert applied.shared == ("lock",)
    assert applied.program.lock is two_steps.lock
    assert applied.program.a is not two_steps.a
    assert applied.program.a.signature.instructions == "New."
    assert two_steps.a.signature.instructions != "New."
    assert applied.program(q="?").y == "v-y"


def test_a_recipe_for_another_program_is_refused_with_the_difference(two_steps: Any) -> None:
    recipe = Recipe({"gone": Setting(instructions="x")})
    with pytest.raises(RecipeMismatchError, match="`gone` is gone"):
        apply(two_steps, recipe)
    bound = Recipe({"a": Setting(instructions="x")}).bind(translate(two_steps))
    two_steps.a = dspy.Predict("q, more -> x")
    with pytest.raises(RecipeMismatchError, match="`a` has changed"):
        apply(two_steps, bound)


def test_a_recipe_survives_its_file(two_steps: Any, lm: Any, tmp_path: Path) -> None:
    recipe = Recipe(
        {
            "a": Setting(
                instructions="Find.",
                demos=(Demo({"q": "1", "x": "2"}, "id1"),),
                ensemble=Ensemble(2),
                params={"max_tokens": 5},
            ),
            "a#1": Setting(instructions="Find, but otherwise."),
        }
    ).bind(translate(two_steps))
    loaded = Recipe.load(recipe.save(tmp_path / "recipe.json"))
    members = apply(two_steps, loaded).a.members
    assert [m.signature.instructions for m in members] == ["Find.", "Find, but otherwise."]
    assert loaded.fingerprint == recipe.fingerprint


def test_different_models_inside_a_sampler_are_refused(two_steps: Any, lm: Any) -> None:
    sampler = dspy.BestOfN(two_steps, 2, lambda a, p: 0.0, 1.0)
    one = Recipe({"module.a": Setting(model=ModelRef("openai/m2", lm.kwargs["api_base"]))})
    with pytest.raises(ConfigurationError, match="all of them on one model"):
        apply(sampler, one)


def test_the_tuned_program_saves_and_loads_its_state(
    two_steps: Any, lm: Any, tmp_path: Path
) -> None:
    recipe = Recipe({"a": Setting(instructions="New.", demos=(Demo({"q": "1", "x": "2"}),))})
    apply(two_steps, recipe).save(tmp_path / "state.json")
    two_steps.load(tmp_path / "state.json")
    assert two_steps.a.signature.instructions == "New."
    assert len(two_steps.a.demos) == 1


def test_a_tuned_program_with_an_ensemble_can_be_saved_whole(lm: Any, tmp_path: Path) -> None:
    tuned = apply(dspy.Predict("q -> a"), only(ensemble=Ensemble(2)))
    with dspy.context(lm=lm):
        tuned.save(tmp_path / "program", save_program=True)
        loaded = dspy.load(tmp_path / "program", allow_pickle=True)
        assert loaded(q="?").a == "v-a"
        assert len(loaded.members) == 2


def test_a_tuned_program_can_be_tuned_again(two_steps: Any, lm: Any) -> None:
    once = apply(two_steps, Recipe({"a": Setting(ensemble=Ensemble(2))}))
    steps = translate(once).steps
    assert {"a.members[0]", "a.members[1]"} <= steps.keys()
    again = apply(once, Recipe({"a.members[1]": Setting(instructions="Again.")}))
    assert again.a.members[1].signature.instructions == "Again."
    assert again(q="?").y == "v-y"


def test_settings_of_a_step_made_at_run_time_hold_in_async_code_too(
    lm: Any, server: LoopbackServer
) -> None:
    class Late(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = dspy.Predict("q -> x")

        async def aforward(self, q: str) -> Any:
            first = await self.a.acall(q=q)
            return await dspy.Predict("x -> y").acall(x=first.x)

    recipe = Recipe({"<x -> y>": Setting(reasoning="chain_of_thought", params={"top_p": 0.5})})
    answer = asyncio.run(apply(Late(), recipe).acall(q="?"))
    assert answer.reasoning == "v-reasoning"
    assert [body.get("top_p") for body in server.bodies] == [None, 0.5]
