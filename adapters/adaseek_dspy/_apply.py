"""Applies a recipe to a copy of a DSPy program; the program itself is never changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any  # Any: DSPy is untyped

import dspy
from adaseek.errors import ConfigurationError, choices
from adaseek.recipe import Ensemble, Recipe, Setting, Subtask, check_recipe, member_id, owner_id
from adaseek.workflow import Workflow

from adaseek_dspy._compat import BaseModule
from adaseek_dspy._copying import copy_program
from adaseek_dspy._dynamic import DynamicSettings, with_dynamic
from adaseek_dspy._naming import is_dynamic
from adaseek_dspy._settings import Models, changed_signature, check_applicable, typed_demos
from adaseek_dspy._translate import translate
from adaseek_dspy._walk import Found, walk
from adaseek_dspy.decompose import DecomposedPredict, given_results, subtask_signature
from adaseek_dspy.ensemble import EnsemblePredict, Reward, judge_signature

__all__ = ["Applied", "apply", "apply_to_copy", "exchanged"]


@dataclass(frozen=True)
class Applied:
    """A program with a recipe applied.

    Attributes:
        program: the copy; each predictor's `stage` is the id of its step, and DSPy keeps it when
            it copies predictors at run time.
        steps: ids of all its language-model steps, ensemble members and subtasks included.
        shared: paths of attributes that copy and original share because they cannot be copied.
    """

    program: Any
    steps: frozenset[str]
    shared: tuple[str, ...] = ()


def apply(
    program: Any,
    recipe: Recipe,
    *,
    models: Mapping[str, Any] | None = None,
    rewards: Mapping[str, Reward] | None = None,
) -> Any:
    """Returns a copy of `program` that behaves as `recipe` says.

    An empty recipe gives a copy that sends byte-identical requests. The copy shares the
    program's language models, and keeps working without AdaSeek's run machinery.

    Args:
        models: model key -> `dspy.LM` to use for it; a model that is not named here is made from
            the step's own by changing name and endpoint.
        rewards: name -> reward function, for ensembles that take the best of their answers.

    Raises:
        RecipeMismatchError: if the recipe was made for another program, with the differences.
        ConfigurationError: if a setting cannot be applied to its step.
    """
    check_recipe(recipe)
    # A dynamic step is not found in the program, but its id already says what it must look like.
    static = replace(
        recipe,
        settings={step: s for step, s in recipe.settings.items() if not is_dynamic(step)},
        steps={step: mark for step, mark in recipe.steps.items() if not is_dynamic(step)},
    )
    static.check(translate(program, include_frozen=True))
    return apply_to_copy(program, recipe, models=models or {}, rewards=rewards or {}).program


def apply_to_copy(
    program: Any,
    recipe: Recipe,
    *,
    models: Mapping[str, Any],
    rewards: Mapping[str, Any],
    workflow: Workflow | None = None,
) -> Applied:
    """Returns `program` under `recipe`; `workflow` is checked against, if it is given."""
    if workflow is not None:
        recipe.check(workflow)
    recipe.check_rewards(rewards)
    found = walk(program)
    model_menu = Models(models)
    copied = copy_program(program, found)
    applier = _Applier(recipe, model_menu, rewards)
    replaced: dict[int, Any] = {}
    for step, original in found.predictors.items():
        predictor = copied.copy_of(original)
        result = applier.apply(step, predictor)
        if result is not predictor:
            replaced[id(predictor)] = result
    root = exchanged(copied.program, replaced)
    _check_samplers(recipe, found, copied.copy_of)
    steps = frozenset(applier.steps)
    dynamic = {step: s for step, s in recipe.settings.items() if is_dynamic(step)}
    if dynamic:
        root = with_dynamic(root, DynamicSettings(steps, dynamic, model_menu))
    return Applied(root, steps, copied.shared)


class _Applier:
    """Applies one recipe to the predictors of one copy."""

    def __init__(
        self,
        recipe: Recipe,
        models: Models,
        rewards: Mapping[str, Any],
    ) -> None:
        self.steps: list[str] = []
        self._recipe = recipe
        self._models = models
        self._rewards = rewards

    def apply(self, step: str, predictor: Any) -> Any:
        """Changes `predictor` as the recipe says; returns it, or the module in its place."""
        setting = self._recipe.setting(step)
        if setting.decompose is None:
            return self._answering(step, predictor, setting)
        return self._decomposed(step, predictor, setting, setting.decompose)

    def _decomposed(
        self, step: str, predictor: Any, setting: Setting, split: tuple[Subtask, ...]
    ) -> Any:
        own = predictor.signature
        task = changed_signature(own, Setting(instructions=setting.instructions))
        subtasks = []
        for index, subtask in enumerate(split):
            made = dspy.Predict(subtask_signature(task, split, index))
            made.lm = predictor.lm
            name = member_id(step, subtask.name)
            changes = Setting(model=setting.model).merge(self._recipe.setting(name))
            subtasks.append(self._apply(name, made, changes))
        predictor.signature = given_results(own, split)
        answering = self._answering(step, predictor, replace(setting, decompose=None))
        return DecomposedPredict(subtasks, answering, own)

    def _answering(self, step: str, predictor: Any, setting: Setting) -> Any:
        if setting.ensemble is None:
            return self._apply(step, predictor, setting)
        return self._ensemble(step, predictor, _member_base(setting), setting.ensemble)

    def _ensemble(self, step: str, predictor: Any, base: Setting, ensemble: Ensemble) -> Any:
        members = []
        for index in range(ensemble.num_members):
            member = _twin(predictor)
            member.config = {
                **member.config,
                "temperature": ensemble.temperature,
                "rollout_id": index,
            }
            own = self._recipe.setting(member_id(step, index))
            members.append(self._apply(member_id(step, index), member, base.merge(own)))
        judge = None
        if ensemble.aggregate == "judge":
            judge = dspy.Predict(judge_signature())
            judge.lm = predictor.lm
            name = member_id(step, "judge")
            judge = self._apply(name, judge, self._recipe.setting(name))
        return EnsemblePredict(
            members,
            aggregate=ensemble.aggregate,
            judge=judge,
            reward=self._rewards[ensemble.reward] if ensemble.aggregate == "best_of" else None,
        )

    def _apply(self, step: str, predictor: Any, setting: Setting) -> Any:
        self.steps.append(step)
        predictor.stage = step
        if setting.is_empty:
            return predictor
        check_applicable(step, setting, predictor.signature)
        predictor.signature = changed_signature(predictor.signature, setting)
        if setting.demos is not None:
            predictor.demos = typed_demos(setting.demos, predictor.signature)
        if setting.model is not None:
            predictor.lm = self._models.get(setting.model, predictor.lm or dspy.settings.lm)
        if setting.params is not None:
            predictor.config = {**predictor.config, **setting.params}
        return predictor


def _member_base(setting: Setting) -> Setting:
    """Returns what every member gets; the ensemble's own temperature replaces the step's."""
    params = {k: v for k, v in (setting.params or {}).items() if k != "temperature"}
    return replace(setting, ensemble=None, params=params or None)


def _twin(predictor: Any) -> Any:
    """Returns a predictor with the same state: a copy one level deep, lists and dicts its own."""
    twin = predictor.__class__.__new__(predictor.__class__)
    twin.__dict__.update(predictor.__dict__)
    for name in ("demos", "traces", "train", "callbacks"):
        setattr(twin, name, list(getattr(predictor, name, None) or []))
    twin.config = dict(predictor.config)
    twin.history = []
    return twin


def exchanged(program: Any, replacements: Mapping[int, Any]) -> Any:
    """Returns `program` with each object whose `id` has a replacement exchanged, in place."""
    return _replaced(program, replacements, set()) if replacements else program


def _replaced(value: Any, replacements: Mapping[int, Any], seen: set[int]) -> Any:
    """Returns `value` with each object that has a replacement exchanged, wherever it is held."""
    if id(value) in replacements:
        return replacements[id(value)]
    if id(value) in seen:
        return value
    if isinstance(value, tuple):
        items = [_replaced(item, replacements, seen) for item in value]
        changed = any(new is not old for new, old in zip(items, value, strict=True))
        return tuple(items) if changed else value
    if isinstance(value, BaseModule):
        seen.add(id(value))
        _replace_items(vars(value), replacements, seen)
    elif isinstance(value, dict):
        seen.add(id(value))
        _replace_items(value, replacements, seen)
    elif isinstance(value, list):
        seen.add(id(value))
        value[:] = [_replaced(item, replacements, seen) for item in value]
    return value


def _replace_items(items: dict[Any, Any], replacements: Mapping[int, Any], seen: set[int]) -> None:
    for key, item in list(items.items()):
        if id(item) in replacements or isinstance(item, BaseModule | dict | list | tuple):
            items[key] = _replaced(item, replacements, seen)


def _check_samplers(recipe: Recipe, found: Found, copy_of: Any) -> None:
    """Raises if the steps inside a BestOfN or Refine would call different models.

    DSPy itself would raise "Multiple LMs" at the first call.
    """
    touched = {owner_id(step) for step, s in recipe.settings.items() if s.model is not None}
    for path, module in found.modules.items():
        if type(module).__name__ not in ("BestOfN", "Refine"):
            continue
        inside = {
            step: getattr(copy_of(predictor), "lm", None)
            for step, predictor in found.predictors.items()
            if any(name == path for name, _ in found.containers(step))
        }
        if touched & inside.keys() and len({id(lm) for lm in inside.values()}) > 1:
            raise ConfigurationError(
                f"The recipe gives the steps {choices(inside)} different models, but "
                f"`{path or 'self'}` ({type(module).__name__}) runs all of them on one model. "
                "Set the same model at each of them, or at none."
            )
