"""What vLLM is given to verify: the sources' guesses, merged, cut to shape and to what pays."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace

import numpy as np
import pytest
from adaseek_vllm.token_tree.proposer import TreeProposer
from adaseek_vllm.token_tree.sources import DraftRequest, VerifiedRows
from adaseek_vllm.token_tree.tree import Expansion, TreeTokens


class Fan:
    """Guesses the same three tokens after every path."""

    num_successors = 0

    def __init__(self) -> None:
        self.forgotten: list[str] = []

    def begin(self, request: DraftRequest) -> Fan:
        return self

    def __call__(self, path: tuple[int, ...]) -> Iterable[tuple[int, float]]:
        return [(1, 0.5), (2, 0.3), (3, 0.2)]

    def learn(self, rows: VerifiedRows) -> None:
        raise AssertionError("it wants no successors")

    def forget(self, request_id: str) -> None:
        self.forgotten.append(request_id)


class LikelyFan(Fan):
    def __call__(self, path: tuple[int, ...]) -> Iterable[tuple[int, float]]:
        return [(1, 0.8), (4, 0.1)]


def proposer_of(**settings: object) -> TreeProposer:
    config = SimpleNamespace(additional_config={"token_tree": {"budget": "full"} | settings})
    proposer = TreeProposer(config)
    proposer.sources = [Fan()]
    return proposer


def request_of(*tokens: int, name: str = "a", num_new_tokens: int = 1) -> DraftRequest:
    return DraftRequest(name, np.array(tokens, dtype=np.int32), num_new_tokens, tenant="")


def children_by_depth(tree: TreeTokens) -> set[tuple[int, int]]:
    """(depth of a node, its children) for every node that has any, the root's depth being 0."""
    depth = {-1: 0}
    for node, parent in enumerate(tree.parents):
        depth[node] = depth[parent] + 1
    return {(depth[parent], tree.parents.count(parent)) for parent in tree.parents}


def test_tree_has_as_many_of_the_likeliest_guesses_as_it_may() -> None:
    [tree] = proposer_of(num_nodes=5).draft([request_of(9)])
    assert len(tree) == 5
    assert list(zip(tree, tree.parents, strict=True))[:2] == [(1, -1), (2, -1)]


def test_chain_follows_the_likeliest_guesses() -> None:
    proposer = proposer_of(num_nodes=9, shape="chain")
    proposer.sources = [LikelyFan()]
    [tree] = proposer.draft([request_of(9)])
    assert list(tree) == [1] * len(tree)
    assert tree.is_chain
    assert len(tree) > 2


def test_fixed_shape_is_filled_with_the_likeliest_guesses() -> None:
    [tree] = proposer_of(num_nodes=60, shape=[1, 2, 1]).draft([request_of(9)])
    assert len(tree) == Expansion((1, 2, 1)).num_nodes
    assert children_by_depth(tree) == {(0, 1), (1, 2), (2, 1)}
    assert sorted(tree) == [1, 1, 1, 1, 2]


def test_request_whose_prompt_is_being_read_gets_an_empty_tree() -> None:
    requests = [request_of(9, name="a", num_new_tokens=0), request_of(9, name="b")]
    reading, decoding = proposer_of(num_nodes=2).draft(requests)
    assert (list(reading), len(decoding)) == ([], 2)


def test_no_more_is_drafted_than_pays() -> None:
    proposer = proposer_of(num_nodes=9, budget="cost")
    proposer.step_cost = lambda rows: 1.0 if rows <= 3 else 100.0  # type: ignore[assignment]
    [tree] = proposer.draft([request_of(9)])
    assert list(zip(tree, tree.parents, strict=True)) == [(1, -1), (2, -1)]


def test_accepted_tokens_are_credited_to_all_who_guessed_them() -> None:
    proposer = proposer_of(num_nodes=31)
    proposer.sources = [Fan(), LikelyFan()]
    proposer.draft([request_of(9)])
    assert proposer.credit("a", [1, 2, 7]) == {"fan": 2, "likelyfan": 1}
    assert proposer.credit("unknown", [1]) == {}


def test_what_never_comes_true_is_not_verified_for_long() -> None:
    proposer = proposer_of(num_nodes=9, budget="cost")
    proposer.step_cost = lambda rows: 1.0 + 0.2 * rows  # type: ignore[assignment]
    proposer.sources = [LikelyFan()]
    text, sizes = [9], list[int]()
    for _ in range(60):
        [tree] = proposer.draft([request_of(*text)])
        sizes.append(len(tree))
        text.append(7)
    assert sizes[0] > 1
    assert sizes[-1] == 0


def test_ended_request_is_forgotten_by_all() -> None:
    proposer = proposer_of()
    proposer.draft([request_of(9)])
    proposer.forget("a")
    assert proposer.sources[0].forgotten == ["a"]  # type: ignore[attr-defined]
    assert proposer.credit("a", [1]) == {}


def test_vllm_s_own_call_is_refused() -> None:
    with pytest.raises(RuntimeError, match="needs AdaSeek's worker"):
        proposer_of().propose([])
