"""Structured output over trees, with a grammar of a few words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
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


def json_grammar() -> Any:
    """vLLM's grammar for a small JSON schema, over the 256 bytes and an end token."""
    xgrammar = pytest.importorskip("xgrammar")
    backend = pytest.importorskip("vllm.v1.structured_output.backend_xgrammar")
    tokens = [bytes([value]) for value in range(256)] + [b"</s>"]
    info = xgrammar.TokenizerInfo(tokens, stop_token_ids=[256])
    schema = '{"type": "object", "properties": {"a": {"enum": ["le", "li"]}}, "required": ["a"]}'
    compiled = xgrammar.GrammarCompiler(info).compile_json_schema(schema, any_whitespace=False)
    matcher = xgrammar.GrammarMatcher(compiled)
    return backend.XgrammarGrammar(matcher=matcher, vocab_size=len(tokens), ctx=compiled)


def test_masks_of_a_tree_are_those_of_its_branches_as_chains() -> None:
    torch = pytest.importorskip("torch")
    spine = list(b'{"a": "')
    num = len(spine)
    # Below the spine the words "le" and "li", a zero that no JSON has, the end after one of them.
    tree = [*spine, *b"leli", *b'""', 0, *b"}x", 256]
    parents = [*range(-1, num - 1), num - 1, num, num - 1, num + 2]
    parents += [num + 1, num + 3, num + 1, num + 4, num + 4, num + 7]
    grammar = json_grammar()
    kept = allowed_nodes(TreeTokens(tree, parents), grammar, "r")
    assert kept == [*spine, *b'leli""}', 256]
    found = torch.full((len(kept) + 1, 9), -1, dtype=torch.int32)
    fill_masks(kept, grammar, "r", found, 0)
    for row in range(len(kept) + 1):
        path, node = list[int](), row - 1
        while node >= 0:
            path.insert(0, kept[node])
            node = kept.parents[node]
        chain = json_grammar()
        expected = torch.full((1, 9), -1, dtype=torch.int32)
        assert chain.accept_tokens("r", path)
        if not chain.is_terminated():
            chain.fill_bitmask(expected, 0)
        assert torch.equal(found[row], expected[0]), row
