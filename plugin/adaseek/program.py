"""The user's program behind the hooks: everything that the tuner asks of a framework."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any  # Any: the program, its examples and models are the framework's own

import pluggy

from adaseek.cogs.base import Completion
from adaseek.errors import ConfigurationError, EndpointError, TranslationError, choices
from adaseek.evaluation.base import Metric, RunContext
from adaseek.recipe import Recipe
from adaseek.workflow import Example, ModelRef, Trace, Workflow

__all__ = ["ModelMenu", "Program"]


@dataclass(frozen=True)
class ModelMenu:
    """The user's models: references in the given order, and the framework's objects by key."""

    references: tuple[ModelRef, ...]
    objects: Mapping[str, Any]


class Program:
    """One program of the user, with the adapter that understands it.

    Args:
        obj: the user's own object; it is never changed.
        hooks: the plugin manager whose adapters may know `obj`.

    Raises:
        TranslationError: if no adapter knows `obj`, or it has no language-model step.
    """

    def __init__(
        self, obj: Any, hooks: pluggy.PluginManager, *, options: Mapping[str, Any] | None = None
    ) -> None:
        self.obj = obj
        self._hook = hooks.hook
        workflow = self._hook.adaseek_translate(obj=obj, options=options or {})
        if workflow is None:
            names = [name for name, _ in hooks.list_name_plugin()]
            raise TranslationError(
                f"`program` is a {type(obj).__module__}.{type(obj).__qualname__}, which no loaded "
                f"adapter translates (loaded: {choices(names) or 'none'}). Install the extra of "
                "your framework, for example adaseek[dspy], and import the framework first."
            )
        if not workflow.lm_steps():
            raise TranslationError(
                "`program` has no language-model step, so there is nothing to tune. "
                + " ".join(note.text for note in workflow.notes)
            )
        self.workflow: Workflow = workflow

    def run(self, recipe: Recipe, example: Example, context: RunContext) -> Trace:
        """Runs the program under `recipe`; failures are in the trace."""
        trace: Trace = self._hook.adaseek_run(
            obj=self.obj, workflow=self.workflow, recipe=recipe, example=example, context=context
        )
        return trace

    def apply(
        self,
        recipe: Recipe,
        models: Mapping[str, Any],
        rewards: Mapping[str, Callable[..., Any]] | None = None,
    ) -> Any:
        """Returns a tuned copy of the user's object.

        Raises:
            RecipeMismatchError: if the recipe was made for another program.
            ConfigurationError: if a reward function that it needs is not in `rewards`.
        """
        recipe.check(self.workflow)
        recipe.check_rewards(rewards or {})
        return self._hook.adaseek_apply(
            obj=self.obj,
            workflow=self.workflow,
            recipe=recipe,
            models=models,
            rewards=rewards or {},
        )

    def metric(self, metric: Callable[..., Any]) -> Metric:
        """Returns the user's metric over core types."""
        wrapped: Metric | None = self._hook.adaseek_metric(obj=self.obj, metric=metric)
        return metric if wrapped is None else wrapped

    def examples(self, name: str, raws: Sequence[Any]) -> list[Example]:
        """Returns the distinct examples of `raws`, in order.

        Examples that were read from a file have no object of the framework yet: the adapter makes
        it, since the user's metric expects one.

        Raises:
            ExampleError: if one cannot be used.
            ConfigurationError: if the adapter does not know the type.
        """
        examples: dict[str, Example] = {}
        for index, raw in enumerate(raws):
            example = self._example(name, index, raw)
            examples.setdefault(example.id, example)
        return list(examples.values())

    def menu(self, models: Sequence[Any]) -> ModelMenu:
        """Returns the menu of `models`: framework objects, references, or `name@endpoint` texts."""
        references: list[ModelRef] = []
        objects: dict[str, Any] = {}
        for model in models:
            reference = self.reference(model)
            if reference not in references:
                references.append(reference)
            if not isinstance(model, ModelRef | str):
                objects[reference.key] = model
        return ModelMenu(tuple(references), objects)

    def reference(self, model: Any) -> ModelRef:
        """Returns the reference of one model.

        Raises:
            ConfigurationError: if the adapter does not know the type.
        """
        if isinstance(model, ModelRef):
            return model
        if isinstance(model, str):
            name, _, endpoint = model.partition("@")
            return ModelRef(name, endpoint)
        reference: ModelRef | None = self._hook.adaseek_model(model=model)
        if reference is None:
            raise ConfigurationError(
                f"`models` holds a {type(model).__name__}, which the {self.workflow.framework} "
                "adapter does not know. Give its own model objects, or 'name@endpoint' texts."
            )
        return reference

    def check_models(self, models: Sequence[Any]) -> None:
        """Asks the endpoints of the program's own models and of `models` whether they serve.

        Raises:
            EndpointError: naming every model that cannot be called now, and why.
        """
        own = self._hook.adaseek_models(obj=self.obj) or ()
        named = [self.reference(m) if isinstance(m, str) else m for m in models]
        distinct = {self.reference(model).key: model for model in (*named, *own)}
        reasons = {
            key: self._hook.adaseek_check_model(model=model) for key, model in distinct.items()
        }
        refused = [f"`{key}`: {reason}." for key, reason in reasons.items() if reason]
        if refused:
            raise EndpointError(
                "Not every model can be called: " + " ".join(refused) + " Nothing was spent. "
                "Start the server, or correct the name or the address."
            )

    def complete(self, model: Any, prompt: str, *, seed: int, max_tokens: int) -> Completion:
        """Returns the answer of `model` to the tuner's own prompt."""
        completion: Completion = self._hook.adaseek_complete(
            model=model, prompt=prompt, seed=seed, max_tokens=max_tokens
        )
        return completion

    @cached_property
    def step_models(self) -> tuple[ModelRef, ...]:
        """The distinct models that the unchanged program calls, as far as they are known."""
        models = [step.model for step in self.workflow.lm_steps() if step.model is not None]
        return tuple(dict.fromkeys(models))

    def _example(self, name: str, index: int, raw: Any) -> Example:
        if isinstance(raw, Example) and raw.raw is not None:
            return raw
        example: Example | None = self._hook.adaseek_example(obj=self.obj, raw=raw)
        if example is None and isinstance(raw, Example):
            return raw
        if example is None:
            raise ConfigurationError(
                f"`{name}[{index}]` is a {type(raw).__name__}, which the "
                f"{self.workflow.framework} adapter does not take as an example."
            )
        return example
