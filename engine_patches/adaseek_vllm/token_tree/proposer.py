"""What vLLM asks for drafts: the configured sources, merged in one tree per request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from adaseek_vllm.config import FeatureSettingsError
from adaseek_vllm.token_tree.cost import StepCost
from adaseek_vllm.token_tree.drafts.config import DraftError, has_model, has_successors
from adaseek_vllm.token_tree.growth import Grown, grown
from adaseek_vllm.token_tree.guesses import (
    Continue,
    Guesses,
    TokensPerCost,
    continued,
    expanded,
    selected,
)
from adaseek_vllm.token_tree.hit_rates import HitRates
from adaseek_vllm.token_tree.settings import FLAG, TreeSettings
from adaseek_vllm.token_tree.sources import (
    BatchDraftSource,
    DraftRequest,
    DraftSource,
    PathSource,
    TreeSource,
    VerifiedRows,
)
from adaseek_vllm.token_tree.tree import TreeTokens

__all__ = ["TreeProposer"]

_KNOWN_NODES = 8
"""Of a request, that tell a draft model whether it has anything to add."""


class TreeProposer:
    """vLLM's `method=custom_class` proposer."""

    # vLLM's configuration, whose type this module does not name.
    def __init__(self, vllm_config: Any) -> None:
        self.settings = TreeSettings.read(vllm_config.additional_config["token_tree"])
        self.sources: list[DraftSource] = self.settings.make_sources()
        if self.settings.drafts:
            self.sources += _trained(self.settings, vllm_config.model_config)
        self.step_cost = StepCost()
        self._guessed: dict[str, Grown] = {}
        self._hit_rates = HitRates()

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
        guesses = self._guess([requests[index] for index in ready])
        trees = selected(
            guesses, max_nodes=self.settings.num_nodes, step_cost=self._cost_with_drafts()
        )
        drafts = [TreeTokens() for _ in requests]
        for index, tree in zip(ready, trees, strict=True):
            drafts[index] = tree
        return drafts

    def _cost_with_drafts(self) -> Callable[[int], float]:
        """Cost of a step by its rows, drafting included: that is paid, whatever is verified."""
        if self.settings.budget != "cost":
            return lambda _num_rows: 1.0
        batched = [source for source in self.sources if isinstance(source, BatchDraftSource)]
        spent_s = sum(source.spent_s for source in batched)
        return lambda num_rows: self.step_cost(num_rows) + spent_s

    def _guess(self, requests: Sequence[DraftRequest]) -> list[Guesses]:
        for request in requests:
            self._judge(request)
        named = _named(self.sources)
        # Asking for a protocol is slow, so not for every request.
        by_path = {name: one for name, one in named.items() if isinstance(one, PathSource)}
        after = [
            {name: source.begin(request) for name, source in by_path.items()}
            for request in requests
        ]
        for name, source in named.items():
            if isinstance(source, TreeSource):
                trees = self._trees_of(source, requests, after)
                for of_request, tree in zip(after, trees, strict=True):
                    of_request[name] = continued(tree)
        found = self._grown(after)
        for request, one in zip(requests, found, strict=True):
            self._guessed[request.request_id] = one
        guesses, expansion = [one.guesses for one in found], self.settings.expansion
        return [expanded(one, expansion) for one in guesses] if expansion else guesses

    def _grown(self, after: Sequence[Mapping[str, Continue]]) -> list[Grown]:
        max_nodes, rate = self.settings.num_nodes, None
        # A fixed shape leaves out some of the likeliest, so what the others give is unknown.
        if after and self.settings.expansion is None:
            rate = TokensPerCost(len(after), len(after) * max_nodes, self._cost_with_drafts())
        return grown(after, max_nodes=max_nodes, worth=self._hit_rates.worth, rate=rate)

    def _judge(self, request: DraftRequest) -> None:
        """Learns from what was said since a request's last draft."""
        if (last := self._guessed.get(request.request_id)) is not None:
            self._hit_rates.learn(last, request.tokens[-request.num_new_tokens :].tolist())

    def _trees_of(
        self,
        source: TreeSource,
        requests: Sequence[DraftRequest],
        others: Sequence[Mapping[str, Continue]],
    ) -> list[Guesses]:
        limit = self.settings.num_nodes
        if isinstance(source, BatchDraftSource):
            known = [
                one.guesses
                for one in grown(
                    others, max_nodes=min(limit, _KNOWN_NODES), worth=self._hit_rates.worth
                )
            ]
            cost = self.step_cost if self.settings.budget == "cost" else None
            return source.draft_batch(requests, known, limit, cost)
        return [source.draft(request, limit) for request in requests]

    def learn(self, rows: VerifiedRows) -> None:
        """Passes on what the target found likely after a step's rows."""
        for source in self.sources:
            if source.num_successors:
                source.learn(rows)

    def credit(self, request_id: str, tokens: Sequence[int]) -> Counter[str]:
        """Returns source -> how many of the accepted tokens it had guessed in the last draft."""
        credited = Counter[str]()
        if (found := self._guessed.get(request_id)) is not None:
            for names in found.sources_along(tokens):
                credited.update(names)
        return credited

    def forget(self, request_id: str) -> None:
        """Frees what the sources keep for a request that has ended."""
        self._guessed.pop(request_id, None)
        for source in self.sources:
            source.forget(request_id)


# vLLM's model configuration.
def _trained(settings: TreeSettings, target: Any) -> list[DraftSource]:
    """The sources that the drafts' directories hold."""
    from adaseek_vllm.token_tree.drafts.source import DraftModelSource
    from adaseek_vllm.token_tree.drafts.successors import SuccessorsSource
    from adaseek_vllm.token_tree.drafts.target import facts_of, load_tokenizer

    facts, found = facts_of(target.model, load_tokenizer(target.tokenizer)), list[DraftSource]()
    try:
        for directory in map(Path, settings.drafts):
            if has_successors(directory):
                found.append(SuccessorsSource.load(directory, facts))
            if has_model(directory):
                found.append(DraftModelSource.load(directory, facts))
    except DraftError as error:
        raise FeatureSettingsError(f"{FLAG}: {error}") from error
    return found


def _named(sources: Sequence[DraftSource]) -> dict[str, DraftSource]:
    """Sources by their kind; further ones of a kind have a number."""
    named: dict[str, DraftSource] = {}
    for source in sources:
        kind = type(source).__name__.removesuffix("Source").lower()
        num = sum(type(other) is type(source) for other in named.values())
        named[f"{kind} {num + 1}" if num else kind] = source
    return named
