"""Merging scored guesses, and how many of them a step takes."""

from __future__ import annotations

from itertools import combinations

import pytest
from adaseek_vllm.token_tree import ROOT, Expansion
from adaseek_vllm.token_tree.guesses import (
    Guesses,
    TokensPerCost,
    best_step,
    expanded,
    selected,
)
from hypothesis import given
from hypothesis import strategies as st


def guesses_of(*nodes: tuple[int, int, float]) -> Guesses:
    guesses = Guesses()
    for parent, token, probability in nodes:
        guesses.add(parent, token, probability)
    return guesses


ONE = guesses_of((ROOT, 1, 0.6), (0, 2, 0.5), (ROOT, 3, 0.3))
OTHER = guesses_of((ROOT, 3, 0.4), (0, 4, 0.35), (ROOT, 1, 0.1))


def test_node_is_never_likelier_than_its_parent() -> None:
    assert guesses_of((ROOT, 1, 0.5), (0, 2, 0.9)).probabilities == [0.5, 0.5]


def test_reach_is_how_likely_each_depth_is_right() -> None:
    assert ONE.reach() == pytest.approx([0.9, 0.5])
    assert Guesses().reach() == []


def test_copy_is_its_own() -> None:
    copy = ONE.copy()
    assert (copy.tree.tokens, copy.tree.parents) == (ONE.tree.tokens, ONE.tree.parents)
    assert copy.probabilities == ONE.probabilities
    copy.add(ROOT, 9, 0.1)
    assert len(ONE.tree) == 3


@given(st.lists(st.floats(0.03, 1.0), min_size=0, max_size=6), st.floats(0.001, 1.0))
def test_best_step_is_the_step_that_is_selected(chances: list[float], row_cost: float) -> None:
    flat = guesses_of(*((ROOT, token, chance) for token, chance in enumerate(chances)))
    both = [flat, ONE]
    rows, expected = best_step(both, max_nodes=5, step_cost=lambda rows: 1.0 + row_cost * rows)
    trees = selected(both, max_nodes=5, step_cost=lambda rows: 1.0 + row_cost * rows)
    assert rows == 2 + sum(map(len, trees))
    taken = sorted([*chances, *ONE.probabilities], reverse=True)[: rows - 2]
    if len(chances) <= 5:
        assert expected == pytest.approx(2.0 + sum(taken))


BUSH = guesses_of(
    *((ROOT, 1, 0.3), (ROOT, 2, 0.4), (0, 3, 0.3), (1, 4, 0.1), (1, 5, 0.2), (ROOT, 6, 0.1))
)


@pytest.mark.parametrize(
    ("widths", "expected"),
    [
        ((1, 1, 1), {(2,): 0.4, (2, 5): 0.2}),
        ((2, 1), {(2,): 0.4, (1,): 0.3, (2, 5): 0.2, (1, 3): 0.3}),
        ((1, 9), {(2,): 0.4, (2, 5): 0.2, (2, 4): 0.1}),
        ((9,), {(2,): 0.4, (1,): 0.3, (6,): 0.1}),
    ],
)
def test_fixed_shape_has_the_likeliest_children_of_each_node(
    widths: tuple[int, ...], expected: dict[tuple[int, ...], float]
) -> None:
    shaped = expanded(BUSH, Expansion(widths))
    assert dict(zip(shaped.tree.paths(), shaped.probabilities, strict=True)) == expected


def test_free_rows_take_all_up_to_the_limit() -> None:
    trees = selected([ONE, OTHER], max_nodes=2, step_cost=lambda _: 1.0)
    assert [list(tree) for tree in trees] == [[1, 2], [3, 4]]
    assert trees[0].parents == (-1, 0)


def test_expensive_rows_take_none() -> None:
    trees = selected([ONE, OTHER], max_nodes=9, step_cost=float)
    assert trees == [[], []]


def test_rows_that_make_a_step_cheaper_are_filled_with_unlikely_guesses() -> None:
    unlikely = guesses_of(*((ROOT, token, 0.02) for token in range(6)))
    seconds = {1: 0.132, 2: 0.141, 3: 0.117, 4: 0.111, 5: 0.113, 6: 0.118, 7: 0.126}
    (tree,) = selected([unlikely], max_nodes=9, step_cost=lambda rows: seconds[rows])
    assert list(tree) == [0, 1, 2, 3]
    rate = TokensPerCost(1, 6, lambda rows: seconds[rows])
    assert rate.may_rise(0.02)


def test_budget_goes_to_the_request_with_the_better_guesses() -> None:
    good, bad = guesses_of((ROOT, 1, 0.9), (0, 2, 0.8)), guesses_of((ROOT, 5, 0.1))
    trees = selected([bad, good], max_nodes=9, step_cost=lambda rows: 1.0 + 0.2 * rows)
    assert trees == [[], [1, 2]]


def test_no_requests_select_nothing() -> None:
    assert selected([], max_nodes=3, step_cost=lambda _: 1.0) == []


NODES = st.lists(
    st.tuples(st.integers(-1, 5), st.integers(0, 2), st.sampled_from([0.9, 0.6, 0.5, 0.2, 0.05])),
    max_size=6,
)


def random_guesses(nodes: list[tuple[int, int, float]]) -> Guesses:
    guesses = Guesses()
    for parent, token, probability in nodes:
        guesses.add(min(parent, len(guesses.tree) - 1), token, probability)
    return guesses


@given(NODES, NODES, st.sampled_from([0.01, 0.1, 0.4, 1.0]))
def test_selection_is_as_good_as_the_best_subset(
    first: list[tuple[int, int, float]], second: list[tuple[int, int, float]], slope: float
) -> None:
    both = [random_guesses(first), random_guesses(second)]

    def cost(rows: int) -> float:
        return 1.0 + slope * rows

    trees = selected(both, max_nodes=6, step_cost=cost)
    expected = 2.0
    for guesses, tree in zip(both, trees, strict=True):
        node_of = {ROOT: ROOT}
        for node, (parent, token) in enumerate(zip(tree.parents, tree, strict=True)):
            found = guesses.tree.child(node_of[parent], token)
            assert found is not None
            node_of[node] = found
            expected += guesses.probability(found)
    chances = [p for guesses in both for p in guesses.probabilities]
    best = max(
        (2.0 + sum(subset)) / cost(2 + size)
        for size in range(len(chances) + 1)
        for subset in combinations(chances, size)
    )
    assert expected / cost(2 + sum(map(len, trees))) == pytest.approx(best)
