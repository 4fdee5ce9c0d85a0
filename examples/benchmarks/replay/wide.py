"""Landscapes of known truth over wide spaces: several steps, ensembles whose members are apart.

A config's log odds of a right answer are a sum of effects of its options, of pairs of them, and of
the example's difficulty. What is drawn depends on the seed only, so truth and optimum are known.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from adaseek.search import pareto
from adaseek.search.base import Dimension, LeafRun, Outcome, Space
from adaseek.search.coder import INACTIVE, Coder, Codes
from adaseek.search.records import Archive, Record
from numpy.typing import NDArray

__all__ = ["KINDS", "Wide", "wide_space"]

KINDS = ("additive", "interacting", "deceptive")
Floats = NDArray[np.float64]

_PRICES: Mapping[str, tuple[float, ...]] = {
    "ensemble": (1.0, 3.0, 4.0),
    "model": (1.0, 0.3),
    "reasoning": (1.0, 2.0, 2.5),
    "few_shot": (1.0, 1.12, 1.24, 1.36),
}
"""Cog -> cost of a step under each option, relative to the first."""


def wide_space(num_steps: int, *, num_demos: int, members: int = 0) -> Space:
    """Returns a space of `num_steps` steps with cogs of all families.

    Args:
        num_demos: options of each step's few-shot cog.
        members: copies that an ensemble of the last step has, each with cogs of its own.
    """
    outer, models, inner = [], [], []
    for index, step in enumerate("abcdef"[:num_steps]):
        apart = members > 0 and index == num_steps - 1
        vote = f"{step}:ensemble"
        if apart:
            outer.append(Dimension(vote, "structure", ("off", "members", "judge")))
        elif index % 2 == 0:
            outer.append(Dimension(vote, "structure", ("off", "majority")))
        models.append(Dimension(f"{step}:model", "step", ("large", "small")))
        for copy in (step, *(f"{step}#{i}" for i in range(members if apart else 0))):
            opening = frozenset({"members"} if "#" in copy else {"off", "judge"})
            parent = (0, vote, opening) if apart else (0, None, frozenset[str]())
            demos = tuple(str(2 * i) for i in range(num_demos))
            inner.append(Dimension(f"{copy}:reasoning", "weight", ("off", "cot", "plan"), *parent))
            inner.append(Dimension(f"{copy}:few_shot", "weight", demos, *parent))
    return Space((*outer, *models, *inner))


@dataclass(frozen=True)
class Wide:
    """A random landscape; an outcome depends on its config and example only.

    `additive`: options act alone. `interacting`: also in pairs, most of them within a step.
    `deceptive`: leaving the last ensemble off is best until the step's inner cogs are set right.

    Attributes:
        num_held: examples over which the truth is taken; the search never sees them.
    """

    space: Space
    kind: str
    seed: int
    num_examples: int = 40
    num_held: int = 400
    _rows: dict[bytes, Floats] = field(default_factory=dict, repr=False, compare=False)

    def evaluate(self, runs: Sequence[LeafRun]) -> list[Outcome]:
        """Returns the outcomes of `runs`: the `Evaluate` of a search."""
        codes = self.coder.encode([run.config for run in runs])
        rows = [self._row(code)[:, run.example] for code, run in zip(codes, runs, strict=True)]
        return [Outcome(*map(float, row)) for row in rows]

    def quality(self, codes: Codes) -> Floats:
        """Returns [num_configs] float: the expected quality over the held-out examples."""
        held = self._difficulty[self.num_examples :]
        return np.asarray((1 / (1 + np.exp(-self._log_odds(codes)[:, None] - held))).mean(axis=1))

    def regret(self, record: Record) -> float:
        """Returns by how much the quality of `record` is below the best of the space."""
        return self.best_quality - float(self.quality(self.coder.encode([record.config]))[0])

    def hypervolume(self, archive: Archive) -> float:
        """Returns the volume of the found front by its true qualities and costs.

        0 is the original's quality or the highest cost, 1 the best quality at the lowest cost.
        """
        codes = self.coder.encode([record.config for record in archive.front()])
        if not len(codes):
            return 0.0
        original = float(self.quality(self.coder.encode([self.space.original()]))[0])
        low, high = self._cost_range
        lost = (self.best_quality - self.quality(codes)) / (self.best_quality - original + 1e-9)
        spent = (np.log(self._costs(codes)) - low) / (high - low)
        return pareto.hypervolume(np.stack([lost, spent], axis=1), [1.0, 1.0])

    @cached_property
    def coder(self) -> Coder:
        return Coder(self.space)

    @cached_property
    def best_quality(self) -> float:
        """The best expected quality, found by coordinate ascent from thirty starts."""
        drawn = self.coder.draw({}, 4000, np.random.default_rng(0))
        starts = drawn[np.argsort(-self._log_odds(drawn))[:30]]
        best = max((self._climbed(row) for row in starts), key=lambda row: self._height(row))
        return float(self.quality(best[None])[0])

    def _climbed(self, row: NDArray[np.int64]) -> NDArray[np.int64]:
        while True:
            near = np.asarray(list(self._neighbours(row)))
            top = near[int(self._log_odds(near).argmax())]
            if self._height(top) <= self._height(row) + 1e-12:
                return row
            row = top

    def _neighbours(self, row: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        rng = np.random.default_rng(1)
        for i, dimension in enumerate(self.space.dimensions):
            for option in range(len(dimension.options)):
                if row[i] == INACTIVE:
                    continue
                near = row.copy()
                near[i] = option
                filled = np.where(
                    near == INACTIVE, rng.integers(self.coder.sizes, size=(64, len(row))), near
                )
                yield from self.coder.valid(filled, {})

    def _height(self, row: NDArray[np.int64]) -> float:
        return float(self._log_odds(row[None])[0])

    def _row(self, code: NDArray[np.int64]) -> Floats:
        """Returns [3, num_examples]: quality, cost and latency of one config."""
        if (key := code.tobytes()) not in self._rows:
            rng = np.random.default_rng([self.seed, 5, *(code + 1)])
            seen = self._difficulty[: self.num_examples]
            chance = 1 / (1 + np.exp(-self._log_odds(code[None])[0] - seen))
            length = np.random.default_rng([self.seed, 6]).normal(0, 0.3, self.num_examples)
            luck = rng.normal(0, 0.1, (2, self.num_examples))
            quality = (rng.random(self.num_examples) < chance).astype(np.float64)
            cost = self._costs(code[None])[0] * np.exp(length + luck[0])
            self._rows[key] = np.stack([quality, cost, 1000 * cost * np.exp(luck[1])])
        return self._rows[key]

    # What is drawn ------------------------------------------------------------------------

    @property
    def _scale(self) -> float:
        return 1.6 / float(np.sqrt(len(self.space.original())))

    def _rng(self, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, purpose, KINDS.index(self.kind)])

    @cached_property
    def _bait(self) -> tuple[int, ...]:
        """Indices of the deceptive structure dimension and of the inner ones that redeem it."""
        names = [(d.family, d.name[0]) for d in self.space.dimensions]
        outer = max(i for i, (family, _) in enumerate(names) if family == "structure")
        return (outer, *(i for i, n in enumerate(names) if n == ("weight", names[outer][1])))

    @cached_property
    def _effects(self) -> list[Floats]:
        rng = self._rng(1)
        effects = [rng.normal(0.0, self._scale, n) for n in self.coder.sizes]
        for values in effects:
            values[0] = 0.0
        if self.kind == "deceptive":
            effects[self._bait[0]][1:] = -1.5
        return effects

    @cached_property
    def _pairs(self) -> list[tuple[int, int, Floats]]:
        dimensions, sizes = self.space.dimensions, self.coder.sizes
        pairs = []
        if self.kind == "deceptive":
            outer, *inner = self._bait
            for i in inner:
                table = np.zeros((sizes[outer], sizes[i]))
                table[1:, -1] = 1.5
                pairs.append((outer, i, table))
        if self.kind == "interacting":
            rng = self._rng(2)
            for j, i in itertools.combinations(range(len(dimensions)), 2):
                near = dimensions[i].name[0] == dimensions[j].name[0]
                if rng.random() < (0.7 if near else 0.15):
                    shape = (sizes[j], sizes[i])
                    pairs.append((j, i, rng.normal(0.0, 0.8 * self._scale, shape)))
        return pairs

    @cached_property
    def _difficulty(self) -> Floats:
        rng = np.random.default_rng([self.seed, 3])
        return rng.normal(-0.4, 1.3, self.num_examples + self.num_held)

    @cached_property
    def _shares(self) -> dict[str, float]:
        """Step -> share of the original's cost."""
        steps = sorted({d.name[0] for d in self.space.dimensions})
        shares = np.random.default_rng([self.seed, 4]).dirichlet(np.full(len(steps), 4.0))
        return dict(zip(steps, shares.tolist(), strict=True))

    @cached_property
    def _cost_range(self) -> tuple[float, float]:
        costs = self._costs(self.coder.draw({}, 2000, np.random.default_rng(1)))
        return float(np.log(costs).min()), float(np.log(costs).max())

    def _log_odds(self, codes: Codes) -> Floats:
        total = np.zeros(len(codes))
        for i, effects in enumerate(self._effects):
            total += np.where(codes[:, i] != INACTIVE, effects[codes[:, i]], 0.0)
        for i, j, table in self._pairs:
            both = (codes[:, i] != INACTIVE) & (codes[:, j] != INACTIVE)
            total += np.where(both, table[codes[:, i], codes[:, j]], 0.0)
        return total

    def _costs(self, codes: Codes) -> Floats:
        costs = {step: np.full(len(codes), share) for step, share in self._shares.items()}
        for i, dimension in enumerate(self.space.dimensions):
            step, cog = dimension.name[0], dimension.name.split(":")[1]
            prices = np.asarray(_PRICES[cog])
            costs[step] *= np.where(codes[:, i] != INACTIVE, prices[codes[:, i]], 1.0)
        return np.asarray(sum(costs.values()) * 1e-3)
