"""Scored drafts, and choosing which of them to verify.

A guess's probability is that of the whole path from the root down to it being accepted, as its
source sees it. The expected number of tokens of a step is then 1 (the bonus token) per request
plus the sum of the probabilities of the nodes that are verified.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from heapq import nlargest
from operator import itemgetter

import numpy as np

from adaseek_vllm.token_tree.tree import ROOT, Expansion, TokenTree, TreeTokens, Trial

__all__ = [
    "MIN_PROBABILITY",
    "Continue",
    "Guesses",
    "Path",
    "TokensPerCost",
    "best_step",
    "continued",
    "expanded",
    "selected",
]

MIN_PROBABILITY = 0.02
"""Nodes less likely than this are not worth looking below, nor a row."""


@dataclass
class Guesses:
    """A tree of guesses about one request, parents first."""

    tree: TokenTree = field(default_factory=TokenTree)
    probabilities: list[float] = field(default_factory=list)

    def add(self, parent: int, token: int, probability: float) -> int:
        """Adds a guess, or raises the probability of one that is there; returns its node.

        A node is never likelier than its parent.
        """
        probability = min(probability, self.probability(parent))
        if (known := self.tree.child(parent, token)) is not None:
            self.probabilities[known] = max(self.probabilities[known], probability)
            return known
        self.probabilities.append(probability)
        return self.tree.add_path([token], parent=parent)

    def probability(self, node: int) -> float:
        return 1.0 if node == ROOT else self.probabilities[node]

    def copy(self) -> Guesses:
        new = Guesses()
        for node, (parent, token) in enumerate(
            zip(self.tree.parents, self.tree.tokens, strict=True)
        ):
            new.add(parent, token, self.probabilities[node])
        return new

    def reach(self) -> list[float]:
        """Returns how likely the guesses are right down to each depth, from below the root on."""
        reach = list[float]()
        for node, probability in enumerate(self.probabilities):
            depth = self.tree.depth(node)
            reach += [0.0] * (depth - len(reach))
            reach[depth - 1] += probability
        return reach


Path = tuple[int, ...]
"""The tokens from below the root down to a node; empty for the root."""

Continue = Callable[[Path], Iterable[tuple[int, float]]]
"""Path -> guesses at the token after it, each with its chance if the path is right."""


def continued(guesses: Guesses) -> Continue:
    """Returns a tree's children by their parents' paths."""
    children: dict[Path, list[tuple[int, float]]] = {}
    paths: dict[int, Path] = {ROOT: ()}
    for node, (parent, token) in enumerate(
        zip(guesses.tree.parents, guesses.tree.tokens, strict=True)
    ):
        above = guesses.probability(parent)
        chance = guesses.probabilities[node] / above if above > 0.0 else 0.0
        children.setdefault(paths[parent], []).append((token, chance))
        paths[node] = (*paths[parent], token)
    return lambda path: children.get(path, ())


def expanded(guesses: Guesses, expansion: Expansion) -> Guesses:
    """Returns a fixed shape's part of the guesses: the likeliest k1 below the root, and so on."""
    after, tree = continued(guesses), TokenTree()

    def likeliest(path: Path, num: int) -> list[Trial]:
        return [Trial(token) for token, _ in nlargest(num, after(path), key=itemgetter(1))]

    expansion.grow(tree, likeliest)
    known = dict(zip(guesses.tree.paths(), guesses.probabilities, strict=True))
    return Guesses(tree, [known[path] for path in tree.paths()])


def selected(
    guesses: Sequence[Guesses], *, max_nodes: int, step_cost: Callable[[int], float]
) -> list[TreeTokens]:
    """Returns each request's nodes that make the whole step emit the most tokens per cost.

    Likelier nodes are taken first, whichever request they belong to; since every set of m nodes
    costs the same, the best step is one of the first m of that order.

    Args:
        guesses: one per request.
        max_nodes: most nodes per request.
        step_cost: cost of a step by its number of rows, in any unit.
    """
    order = _likeliest_first(guesses, max_nodes)
    num_taken, _ = _most_per_cost(order, len(guesses), step_cost)
    chosen: list[list[int]] = [[] for _ in guesses]
    for _, request, node in order[:num_taken]:
        chosen[request].append(node)
    return [_kept(one.tree, nodes) for one, nodes in zip(guesses, chosen, strict=True)]


def best_step(
    guesses: Sequence[Guesses], *, max_nodes: int, step_cost: Callable[[int], float]
) -> tuple[int, float]:
    """Returns the rows of the step that `selected` chooses, and the tokens expected of it."""
    order = _likeliest_first(guesses, max_nodes)
    num_taken, expected = _most_per_cost(order, len(guesses), step_cost)
    return len(guesses) + num_taken, expected


class TokensPerCost:
    """The rate of a step that takes one guess after another, never a likelier one.

    Args:
        num_requests: of the step; each has a row and emits a token without any guess.
        max_guesses: most guesses of the whole step.
        step_cost: cost of a step by its number of rows, in any unit.
    """

    def __init__(
        self, num_requests: int, max_guesses: int, step_cost: Callable[[int], float]
    ) -> None:
        rows = range(num_requests, num_requests + max_guesses + 1)
        self._costs = np.array([step_cost(num) for num in rows])
        self._expected, self._num = float(num_requests), 0
        self._best_rate = self._expected / self._costs[0]
        self.best = self._num, self._expected
        """Guesses taken, and tokens expected, where the rate was highest."""

    def take(self, probability: float) -> None:
        """Adds one guess."""
        self._num += 1
        self._expected += probability
        if (rate := self._expected / self._costs[self._num]) > self._best_rate:
            self._best_rate, self.best = rate, (self._num, self._expected)

    def may_rise(self, probability: float) -> bool:
        """Whether any number of guesses as likely as that would give more than the best so far."""
        costs = self._costs[self._num + 1 :]
        expected = self._expected + probability * np.arange(1, len(costs) + 1)
        return bool((expected > self._best_rate * costs).any())


def _most_per_cost(
    order: Sequence[tuple[float, int, int]], num_requests: int, step_cost: Callable[[int], float]
) -> tuple[int, float]:
    """How many of the nodes to take, and the tokens expected then."""
    if not num_requests:
        return 0, 0.0
    rate = TokensPerCost(num_requests, len(order), step_cost)
    for probability, _, _ in order:
        rate.take(probability)
    return rate.best


def _likeliest_first(guesses: Sequence[Guesses], max_nodes: int) -> list[tuple[float, int, int]]:
    """(probability, request, node) of the nodes that may be taken, parents before children."""
    order = []
    for request, one in enumerate(guesses):
        # Equally likely nodes stay in their own order, which has parents first.
        nodes = sorted(range(len(one.tree)), key=lambda node: -one.probabilities[node])
        order += [(one.probabilities[node], request, node) for node in nodes[:max_nodes]]
    return sorted(order, key=lambda entry: -entry[0])


def _kept(tree: TokenTree, nodes: Iterable[int]) -> TreeTokens:
    """The tree of `nodes` alone, in their order."""
    new = {ROOT: ROOT}
    all_tokens, all_parents = tree.tokens, tree.parents
    tokens, parents = list[int](), list[int]()
    for node in nodes:
        new[node] = len(tokens)
        tokens.append(all_tokens[node])
        parents.append(new[all_parents[node]])
    return TreeTokens(tokens, parents)
