"""What the chances of guesses are worth: how often such guesses came true."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence

from adaseek_vllm.token_tree.guesses import Guesses
from adaseek_vllm.token_tree.tree import ROOT

__all__ = ["HitRates"]

_EDGES = (0.03, 0.06, 0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.9, 0.97)
_DEPTHS = 3
"""Depths that are told apart; all deeper ones count as the last."""
_PRIOR = 2.0
"""Hits that the sources' own opinion counts as."""
_MEMORY = 60.0
"""Expected hits after which an older one counts 1/e."""


class HitRates:
    """Chance of a guess below its parent, and its depth -> how often it came true.

    A source knows how good its own guesses are. Which of several sources' guesses is taken, and
    what a chance is worth below a guess of another one, shows here only.

    A guess is judged when its parent was right and a token was said after it. Judging those below
    wrong parents as well would be a mistake: a miss of theirs is always seen, a hit only if the
    parent was verified.
    """

    def __init__(self) -> None:
        num_cells = _DEPTHS * (len(_EDGES) + 1)
        self._hits = [_PRIOR] * num_cells
        self._expected = [_PRIOR] * num_cells

    def corrected(self, guesses: Guesses) -> Guesses:
        """Returns the same guesses with probabilities as they turned out to be."""
        found = Guesses()
        for node, (parent, token) in enumerate(
            zip(guesses.tree.parents, guesses.tree.tokens, strict=True)
        ):
            chance = _chance(guesses, node)
            cell = _cell(chance, guesses.tree.depth(parent))
            worth = min(1.0, chance * self._hits[cell] / self._expected[cell])
            found.add(parent, token, found.probability(parent) * worth)
        return found

    def learn(self, guesses: Guesses, said: Sequence[int]) -> None:
        """Learns from what was said after guesses that were not corrected."""
        on_path = {ROOT}
        for node, (parent, token) in enumerate(
            zip(guesses.tree.parents, guesses.tree.tokens, strict=True)
        ):
            depth = guesses.tree.depth(parent)
            if parent in on_path and depth < len(said):
                if is_hit := said[depth] == token:
                    on_path.add(node)
                self._count(_chance(guesses, node), depth, is_hit)

    def _count(self, chance: float, depth: int, is_hit: bool) -> None:
        cell, keep = _cell(chance, depth), 1.0 - chance / _MEMORY
        self._hits[cell] = self._hits[cell] * keep + is_hit
        self._expected[cell] = self._expected[cell] * keep + chance


def _chance(guesses: Guesses, node: int) -> float:
    """A node's chance if its parent is right."""
    above = guesses.probability(guesses.tree.parents[node])
    return guesses.probabilities[node] / above if above > 0.0 else 0.0


def _cell(chance: float, depth: int) -> int:
    return min(depth, _DEPTHS - 1) * (len(_EDGES) + 1) + bisect(_EDGES, chance)
