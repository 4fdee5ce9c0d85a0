"""Step cog: the sampling parameters of a step, from values that the user names."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any  # Any: parameters are whatever the model server takes

from adaseek._canonical import canonical_json
from adaseek.cogs.base import CogContext, Family, Option
from adaseek.errors import require
from adaseek.recipe import Setting
from adaseek.workflow import Step

__all__ = ["ParamsCog"]

_MAX_OPTIONS = 64


@dataclass(frozen=True)
class ParamsCog:
    """Offers every combination of `values`, a parameter left alone being one of its choices.

    Without values there is nothing to choose from: which parameters a server takes, and which of
    them are safe to change, only the user knows.

    Args:
        values: parameter -> values to try, e.g. `{"temperature": (0.0, 0.7)}`, JSON values.
    """

    values: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    name: str = "params"
    family: Family = "step"

    def __post_init__(self) -> None:
        for name, values in self.values.items():
            listed = not isinstance(values, str) and len(values) > 0
            require(listed, f"values[{name!r}]", values, "must be a non-empty list of values")
        num_options = len(self._combinations())
        require(
            num_options <= _MAX_OPTIONS,
            "values",
            dict(self.values),
            f"gives {num_options} combinations, more than the {_MAX_OPTIONS} that can be searched",
            cure="Name fewer values.",
        )

    def refuses(self, step: Step) -> str | None:
        return None if step.kind == "lm" else "only a language-model step samples"

    def options(self, step: Step, context: CogContext) -> Sequence[Option]:
        chosen = [Option(key=_key(c), setting=Setting(params=c)) for c in self._combinations() if c]
        return [Option(key="original"), *chosen]

    def _combinations(self) -> list[dict[str, Any]]:
        choices = [
            [{}, *({name: value} for value in _distinct(values))]
            for name, values in self.values.items()
        ]
        return [
            {name: value for chosen in combination for name, value in chosen.items()}
            for combination in itertools.product(*choices)
        ]


def _distinct(values: Sequence[Any]) -> list[Any]:
    return list({canonical_json(value): value for value in values}.values())


def _key(params: Mapping[str, Any]) -> str:
    return ",".join(f"{name}={canonical_json(value)}" for name, value in params.items())
