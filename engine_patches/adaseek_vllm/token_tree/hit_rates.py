"""What the probabilities of guesses are worth: how often such guesses came true."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence

from adaseek_vllm.token_tree.guesses import Guesses
from adaseek_vllm.token_tree.tree import ROOT

__all__ = ["HitRates"]

_EDGES = (0.03, 0.045, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.55, 0.7, 0.85)
_PRIOR = 2.0
"""Hits that the sources' own opinion counts as."""
_MEMORY = 60.0
"""Expected hits after which an older one counts 1/e."""


class HitRates:
    """Probability of a path -> how often paths of about this probability were said.

    Sources know how often their guesses come true one by one. Along a path errors multiply, and
    the best of many guesses are often those that were judged too well; both show here.
    """

    def __init__(self) -> None:
        self._hits = [_PRIOR for _ in range(len(_EDGES) + 1)]
        self._expected = [_PRIOR for _ in range(len(_EDGES) + 1)]

    def corrected(self, guesses: Guesses) -> Guesses:
        """Returns the same guesses with probabilities as they turned out to be."""
        found = Guesses()
        nodes = zip(guesses.tree.parents, guesses.tree.tokens, guesses.probabilities, strict=True)
        for parent, token, probability in nodes:
            at = bisect(_EDGES, probability)
            found.add(parent, token, probability * self._hits[at] / self._expected[at])
        return found

    def learn(self, guesses: Guesses, said: Sequence[int]) -> None:
        """Learns from what was said after guesses, as they were before they were corrected.

        Guesses that go on where `said` ends are neither right nor wrong.
        """
        # Node -> whether it was said; None: beyond its end.
        was_said: dict[int, bool | None] = {ROOT: True}
        for node, (parent, token) in enumerate(
            zip(guesses.tree.parents, guesses.tree.tokens, strict=True)
        ):
            above, depth = was_said[parent], guesses.tree.depth(parent)
            if above is None or (above and depth >= len(said)):
                was_said[node] = None
                continue
            was_said[node] = is_hit = above and said[depth] == token
            self._count(guesses.probabilities[node], is_hit)

    def _count(self, probability: float, is_hit: bool) -> None:
        at = bisect(_EDGES, probability)
        keep = 1.0 - probability / _MEMORY
        self._hits[at] = self._hits[at] * keep + is_hit
        self._expected[at] = self._expected[at] * keep + probability
