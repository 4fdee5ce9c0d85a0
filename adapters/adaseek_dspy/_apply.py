"""Applies a recipe to a copy of a DSPy program; the program itself is never changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any  # Any: DSPy is untyped

import dspy
from adaseek.errors import ConfigurationError, choices
from adaseek.recipe import Demo, Ensemble, Recipe, Setting, member_id, owner_id
from adaseek.workflow import ModelRef, Workflow
from pydantic import TypeAdapter, ValidationError

from adaseek_dspy._compat import BaseModule
from adaseek_dspy._convert import model_reference
from adaseek_dspy._copying import copy_program
from adaseek_dspy._translate import REASONING_FIELDS, reasoning_fields, translate
from adaseek_dspy._walk import Found, walk
from adaseek_dspy.ensemble import EnsemblePredict, Reward, judge_signature

__all__ = ["Applied", "apply", "apply_to_copy", "exchanged"]

_REASONING_HINTS = {
    "chain_of_thought": "${reasoning}",  # what dspy.ChainOfThought writes
    "plan": "a short plan of the steps that lead to the answer, made before answering",
}


@dataclass(frozen=True)
class Applied:
    """A program with a recipe applied.

    Attributes:
        program: the copy; each predictor's `stage` is the id of its step, and DSPy keeps it when
            it copies predictors at run time.
        steps: ids of all its language-model steps, ensemble members included.
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
    recipe.check(translate(program, include_frozen=True))
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
    found = walk(program)
    copied = copy_program(program, found)
    applier = _Applier(recipe, _Models(models), rewards, workflow)
    replaced: dict[int, Any] = {}
    for step, original in found.predictors.items():
        predictor = copied.copy_of(original)
        result = applier.apply(step, predictor)
        if result is not predictor:
            replaced[id(predictor)] = result
    root = exchanged(copied.program, replaced)
    _check_samplers(recipe, found, copied.copy_of)
    return Applied(root, frozenset(applier.steps), copied.shared)


class _Models:
    """The language model of each reference, one object per reference and origin."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._given = given
        self._made: dict[tuple[str, int], Any] = {}

    def get(self, reference: ModelRef, own: Any) -> Any:
        """Returns the model of `reference`; without a given one, `own` under another name.

        A key belongs to the endpoint that it was made for: it does not go along to another one.
        """
        if reference.key in self._given:
            return self._given[reference.key]
        if own is None:
            raise ConfigurationError(
                f"The recipe asks for the model '{reference.key}', but it is not in `models` "
                f"({choices(self._given) or 'empty'}) and there is no language model to make it "
                "from. Pass it in `models`, or call dspy.configure(lm=...) first."
            )
        made = (reference.key, id(own))
        if made not in self._made:
            self._made[made] = _renamed(own, reference)
        return self._made[made]


def _renamed(own: Any, reference: ModelRef) -> Any:
    current = model_reference(own)
    if current == reference:
        return own
    if current.endpoint == reference.endpoint:
        return own.copy(model=reference.id)
    dropped = dict.fromkeys(("base_url", "api_key", "extra_headers", "headers"))
    known = {name: None for name in dropped if name in own.kwargs}
    return own.copy(model=reference.id, **known, api_base=reference.endpoint or None)


class _Applier:
    """Applies one recipe to the predictors of one copy."""

    def __init__(
        self,
        recipe: Recipe,
        models: _Models,
        rewards: Mapping[str, Any],
        workflow: Workflow | None,
    ) -> None:
        self.steps: list[str] = []
        self._recipe = recipe
        self._models = models
        self._rewards = rewards

    def apply(self, step: str, predictor: Any) -> Any:
        """Changes `predictor` as the recipe says; returns it, or the ensemble in its place."""
        setting = self._recipe.setting(step)
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
            reward=self._reward(step, ensemble) if ensemble.aggregate == "best_of" else None,
        )

    def _reward(self, step: str, ensemble: Ensemble) -> Any:
        if ensemble.reward in self._rewards:
            return self._rewards[ensemble.reward]
        raise ConfigurationError(
            f"The ensemble at step `{step}` takes the answer that the reward function "
            f"'{ensemble.reward}' rates highest, but `rewards` has "
            f"{choices(self._rewards) or 'none'}. Pass it in `rewards`."
        )

    def _apply(self, step: str, predictor: Any, setting: Setting) -> Any:
        self.steps.append(step)
        predictor.stage = step
        if setting.is_empty:
            return predictor
        if setting.steps is not None or setting.ensemble is not None:
            name = "steps" if setting.steps is not None else "ensemble"
            raise ConfigurationError(
                f"The recipe sets `{name}` at step `{step}`, but the DSPy adapter does not apply "
                f"it there. Remove `{name}` from that step of the recipe."
            )
        if setting.reasoning not in (None, "off"):
            _check_reasoning(step, predictor.signature, setting.reasoning)
        predictor.signature = _signature(
            predictor.signature, setting.instructions, setting.reasoning or "off"
        )
        if setting.demos is not None:
            predictor.demos = [_demo(demo, predictor.signature) for demo in setting.demos]
        if setting.model is not None:
            own = predictor.lm or dspy.settings.lm
            predictor.lm = self._models.get(setting.model, own)
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


def _check_reasoning(step: str, signature: Any, reasoning: str | None) -> None:
    present = reasoning_fields(signature)
    if present:
        raise ConfigurationError(
            f"The recipe sets `reasoning` to '{reasoning}' at step `{step}`, but that step already "
            f"reasons in its field `{present[0]}`. Remove `reasoning` from that step."
        )


@lru_cache(maxsize=512)
def _signature(signature: Any, instructions: str | None, reasoning: str) -> Any:
    """Returns `signature` with new instructions and a reasoning field, as a class of its own.

    Remembered because DSPy builds a pydantic class for each change (about 1 ms), and a search
    applies few different settings very often.
    """
    if instructions is not None:
        signature = signature.with_instructions(instructions)
    if reasoning == "off":
        return signature
    # In place rather than by ChainOfThought: the path of the step stays, and so do saved states.
    field = dspy.OutputField(desc=_REASONING_HINTS[reasoning])
    return signature.prepend(REASONING_FIELDS[reasoning], field, type_=str)


def _demo(demo: Demo, signature: Any) -> Any:
    values = {name: _typed(name, value, signature) for name, value in demo.values.items()}
    return dspy.Example(**values).with_inputs(*(n for n in values if n in signature.input_fields))


def _typed(name: str, value: Any, signature: Any) -> Any:
    """Returns a demo's JSON value in the type that the signature declares, if it can be."""
    field = signature.fields.get(name)
    if field is None or field.annotation is str:
        return value
    try:
        return TypeAdapter(field.annotation).validate_python(value)
    except (ValidationError, TypeError):
        return value  # shown as it is; a demo is text to the model in any case


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
