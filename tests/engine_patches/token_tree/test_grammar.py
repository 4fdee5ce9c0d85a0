"""Structured output over trees, with a grammar of a few words."""

from __future__ import annotations

import numpy as np
from adaseek_vllm.token_tree.grammar import allowed_nodes, fill_masks
from adaseek_vllm.token_tree.tree import TreeTokens

# One digit is a token; 0 ends a word.
WORDS = ((1, 2, 3, 0), (1, 2, 4, 0), (5, 6, 0))


class Words:
    """Accepts the words above, as strictly as vLLM's grammars do."""

    def __init__(self) -> None:
        self.path: list[int] = []
        self.num_refused = 0

    def following(self) -> set[int]:
        at = len(self.path)
        return {word[at] for word in WORDS if word[:at] == tuple(self.path) and len(word) > at}

    def accept_tokens(self, request_id: str, tokens: list[int]) -> bool:
        assert request_id == "r"
        for token in tokens:
            if token not in self.following():
                self.num_refused += 1
                return False
            self.path.append(token)
        return True

    def validate_tokens(self, tokens: list[int]) -> list[int]:
        (token,) = tokens
        return [token] if token in self.following() else []

    def rollback(self, num_tokens: int) -> None:
        assert 0 < num_tokens <= len(self.path)
        del self.path[-num_tokens:]

    def fill_bitmask(self, bitmask: object, index: int) -> None:
        assert isinstance(bitmask, np.ndarray)
        bitmask[index, 0] = sum(1 << token for token in self.following())

    def is_terminated(self) -> bool:
        return self.path[-1:] == [0]


def masks(tree: TreeTokens, grammar: Words) -> list[int]:
    bitmask = np.full((len(tree) + 3, 1), -1, dtype=np.int32)
    fill_masks(tree, grammar, "r", bitmask, 1)
    assert bitmask[0, 0] == bitmask[-1, 0] == -1
    return bitmask[1:-1, 0].tolist()


def bits(*tokens: int) -> int:
    return sum(1 << token for token in tokens)


def test_nodes_off_the_grammar_go_with_what_is_below_them() -> None:
    #                  0  1  2  3  4  5  6  7
    tree = TreeTokens([1, 5, 7, 2, 6, 9, 4, 3], [-1, -1, -1, 0, 1, 2, 3, 4])
    kept = allowed_nodes(tree, Words(), "r")
    assert (list(kept), kept.parents) == ([1, 5, 2, 6, 4], (-1, -1, 0, 1, 2))


def test_nothing_comes_after_the_end() -> None:
    kept = allowed_nodes(TreeTokens([5, 6, 0, 5]), Words(), "r")
    assert list(kept) == [5, 6, 0]


def test_each_row_has_the_mask_of_its_own_branch() -> None:
    tree = TreeTokens([1, 5, 2, 6, 4], [-1, -1, 0, 1, 2])
    assert masks(tree, Words()) == [bits(1, 5), bits(2), bits(6), bits(3, 4), bits(0), bits(0)]


def test_rows_after_the_end_are_left_as_they_were() -> None:
    assert masks(TreeTokens([5, 6, 0]), Words()) == [bits(1, 5), bits(6), bits(0), -1]


def test_grammar_is_left_in_the_state_of_the_root_and_never_asked_to_refuse() -> None:
    grammar = Words()
    assert grammar.accept_tokens("r", [1])
    tree = TreeTokens([2, 9, 3, 4, 0], [-1, -1, 0, 0, 3])
    kept = allowed_nodes(tree, grammar, "r")
    assert list(kept) == [2, 3, 4, 0]
    masks(kept, grammar)
    assert grammar.path == [1]
    assert grammar.num_refused == 0
