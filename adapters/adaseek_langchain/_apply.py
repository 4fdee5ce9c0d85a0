"""Applies a recipe to a copy of a LangChain program, without patching anything."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any  # Any: programs are LangChain objects of every kind

from adaseek.errors import ConfigurationError
from adaseek.recipe import Recipe, check_recipe, owner_id
from adaseek.workflow import Workflow
from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import Runnable

from adaseek_langchain._copying import Copied, copy_with_models
from adaseek_langchain._interpose import by_carrier
from adaseek_langchain._menu import Models
from adaseek_langchain._plan import Tuning, check_settings
from adaseek_langchain._program import Translated
from adaseek_langchain._tuned import tuned
from adaseek_langchain.hook import AdaSeekHook

__all__ = ["apply"]

SITE_MARK = "@"
"""Begins the place in the user's own code in a step id; such steps show only when they run."""


def apply(
    program: Any,
    recipe: Recipe,
    *,
    strict: bool = True,
    models: Mapping[str, Any] | None = None,
    rewards: Mapping[str, Any] | None = None,
    workflow: Workflow | None = None,
) -> Any:
    """Returns a copy of `program` that behaves as `recipe` says; `program` is not changed.

    The copy holds copies of the chat models, wherever they are held: in sequences and graphs, in
    tools, in closures, behind bound methods. It shares their connections, and everything else
    that leads to no model. An empty recipe gives a copy that sends byte-identical requests.

    Args:
        program: a chain, an agent, a graph or a chat model.
        strict: whether a model that the copy cannot reach, or a setting that does not fit a call,
            is an error. Else it is a warning, and that model is asked as the program does it.
        models: model key -> chat model, for settings that name a model. One that is missing is
            made from the step's own model under the other name.
        rewards: name -> reward function, for `best_of` ensembles.
        workflow: the translated program, if it is at hand; else it is translated now.

    Raises:
        RecipeMismatchError: if the recipe was made for another program, with the differences.
        ConfigurationError: if the program cannot be copied, or a setting cannot be applied.
    """
    check_recipe(recipe)
    if isinstance(program, Translated):
        program, workflow = program.program, workflow or program.workflow
    if not isinstance(program, Runnable):
        raise ConfigurationError(
            f"`program` is a {type(program).__name__}, but only a Runnable (a chain, an agent, a "
            "graph, a chat model) can carry a recipe. Use adaseek_langchain.enable(recipe) for it."
        )
    known = workflow if workflow is not None else _translated(program)
    _check_fits(recipe, known)
    check_settings(Tuning(recipe, Models(models or {}), dict(rewards or {})))
    if recipe.is_empty:
        return copy_with_models(program, BaseChatModel.model_copy).obj
    carrier = _Applied(recipe, models=models, rewards=rewards, workflow=known, strict=strict)
    # The models know the carrier themselves: a call may lose its callbacks on the way, in a thread
    # of the user's own for one. The config tells it the way that leads to each call.
    find = partial(by_carrier, otherwise=carrier)
    copied = copy_with_models(program, lambda model: tuned(model, find))
    _check_reach(copied, strict)
    return copied.obj.with_config(callbacks=[carrier])


def _translated(program: Any) -> Workflow:
    from adaseek_langchain._translate import translate

    return translate(program)


def _check_fits(recipe: Recipe, workflow: Workflow) -> None:
    """Raises unless `recipe` fits; a step that shows only when it runs is checked when it runs."""
    later = {
        step
        for step in (*map(owner_id, recipe.settings), *recipe.steps)
        if step not in workflow.steps and SITE_MARK in step
    }
    settings = {s: value for s, value in recipe.settings.items() if owner_id(s) not in later}
    steps = {step: mark for step, mark in recipe.steps.items() if step not in later}
    replace(recipe, settings=settings, steps=steps).check(workflow)


def _check_reach(copied: Copied, strict: bool) -> None:
    """Raises, or warns, if there is a chat model that the copy goes on sharing."""
    if copied.num_models and not copied.out_of_reach:
        return
    found = "no chat model in it"
    if copied.out_of_reach:
        found = "module-level names that its functions use: " + ", ".join(copied.out_of_reach)
    message = (
        f"The program cannot be copied whole: there is {found}. A copy cannot exchange what it "
        "does not hold. Use AdaSeekHook(recipe) or enable(recipe), which reach every call"
    )
    if strict:
        raise ConfigurationError(f"{message}; or pass strict=False to leave those calls alone.")
    warnings.warn(f"{message}.", RuntimeWarning, stacklevel=3)


class _Applied(AdaSeekHook):
    """Carries the recipe through the runs of a copy; keeps no trace of them."""

    def __init__(self, recipe: Recipe, *, strict: bool, **settings: Any) -> None:
        super().__init__(recipe, max_traces=0, stream_usage=False, **settings)
        self._strict = strict

    def _interpose(self) -> None:
        """Does nothing: the copy's models ask for themselves."""

    def fail_open(self, step: str, reason: str) -> None:
        if self._strict:
            raise ConfigurationError(
                f"The recipe cannot be applied at step `{step}`: {reason}. "
                "Tune again, or pass strict=False to apply()."
            )
        super().fail_open(step, reason)
