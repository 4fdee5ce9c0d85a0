"""Dominance, fronts and hypervolume over points whose every coordinate is to be minimised.

Quality enters negated (`search.records`), so one rule serves every objective. Sizes here are a
few hundred points in at most three dimensions: clarity comes before asymptotics.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["dominates", "front", "hypervolume", "hypervolume_contributions", "rank", "ranked"]

Points = NDArray[np.float64]  # [num_points, num_objectives], smaller is better

_MOST_EXACT = 8
_NUM_DIRECTIONS = 256


def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    """Returns whether `a` is nowhere worse than `b` and somewhere better."""
    pairs = list(zip(a, b, strict=True))
    return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)


def front(points: Points) -> NDArray[np.bool_]:
    """Returns [num_points] bool: which points no other point dominates; equal points all stay.

    In lexicographic order a point comes after all that dominate it, so the first one left is
    always on the front; the time is that of a pass per point of the front.
    """
    mask = np.zeros(len(points), dtype=np.bool_)
    left = np.lexsort(points.T[::-1]) if len(points) else np.zeros(0, dtype=np.intp)
    while len(left):
        first, rest = points[left[0]], points[left]
        equal = (rest == first).all(axis=1)
        mask[left[equal]] = True
        left = left[~equal & (rest < first).any(axis=1)]
    return mask


def rank(points: Points) -> NDArray[np.intp]:
    """Returns [num_points] int: 0 for the front, 1 for the front of the rest, and so on."""
    ranks = np.full(len(points), -1, dtype=np.intp)
    level = 0
    while (left := np.flatnonzero(ranks < 0)).size:
        ranks[left[front(points[left])]] = level
        level += 1
    return ranks


def hypervolume(points: Points, reference: Sequence[float] | NDArray[np.float64]) -> float:
    """Returns the volume dominated by `points` and bounded by `reference`.

    Slices along the last coordinate, so it is exact in any dimension; points that are not
    strictly better than `reference` everywhere add nothing.
    """
    bound = np.asarray(reference, dtype=np.float64)
    inside = points[(points < bound).all(axis=1)] if len(points) else points
    return _volume(inside[front(inside)], bound)


def _volume(points: Points, bound: NDArray[np.float64]) -> float:
    """Returns the volume between `bound` and `points`, all of them strictly inside it."""
    if not len(points):
        return 0.0
    if points.shape[1] == 1:
        return float(bound[0] - points.min())
    points = points[np.argsort(points[:, -1], kind="stable")]
    depths = np.append(points[1:, -1], bound[-1]) - points[:, -1]
    if points.shape[1] == 2:
        return float(((bound[0] - np.minimum.accumulate(points[:, 0])) * depths).sum())
    slices = (
        depth * _volume(points[: i + 1, :-1], bound[:-1])
        for i, depth in enumerate(depths)
        if depth > 0
    )
    return float(sum(slices))


def hypervolume_contributions(points: Points, reference: Sequence[float]) -> NDArray[np.float64]:
    """Returns [num_points] float: the hypervolume that would be lost without each point.

    Of more than `_MOST_EXACT` points each gets its share of the volume estimated by random
    scalarisation: the directions from `reference` in which it reaches farthest.
    Source: Golovin and Zhang, ICML 2020.
    """
    if len(points) > _MOST_EXACT:
        return _shares(points, np.asarray(reference, dtype=np.float64))
    total = hypervolume(points, reference)
    alone = [
        total - hypervolume(np.delete(points, i, axis=0), reference) for i in range(len(points))
    ]
    return np.asarray(alone, dtype=np.float64)


def _shares(points: Points, bound: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns [num_points] float: the mean over directions of what a point adds to the reach."""
    dimension = points.shape[1]
    directions = np.abs(np.random.default_rng(0).normal(size=(_NUM_DIRECTIONS, dimension)))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    reach = ((bound - points)[:, None, :] / directions).min(axis=2).clip(min=0.0)
    volume = reach**dimension  # [num_points, num_directions]
    second, first = np.sort(volume, axis=0)[-2:]
    best = volume.argmax(axis=0)
    lost = np.zeros(len(points))
    np.add.at(lost, best, first - second)
    return lost / _NUM_DIRECTIONS


def ranked(points: Points, violations: NDArray[np.float64], num_good: int) -> NDArray[np.intp]:
    """Returns trial indices, so ordered that the `num_good` best come first.

    Feasible ones come by front, infeasible ones after them by violation. Only the members of the
    front in which place `num_good` falls are ordered further, by what each adds to the
    hypervolume.

    Args:
        points: [num_trials, num_objectives]; unknown values are infinite.
        violations: [num_trials] float, 0 if feasible.
    """
    by_violation = np.argsort(violations, kind="stable")
    infeasible = by_violation[violations[by_violation] > 0]
    feasible = np.flatnonzero(violations <= 0)
    if not len(feasible):
        return infeasible
    known = np.nan_to_num(points[feasible], nan=1e300, posinf=1e300, neginf=-1e300)
    low, high = known.min(axis=0), known.max(axis=0)
    scaled = (known - low) / np.where(high > low, high - low, 1.0)
    order: list[NDArray[np.intp]] = []
    left = np.arange(len(feasible))
    num = 0
    while len(left) and num < num_good:
        on_front = front(scaled[left])
        members, left = left[on_front], left[~on_front]
        if num + len(members) > num_good:
            gains = hypervolume_contributions(scaled[members], [1.1] * scaled.shape[1])
            members = members[np.argsort(-gains, kind="stable")]
        order.append(feasible[members])
        num += len(members)
    return np.concatenate([*order, feasible[left], infeasible])
