"""AdaSeek for DSPy: translate a program, apply a recipe to a copy of it, and tune it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any  # Any: module attributes have no narrower type

if TYPE_CHECKING:
    from adaseek_dspy._apply import apply
    from adaseek_dspy._probe import discover
    from adaseek_dspy._translate import translate
    from adaseek_dspy.serving import Hints
    from adaseek_dspy.teleprompter import AdaSeek

__all__ = ["AdaSeek", "Hints", "apply", "discover", "translate"]

_HOMES = {
    "AdaSeek": "adaseek_dspy.teleprompter",
    "Hints": "adaseek_dspy.serving",
    "apply": "adaseek_dspy._apply",
    "discover": "adaseek_dspy._probe",
    "translate": "adaseek_dspy._translate",
}


def __getattr__(name: str) -> Any:
    # Lazy: plugin discovery imports this package for its hooks, which must not pull in DSPy, and
    # applying a recipe must not pull in the optimizer.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
