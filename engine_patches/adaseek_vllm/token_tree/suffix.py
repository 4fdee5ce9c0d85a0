"""Guesses that text goes on as it did the last times, by looking up its last tokens."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from heapq import heappop, heappush
from itertools import count

import numpy as np
from numpy.typing import NDArray

from adaseek_vllm.token_tree.guesses import Guesses
from adaseek_vllm.token_tree.sources import DraftRequest
from adaseek_vllm.token_tree.tree import ROOT

__all__ = ["SuffixSource"]

_KEY_TOKENS = 2
"""A place counts as alike if at least so many last tokens are the same."""
_MAX_PLACES = 16
_MAX_MATCH = 16
_MIN_PROBABILITY = 0.05


class _Text:
    """One request's tokens, and where each pair of neighbours occurs."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._ends: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)

    def extend(self, tokens: list[int]) -> None:
        for token in tokens:
            self.tokens.append(token)
            if len(self.tokens) >= _KEY_TOKENS:
                self._ends[tuple(self.tokens[-_KEY_TOKENS:])].append(len(self.tokens))

    def places(self) -> list[tuple[int, int]]:
        """(position after it, tokens in common) of the latest earlier places like the end."""
        ends = self._ends.get(tuple(self.tokens[-_KEY_TOKENS:]), [])
        earlier = [end for end in ends[-_MAX_PLACES - 1 :] if end < len(self.tokens)]
        return [(end, self._match(end)) for end in earlier]

    def _match(self, end: int) -> int:
        """How many tokens before `end` equal the last ones."""
        length = _KEY_TOKENS
        longest = min(_MAX_MATCH, end)
        while length < longest and self.tokens[end - length - 1] == self.tokens[-length - 1]:
            length += 1
        return length


class SuffixSource:
    """Retrieval from the same request's prompt and output.

    Other requests' texts are not looked at: how fast an answer comes would tell one user what
    another one was told.

    Source: in the spirit of suffix decoding (arXiv 2411.04975); places and scores are ours.
    """

    num_successors = 0

    def __init__(self) -> None:
        self._texts: dict[str, _Text] = {}

    def draft(self, request: DraftRequest, max_nodes: int) -> Guesses:
        """Returns continuations of earlier places, longer matches weighing more."""
        text = self._texts.setdefault(request.request_id, _Text())
        text.extend(request.tokens[len(text.tokens) :].tolist())
        places = text.places()
        guesses = Guesses()
        if not places:
            return guesses
        weights = {end: 2.0**match for end, match in places}
        longest = max(match for _, match in places)
        # The longer the match, the less often the text turns away from it.
        self._grow(guesses, text, weights, keep=longest / (longest + 1.0), max_nodes=max_nodes)
        return guesses

    def _grow(
        self,
        guesses: Guesses,
        text: _Text,
        weights: dict[int, float],
        *,
        keep: float,
        max_nodes: int,
    ) -> None:
        """Adds the likeliest continuations of the places in `weights`, best first."""
        total = sum(weights.values())
        numbers = count()
        # (-probability, number, parent, token, depth of the parent, places that go on like this)
        frontier: list[tuple[float, int, int, int, int, list[int]]] = []

        def push(parent: int, depth: int, ends: Iterable[int]) -> None:
            after: defaultdict[int, list[int]] = defaultdict(list)
            for end in ends:
                if end + depth < len(text.tokens):
                    after[text.tokens[end + depth]].append(end)
            for token, found in after.items():
                share = sum(weights[end] for end in found) / total
                probability = share * keep ** (depth + 1)
                if probability >= _MIN_PROBABILITY:
                    entry = (-probability, next(numbers), parent, token, depth, found)
                    heappush(frontier, entry)

        push(ROOT, 0, weights)
        while frontier and len(guesses.tree) < max_nodes:
            negative, _, parent, token, depth, ends = heappop(frontier)
            push(guesses.add(parent, token, -negative), depth + 1, ends)

    def learn(self, tokens: NDArray[np.int64], successors: NDArray[np.int64]) -> None:
        """Learns nothing: the text is all there is."""

    def forget(self, request_id: str) -> None:
        self._texts.pop(request_id, None)
