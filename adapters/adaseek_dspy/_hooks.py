"""The plugin that teaches AdaSeek DSPy. It imports DSPy only inside its functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any  # Any: the user's program is the framework's own object

from adaseek.hooks import hookimpl

if TYPE_CHECKING:
    from adaseek.cogs.base import Completion
    from adaseek.evaluation.base import RunContext
    from adaseek.recipe import Recipe
    from adaseek.workflow import Edge, Example, ModelRef, Trace, Workflow

__all__ = [
    "adaseek_apply",
    "adaseek_check_model",
    "adaseek_complete",
    "adaseek_example",
    "adaseek_metric",
    "adaseek_model",
    "adaseek_models",
    "adaseek_probe",
    "adaseek_run",
    "adaseek_translate",
]


@hookimpl
def adaseek_translate(obj: Any, options: Mapping[str, Any]) -> Workflow | None:
    """As `translate`; the option `discover` also runs the program on marked values."""
    from adaseek_dspy._probe import discover
    from adaseek_dspy._translate import is_program, translate

    if not is_program(obj):
        return None
    workflow = translate(obj, include_frozen=bool(options.get("include_frozen", False)))
    return discover(obj, workflow) if options.get("discover", False) else workflow


@hookimpl
def adaseek_apply(
    obj: Any,
    workflow: Workflow,
    recipe: Recipe,
    models: Mapping[str, Any],
    rewards: Mapping[str, Callable[..., Any]],
) -> Any | None:
    from adaseek_dspy._apply import apply_to_copy
    from adaseek_dspy._translate import is_program

    if not is_program(obj):
        return None
    return apply_to_copy(obj, recipe, models=models, rewards=rewards, workflow=workflow).program


@hookimpl
def adaseek_run(
    obj: Any, workflow: Workflow, recipe: Recipe, example: Example, context: RunContext
) -> Trace | None:
    from adaseek_dspy._run import run
    from adaseek_dspy._translate import is_program

    return run(obj, workflow, recipe, example, context) if is_program(obj) else None


@hookimpl
def adaseek_probe(obj: Any, workflow: Workflow) -> frozenset[Edge] | None:
    from adaseek_dspy._probe import probe
    from adaseek_dspy._translate import is_program

    return probe(obj, workflow) if is_program(obj) else None


@hookimpl
def adaseek_example(obj: Any, raw: Any) -> Example | None:
    import dspy
    from adaseek.workflow import Example

    from adaseek_dspy._convert import core_example
    from adaseek_dspy._translate import is_program

    if isinstance(raw, Example) and raw.raw is None and is_program(obj):
        # Read from a file: the user's metric expects DSPy's own object.
        raw = dspy.Example({**raw.inputs, **raw.labels}).with_inputs(*raw.inputs)
    return core_example(raw) if isinstance(raw, dspy.Example) else None


@hookimpl
def adaseek_metric(obj: Any, metric: Callable[..., Any]) -> Callable[..., Any] | None:
    from adaseek_dspy._convert import core_metric
    from adaseek_dspy._translate import is_program

    return core_metric(metric) if is_program(obj) else None


@hookimpl
def adaseek_model(model: Any) -> ModelRef | None:
    from adaseek_dspy._compat import BaseLM
    from adaseek_dspy._convert import model_reference

    return model_reference(model) if isinstance(model, BaseLM) else None


@hookimpl
def adaseek_models(obj: Any) -> list[Any] | None:
    import dspy

    from adaseek_dspy._translate import is_program
    from adaseek_dspy._walk import walk

    if not is_program(obj):
        return None
    used = [p.lm or dspy.settings.lm for p in walk(obj).predictors.values()]
    return list({id(lm): lm for lm in used if lm is not None}.values())


@hookimpl
def adaseek_complete(model: Any, prompt: str, seed: int, max_tokens: int) -> Completion | None:
    from adaseek_dspy._compat import BaseLM
    from adaseek_dspy._convert import complete

    if not isinstance(model, BaseLM):
        return None
    return complete(model, prompt, seed=seed, max_tokens=max_tokens)


@hookimpl
def adaseek_check_model(model: Any) -> str | None:
    import dspy
    from adaseek.workflow import ModelRef

    from adaseek_dspy._compat import BaseLM
    from adaseek_dspy._convert import check_model

    if isinstance(model, ModelRef):
        model = dspy.LM(model.id, api_base=model.endpoint or None, api_key="none")
    return check_model(model) if isinstance(model, BaseLM) else None
