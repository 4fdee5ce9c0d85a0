"""Structured output over trees: which nodes a grammar allows, and what may follow each row.

vLLM does both along chains. Here the grammar's state is taken along every branch and back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from adaseek_vllm.token_tree.tree import ROOT, TreeTokens

__all__ = ["Grammar", "allowed_nodes", "fill_masks"]


class Grammar(Protocol):
    """What is used of vLLM's `StructuredOutputGrammar`."""

    def accept_tokens(self, request_id: str, tokens: list[int], /) -> bool: ...
    def validate_tokens(self, tokens: list[int], /) -> list[int]: ...
    def rollback(self, num_tokens: int, /) -> None: ...
    # The mask is a torch tensor.
    def fill_bitmask(self, bitmask: object, index: int, /) -> None: ...
    def is_terminated(self) -> bool: ...


def allowed_nodes(tree: TreeTokens, grammar: Grammar, request_id: str) -> TreeTokens:
    """Returns the nodes whose path from the root the grammar accepts, in their order.

    Dropping a node by its token is no loss of exactness: it was not drawn, and a masked target
    would not choose it.
    """
    kept = sorted(node for node in _visited(tree, grammar, request_id) if node != ROOT)
    new = {ROOT: ROOT} | {node: index for index, node in enumerate(kept)}
    return TreeTokens([tree[node] for node in kept], [new[tree.parents[node]] for node in kept])


def fill_masks(
    tree: TreeTokens, grammar: Grammar, request_id: str, bitmask: object, first_row: int
) -> None:
    """Writes which tokens may follow each row of a tree of allowed nodes.

    Rows after the grammar's end, and those of nodes that it does not allow, are left as they are.

    Args:
        tree: the nodes.
        grammar: in the root's state; left so.
        request_id: for the grammar's messages.
        bitmask: [rows of all requests, words].
        first_row: the root's row in it.
    """
    for node in _visited(tree, grammar, request_id):
        if not grammar.is_terminated():
            grammar.fill_bitmask(bitmask, first_row + node + 1)


def _visited(tree: TreeTokens, grammar: Grammar, request_id: str) -> Iterator[int]:
    """Yields the root and every allowed node while the grammar is in its state."""
    children: dict[int, list[int]] = {}
    for node, parent in enumerate(tree.parents):
        children.setdefault(parent, []).append(node)

    def visit(node: int) -> Iterator[int]:
        yield node
        for child in children.get(node, ()):
            token = [tree[child]]
            # Asked first, because a grammar logs an error for a token that it cannot accept.
            if grammar.is_terminated() or grammar.validate_tokens(token) != token:
                continue
            grammar.accept_tokens(request_id, token)
            yield from visit(child)
            grammar.rollback(1)

    return visit(ROOT)
