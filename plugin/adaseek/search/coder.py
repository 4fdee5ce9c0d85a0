"""Configs of a space as rows of option indices, and how such rows are drawn."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from adaseek.search.base import Space

__all__ = ["INACTIVE", "Coder", "Codes"]

INACTIVE = -1

Codes = NDArray[np.int64]
"""[num_configs, num_dimensions]: option index, -1 where the dimension is inactive."""


class Coder:
    """Turns configs of one space into rows of option indices, and draws such rows.

    An option's index counts the empty slots before it, so rows stay valid when the space grows.
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        self.names = [d.name for d in space.dimensions]
        self.choices = [space.choices(name) for name in self.names]
        self.options = [space.options(name) for name in self.names]
        self.sizes = np.asarray([len(options) for options in self.options], dtype=np.int64)
        self._known_few: dict[tuple[frozenset[tuple[str, str]], int], Codes | None] = {}

    @cached_property
    def _indices(self) -> list[dict[str, int]]:
        return [{key: i for i, key in enumerate(choices)} for choices in self.choices]

    @cached_property
    def _offsets(self) -> NDArray[np.int64]:
        widths = [len(choices) for choices in self.choices]
        return np.concatenate([[0], np.cumsum(widths)]).astype(np.int64)

    @cached_property
    def _opening(self) -> list[tuple[int, int, NDArray[np.bool_]]]:
        """Returns (dimension, its parent, for each of the parent's choices whether it opens it).

        The last place stands for a parent that is itself inactive.
        """
        places = {name: i for i, name in enumerate(self.names)}
        return [
            (
                i,
                places[d.parent],
                np.asarray(
                    [c in d.parent_options for c in (*self.choices[places[d.parent]], None)]
                ),
            )
            for i, d in enumerate(self.space.dimensions)
            if d.parent is not None
        ]

    def encode(self, configs: Sequence[Mapping[str, str]]) -> Codes:
        rows = [
            [
                indices[config[name]] if name in config else INACTIVE
                for name, indices in zip(self.names, self._indices, strict=True)
            ]
            for config in configs
        ]
        return np.asarray(rows, dtype=np.int64).reshape(len(rows), len(self.names))

    def decode(self, row: NDArray[np.int64]) -> dict[str, str]:
        return {
            name: self.choices[i][row[i]] for i, name in enumerate(self.names) if row[i] != INACTIVE
        }

    def one_hot(self, codes: Codes) -> NDArray[np.float64]:
        """Returns [num_configs, num_choices] float: 1 where a config has that option."""
        hot = np.zeros((len(codes), int(self._offsets[-1])))
        rows, columns = np.nonzero(codes != INACTIVE)
        hot[rows, self._offsets[columns] + codes[rows, columns]] = 1.0
        return hot

    def candidates(
        self,
        fixed: Mapping[str, str],
        count: int,
        rng: np.random.Generator,
        *,
        avoid: Collection[bytes] = (),
    ) -> Codes:
        """Returns distinct configs that were not tried: all of them if few, else random ones."""
        codes = self._few(fixed, 2 * count)
        return self.unseen(self.draw(fixed, count, rng) if codes is None else codes, avoid)

    def draw(self, fixed: Mapping[str, str], count: int, rng: np.random.Generator) -> Codes:
        """Returns `count` uniformly random configs that have the values `fixed`."""
        return self.valid(rng.integers(self.sizes, size=(count, len(self.names))), fixed)

    def draw_near(
        self,
        centres: Codes,
        fixed: Mapping[str, str],
        count: int,
        rng: np.random.Generator,
        prior_weight: float,
    ) -> Codes:
        """Returns `count` configs drawn from the kernels of `centres`, made valid."""
        share = prior_weight / (len(centres) + 1)
        chosen = centres[rng.integers(len(centres), size=count)]
        elsewhere = rng.integers(self.sizes, size=chosen.shape)
        stays = rng.random(chosen.shape) < (1 + share) / (1 + self.sizes * share)
        known = (chosen != INACTIVE) & (chosen < self.sizes)
        return self.valid(np.where(stays & known, chosen, elsewhere), fixed)

    def unseen(self, rows: Codes, avoid: Collection[bytes]) -> Codes:
        """Returns the distinct `rows` whose bytes are not in `avoid`, in order."""
        fresh: dict[bytes, NDArray[np.int64]] = {}
        for row in np.ascontiguousarray(rows):
            if (key := row.tobytes()) not in avoid:
                fresh.setdefault(key, row)
        return np.asarray(list(fresh.values()), dtype=np.int64).reshape(-1, len(self.names))

    def valid(self, codes: Codes, fixed: Mapping[str, str]) -> Codes:
        """Returns `codes` with the values `fixed`, and with inactive dimensions marked."""
        codes = codes.astype(np.int64)
        for name, key in fixed.items():
            if name in self.names:
                i = self.names.index(name)
                codes[:, i] = self._indices[i][key]
        for i, parent, opening in self._opening:
            codes[~opening[codes[:, parent]], i] = INACTIVE  # INACTIVE, -1, is the last place
        return codes

    def _few(self, fixed: Mapping[str, str], most: int) -> Codes | None:
        """Returns every config that has the values `fixed`, or None if they are above `most`."""
        key = (frozenset(fixed.items()), most)
        if key not in self._known_few:
            rows = list(itertools.islice(self._all(fixed, []), most + 1))
            codes = np.asarray(rows, dtype=np.int64).reshape(len(rows), len(self.names))
            self._known_few[key] = codes if len(rows) <= most else None
        return self._known_few[key]

    def _all(self, fixed: Mapping[str, str], row: list[int]) -> Iterator[list[int]]:
        """Yields every valid config that begins with `row` and has the values `fixed`."""
        i = len(row)
        if i == len(self.names):
            yield row
            return
        config = {self.names[j]: self.choices[j][c] for j, c in enumerate(row) if c != INACTIVE}
        name = self.names[i]
        if not self.space.is_active(self.space.dimensions[i], config):
            picks: Sequence[int] = (INACTIVE,)
        elif name in fixed:
            picks = (self._indices[i][fixed[name]],)
        else:
            picks = range(int(self.sizes[i]))
        for pick in picks:
            yield from self._all(fixed, [*row, pick])
