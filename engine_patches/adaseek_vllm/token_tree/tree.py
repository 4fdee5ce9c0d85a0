"""Token trees: drafts that share prefixes, in an order every prefix of which is still a tree.

A node is a drafted token below a parent; the root is the request's last token, which is not yet in
the KV cache. Nodes are numbered from 0 in insertion order, so a parent comes before its children
and a scheduler that keeps only the first nodes keeps a tree. *Rows* are what the target model
computes: row 0 is the root, row i + 1 is node i.

Source: SpecInfer (arXiv 2305.09781), definitions 3.1 and 3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, SupportsIndex, overload

import numpy as np
from numpy.typing import NDArray

ROOT: Final = -1
"""The parent of the nodes at depth 1."""

Law = NDArray[np.float64]
"""Probabilities over the vocabulary, [vocabulary] float64."""

_WORD_BITS: Final = 64


class Trial(NamedTuple):
    """One proposed child of a node.

    The same token may be tried several times (two sources, or draws with replacement); all trials
    count in the verification, though they share one node.
    """

    token: int
    law: Law | None = None
    """What `token` was drawn from, given all earlier trials here; None: it was not drawn."""
    source: str = ""


class TreeTokens(list[int]):
    """Drafted tokens that know their parents; a list of tokens to everyone else.

    vLLM carries drafts as lists and truncates them by slices. A prefix slice is again a tree; any
    other slice is a plain list, because its nodes may have lost their parents.
    """

    __slots__ = ("parents",)

    parents: tuple[int, ...]

    def __init__(self, tokens: Iterable[int] = (), parents: Iterable[int] | None = None) -> None:
        """Args:
        tokens: token of each node, parents first.
        parents: index of each node's parent, `ROOT` at depth 1; None: a chain.

        Raises:
            ValueError: a parent does not come before its node, or the lengths differ.
        """
        super().__init__(tokens)
        self.parents = tuple(range(-1, len(self) - 1) if parents is None else parents)
        if len(self.parents) != len(self):
            raise ValueError(f"{len(self)} tokens have {len(self.parents)} parents")
        for node, parent in enumerate(self.parents):
            if not ROOT <= parent < node:
                raise ValueError(
                    f"the parent of node {node} is {parent}, but must be from {ROOT} to {node - 1}"
                )

    @property
    def is_chain(self) -> bool:
        return self.parents == tuple(range(-1, len(self) - 1))

    @overload
    def __getitem__(self, index: SupportsIndex) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> int | list[int]:
        if not isinstance(index, slice):
            return super().__getitem__(index)
        start, stop, step = index.indices(len(self))
        tokens = super().__getitem__(index)
        return TreeTokens(tokens, self.parents[:stop]) if (start, step) == (0, 1) else tokens

    def copy(self) -> TreeTokens:
        return TreeTokens(self, self.parents)

    def __reduce__(self) -> tuple[Any, ...]:
        return TreeTokens, (list(self), self.parents)


class TokenTree:
    """A trie of drafts under construction. Insertion order is node order."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._parents: list[int] = []
        self._depths: list[int] = []
        # Keyed by (parent, token): equal tokens under different parents are different nodes.
        self._children: dict[tuple[int, int], int] = {}
        # Each trial with the size of the tree before it.
        self._trials: dict[int, list[tuple[int, Trial]]] = {}

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(self._tokens)

    @property
    def parents(self) -> tuple[int, ...]:
        return tuple(self._parents)

    def depth(self, node: int) -> int:
        """Edges from the root to `node`; 0 for `ROOT`."""
        return 0 if node == ROOT else self._depths[node]

    def child(self, parent: int, token: int) -> int | None:
        """The child of `parent` with `token`, if there is one."""
        return self._children.get((parent, token))

    def along(self, tokens: Iterable[int]) -> list[int]:
        """The nodes of a text's first tokens, as far as the tree has them."""
        nodes, node = list[int](), ROOT
        for token in tokens:
            if (child := self.child(node, token)) is None:
                break
            nodes.append(node := child)
        return nodes

    def trials(self, parent: int) -> tuple[Trial, ...]:
        """The proposals below `parent`, in the order they were made."""
        return tuple(trial for _, trial in self._trials.get(parent, ()))

    def path(self, node: int) -> tuple[int, ...]:
        """The tokens from depth 1 down to `node`."""
        tokens: list[int] = []
        while node != ROOT:
            tokens.append(self._tokens[node])
            node = self._parents[node]
        return tuple(reversed(tokens))

    def paths(self) -> Iterator[tuple[int, ...]]:
        """The path of every node, in node order."""
        return (self.path(node) for node in range(len(self)))

    def propose(self, parent: int, trial: Trial) -> int:
        """Adds a trial below `parent`; returns its node, which may have been there before."""
        if not ROOT <= parent < len(self):
            raise ValueError(f"`parent` is {parent}, but the tree has {len(self)} nodes")
        self._trials.setdefault(parent, []).append((len(self), trial))
        key = (parent, trial.token)
        if key not in self._children:
            self._children[key] = len(self)
            self._tokens.append(trial.token)
            self._parents.append(parent)
            self._depths.append(self.depth(parent) + 1)
        return self._children[key]

    def add_path(self, tokens: Iterable[int], *, parent: int = ROOT, source: str = "") -> int:
        """Adds a chain of tokens that were not drawn; returns its last node.

        A step that is already a node is not proposed again: a second trial of a token that was not
        drawn has probability zero to change anything.
        """
        node = parent
        for token in tokens:
            known = self.child(node, token)
            node = self.propose(node, Trial(token, source=source)) if known is None else known
        return node

    def merge(self, other: TokenTree) -> None:
        """Adds another tree over the same root; its trials come after the ones here.

        Source: SpecInfer, definition 3.2: the sequences of the merged tree are the union.
        """
        here = {ROOT: ROOT}
        # A node's first trial, wherever it is in `other`, follows the one that made its parent.
        for parent in (ROOT, *range(len(other))):
            for trial in other.trials(parent):
                node = other._children[parent, trial.token]
                here[node] = self.propose(here[parent], trial)

    def truncated(self, limit: int) -> TokenTree:
        """This tree as it was when it first had `limit` nodes; the same if it has fewer.

        A later trial of a token that is already a node is dropped as well. It would be kept for
        its value, while a new token in its place would not: that would bias what is accepted.
        """
        kept = TokenTree()
        for parent in (ROOT, *range(min(limit, len(self)))):
            kept._trials[parent] = [
                (size, trial) for size, trial in self._trials.get(parent, ()) if size < limit
            ]
        kept._tokens = self._tokens[:limit]
        kept._parents = self._parents[:limit]
        kept._depths = self._depths[:limit]
        kept._children = {key: node for key, node in self._children.items() if node < limit}
        return kept

    def to_tokens(self) -> TreeTokens:
        """The nodes as the list that vLLM carries."""
        return TreeTokens(self._tokens, self._parents)


@dataclass(frozen=True)
class Expansion:
    """A fixed tree shape <k1, ..., km>: every node at depth i - 1 gets ki children."""

    widths: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"`widths` is {self.widths}, but needs at least one, all >= 1")

    @property
    def num_nodes(self) -> int:
        nodes, level = 0, 1
        for width in self.widths:
            level *= width
            nodes += level
        return nodes

    def grow(
        self, tree: TokenTree, propose: Callable[[tuple[int, ...], int], Sequence[Trial]]
    ) -> None:
        """Adds trials below the root level by level.

        Args:
            tree: what is grown; nodes that are already there are grown too.
            propose: returns the trials below a path, at most as many as asked for.
        """
        level = [ROOT]
        for width in self.widths:
            trials = [(node, propose(tree.path(node), width)) for node in level]
            grown = [tree.propose(node, trial) for node, found in trials for trial in found]
            level = list(dict.fromkeys(grown))


def depths(parents: Sequence[int]) -> NDArray[np.int32]:
    """Depth of each row, the root's row first, [rows] int32."""
    found = np.zeros(len(parents) + 1, dtype=np.int32)
    for node, parent in enumerate(parents):
        found[node + 1] = found[parent + 1] + 1
    return found


def ancestor_words(parents: Sequence[int]) -> NDArray[np.uint64]:
    """The tree mask, [rows, words] uint64.

    Bit j of row i (bit j % 64 of word j // 64) tells whether row i attends to row j: to itself,
    its ancestors and the root. The context before the root is seen by all rows.
    """
    num_rows = len(parents) + 1
    words = np.zeros((num_rows, (num_rows - 1) // _WORD_BITS + 1), dtype=np.uint64)
    for row in range(num_rows):
        if row > 0:
            words[row] = words[parents[row - 1] + 1]
        words[row, row // _WORD_BITS] |= np.uint64(1) << np.uint64(row % _WORD_BITS)
    return words


def dense_mask(words: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """The tree mask as booleans, [rows, rows]: `mask[i, j]`, row i attends to row j."""
    num_rows = len(words)
    bits = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")
    return bits[:, :num_rows].astype(np.bool_)
