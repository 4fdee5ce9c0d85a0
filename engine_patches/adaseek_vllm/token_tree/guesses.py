"""Scored drafts: merging what several sources guess, and choosing how much of it to verify.

A guess's probability is that of the whole path from the root down to it being accepted, as its
source sees it. The expected number of tokens of a step is then 1 (the bonus token) per request
plus the sum of the probabilities of the nodes that are verified.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from adaseek_vllm.token_tree.tree import ROOT, TokenTree, TreeTokens

__all__ = ["Guesses", "likeliest_chain", "merged", "selected"]


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


def merged(guesses: Sequence[Guesses]) -> Guesses:
    """Returns the union of the guesses; what several sources guess keeps the highest probability.

    Sources look at the same text, so they are too dependent for their chances to be combined as if
    they were not.
    """
    if len(guesses) == 1:
        return guesses[0]
    union = Guesses()
    for one in guesses:
        nodes = {ROOT: ROOT}
        pairs = zip(one.tree.parents, one.tree.tokens, one.probabilities, strict=True)
        for node, (parent, token, probability) in enumerate(pairs):
            nodes[node] = union.add(nodes[parent], token, probability)
    return union


def likeliest_chain(guesses: Guesses) -> Guesses:
    """Returns the likeliest child of the likeliest child and so on."""
    chain, node, below = Guesses(), ROOT, ROOT
    children: dict[int, list[int]] = {}
    for child, parent in enumerate(guesses.tree.parents):
        children.setdefault(parent, []).append(child)
    while node in children:
        node = max(children[node], key=guesses.probability)
        below = chain.add(below, guesses.tree.tokens[node], guesses.probability(node))
    return chain


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
    expected, best, num_taken = float(len(guesses)), 0.0, 0
    for count in range(len(order) + 1):
        if count:
            expected += order[count - 1][0]
        rate = expected / step_cost(len(guesses) + count)
        if rate > best:
            best, num_taken = rate, count
    chosen: list[list[int]] = [[] for _ in guesses]
    for _, request, node in order[:num_taken]:
        chosen[request].append(node)
    return [_kept(one.tree, nodes) for one, nodes in zip(guesses, chosen, strict=True)]


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
    tokens, parents = list[int](), list[int]()
    for node in nodes:
        new[node] = len(tokens)
        tokens.append(tree.tokens[node])
        parents.append(new[tree.parents[node]])
    return TreeTokens(tokens, parents)
