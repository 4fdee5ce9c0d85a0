"""What the chances of guesses are worth: how often such guesses came true."""

from __future__ import annotations

from bisect import bisect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from adaseek_vllm.token_tree.guesses import Grown, Guesses
from adaseek_vllm.token_tree.tree import ROOT

__all__ = ["HitRates"]

_EDGES = (0.03, 0.06, 0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.9, 0.97)
_PRIOR = 2.0
"""Hits that the sources' own opinion counts as."""
_MEMORY = 40.0
"""Expected hits after which an older one counts 1/e."""

_Kind = tuple[int, frozenset[str], bool]
"""Chance below the parent, as its place between `_EDGES`; who guessed it; whether it is the
likeliest of its siblings."""


@dataclass
class _Rate:
    hits: float = _PRIOR
    expected: float = _PRIOR


class HitRates:
    """Kind of a guess -> how often it came true.

    A source knows how good its own guesses are. What a chance is worth below a guess of another
    source, and if several say the same, shows here only.

    A guess is judged when its parent was right and a token was said after it. Judging those below
    wrong parents as well would be a mistake: a miss of theirs is always seen, a hit only if the
    parent was verified.
    """

    def __init__(self) -> None:
        self._rates: defaultdict[_Kind, _Rate] = defaultdict(_Rate)

    def corrected(self, grown: Grown) -> Guesses:
        """Returns the same guesses with probabilities as they turned out to be."""
        found, tree = Guesses(), grown.guesses.tree
        places = zip(tree.parents, tree.tokens, _kinds(grown), strict=True)
        for parent, token, (chance, kind) in places:
            rate = self._rates[kind]
            worth = min(1.0, chance * rate.hits / rate.expected)
            found.add(parent, token, found.probability(parent) * worth)
        return found

    def learn(self, grown: Grown, said: Sequence[int]) -> None:
        """Learns from what was said after guesses that were not corrected."""
        tree, on_path = grown.guesses.tree, {ROOT}
        places = zip(tree.parents, tree.tokens, _kinds(grown), strict=True)
        for node, (parent, token, (chance, kind)) in enumerate(places):
            depth = tree.depth(parent)
            if parent in on_path and depth < len(said):
                if is_hit := said[depth] == token:
                    on_path.add(node)
                rate, keep = self._rates[kind], 1.0 - chance / _MEMORY
                rate.hits = rate.hits * keep + is_hit
                rate.expected = rate.expected * keep + chance


def _kinds(grown: Grown) -> Iterator[tuple[float, _Kind]]:
    """A guess's chance if its parent is right, and its kind, for every node."""
    guesses, seen = grown.guesses, set[int]()
    for node, parent in enumerate(guesses.tree.parents):
        above = guesses.probability(parent)
        chance = guesses.probabilities[node] / above if above > 0.0 else 0.0
        # Nodes come in the order of their probabilities.
        yield chance, (bisect(_EDGES, chance), frozenset(grown.sources[node]), parent not in seen)
        seen.add(parent)
