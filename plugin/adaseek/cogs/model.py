"""Step cog: which model of the user's menu a step calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adaseek.cogs.base import CogContext, Family, Option
from adaseek.recipe import Setting
from adaseek.workflow import Step

__all__ = ["ModelCog"]


@dataclass(frozen=True)
class ModelCog:
    """Offers every model of `CogContext.models` that the step does not call already.

    Two references are the same model only if id and endpoint are equal: the same weights at
    another endpoint have another price and another latency. Without a menu there is nothing to
    choose from. How much an option costs is not known here, since prices belong to the run.
    """

    name: str = "model"
    family: Family = "step"

    def refuses(self, step: Step) -> str | None:
        return None if step.kind == "lm" else "only a language-model step has a model"

    def options(self, step: Step, context: CogContext) -> Sequence[Option]:
        menu = dict.fromkeys(model for model in context.models if model != step.model)
        added = [Option(key=model.key, setting=Setting(model=model)) for model in menu]
        return [Option(key="original"), *added]
