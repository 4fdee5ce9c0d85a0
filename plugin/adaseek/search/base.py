"""Words of the search: dimensions, configs, spaces, objectives. It knows names and numbers only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from adaseek.errors import choices, require

__all__ = [
    "FAMILIES",
    "OBJECTIVES",
    "Config",
    "Constraint",
    "Dimension",
    "Evaluate",
    "LeafRun",
    "Objective",
    "Outcome",
    "Refresh",
    "Space",
    "check_objectives",
]

Config = Mapping[str, str]
"""Dimension name -> option key, for every active dimension."""

Objective = Literal["quality", "cost", "latency"]
OBJECTIVES: tuple[Objective, ...] = ("quality", "cost", "latency")
FAMILIES = ("structure", "step", "weight")


@dataclass(frozen=True)
class Dimension:
    """One knob: a cog at a step, with its options; the first option is the original behaviour.

    Attributes:
        name: `step:cog`.
        family: `structure`, `step` or `weight`.
        options: keys of the options known at the start.
        num_slots: how many options may be added while the search runs.
        parent, parent_options: the dimension is active only while `parent` (a dimension of an
            outer family) has one of `parent_options`; None: always active.
        costs: option key -> expected workflow cost relative to the first option.
    """

    name: str
    family: str
    options: tuple[str, ...]
    num_slots: int = 0
    parent: str | None = None
    parent_options: frozenset[str] = frozenset()
    costs: Mapping[str, float] = field(default_factory=dict)

    def slot(self, index: int) -> str:
        """Returns the key that the `index`-th added option has."""
        return f"added-{index}"


@dataclass(frozen=True)
class Space:
    """The dimensions, parents before children, with the options that exist now.

    Growing a space gives a new one; the search holds the newest.
    """

    dimensions: tuple[Dimension, ...]
    added: Mapping[str, int] = field(default_factory=dict)

    def options(self, name: str) -> tuple[str, ...]:
        """Returns the option keys of dimension `name` that can be evaluated now."""
        dimension = self.dimension(name)
        slots = tuple(dimension.slot(i) for i in range(self.added.get(name, 0)))
        return dimension.options + slots

    def choices(self, name: str) -> tuple[str, ...]:
        """Returns every option key that `name` can ever have, empty slots included."""
        dimension = self.dimension(name)
        return dimension.options + tuple(dimension.slot(i) for i in range(dimension.num_slots))

    def dimension(self, name: str) -> Dimension:
        for dimension in self.dimensions:
            if dimension.name == name:
                return dimension
        raise KeyError(name)

    def is_active(self, dimension: Dimension, config: Config) -> bool:
        """Returns whether `dimension` has a value in a config with the outer values `config`."""
        if dimension.parent is None:
            return True
        return config.get(dimension.parent) in dimension.parent_options

    def original(self) -> dict[str, str]:
        """Returns the config of the unchanged program."""
        config: dict[str, str] = {}
        for dimension in self.dimensions:
            if self.is_active(dimension, config):
                config[dimension.name] = dimension.options[0]
        return config

    def grown(self, name: str, count: int) -> Space:
        """Returns a space in which `count` more slots of `name` are filled."""
        added = self.added.get(name, 0) + count
        require(added <= self.dimension(name).num_slots, "count", count, "more slots than declared")
        return Space(self.dimensions, {**self.added, name: added})

    def size(self, within: Config | None = None) -> int:
        """Returns how many distinct configs with the values `within` can be evaluated now."""
        return self._size(0, {}, within or {})

    def _size(self, index: int, config: dict[str, str], within: Config) -> int:
        if index == len(self.dimensions):
            return 1
        dimension = self.dimensions[index]
        if not self.is_active(dimension, config):
            return self._size(index + 1, config, within)
        name = dimension.name
        options = (within[name],) if name in within else self.options(name)
        if all(d.parent != name for d in self.dimensions):
            return len(options) * self._size(index + 1, config, within)
        return sum(self._size(index + 1, {**config, name: o}, within) for o in options)


@dataclass(frozen=True)
class Constraint:
    """A bound that the mean of an objective must keep.

    `quality` is bounded from below, `cost` (USD per run) and `latency` (seconds) from above. A
    `relative` bound is a factor of the original program's mean on the same examples.
    """

    objective: Objective
    bound: float
    relative: bool = False


@dataclass(frozen=True, slots=True)
class LeafRun:
    """One workflow run that the search asks for; `example` is an index into the examples."""

    config: Config
    example: int
    replicate: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a workflow run gave. A failed run has quality None and is scored as `failure_score`.

    `cost` and `latency` are None when unknown.
    """

    quality: float | None
    cost: float | None = None
    latency: float | None = None


Evaluate = Callable[[Sequence[LeafRun]], Sequence[Outcome]]
"""Runs leaf runs and returns their outcomes in order; may raise `BudgetExhaustedError`."""

Refresh = Callable[[], Mapping[str, int]]
"""Asks the dynamic cogs for new options: dimension name -> how many were added."""


def check_objectives(objectives: Sequence[str]) -> tuple[Objective, ...]:
    """Returns `objectives` in the order quality, cost, latency.

    Raises:
        ConfigurationError: if it is empty, or names something else, or one twice.
    """
    rule = f"must be a non-empty selection of {choices(OBJECTIVES)}, each once"
    names = [objectives] if isinstance(objectives, str) else list(objectives)
    valid = bool(names) and len(set(names)) == len(names) and set(names) <= set(OBJECTIVES)
    require(valid, "objectives", objectives, rule)
    return tuple(name for name in OBJECTIVES if name in names)
