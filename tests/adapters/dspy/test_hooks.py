"""The plugin: found by its entry point, light to load, and silent about other objects."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from adaseek.evaluation.base import RunContext
from adaseek.evaluation.scoring import score_run
from adaseek.plugins import load_plugins
from adaseek.recipe import Recipe, Setting
from adaseek.workflow import ModelRef, Trace

dspy = pytest.importorskip("dspy")

from adaseek_dspy import _hooks  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def hook() -> Any:
    manager = load_plugins()
    if not manager.is_registered(_hooks):
        manager.register(_hooks)
    return manager.hook


def test_loading_the_plugin_does_not_load_dspy() -> None:
    code = "import sys, adaseek_dspy._hooks; sys.exit('dspy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_program_goes_through_every_hook(hook: Any, two_steps: Any, lm: Any) -> None:
    workflow = hook.adaseek_translate(obj=two_steps, options={})
    recipe = Recipe({"a": Setting(instructions="New.")})
    raw = dspy.Example(q="?", y="v-y").with_inputs("q")
    example = hook.adaseek_example(obj=two_steps, raw=raw)
    trace = hook.adaseek_run(
        obj=two_steps, workflow=workflow, recipe=recipe, example=example, context=RunContext()
    )
    metric = hook.adaseek_metric(obj=two_steps, metric=lambda e, p, t=None: e.y == p.y)
    assert score_run(metric, example, trace).value == 1.0
    tuned = hook.adaseek_apply(
        obj=two_steps, workflow=workflow, recipe=recipe, models={}, rewards={}
    )
    assert tuned.a.signature.instructions == "New."
    assert len(hook.adaseek_probe(obj=two_steps, workflow=workflow)) == 4


def test_frozen_parts_are_included_on_request(hook: Any, two_steps: Any) -> None:
    two_steps.c._compiled = True
    closed = hook.adaseek_translate(obj=two_steps, options={})
    opened = hook.adaseek_translate(obj=two_steps, options={"include_frozen": True})
    assert not closed.steps["c.predict"].allowed
    assert opened.steps["c.predict"].allowed


def test_steps_made_at_run_time_are_found_on_request(hook: Any, lm: Any) -> None:
    class Late(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = dspy.Predict("q -> x")

        def forward(self, q: str) -> Any:
            return dspy.Predict("x -> y")(x=self.a(q=q).x)

    workflow = hook.adaseek_translate(obj=Late(), options={"discover": True})
    assert list(workflow.steps) == ["a", "<x -> y>"]
    assert len(workflow.edges) == 3
    assert list(hook.adaseek_translate(obj=Late(), options={}).steps) == ["a"]


def test_a_model_goes_through_its_hooks(hook: Any, make_lm: Callable[..., Any]) -> None:
    lm = make_lm()
    assert hook.adaseek_model(model=lm) == ModelRef("openai/m", lm.kwargs["api_base"])
    assert hook.adaseek_check_model(model=lm) is None
    answer = hook.adaseek_complete(model=lm, prompt="Hello.", seed=1, max_tokens=9)
    assert "Hello." in answer.text


def test_objects_of_others_are_left_to_others(hook: Any) -> None:
    other = object()
    workflow = Recipe()
    assert hook.adaseek_translate(obj=other, options={}) is None
    assert hook.adaseek_example(obj=other, raw={"q": "?"}) is None
    assert hook.adaseek_model(model=other) is None
    assert hook.adaseek_check_model(model=other) is None
    assert hook.adaseek_complete(model=other, prompt="x", seed=0, max_tokens=1) is None
    assert hook.adaseek_probe(obj=other, workflow=workflow) is None
    assert hook.adaseek_metric(obj=other, metric=len) is None
    empty: Trace | None = hook.adaseek_run(
        obj=other, workflow=workflow, recipe=workflow, example=other, context=RunContext()
    )
    assert empty is None


def test_the_public_names_are_functions_whatever_was_imported_before() -> None:
    import adaseek_dspy._apply
    import adaseek_dspy._translate

    assert callable(adaseek_dspy.translate)
    assert callable(adaseek_dspy.apply)
    assert callable(adaseek_dspy.discover)
    assert adaseek_dspy.__all__ == ["AdaSeek", "Hints", "apply", "discover", "translate"]
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        _ = adaseek_dspy.other
