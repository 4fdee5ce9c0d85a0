"""What a draft's own probabilities are worth: how often guesses like this one came true."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from itertools import pairwise

from adaseek_vllm.token_tree.guesses import Guesses
from adaseek_vllm.token_tree.tree import ROOT

__all__ = ["Calibration", "DraftedTree"]

_EDGES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
_CENTRES = (0.01, *((a + b) / 2 for a, b in pairwise(_EDGES)), 0.99)
_DEPTHS = 4
"""Depths that are told apart; all deeper ones count as the last."""
_PRIOR = 8.0
"""Guesses of the draft's own opinion that each entry begins with."""
_MEMORY = 1_000.0
"""Guesses after which an older one counts 1/e."""
_KNOWN_EDGES = (0.15, 0.3, 0.45, 0.6, 0.75, 0.9)
_KNOWN_CENTRES = (*((a + b) / 2 for a, b in pairwise((0.0, *_KNOWN_EDGES))), 0.95)
_ADDED_PRIOR = 2.0
"""Guesses that what is assumed of what a draft adds counts as."""


class DraftedTree:
    """Guesses with the probabilities that the draft itself gave them below their parents."""

    def __init__(self) -> None:
        self.guesses = Guesses()
        self.stated: list[float] = []

    def add(self, parent: int, token: int, stated: float, chance: float) -> int:
        """Adds a child that is not there yet; `chance` is what `stated` is worth."""
        node = self.guesses.add(parent, token, self.guesses.probability(parent) * chance)
        self.stated.append(stated)
        return node


class Calibration:
    """Stated probability and depth -> how often it came true, learned while drafting; and how often
    a draft hits what other sources miss."""

    def __init__(self) -> None:
        self._hits = [[_PRIOR * centre for centre in _CENTRES] for _ in range(_DEPTHS)]
        self._seen = [[_PRIOR for _ in _CENTRES] for _ in range(_DEPTHS)]
        # At first every second token that others miss is hoped for.
        self._added = [
            [(0.5 * _ADDED_PRIOR * (1.0 - known), _ADDED_PRIOR) for known in _KNOWN_CENTRES]
            for _ in range(_DEPTHS)
        ]

    def chance(self, depth: int, stated: float) -> float:
        """Returns how often a guess at `depth` (0 below the root) with this probability hits."""
        row, column = min(depth, _DEPTHS - 1), bisect(_EDGES, stated)
        return self._hits[row][column] / self._seen[row][column]

    def added_chance(self, depth: int, known_chances: Sequence[float]) -> float:
        """Returns how often a guess below a right node hits and no other source has it.

        Args:
            depth: of the guess, 0 below the root.
            known_chances: at each depth, how likely other sources' guesses are right if they
                were before; none beyond the last.
        """
        hits, seen = self._added[min(depth, _DEPTHS - 1)][_known_column(known_chances, depth)]
        return hits / seen

    def learn(
        self,
        tree: DraftedTree,
        said: Sequence[int],
        known: Guesses,
        known_chances: Sequence[float],
    ) -> None:
        """Learns from what did follow the root; every guess below a right one is judged.

        Args:
            tree: what was drafted.
            said: the tokens that followed.
            known: what other sources guessed.
            known_chances: as in `added_chance`.
        """
        children: dict[int, list[int]] = {}
        for node, parent in enumerate(tree.guesses.tree.parents):
            children.setdefault(parent, []).append(node)
        tokens, here, num_known = tree.guesses.tree.tokens, ROOT, len(known.tree.along(said))
        for depth, token in enumerate(said):
            if here not in children:
                return
            row = min(depth, _DEPTHS - 1)
            right = [node for node in children[here] if tokens[node] == token]
            for node in children[here]:
                self._count(row, bisect(_EDGES, tree.stated[node]), node in right)
            at = _known_column(known_chances, depth)
            hits, seen = self._added[row][at]
            keep = 1.0 - 1.0 / _MEMORY
            is_added = bool(right) and depth >= num_known
            self._added[row][at] = hits * keep + is_added, seen * keep + 1.0
            if not right:
                return
            here = right[0]

    def _count(self, row: int, column: int, is_hit: bool) -> None:
        keep = 1.0 - 1.0 / _MEMORY
        self._hits[row][column] = self._hits[row][column] * keep + is_hit
        self._seen[row][column] = self._seen[row][column] * keep + 1.0


def _known_column(known_chances: Sequence[float], depth: int) -> int:
    return bisect(_KNOWN_EDGES, known_chances[depth] if depth < len(known_chances) else 0.0)
