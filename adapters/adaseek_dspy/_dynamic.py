"""Settings for predictors that only exist at run time, applied as they are called.

Such a predictor is made in `forward` or held by a closure, so there is no copy of it to change, and
changing the user's own would reach other threads. So the adapter, through which every predictor
calls its model, puts the settings into that one call.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any  # Any: DSPy is untyped

import dspy
from adaseek.recipe import Setting

from adaseek_dspy._naming import dynamic_step
from adaseek_dspy._settings import Models, changed_signature, check_applicable, typed_demos

__all__ = ["DynamicSettings", "adapter_class", "with_dynamic"]

SETTINGS_KEY = "adaseek_dynamic"
"""Key of DSPy's settings, which reach the threads of `dspy.Parallel`."""


@dataclass(frozen=True)
class DynamicSettings:
    """What to do with predictors that are not among `steps`.

    Attributes:
        steps: stages of the predictors that the program holds; those were changed in the copy.
        settings: name of the dynamic step -> setting.
        models: makes the models that the settings name.
    """

    steps: frozenset[str]
    settings: Mapping[str, Setting]
    models: Models

    def setting(self, signature: Any) -> Setting | None:
        """Returns the setting of the predictor that is being called, None if it has none."""
        callers = dspy.settings.get("caller_modules") or []
        predictor = callers[-1] if callers else None
        if predictor is None or getattr(predictor, "stage", None) in self.steps:
            return None
        return self.settings.get(dynamic_step(getattr(predictor, "signature", signature)))

    def __deepcopy__(self, _memo: dict[int, Any]) -> DynamicSettings:
        return self


def with_dynamic(program: Any, dynamic: DynamicSettings) -> Any:
    """Returns `program` as an instance of a subclass that puts `dynamic` in force per call."""
    program.adaseek_dynamic = dynamic
    program.__class__ = _tuned_class(program.__class__)
    return program


class _Tuned:
    """Mixed in before a program's own class."""

    adaseek_dynamic: DynamicSettings

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with dspy.context(**_in_force(self.adaseek_dynamic)):
            return super().__call__(*args, **kwargs)  # type: ignore[misc]

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        with dspy.context(**_in_force(self.adaseek_dynamic)):
            return await super().acall(*args, **kwargs)  # type: ignore[misc]


def _in_force(dynamic: DynamicSettings) -> dict[str, Any]:
    adapter = dspy.settings.get("adapter")
    twin = copy.copy(adapter) if adapter is not None else dspy.ChatAdapter()
    twin.__class__ = _dynamic_class(twin.__class__)
    return {"adapter": twin, SETTINGS_KEY: dynamic}


class _DynamicAdapter:
    """Mixed in before an adapter's own class: changes the calls of dynamic predictors."""

    def __call__(self, lm: Any, lm_kwargs: Any, signature: Any, demos: Any, inputs: Any) -> Any:
        changed = _changed(lm, lm_kwargs, signature, demos)
        return super().__call__(*changed, inputs)  # type: ignore[misc]

    async def acall(self, lm: Any, lm_kwargs: Any, signature: Any, demos: Any, inputs: Any) -> Any:
        changed = _changed(lm, lm_kwargs, signature, demos)
        return await super().acall(*changed, inputs)  # type: ignore[misc]


def _changed(lm: Any, lm_kwargs: Any, signature: Any, demos: Any) -> tuple[Any, Any, Any, Any]:
    dynamic = dspy.settings.get(SETTINGS_KEY)
    setting = dynamic.setting(signature) if dynamic is not None else None
    if dynamic is None or setting is None:
        return lm, lm_kwargs, signature, demos
    check_applicable(dynamic_step(signature), setting, signature)
    signature = changed_signature(signature, setting)
    if setting.demos is not None:
        demos = typed_demos(setting.demos, signature)
    if setting.model is not None:
        lm = dynamic.models.get(setting.model, lm)
    return lm, {**lm_kwargs, **(setting.params or {})}, signature, demos


def adapter_class(cls: type, mixin: type) -> type:
    """Returns a subclass of the adapter class `cls` with `mixin` before it, under the same name.

    DSPy's stream listeners look adapters up by the name of their class.
    """
    made = type(cls.__name__, (mixin, cls), {"__module__": cls.__module__})
    for name in ("format", "parse"):
        # DSPy wraps these of every new subclass, which would report each of them twice.
        if name in vars(made):
            delattr(made, name)
    return made


@functools.cache
def _dynamic_class(cls: type) -> type:
    return adapter_class(cls, _DynamicAdapter)


@functools.cache
def _tuned_class(cls: type) -> type:
    own = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return type(cls.__name__, (_Tuned, cls), own)
