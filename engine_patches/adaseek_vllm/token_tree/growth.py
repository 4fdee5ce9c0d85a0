"""Growing the trees of a step out of what several sources guess, the likeliest guesses first."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from typing import NamedTuple

from adaseek_vllm.token_tree.guesses import (
    MIN_PROBABILITY,
    Continue,
    Guesses,
    Path,
    TokensPerCost,
)
from adaseek_vllm.token_tree.tree import ROOT

__all__ = ["Grown", "Kind", "Opinion", "grown"]

_EDGES = (0.03, 0.06, 0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.9, 0.97)
_BETWEEN_CHECKS = 8
"""Guesses that are grown before it is asked again whether more of them can pay."""


class Kind(NamedTuple):
    """What is known of a guess before its token is looked at."""

    chance: int
    """Its place between `_EDGES`."""
    sources: frozenset[str]
    is_likeliest: bool
    """Of its siblings."""


class Opinion(NamedTuple):
    """A guess at the token after a path."""

    token: int
    chance: float
    """The best that a source gave it if the path is right. They look at the same text, so they are
    too dependent for their chances to be combined as if they were not."""
    kind: Kind


@dataclass
class Grown:
    """What several sources guess together about one request."""

    guesses: Guesses = field(default_factory=Guesses)
    opinions: dict[int, list[Opinion]] = field(default_factory=dict)
    """By the node they are below, for all nodes that were looked below."""

    def sources_along(self, tokens: Sequence[int]) -> list[frozenset[str]]:
        """Who guessed each of a text's first tokens, as far as the tree has them."""
        parents = [ROOT, *self.guesses.tree.along(tokens)]
        return [
            next(one.kind.sources for one in self.opinions[parent] if one.token == token)
            for parent, token in zip(parents[:-1], tokens, strict=False)
        ]


def grown(
    sources: Sequence[Mapping[str, Continue]],
    *,
    max_nodes: int,
    worth: Callable[[Kind], float],
    rate: TokensPerCost | None = None,
) -> list[Grown]:
    """Returns the likeliest nodes that the sources of each request reach, one source going on where
    another one led.

    Args:
        sources: of each request, by name, what each guesses after a path.
        max_nodes: most nodes of a request.
        worth: how often guesses of a kind came true, over what their chances say.
        rate: of the step; growing ends where it cannot rise any more. None: at `max_nodes` only.
    """
    found = [Grown() for _ in sources]
    # (-probability, number, request, parent, path of the parent, token)
    frontier: list[tuple[float, int, int, int, Path, int]] = []
    numbers = count()

    def look_below(request: int, node: int, path: Path) -> None:
        above = found[request].guesses.probability(node)
        opinions = _opinions(sources[request], path, MIN_PROBABILITY / above)
        found[request].opinions[node] = opinions
        for token, chance, kind in opinions:
            probability = above * min(1.0, chance * worth(kind))
            if probability >= MIN_PROBABILITY:
                heappush(frontier, (-probability, next(numbers), request, node, path, token))

    for request in range(len(sources)):
        look_below(request, ROOT, ())
    num_taken = 0
    while frontier:
        negative, _, request, parent, path, token = heappop(frontier)
        guesses = found[request].guesses
        if len(guesses.tree) >= max_nodes:
            continue
        if rate is not None:
            if num_taken % _BETWEEN_CHECKS == 0 and not rate.may_rise(-negative):
                break
            rate.take(-negative)
        num_taken += 1
        node = guesses.add(parent, token, -negative)
        look_below(request, node, (*path, token))
    return found


def _opinions(sources: Mapping[str, Continue], path: Path, min_chance: float) -> list[Opinion]:
    """All that is guessed after a path with at least that chance, the likeliest first."""
    chances, names = dict[int, float](), dict[int, list[str]]()
    for name, after in sources.items():
        for token, chance in after(path):
            if chance < min_chance:
                continue
            if token in chances:
                chances[token] = max(chance, chances[token])
                names[token].append(name)
            else:
                chances[token], names[token] = chance, [name]
    likeliest_first = sorted(chances.items(), key=lambda entry: -entry[1])
    return [
        Opinion(token, chance, Kind(bisect(_EDGES, chance), frozenset(names[token]), at == 0))
        for at, (token, chance) in enumerate(likeliest_first)
    ]
