from __future__ import annotations

import numpy as np
import pytest
from adaseek.search import pareto
from adaseek.search.pareto import dominates, front, hypervolume, hypervolume_contributions, rank
from hypothesis import given
from hypothesis import strategies as st


def point_sets(dimension: int, max_size: int = 12) -> st.SearchStrategy:
    coordinate = st.integers(0, 8).map(lambda value: value / 8)
    row = st.lists(coordinate, min_size=dimension, max_size=dimension)
    return st.lists(row, min_size=1, max_size=max_size).map(np.asarray)


@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_front_is_what_nothing_dominates(dimension):
    @given(point_sets(dimension))
    def check(points):
        expected = [not any(dominates(q, p) for q in points) for p in points]
        assert front(points).tolist() == expected

    check()


@given(point_sets(3))
def test_rank_zero_is_the_front_and_every_rank_is_a_front_of_the_rest(points):
    ranks = rank(points)
    for level in range(ranks.max() + 1):
        rest = np.flatnonzero(ranks >= level)
        assert set(rest[front(points[rest])]) == set(np.flatnonzero(ranks == level))


def test_hypervolume_by_hand():
    assert hypervolume(np.asarray([[0.25]]), [1.0]) == pytest.approx(0.75)
    # Two rectangles of 1 x 0.5 and 0.5 x 1 that overlap in 0.5 x 0.5.
    assert hypervolume(np.asarray([[0.0, 0.5], [0.5, 0.0]]), [1, 1]) == pytest.approx(0.75)
    cube = np.asarray([[0.5, 0.5, 0.5], [0.9, 0.9, 0.0]])
    assert hypervolume(cube, [1, 1, 1]) == pytest.approx(0.125 + 0.1 * 0.1 * 0.5)
    assert hypervolume(np.asarray([[2.0, 0.0]]), [1, 1]) == 0.0


@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_hypervolume_equals_counting_cells(dimension):
    @given(point_sets(dimension, max_size=6))
    def check(points):
        centres = (np.indices((8,) * dimension).reshape(dimension, -1).T + 0.5) / 8
        covered = (points[None, :, :] <= centres[:, None, :]).all(axis=2).any(axis=1)
        assert hypervolume(points, [1.0] * dimension) == pytest.approx(covered.mean())

    check()


@given(point_sets(3, max_size=6))
def test_contributions_are_what_is_lost_without_a_point(points):
    gains = hypervolume_contributions(points, [1.1] * 3)
    whole = hypervolume(points, [1.1] * 3)
    assert (gains >= -1e-12).all()
    for i, gain in enumerate(gains):
        rest = np.delete(points, i, axis=0)
        assert hypervolume(rest, [1.1] * 3) + gain == pytest.approx(whole)


def test_of_many_points_those_that_reach_farthest_contribute_most():
    # Twenty points on a quarter circle around (1, 1), and a lone one far ahead of a gap.
    angles = np.linspace(0.05, 0.5, 20)
    crowd = 1 - 0.8 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    points = np.concatenate([crowd, [[0.5, 0.1]]])
    gains = pareto.hypervolume_contributions(points, [1.1, 1.1])
    assert gains.shape == (21,)
    assert gains.argmax() == 20
    assert (gains >= 0).all()


def test_volume_of_many_points_is_that_of_their_front():
    points = np.random.default_rng(3).random((60, 3))
    best = points[pareto.front(points)]
    assert pareto.hypervolume(points, [1.0] * 3) == pytest.approx(
        pareto.hypervolume(best, [1.0] * 3)
    )


def test_feasible_points_are_ranked_before_all_others():
    points = np.asarray([[0.0], [3.0], [1.0], [2.0]])
    violations = np.asarray([2.0, 0.0, 1.0, 0.0])
    assert pareto.ranked(points, violations, 4).tolist() == [3, 1, 2, 0]
