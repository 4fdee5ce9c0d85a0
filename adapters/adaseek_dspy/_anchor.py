"""Keeps the predictors of a run in that run, in whatever thread the user's code calls them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any  # Any: DSPy is untyped

import dspy

from adaseek_dspy._observe import SETTINGS_KEY

__all__ = ["anchor"]


@dataclass(frozen=True)
class _Anchor:
    """DSPy's settings of a run, for predictors that are called outside of its context."""

    settings: Mapping[str, Any]

    def __deepcopy__(self, _memo: dict[int, Any]) -> _Anchor:
        return self


class _Anchored:
    """Mixed in before a predictor's own class: keeps it in its run in every thread.

    A thread that the user's code starts has DSPy's global settings, not those of the run, unless
    the code copies the context.
    """

    adaseek_anchor: _Anchor

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with _in_run(self.adaseek_anchor):
            return super().__call__(*args, **kwargs)  # type: ignore[misc]

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        with _in_run(self.adaseek_anchor):
            return await super().acall(*args, **kwargs)  # type: ignore[misc]


def _in_run(anchor: _Anchor) -> contextlib.AbstractContextManager[None]:
    if dspy.settings.get(SETTINGS_KEY) is not None:
        return contextlib.nullcontext()
    context: contextlib.AbstractContextManager[None] = dspy.context(**anchor.settings)
    return context


def anchor(predictors: Iterable[Any], settings: Mapping[str, Any]) -> None:
    """Keeps each of `predictors`, which belong to a run's copy, under the run's `settings`."""
    shared = _Anchor(settings)
    for predictor in predictors:
        predictor.adaseek_anchor = shared
        predictor.__class__ = _anchored_class(predictor.__class__)


@functools.cache
def _anchored_class(cls: type) -> type:
    own = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return type(cls.__name__, (_Anchored, cls), own)
