"""Guesses recycled from the target's own rows: what it found likely after a token before."""

from __future__ import annotations

from heapq import heappop, heappush
from itertools import count

import numpy as np
from numpy.typing import NDArray

from adaseek_vllm.token_tree.guesses import Guesses
from adaseek_vllm.token_tree.sources import DraftRequest
from adaseek_vllm.token_tree.tree import ROOT

__all__ = ["RecyclingSource"]

_UNKNOWN = -1
_MIN_PROBABILITY = 0.02
_MEMORY = 1.0 / 500.0
"""Weight of one more row in the learned chances of the ranks."""


class RecyclingSource:
    """The likeliest successors of each token as the target gave them last, off-path rows included.

    How often a successor of each rank comes true is learned on the way, so a rank's chance needs
    no tuning.

    Source: Token Recycling (arXiv 2408.08696); the learned chances are ours.
    """

    num_successors = 6

    def __init__(self) -> None:
        self._successors: NDArray[np.int64] = np.empty((0, self.num_successors), dtype=np.int64)
        self._chances: NDArray[np.float64] = np.array(
            [0.3 * 0.5**rank for rank in range(self.num_successors)]
        )

    def draft(self, request: DraftRequest, max_nodes: int) -> Guesses:
        """Returns the likeliest paths along remembered successors, best first."""
        guesses, numbers = Guesses(), count()
        # (-probability, number, parent, token)
        frontier: list[tuple[float, int, int, int]] = []

        def push(parent: int, token: int, probability: float) -> None:
            for successor, chance in zip(self._after(token), self._chances, strict=False):
                if probability * chance >= _MIN_PROBABILITY:
                    entry = (-probability * float(chance), next(numbers), parent, successor)
                    heappush(frontier, entry)

        push(ROOT, int(request.tokens[-1]), 1.0)
        while frontier and len(guesses.tree) < max_nodes:
            negative, _, parent, token = heappop(frontier)
            push(guesses.add(parent, token, -negative), token, -negative)
        return guesses

    def learn(self, tokens: NDArray[np.int64], successors: NDArray[np.int64]) -> None:
        """Remembers `successors` and learns how well the remembered ones did."""
        if not len(tokens):
            return
        self._reserve(int(tokens.max()) + 1)
        known = self._successors[tokens]
        seen = known[:, 0] != _UNKNOWN
        for hits in known[seen] == successors[seen, :1]:
            self._chances += _MEMORY * (hits - self._chances)
        self._successors[tokens] = successors

    def forget(self, request_id: str) -> None:
        """Keeps everything: a token's successors belong to no request."""

    def _after(self, token: int) -> list[int]:
        if token >= len(self._successors) or self._successors[token, 0] == _UNKNOWN:
            return []
        successors: list[int] = self._successors[token].tolist()
        return successors

    def _reserve(self, num_tokens: int) -> None:
        if (missing := num_tokens - len(self._successors)) > 0:
            # In steps, so that a growing vocabulary is not copied for every new token.
            rows = np.full((max(missing, 4096), self.num_successors), _UNKNOWN, dtype=np.int64)
            self._successors = np.concatenate([self._successors, rows])
