"""A tree-structured Parzen estimator for categorical, conditional, multi-objective spaces.

Source: TPE (Bergstra et al., NeurIPS 2011; multi-objective form: Ozaki et al., GECCO 2020). Made
for tens of trials, where we differ from Optuna's own: the good set never has fewer than two
members, a trial that saw more examples weighs more, configs already tried or pending are never
proposed again, and the start is a balanced design instead of random draws.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any  # Any: Optuna's own parameter values

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from adaseek.search import pareto
from adaseek.search.base import Space

__all__ = ["NUM_EXAMPLES", "VIOLATION", "CategoricalTPESampler", "Coder"]

VIOLATION = "adaseek:violation"
"""User attribute of a trial: how much it breaks the constraints (0: feasible)."""
NUM_EXAMPLES = "adaseek:num_examples"
"""User attribute of a trial: how many examples its values are a mean of."""

_FIXED = "fixed_params"  # where Study.enqueue_trial keeps the values it was given
_INACTIVE = -1

Codes = NDArray[np.int64]  # [num_configs, num_dimensions]: option index, -1 if inactive


class CategoricalTPESampler(BaseSampler):
    """Proposes configs of a `Space`; use with `study.ask()` and `trial.suggest_categorical`.

    Args:
        space: returns the space as it is now (dynamic cogs fill slots while the search runs).
        seed: makes the proposals repeatable.
        num_startup: configs of the balanced design before the estimator is used; default: as
            many as the largest dimension has options, at least 4.
        gamma: share of the trials that count as good.
        prior_weight: weight of the uniform distribution in every kernel.
        num_candidates: configs drawn from the good density and compared by the ratio l / g.
    """

    def __init__(
        self,
        space: Callable[[], Space],
        *,
        seed: int | None = None,
        num_startup: int | None = None,
        gamma: float = 0.2,
        prior_weight: float = 1.0,
        num_candidates: int = 256,
    ) -> None:
        self._space = space
        self._rng = np.random.default_rng(seed)
        self._num_startup = num_startup
        self._gamma = gamma
        self._prior_weight = prior_weight
        self._num_candidates = num_candidates

    def reseed_rng(self) -> None:
        self._rng = np.random.default_rng()

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        space = self._space()
        return {d.name: CategoricalDistribution(space.choices(d.name)) for d in space.dimensions}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        coder = Coder(self._space())
        fixed: Mapping[str, str] = trial.system_attrs.get(_FIXED, {})
        tried = study.get_trials(deepcopy=False)
        others = [t for t in tried if t.number != trial.number and t.params]
        seen = [t for t in others if t.state in (TrialState.COMPLETE, TrialState.RUNNING)]
        codes = coder.encode([t.params for t in seen])
        avoid = coder.encode([t.params for t in others])
        done = np.asarray([t.state == TrialState.COMPLETE for t in seen], dtype=bool)
        candidates = coder.candidates(fixed, self._num_candidates, self._rng, avoid=avoid)
        if not len(candidates):
            candidates = coder.draw(fixed, 1, self._rng)
        if int(done.sum()) < self._startup(coder):
            return coder.decode(_most_balanced(candidates, codes, self._rng))
        finished = [t for t, is_done in zip(seen, done, strict=True) if is_done]
        num_good = max(2, math.ceil(self._gamma * len(finished)))
        order = _ranked(finished, study.directions, num_good)
        done_codes, weights = codes[done], _weights(finished)
        good, bad = order[:num_good], order[num_good:]
        # Pending trials count as bad: a batch spreads out instead of proposing one point twice.
        bad_codes = np.concatenate([done_codes[bad], codes[~done]])
        bad_weights = np.concatenate([weights[bad], np.ones(int((~done).sum()))])
        drawn = coder.draw_near(
            done_codes[good], fixed, self._num_candidates, self._rng, self._prior_weight
        )
        candidates = coder.unseen(np.concatenate([candidates, drawn]), avoid, fallback=candidates)
        ratio = self._log_density(coder, candidates, done_codes[good], weights[good])
        ratio -= self._log_density(coder, candidates, bad_codes, bad_weights)
        best = np.flatnonzero(ratio >= ratio.max() - 1e-12)
        return coder.decode(candidates[int(self._rng.choice(best))])

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Draws one parameter that the space does not have, uniformly."""
        if not isinstance(param_distribution, CategoricalDistribution):
            raise TypeError(f"{param_name} is not categorical: {param_distribution}.")
        choices = param_distribution.choices
        return choices[int(self._rng.integers(len(choices)))]

    def _startup(self, coder: Coder) -> int:
        if self._num_startup is not None:
            return self._num_startup
        return max(4, int(coder.sizes.max(initial=1)))

    def _log_density(
        self, coder: Coder, points: Codes, centres: Codes, weights: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Returns [num_points] log of a mixture of one product kernel per centre and a uniform.

        A kernel gives its own option (1 + u) / (1 + n * u) and each of the other n - 1 options
        u / (1 + n * u), u = prior weight / (number of centres + 1). A dimension that is inactive
        in the point or in the centre tells nothing and counts as uniform.
        """
        share = self._prior_weight / (len(centres) + 1)
        # One dimension at a time: all at once needs their number times the memory.
        logs = np.zeros((len(points), len(centres)))
        for i, size in enumerate(coder.sizes):
            same = points[:, i, None] == centres[None, :, i]
            active = points[:, i, None] != _INACTIVE
            known = active & (centres[None, :, i] != _INACTIVE)
            own, other = (
                np.log((1 + share) / (1 + size * share)),
                np.log(share / (1 + size * share)),
            )
            kernel = np.where(same, own, other)
            logs += np.where(known, kernel, np.where(active, -np.log(size), 0.0))
        uniform = np.where(points != _INACTIVE, -np.log(coder.sizes), 0.0).sum(axis=1)
        logs = np.concatenate([logs, uniform[:, None]], axis=1)
        mass = np.append(weights, self._prior_weight)
        top = logs.max(axis=1, keepdims=True)
        density = np.log((np.exp(logs - top) * mass).sum(axis=1) / mass.sum()) + top[:, 0]
        return np.asarray(density, dtype=np.float64)


class Coder:
    """Turns configs of one space into rows of option indices, and draws such rows."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.names = [d.name for d in space.dimensions]
        self.choices = [space.choices(name) for name in self.names]
        self.options = [space.options(name) for name in self.names]
        self.sizes = np.asarray([len(options) for options in self.options], dtype=np.int64)

    def encode(self, configs: Sequence[Mapping[str, str]]) -> Codes:
        rows = [
            [
                self.choices[i].index(config[name]) if name in config else _INACTIVE
                for i, name in enumerate(self.names)
            ]
            for config in configs
        ]
        return np.asarray(rows, dtype=np.int64).reshape(len(rows), len(self.names))

    def decode(self, row: NDArray[np.int64]) -> dict[str, str]:
        return {
            name: self.choices[i][row[i]]
            for i, name in enumerate(self.names)
            if row[i] != _INACTIVE
        }

    def candidates(
        self, fixed: Mapping[str, str], count: int, rng: np.random.Generator, *, avoid: Codes
    ) -> Codes:
        """Returns distinct configs that were not tried: all of them if few, else random ones."""
        rows = list(itertools.islice(self._all(fixed, []), 2 * count + 1))
        few = len(rows) <= 2 * count
        codes = np.asarray(rows, dtype=np.int64) if few else self.draw(fixed, count, rng)
        return self.unseen(codes, avoid, fallback=codes[:0])

    def draw(self, fixed: Mapping[str, str], count: int, rng: np.random.Generator) -> Codes:
        """Returns `count` uniformly random configs that have the values `fixed`."""
        return self._valid(rng.integers(self.sizes, size=(count, len(self.names))), fixed)

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
        known = (chosen != _INACTIVE) & (chosen < self.sizes)
        return self._valid(np.where(stays & known, chosen, elsewhere), fixed)

    def unseen(self, rows: Codes, avoid: Codes, *, fallback: Codes) -> Codes:
        """Returns the distinct `rows` that are not in `avoid`; `fallback` if none is left."""
        known = {row.tobytes() for row in np.ascontiguousarray(avoid)}
        fresh: dict[bytes, NDArray[np.int64]] = {}
        for row in np.ascontiguousarray(rows):
            if (key := row.tobytes()) not in known:
                fresh.setdefault(key, row)
        return np.asarray(list(fresh.values()), dtype=np.int64) if fresh else fallback

    def _valid(self, codes: Codes, fixed: Mapping[str, str]) -> Codes:
        """Returns `codes` with the values `fixed`, and with inactive dimensions marked."""
        codes = codes.astype(np.int64)
        for i, dimension in enumerate(self.space.dimensions):
            if dimension.name in fixed:
                codes[:, i] = self.choices[i].index(fixed[dimension.name])
            if dimension.parent is not None:
                parent = self.names.index(dimension.parent)
                opening = [self.choices[parent].index(o) for o in dimension.parent_options]
                codes[~np.isin(codes[:, parent], opening), i] = _INACTIVE
        return codes

    def _all(self, fixed: Mapping[str, str], row: list[int]) -> Iterator[list[int]]:
        """Yields every valid config that begins with `row` and has the values `fixed`."""
        i = len(row)
        if i == len(self.names):
            yield row
            return
        config = {self.names[j]: self.choices[j][c] for j, c in enumerate(row) if c != _INACTIVE}
        name = self.names[i]
        if not self.space.is_active(self.space.dimensions[i], config):
            picks: Sequence[int] = (_INACTIVE,)
        elif name in fixed:
            picks = (self.choices[i].index(fixed[name]),)
        else:
            picks = range(int(self.sizes[i]))
        for pick in picks:
            yield from self._all(fixed, [*row, pick])


def _ranked(
    trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection], num_good: int
) -> list[int]:
    """Returns trial indices, so ordered that the `num_good` best come first.

    Feasible ones come by front, infeasible ones after them by violation. Only the members of the
    front in which place `num_good` falls are ordered further, by hypervolume contribution.
    """
    signs = np.asarray([1.0 if d == StudyDirection.MINIMIZE else -1.0 for d in directions])
    violations = np.asarray([float(t.user_attrs.get(VIOLATION, 0.0)) for t in trials])
    feasible = np.flatnonzero(violations <= 0)
    infeasible = [int(i) for i in np.argsort(violations, kind="stable") if violations[i] > 0]
    if not len(feasible):
        return infeasible
    points = np.asarray([trials[i].values for i in feasible], dtype=np.float64) * signs
    points = np.nan_to_num(points, nan=1e300, posinf=1e300)
    low, high = points.min(axis=0), points.max(axis=0)
    scaled = (points - low) / np.where(high > low, high - low, 1.0)
    order: list[int] = []
    left = np.arange(len(feasible))
    while len(left) and len(order) < num_good:
        on_front = pareto.front(scaled[left])
        members, left = left[on_front], left[~on_front]
        if len(order) + len(members) > num_good:
            gains = pareto.hypervolume_contributions(scaled[members], [1.1] * scaled.shape[1])
            members = members[np.argsort(-gains, kind="stable")]
        order.extend(int(i) for i in feasible[members])
    return order + [int(i) for i in feasible[left]] + infeasible


def _weights(trials: Sequence[FrozenTrial]) -> NDArray[np.float64]:
    """Returns [num_trials] float: the share of examples a trial saw, relative to the most."""
    counts = np.asarray([float(t.user_attrs.get(NUM_EXAMPLES, 1)) for t in trials])
    return np.asarray(counts / counts.max(initial=1.0))


def _most_balanced(candidates: Codes, seen: Codes, rng: np.random.Generator) -> NDArray[np.int64]:
    """Returns the candidate whose options were seen least, so that every option gets its turn.

    A dimension that is inactive counts as its least seen option: a config is not preferred for
    having fewer of them.
    """
    cost = np.zeros(len(candidates))
    for i in range(candidates.shape[1]):
        column = candidates[:, i]
        counts = np.bincount(seen[:, i][seen[:, i] >= 0], minlength=int(column.max(initial=0)) + 1)
        active = column >= 0
        squares = counts[np.maximum(column, 0)] ** 2
        cost += np.where(active, squares, squares[active].min() if active.any() else 0)
    best = np.flatnonzero(cost == cost.min())
    return np.asarray(candidates[int(rng.choice(best))])
