"""Tries of drafts, their order, masks and the list that carries them."""

from __future__ import annotations

import pickle
from collections.abc import Sequence

import numpy as np
import pytest
from adaseek_vllm.token_tree import (
    ROOT,
    Expansion,
    TokenTree,
    TreeTokens,
    Trial,
    ancestor_words,
    dense_mask,
    depths,
)
from hypothesis import given
from hypothesis import strategies as st

PATHS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5).map(tuple), max_size=8)
PARENTS = st.integers(0, 127).flatmap(
    lambda size: st.tuples(*(st.integers(ROOT, node - 1) for node in range(size)))
)


def tree_of(paths: Sequence[tuple[int, ...]]) -> TokenTree:
    tree = TokenTree()
    for path in paths:
        tree.add_path(path)
    return tree


def prefixes(paths: Sequence[tuple[int, ...]]) -> set[tuple[int, ...]]:
    return {path[:length] for path in paths for length in range(1, len(path) + 1)}


@given(PATHS, PATHS)
def test_merged_tree_holds_the_union_of_the_sequences(
    one: list[tuple[int, ...]], other: list[tuple[int, ...]]
) -> None:
    tree = tree_of(one)
    tree.merge(tree_of(other))
    assert len(tree) == len(set(tree.paths()))
    assert set(tree.paths()) == prefixes([*one, *other])


@given(PATHS, st.integers(0, 30))
def test_every_prefix_of_the_nodes_is_a_tree_of_the_same_paths(
    paths: list[tuple[int, ...]], limit: int
) -> None:
    tree = tree_of(paths)
    kept = tree.truncated(limit)
    assert list(kept.paths()) == list(tree.paths())[:limit]
    assert kept.to_tokens() == tree.to_tokens()[:limit]
    assert all(trial.token in kept.tokens for trial in kept.trials(ROOT))


def test_equal_tokens_at_equal_depth_below_different_parents_are_different_nodes() -> None:
    tree = tree_of([(1, 9), (2, 9)])
    assert tree.tokens == (1, 9, 2, 9)
    assert tree.parents == (-1, 0, -1, 2)


def test_repeated_draws_share_a_node_and_keep_their_trials() -> None:
    tree = TokenTree()
    law = np.array([0.5, 0.5])
    nodes = [tree.propose(ROOT, Trial(token, law)) for token in (1, 1, 0)]
    assert nodes == [0, 0, 1]
    assert [trial.token for trial in tree.trials(ROOT)] == [1, 1, 0]


def test_truncated_tree_forgets_trials_made_after_its_last_node() -> None:
    tree = TokenTree()
    for token in (1, 0, 1):
        tree.propose(ROOT, Trial(token))
    assert [trial.token for trial in tree.truncated(1).trials(ROOT)] == [1]
    assert [trial.token for trial in tree.truncated(3).trials(ROOT)] == [1, 0, 1]


def test_proposing_below_a_missing_node_is_refused() -> None:
    with pytest.raises(ValueError, match="`parent` is 0, but the tree has 0 nodes"):
        TokenTree().propose(0, Trial(1))


@pytest.mark.parametrize(
    ("widths", "num_nodes"), [((1,), 1), ((2, 2), 6), ((1, 1, 3, 1, 1, 1, 1, 1), 20)]
)
def test_expansion_grows_as_many_nodes_as_it_says(widths: tuple[int, ...], num_nodes: int) -> None:
    expansion, tree = Expansion(widths), TokenTree()
    expansion.grow(tree, lambda _path, width: [Trial(token) for token in range(width)])
    assert expansion.num_nodes == len(tree) == num_nodes
    assert tree.depth(num_nodes - 1) == len(widths)


def test_expansion_with_repeated_draws_grows_each_node_once() -> None:
    tree, asked = TokenTree(), list[tuple[int, ...]]()

    def propose(path: tuple[int, ...], width: int) -> list[Trial]:
        asked.append(path)
        return [Trial(7)] * width

    Expansion((3, 2)).grow(tree, propose)
    assert asked == [(), (7,)]
    assert tree.tokens == (7, 7)


@pytest.mark.parametrize("widths", [(), (1, 0)])
def test_expansion_without_children_is_refused(widths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="`widths`"):
        Expansion(widths)


@given(PARENTS)
def test_mask_is_each_rows_ancestors(parents: tuple[int, ...]) -> None:
    words = ancestor_words(parents)
    mask = dense_mask(words)
    assert words.shape == (len(parents) + 1, len(parents) // 64 + 1)
    for row in range(len(parents) + 1):
        expected, node = {row}, row - 1
        while node != ROOT:
            node = parents[node]
            expected.add(node + 1)
        assert set(np.flatnonzero(mask[row])) == expected
        assert depths(parents)[row] == len(expected) - 1


@given(PARENTS, st.integers(0, 127))
def test_prefix_slice_stays_a_tree(parents: tuple[int, ...], stop: int) -> None:
    tree = TreeTokens(range(len(parents)), parents)
    kept = tree[:stop]
    assert isinstance(kept, TreeTokens)
    assert list(kept) == list(range(len(parents)))[:stop]
    assert kept.parents == parents[:stop]


def test_other_slices_are_plain_lists() -> None:
    tree = TreeTokens([5, 6, 7], [-1, -1, 0])
    for index in (slice(1, None), slice(None, None, 2), slice(None, None, -1)):
        assert type(tree[index]) is list
    assert tree[1] == 6
    assert tree[:-1] == [5, 6]


def test_tree_tokens_survive_pickling_and_copying() -> None:
    tree = TreeTokens([5, 6, 7], [-1, -1, 0])
    for twin in (pickle.loads(pickle.dumps(tree)), tree.copy()):
        assert type(twin) is TreeTokens
        assert (list(twin), twin.parents) == ([5, 6, 7], (-1, -1, 0))


def test_tokens_without_parents_are_a_chain() -> None:
    assert TreeTokens([5, 6]).is_chain
    assert TreeTokens().is_chain
    assert not TreeTokens([5, 6], [-1, -1]).is_chain


@pytest.mark.parametrize(
    ("parents", "message"), [([0, -1], "node 0 is 0"), ([-1, -2], "node 1 is -2"), ([-1], "1 par")]
)
def test_parent_that_is_not_before_its_node_is_refused(parents: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TreeTokens([5, 6], parents)


def test_along_ends_where_the_text_leaves_the_tree() -> None:
    tree = TokenTree()
    tree.add_path([1, 2, 3])
    tree.add_path([1, 4])
    assert tree.along([1, 4, 3]) == [0, 3]
    assert tree.along([1, 2, 3, 9]) == [0, 1, 2]
    assert tree.along([2]) == tree.along([]) == []
