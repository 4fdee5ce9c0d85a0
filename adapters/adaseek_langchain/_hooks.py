"""The plugin that teaches AdaSeek LangChain. It imports LangChain only inside its functions."""

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
    """As `translate`; options: `examples`, `live_tools`, and `probe` (False: nothing runs)."""
    from adaseek_langchain._program import is_program

    if not is_program(obj):
        return None
    from adaseek_langchain._translate import translate

    return translate(
        obj,
        options.get("examples"),
        probe_steps=bool(options.get("probe", True)),
        live_tools=options.get("live_tools", False),
    )


@hookimpl
def adaseek_apply(
    obj: Any,
    workflow: Workflow,
    recipe: Recipe,
    models: Mapping[str, Any],
    rewards: Mapping[str, Callable[..., Any]],
) -> Any | None:
    from adaseek_langchain._program import as_program, is_program

    if not is_program(obj):
        return None
    from adaseek_langchain._apply import apply

    program = as_program(obj)
    return apply(program, recipe, models=models, rewards=rewards, workflow=workflow)


@hookimpl
def adaseek_run(
    obj: Any, workflow: Workflow, recipe: Recipe, example: Example, context: RunContext
) -> Trace | None:
    from adaseek_langchain._program import is_program

    if not is_program(obj):
        return None
    from adaseek_langchain._run import run

    return run(obj, workflow, recipe, example, context)


@hookimpl
def adaseek_probe(obj: Any, workflow: Workflow) -> frozenset[Edge] | None:
    from adaseek_langchain._program import is_program

    if not is_program(obj):
        return None
    from adaseek_langchain._translate import translate

    return translate(obj).edges


@hookimpl
def adaseek_example(obj: Any, raw: Any) -> Example | None:
    from adaseek_langchain._program import as_program, is_program

    if not is_program(obj):
        return None
    from adaseek.workflow import Example

    from adaseek_langchain._convert import core_example

    return raw if isinstance(raw, Example) else core_example(as_program(obj), raw)


@hookimpl
def adaseek_metric(obj: Any, metric: Callable[..., Any]) -> Callable[..., Any] | None:
    from adaseek_langchain._program import is_program

    if not is_program(obj):
        return None
    from adaseek_langchain._convert import core_metric

    return core_metric(metric)


@hookimpl
def adaseek_model(model: Any) -> ModelRef | None:
    from langchain_core.language_models.chat_models import BaseChatModel

    if not isinstance(model, BaseChatModel):
        return None
    from adaseek_langchain._reports import model_reference

    return model_reference(model)


@hookimpl
def adaseek_models(obj: Any) -> list[Any] | None:
    from adaseek_langchain._program import as_program, is_program

    if not is_program(obj):
        return None
    from adaseek_langchain._walk import walk

    return list({id(f.model): f.model for f in walk(as_program(obj)).models}.values())


@hookimpl
def adaseek_complete(model: Any, prompt: str, seed: int, max_tokens: int) -> Completion | None:
    from langchain_core.language_models.chat_models import BaseChatModel

    if not isinstance(model, BaseChatModel):
        return None
    from adaseek_langchain._convert import complete

    return complete(model, prompt, seed=seed, max_tokens=max_tokens)


@hookimpl
def adaseek_check_model(model: Any) -> str | None:
    from adaseek.workflow import ModelRef
    from langchain_core.language_models.chat_models import BaseChatModel

    if not isinstance(model, BaseChatModel | ModelRef):
        return None
    from adaseek_langchain._convert import check_model

    return check_model(model)
