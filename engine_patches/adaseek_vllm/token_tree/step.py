"""The trees of one engine step: where their rows are, their masks, and the moves after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from adaseek_vllm.token_tree.tree import TreeTokens, ancestor_words, dense_mask, depths

__all__ = ["RequestTree", "TreeStep", "moves"]


@dataclass(frozen=True)
class RequestTree:
    """One request's tree in a step's flat batch."""

    request: int
    """Index of the request in the batch."""
    first_row: int
    """Index of the root's row among the step's tokens; the nodes' rows follow."""
    num_context_tokens: int
    """Tokens before the root, all of which every row attends to."""
    tokens: TreeTokens

    @property
    def num_rows(self) -> int:
        return len(self.tokens) + 1

    @cached_property
    def depths(self) -> NDArray[np.int32]:
        """Depth of each row, [rows]."""
        return depths(self.tokens.parents)

    @cached_property
    def words(self) -> NDArray[np.uint64]:
        """The tree mask, [rows, words]."""
        return ancestor_words(self.tokens.parents)

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """The tree mask, [rows, rows]."""
        return dense_mask(self.words)


@dataclass(frozen=True)
class TreeStep:
    """The requests of a step whose drafts branch. Chains need none of this."""

    trees: tuple[RequestTree, ...]

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """All rows of all trees, as indices of the step's tokens."""
        return np.concatenate(
            [np.arange(tree.first_row, tree.first_row + tree.num_rows) for tree in self.trees]
        )

    @cached_property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What kernels take.

        Of every tree request, first row, number of rows and tokens of context, [trees, 4] int64;
        of every row the tree mask, [rows, words] int64 (its bits), and the depth, [rows] int32.
        """
        places = [
            (tree.request, tree.first_row, tree.num_rows, tree.num_context_tokens)
            for tree in self.trees
        ]
        words = np.zeros(
            (len(self.rows), max(tree.words.shape[1] for tree in self.trees)), dtype=np.uint64
        )
        offset = 0
        for tree in self.trees:
            words[offset : offset + tree.num_rows, : tree.words.shape[1]] = tree.words
            offset += tree.num_rows
        return (
            torch.tensor(places),
            torch.from_numpy(words.view(np.int64)),
            torch.from_numpy(np.concatenate([tree.depths for tree in self.trees])),
        )

    @cached_property
    def position_shifts(self) -> NDArray[np.int64]:
        """What turns the chain position of each of `rows` into its depth's position."""
        shifts = [tree.depths - np.arange(tree.num_rows) for tree in self.trees]
        return np.concatenate(shifts).astype(np.int64)


def moves(step: TreeStep, accepted: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Returns which KV rows must move where for the accepted paths, [2, moves]: from and to.

    Both are indices into `step.rows`. A row at its place already does not move.

    Args:
        step: the verified trees.
        accepted: accepted rows of each request of the batch, increasing.
    """
    pairs, offset = list[tuple[int, int]](), 0
    for tree in step.trees:
        for depth, row in enumerate(accepted[tree.request], start=1):
            if row != depth:
                pairs.append((offset + row, offset + depth))
        offset += tree.num_rows
    return np.array(pairs, dtype=np.int64).reshape(-1, 2).T
