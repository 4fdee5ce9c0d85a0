"""An arm: the search under fixed outer values."""

from __future__ import annotations

from dataclasses import dataclass, field

from adaseek.search.base import Config, Space
from adaseek.search.records import Archive, Record
from adaseek.search.stopping import Patience

__all__ = ["Arm"]


@dataclass
class Arm:
    """One node of the tree of arms; the root fixes nothing.

    Attributes:
        config: the outer values.
        path: trial numbers of the outer configs, outermost first.
        layer: number of the layer that is searched under it.
    """

    config: Config
    path: tuple[int, ...]
    layer: int
    patience: Patience
    children: dict[frozenset[tuple[str, str]], Arm] = field(default_factory=dict)
    is_exhausted: bool = False

    @property
    def is_done(self) -> bool:
        return self.is_exhausted or self.patience.converged

    def completed(self, space: Space) -> dict[str, str]:
        """Returns the arm's values with the original option of every other active dimension."""
        config: dict[str, str] = {}
        for dimension in space.dimensions:
            if space.is_active(dimension, config):
                config[dimension.name] = self.config.get(dimension.name, dimension.options[0])
        return config

    def wait(self, archive: Archive, record: Record) -> None:
        """Counts `record` for the arm's patience, by the part of the examples that it saw."""
        weight = len(record.outcomes) / len(archive.original.outcomes)
        if archive.is_feasible(record):
            self.patience.tell(archive.point(record).tolist(), weight=weight)
        else:
            self.patience.tell_infeasible(weight=weight)
