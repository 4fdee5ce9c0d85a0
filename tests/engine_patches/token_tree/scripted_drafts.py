"""Drafts that hide a known continuation among wrong guesses, for engine_scenarios.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from adaseek_vllm.token_tree.guesses import Guesses
from adaseek_vllm.token_tree.sources import DraftRequest, VerifiedRows
from adaseek_vllm.token_tree.tree import ROOT

# Three special tokens and the 256 bytes.
VOCABULARY = 259
Texts = list[list[int]]


class Oracle:
    """Hides the known continuation among wrong guesses.

    Args:
        texts: prompts with their continuations.
        shape: `random` hides it in random places of a random tree; `wide` puts the next token last
            among many children of the root; `deep` gives the whole continuation in one branch,
            with a wrong sibling, which is tried first, at each depth.
        wrong: the tokens that wrong guesses are taken from.
    """

    num_successors = 3

    def __init__(
        self, texts: Texts, *, shape: str = "random", wrong: Sequence[int] = range(3, VOCABULARY)
    ) -> None:
        self.texts, self.shape, self.wrong = texts, shape, wrong
        self.rng = np.random.default_rng(0)
        self.num_learned = 0

    def draft(self, request: DraftRequest, max_nodes: int) -> Guesses:
        tokens = request.tokens.tolist()
        coming = next((t[len(tokens) :] for t in self.texts if t[: len(tokens)] == tokens), [])
        guesses = Guesses()
        if self.shape == "wide":
            for _ in range(max_nodes - 1):
                guesses.add(ROOT, int(self.rng.choice(self.wrong)), 0.9)
            if coming:
                guesses.add(ROOT, coming[0], 0.9)
            return guesses
        if self.shape == "deep":
            node = ROOT
            for token in coming[: max_nodes // 2]:
                guesses.add(node, int(self.rng.choice(self.wrong)), 0.9)
                node = guesses.add(node, token, 0.9)
            return guesses
        return self._random(coming, max_nodes)

    def _random(self, coming: list[int], max_nodes: int) -> Guesses:
        rng = self.rng
        coming = coming[: int(rng.integers(0, 9))]
        guesses, spine, nodes = Guesses(), ROOT, [ROOT]
        for _ in range(int(rng.integers(0, max_nodes + 1))):
            if coming and rng.random() < 0.5:
                spine = guesses.add(spine, coming.pop(0), 0.9)
                nodes.append(spine)
            else:
                parent = nodes[int(rng.integers(len(nodes)))]
                token = coming[0] if coming and rng.random() < 0.3 else rng.choice(self.wrong)
                nodes.append(guesses.add(parent, int(token), 0.9))
        return guesses

    def learn(self, rows: VerifiedRows) -> None:
        assert len(rows.tokens) == len(rows.successors) == len(rows.previous) == len(rows.said)
        assert len(rows.tokens) == len(rows.tenants)
        assert rows.chances.shape == rows.successors.shape
        assert not len(rows.tokens) or np.allclose(rows.chances.sum(-1), 1.0, atol=1e-5)
        self.num_learned += len(rows.tokens)

    def forget(self, request_id: str) -> None:
        pass


class Tenants(Oracle):
    """Notes whose requests it is shown; their prompts have nine tokens."""

    def __init__(self, texts: Texts) -> None:
        super().__init__(texts)
        self.drafted: set[tuple[int | str, ...]] = set()
        self.learned: Counter[str] = Counter()

    def draft(self, request: DraftRequest, max_nodes: int) -> Guesses:
        self.drafted.add((*request.tokens[:9].tolist(), request.tenant))
        return super().draft(request, max_nodes)

    def learn(self, rows: VerifiedRows) -> None:
        super().learn(rows)
        self.learned.update(rows.tenants)
