"""Runs a DSPy program under a recipe on one example and returns what happened."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any  # Any: DSPy is untyped

import dspy
from adaseek.evaluation.base import RunContext
from adaseek.evaluation.latency import critical_path
from adaseek.recipe import Recipe
from adaseek.workflow import ErrorKind, Example, Trace, Workflow

from adaseek_dspy._anchor import anchor
from adaseek_dspy._apply import apply_to_copy
from adaseek_dspy._calling import called
from adaseek_dspy._compat import error_kind
from adaseek_dspy._observe import SETTINGS_KEY, Observer, observed_adapter
from adaseek_dspy._recorder import Recorder
from adaseek_dspy._walk import walk

__all__ = ["run"]


def run(
    program: Any, workflow: Workflow, recipe: Recipe, example: Example, context: RunContext
) -> Trace:
    """Returns the trace of one run of `program` under `recipe` on `example`.

    The program is copied for the run, so that runs in other threads and its own state cannot
    disturb it. DSPy's settings (model, adapter, callbacks) are those of the calling context.

    Raises:
        RecipeMismatchError: if the recipe was made for another program.
        ConfigurationError: if a setting cannot be applied. Failures of the run itself are
            returned in the trace.
    """
    applied = apply_to_copy(
        program, recipe, models=context.models, rewards=context.rewards, workflow=workflow
    )
    recorder = Recorder(context, applied.steps, workflow)
    observer = Observer(recorder)
    settings = _settings(observer)
    _observe(applied.program, observer, settings)
    output, error = None, None
    with dspy.context(**settings):
        try:
            output = called(applied.program, _inputs(example))
        except Exception as raised:
            # The isolation boundary of a run: whatever the program raises is its result.
            error = raised
    calls = recorder.calls()
    return Trace(
        calls=calls,
        output=output,
        latency_s=critical_path(calls, parallel=recorder.parallel()),
        error=_text(error, recorder) if error is not None else None,
        error_kind=_kind(error, recorder) if error is not None else None,
        id=f"{recipe.fingerprint}/{example.id}/{context.replicate}",
    )


def _text(error: Exception, recorder: Recorder) -> str:
    text = f"{type(error).__name__}: {error}"
    if recorder.is_out_of_time() and "`timeout_s`" not in text:
        limit_s = recorder.context.timeout_s
        text = f"The workflow run took longer than `timeout_s`, {limit_s:g} s. {text}"
    return text


def _kind(error: Exception, recorder: Recorder) -> ErrorKind:
    # A run whose requests are answered, but too late, is slow: that is its result. One that gets
    # no answer at all says nothing about the recipe.
    if recorder.is_out_of_time() and recorder.was_answered():
        return "model"
    kind = error_kind(error)
    # dspy.Parallel swallows a failure and gives None, on which the user's code then fails.
    return "endpoint" if kind == "program" and recorder.saw_endpoint_fail() else kind


def _settings(observer: Observer) -> dict[str, Any]:
    settings = dspy.settings
    return {
        "lm": observer.wrap(settings.get("lm")),
        "adapter": observed_adapter(settings.get("adapter")),
        "callbacks": [*(settings.get("callbacks") or []), observer.recorder],
        "trace": [],
        SETTINGS_KEY: observer,
    }


def _observe(program: Any, observer: Observer, settings: Mapping[str, Any]) -> None:
    """Makes every model that the copy holds an observed one, and ties its predictors to the run."""
    found = walk(program)
    anchor(found.predictors.values(), settings)
    for module in (*found.modules.values(), *found.predictors.values()):
        for name, value in list(vars(module).items()):
            if type(value) in (list, dict):
                _observe_items(value, observer)
            else:
                wrapped = observer.wrap(value)
                if wrapped is not value:
                    setattr(module, name, wrapped)


def _observe_items(values: Any, observer: Observer) -> None:
    items = values.items() if isinstance(values, dict) else enumerate(values)
    for key, value in list(items):
        wrapped = observer.wrap(value)
        if wrapped is not value:
            values[key] = wrapped


def _inputs(example: Example) -> Mapping[str, Any]:
    """Returns what to call the program with: the user's own objects where there are any."""
    if isinstance(example.raw, dspy.Example):
        return dict(example.raw.inputs().items())
    return dict(example.inputs)
