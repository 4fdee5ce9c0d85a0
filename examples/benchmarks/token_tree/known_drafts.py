"""Draft sources that know what the model will say, and hide it: the hardest trees to verify."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from adaseek_vllm.token_tree.guesses import Guesses
from adaseek_vllm.token_tree.sources import DraftRequest
from adaseek_vllm.token_tree.tree import ROOT

__all__ = ["Adversarial", "KnownDrafts", "Scripted"]


class KnownDrafts:
    """A source that is told whole texts, prompts with their answers."""

    num_successors = 0

    def __init__(self, texts: list[list[int]]) -> None:
        self._texts, self._rng = texts, np.random.default_rng(0)

    def draft(self, request: DraftRequest, max_nodes: int) -> Guesses:
        tokens = request.tokens.tolist()
        coming = next((t[len(tokens) :] for t in self._texts if t[: len(tokens)] == tokens), [])
        return self._hidden(coming, max_nodes)

    def _hidden(self, coming: list[int], max_nodes: int) -> Guesses:
        """Returns a tree with some of what is coming in it."""
        raise NotImplementedError

    def _wrong(self) -> int:
        return int(self._rng.integers(100, 4000))

    def learn(self, rows: Any) -> None:
        raise AssertionError("no successors were asked for")

    def forget(self, request_id: str) -> None:
        """Keeps nothing of a request."""


class Scripted(KnownDrafts):
    """Hides the continuation in random places of random trees."""

    def _hidden(self, coming: list[int], max_nodes: int) -> Guesses:
        rng, guesses, spine, nodes = self._rng, Guesses(), ROOT, [ROOT]
        coming = coming[: int(rng.integers(0, 9))]
        for _ in range(int(rng.integers(0, max_nodes + 1))):
            if coming and rng.random() < 0.5:
                spine = guesses.add(spine, coming.pop(0), 0.9)
                nodes.append(spine)
            else:
                # The right token in a wrong place, too.
                token = coming[0] if coming and rng.random() < 0.3 else self._wrong()
                nodes.append(guesses.add(nodes[int(rng.integers(len(nodes)))], token, 0.9))
        return guesses


class Adversarial(KnownDrafts):
    """Trees that a careless verifier falls for, a kind after the other."""

    def __init__(self, texts: list[list[int]]) -> None:
        super().__init__(texts)
        self._kinds = self._turns()

    def _turns(self) -> Iterator[Any]:
        while True:
            yield from (self._shifted, self._last_child, self._twins, self._repeated)

    def _hidden(self, coming: list[int], max_nodes: int) -> Guesses:
        guesses = Guesses()
        if coming:
            next(self._kinds)(guesses, coming, max_nodes)
        return guesses

    def _shifted(self, guesses: Guesses, coming: list[int], max_nodes: int) -> None:
        """The continuation without its first token: right tokens, all a place too early."""
        node = ROOT
        for token in coming[1 : max_nodes + 1]:
            node = guesses.add(node, token, 0.9)

    def _last_child(self, guesses: Guesses, coming: list[int], max_nodes: int) -> None:
        """The right token is the last of many children, with the next one below each of them."""
        children = [guesses.add(ROOT, self._wrong(), 0.9) for _ in range(max_nodes // 2 - 1)]
        children.append(guesses.add(ROOT, coming[0], 0.9))
        for child in children:
            if len(coming) > 1:
                guesses.add(child, coming[1], 0.9)

    def _twins(self, guesses: Guesses, coming: list[int], max_nodes: int) -> None:
        """A wrong sibling first at each depth, with the right token of the next depth below it."""
        node = ROOT
        for at, token in enumerate(coming[: max_nodes // 3]):
            wrong = guesses.add(node, self._wrong(), 0.9)
            node = guesses.add(node, token, 0.9)
            if at + 1 < len(coming):
                guesses.add(wrong, coming[at + 1], 0.9)

    def _repeated(self, guesses: Guesses, coming: list[int], max_nodes: int) -> None:
        """One and the same token at every place, which only its position tells apart."""
        node = ROOT
        for _ in range(max_nodes - 1):
            node = guesses.add(node, coming[0], 0.9)
        guesses.add(ROOT, self._wrong(), 0.9)
