"""What vLLM asks for drafts: the configured sources, merged in one tree per request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaseek_vllm.token_tree.cost import StepCost
from adaseek_vllm.token_tree.guesses import Guesses, likeliest_chain, merged, selected
from adaseek_vllm.token_tree.settings import TreeSettings
from adaseek_vllm.token_tree.sources import DraftRequest, DraftSource
from adaseek_vllm.token_tree.tree import ROOT, TreeTokens

__all__ = ["TreeProposer"]


class TreeProposer:
    """vLLM's `method=custom_class` proposer."""

    # vLLM's configuration, whose type this module does not name.
    def __init__(self, vllm_config: Any) -> None:
        self.settings = TreeSettings.read(vllm_config.additional_config["token_tree"])
        self.sources: list[DraftSource] = self.settings.make_sources()
        self.step_cost = StepCost()
        self._guessed: dict[str, list[Guesses]] = {}

    @property
    def num_successors(self) -> int:
        """How many likeliest next tokens of each verified row the sources want."""
        return max(source.num_successors for source in self.sources)

    def load_model(self, target_model: object) -> None:
        """Called by vLLM once the target is loaded; the sources have no model."""

    def propose(self, *_args: object, **_kwargs: object) -> list[list[int]]:
        """vLLM wants this method to be there; AdaSeek's runner calls `draft` in its place."""
        raise RuntimeError("TreeProposer needs AdaSeek's worker: start vLLM with --token-tree")

    def draft(self, requests: Sequence[DraftRequest]) -> list[TreeTokens]:
        """Returns a tree for each request; an empty one while its prompt is still being read."""
        ready = [index for index, request in enumerate(requests) if request.num_new_tokens]
        trees = selected(
            [self._guess(requests[index]) for index in ready],
            max_nodes=self.settings.num_nodes,
            step_cost=self.step_cost if self.settings.budget == "cost" else _equal_cost,
        )
        drafts = [TreeTokens() for _ in requests]
        for index, tree in zip(ready, trees, strict=True):
            drafts[index] = tree
        return drafts

    def _guess(self, request: DraftRequest) -> Guesses:
        limit = self.settings.num_nodes
        guessed = [source.draft(request, limit) for source in self.sources]
        self._guessed[request.request_id] = guessed
        guesses = merged(guessed)
        return likeliest_chain(guesses) if self.settings.shape == "chain" else guesses

    def learn(self, tokens: NDArray[np.int64], successors: NDArray[np.int64]) -> None:
        """Passes on what the target found likely after verified rows, [rows, num_successors]."""
        for source in self.sources:
            if source.num_successors:
                source.learn(tokens, successors[:, : source.num_successors])

    def credit(self, request_id: str, tokens: Sequence[int]) -> dict[str, int]:
        """Returns source -> how many of the accepted tokens it had guessed in its last draft."""
        guessed = self._guessed.get(request_id, [])
        found: dict[str, int] = {}
        for source, guesses in zip(self.sources, guessed, strict=False):
            node: int | None = ROOT
            name = type(source).__name__.removesuffix("Source").lower()
            for depth, token in enumerate(tokens, start=1):
                if (node := guesses.tree.child(node, token)) is None:
                    break
                found[name] = depth
        return found

    def forget(self, request_id: str) -> None:
        """Frees what the sources keep for a request that has ended."""
        self._guessed.pop(request_id, None)
        for source in self.sources:
            source.forget(request_id)


def _equal_cost(_num_rows: int) -> float:
    return 1.0
