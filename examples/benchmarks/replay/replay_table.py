"""The recorded table: what every config scored, cost and took on every example."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from adaseek.search.base import Config, Dimension, LeafRun, Outcome, Space
from numpy.typing import NDArray

__all__ = ["ReplayTable", "Split", "load_table"]

HERE = Path(__file__).resolve().parent
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Split:
    """Indices of the table's examples: those that a search sees, and those that judge it."""

    train: tuple[int, ...]
    held: tuple[int, ...]


@dataclass(frozen=True)
class ReplayTable:
    """A space with every outcome in it.

    Attributes:
        configs: every config of the space.
        quality, cost, latency: [num_configs, num_examples]; a failed run has quality NaN.
        labels: one per example.
    """

    space: Space
    configs: tuple[Config, ...]
    quality: Floats
    cost: Floats
    latency: Floats
    labels: tuple[str, ...]

    @cached_property
    def index(self) -> dict[frozenset[tuple[str, str]], int]:
        """Returns the row of each config."""
        return {frozenset(config.items()): row for row, config in enumerate(self.configs)}

    def row(self, config: Config) -> int:
        return self.index[frozenset(config.items())]

    def split(self, seed: int) -> Split:
        """Returns a random half of the examples to search on, and the other half."""
        order = np.random.default_rng([seed, 23]).permutation(len(self.labels))
        half = len(order) // 2
        return Split(tuple(map(int, order[:half])), tuple(map(int, order[half:])))

    def evaluator(self, split: Split) -> Evaluator:
        """Returns what answers the runs of a search on the examples of `split.train`."""
        return Evaluator(self, split)

    def means(self, examples: Sequence[int]) -> Floats:
        """Returns [num_configs, 3]: mean quality (failed runs are 0), cost and latency."""
        chosen = list(examples)
        columns = (np.nan_to_num(self.quality), self.cost, self.latency)
        return np.stack([column[:, chosen].mean(axis=1) for column in columns], axis=1)


class Evaluator:
    """Answers leaf runs from a table, and counts the distinct ones."""

    def __init__(self, table: ReplayTable, split: Split) -> None:
        self._table = table
        self._split = split
        self._index = table.index
        self._seen: set[tuple[int, int]] = set()

    @property
    def num_runs(self) -> int:
        return len(self._seen)

    def __call__(self, runs: Sequence[LeafRun]) -> list[Outcome]:
        return [self._outcome(run) for run in runs]

    def _outcome(self, run: LeafRun) -> Outcome:
        row = self._index[frozenset(run.config.items())]
        column = self._split.train[run.example]
        self._seen.add((row, column))
        quality = float(self._table.quality[row, column])
        return Outcome(
            None if np.isnan(quality) else quality,
            float(self._table.cost[row, column]),
            float(self._table.latency[row, column]),
        )


def load_table(folder: Path = HERE) -> ReplayTable:
    """Returns the table that `record.py` wrote into `folder`."""
    body: dict[str, Any] = json.loads((folder / "table.json").read_text(encoding="utf-8"))
    dimensions = tuple(
        Dimension(
            d["name"],
            d["family"],
            tuple(d["options"]),
            parent=d["parent"],
            parent_options=frozenset(d["parent_options"]),
        )
        for d in body["dimensions"]
    )
    names = [d.name for d in dimensions]
    configs = tuple(
        {name: key for name, key in zip(names, keys, strict=True) if key is not None}
        for keys in body["configs"]
    )
    with np.load(folder / "table.npz", allow_pickle=False) as arrays:
        columns = [arrays[n].astype(np.float64) for n in ("score", "cost_usd", "latency_s")]
    labels = tuple(str(example["label"]) for example in body["examples"])
    return ReplayTable(Space(dimensions), configs, *columns, labels)
