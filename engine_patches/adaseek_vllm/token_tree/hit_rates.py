"""What the chances of guesses are worth: how often such guesses came true."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from adaseek_vllm.token_tree.growth import Grown, Kind
from adaseek_vllm.token_tree.tree import ROOT

__all__ = ["HitRates"]

_ASSUMED_WORTH = 0.7
"""Of a kind that nothing is known of. Guesses are chosen for their chances, so more of the chosen
ones are said to be too likely than too unlikely."""
_PRIOR = 4.0
"""Expected hits that this counts as."""
_MEMORY = 100.0
"""Expected hits after which an older one counts 1/e."""


@dataclass
class _Rate:
    hits: float = _ASSUMED_WORTH * _PRIOR
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
        self._rates: defaultdict[Kind, _Rate] = defaultdict(_Rate)

    def worth(self, kind: Kind) -> float:
        """Returns how often guesses of a kind came true, over what their chances say."""
        rate = self._rates[kind]
        return rate.hits / rate.expected

    def learn(self, grown: Grown, said: Sequence[int]) -> None:
        """Learns from what was said after the root."""
        node: int | None = ROOT
        for token in said:
            if node is None or node not in grown.opinions:
                return
            for guessed, chance, kind in grown.opinions[node]:
                rate, keep = self._rates[kind], 1.0 - chance / _MEMORY
                rate.hits = rate.hits * keep + (guessed == token)
                rate.expected = rate.expected * keep + chance
            node = grown.guesses.tree.child(node, token)
