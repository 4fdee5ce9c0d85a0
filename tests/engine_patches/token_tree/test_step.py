"""Rows, positions and moves of a step's trees."""

from __future__ import annotations

import numpy as np
from adaseek_vllm.token_tree import TreeTokens
from adaseek_vllm.token_tree.step import RequestTree, TreeStep, moves
from hypothesis import given
from hypothesis import strategies as st

# rows: 0 root; 1: below 0; 2: below 0; 3: below 2; 4: below 1
BRANCHING = TreeTokens([5, 6, 7, 8], [-1, -1, 1, 0])


def test_rows_of_all_trees_are_listed_in_batch_order() -> None:
    step = TreeStep((RequestTree(0, 3, 50, BRANCHING), RequestTree(2, 20, 9, TreeTokens([1]))))
    assert step.rows.tolist() == [3, 4, 5, 6, 7, 20, 21]


def test_positions_become_depths() -> None:
    step = TreeStep((RequestTree(0, 3, 50, BRANCHING),))
    chain_positions = 50 + np.arange(5)
    assert (chain_positions + step.position_shifts).tolist() == [50, 51, 51, 52, 52]


def test_only_rows_away_from_their_place_move() -> None:
    step = TreeStep((RequestTree(0, 3, 50, BRANCHING), RequestTree(2, 20, 9, BRANCHING)))
    accepted = [(1, 4), (1, 2, 3), (2, 3)]
    # Request 0: row 4 to 2. Request 1 has no tree. Request 2: rows 2, 3 to 1, 2, after 5 rows.
    assert moves(step, accepted).tolist() == [[4, 7, 8], [2, 6, 7]]


def test_nothing_accepted_moves_nothing() -> None:
    step = TreeStep((RequestTree(0, 0, 0, BRANCHING),))
    assert moves(step, [()]).shape == (2, 0)


@given(st.data())
def test_moved_rows_are_the_accepted_path_in_order(data: st.DataObject) -> None:
    num_nodes = data.draw(st.integers(1, 40))
    parents = [data.draw(st.integers(-1, node - 1)) for node in range(num_nodes)]
    node = data.draw(st.integers(0, num_nodes - 1))
    path: list[int] = []
    while node >= 0:
        path.insert(0, node + 1)
        node = parents[node]
    step = TreeStep((RequestTree(0, 0, 0, TreeTokens(range(num_nodes), parents)),))
    before = list(range(num_nodes + 1))
    after = list(before)
    # All rows are read before any is written, as from the copies that the layers leave.
    for source, target in moves(step, [path]).T.tolist():
        after[target] = before[source]
    assert after[: len(path) + 1] == [0, *path]
