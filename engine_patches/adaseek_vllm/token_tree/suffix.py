"""Guesses that text goes on as it did the last times, by looking up its last tokens."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count

from adaseek_vllm.token_tree.guesses import Guesses
from adaseek_vllm.token_tree.sources import DraftRequest, VerifiedRows
from adaseek_vllm.token_tree.tree import ROOT

__all__ = ["SuffixSource"]

_KEY_TOKENS = (4, 2, 1)
"""A place counts as alike if so many last tokens are the same; the most that any place has."""
_MAX_PLACES = 24
_MAX_MATCH = 16
_MIN_PROBABILITY = 0.04
_PRIOR = 4.0
"""Guesses that what is assumed of a match's length counts as."""
_PRIOR_OF_REQUEST = 4.0
"""Hits that what is known of all requests counts as for one of them."""
_MIN_SKILL, _MIN_CHANCE = 0.25, 0.17
"""Their product is above `_MIN_PROBABILITY`: without a guess nothing could be learned of it."""
_MEMORY = 300.0
"""Guesses after which an older one counts 1/e."""


class _Chances:
    """Tokens in common -> how often the text went on in one of the ways that were guessed."""

    def __init__(self) -> None:
        assumed = [match / (match + 1.0) for match in range(1, _MAX_MATCH + 1)]
        self._hits = [_PRIOR * chance for chance in assumed]
        self._seen = [_PRIOR for _ in assumed]

    def __call__(self, match: int) -> float:
        at = min(match, _MAX_MATCH) - 1
        return max(self._hits[at] / self._seen[at], _MIN_CHANCE)

    def count(self, match: int, is_hit: bool) -> None:
        at, keep = min(match, _MAX_MATCH) - 1, 1.0 - 1.0 / _MEMORY
        self._hits[at] = self._hits[at] * keep + is_hit
        self._seen[at] = self._seen[at] * keep + 1.0


class _Text:
    """One request's tokens, and where each of its short pieces occurs."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._ends: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)

    def extend(self, tokens: list[int]) -> None:
        for token in tokens:
            self.tokens.append(token)
            for length in _KEY_TOKENS:
                if len(self.tokens) >= length:
                    self._ends[tuple(self.tokens[-length:])].append(len(self.tokens))

    def places(self) -> list[tuple[int, int]]:
        """(position after it, tokens in common) of the latest earlier places like the end."""
        for length in _KEY_TOKENS:
            ends = self._ends.get(tuple(self.tokens[-length:]), [])
            if earlier := [end for end in ends[-_MAX_PLACES - 1 :] if end < len(self.tokens)]:
                return [(end, self._match(end, length)) for end in earlier]
        return []

    def _match(self, end: int, length: int) -> int:
        """How many tokens before `end` equal the last ones, of which `length` are known to."""
        longest = min(_MAX_MATCH, end)
        while length < longest and self.tokens[end - length - 1] == self.tokens[-length - 1]:
            length += 1
        return length


@dataclass
class _Known:
    """What is kept of one request."""

    text: _Text = field(default_factory=_Text)
    guesses: Guesses = field(default_factory=Guesses)
    match: int = 0
    """Tokens in common when they were made."""
    hits: float = 0.0
    expected: float = 0.0
    """Of its own guesses, how many came true and how many should have."""

    @property
    def skill(self) -> float:
        """How much more often than others' its guesses come true."""
        found = (self.hits + _PRIOR_OF_REQUEST) / (self.expected + _PRIOR_OF_REQUEST)
        return max(found, _MIN_SKILL)


class SuffixSource:
    """Retrieval from the same request's prompt and output.

    How often a match of a length goes on as guessed is learned, over all requests and for each.
    Other requests' texts are not looked at: how fast an answer comes would tell one user what
    another one was told.

    Source: in the spirit of suffix decoding (arXiv 2411.04975); places and scores are ours.
    """

    num_successors = 0

    def __init__(self) -> None:
        self._requests: dict[str, _Known] = {}
        self._chances = _Chances()

    def draft(self, request: DraftRequest, max_nodes: int) -> Guesses:
        """Returns continuations of earlier places, longer matches weighing more."""
        known = self._requests.setdefault(request.request_id, _Known())
        new = request.tokens[len(known.text.tokens) :].tolist()
        self._judge(known, new)
        known.text.extend(new)
        places = known.text.places()
        known.guesses = Guesses()
        if places:
            known.match = max(match for _, match in places)
            self._grow(known, {end: 2.0**match for end, match in places}, max_nodes)
        return known.guesses

    def _judge(self, known: _Known, said: Sequence[int]) -> None:
        """Learns how the last guesses did, as far down as they were right."""
        tree, node = known.guesses.tree, ROOT
        parents = set(tree.parents)
        for depth, token in enumerate(said):
            if node not in parents:
                return
            match, child = known.match + depth, tree.child(node, token)
            known.expected += self._chances(match)
            known.hits += child is not None
            self._chances.count(match, child is not None)
            if child is None:
                return
            node = child

    def _grow(self, known: _Known, weights: dict[int, float], max_nodes: int) -> None:
        """Adds the likeliest continuations of the places in `weights`, best first."""
        guesses, tokens, skill = known.guesses, known.text.tokens, known.skill
        numbers = count()
        # (-probability, number, parent, token, depth of the parent, places that go on like this)
        frontier: list[tuple[float, int, int, int, int, list[int]]] = []

        def push(parent: int, depth: int, ends: Iterable[int], probability: float) -> None:
            # The longer the match, the less often the text turns away from it.
            chance = probability * min(0.99, skill * self._chances(known.match + depth))
            after: defaultdict[int, list[int]] = defaultdict(list)
            for end in ends:
                if end + depth < len(tokens):
                    after[tokens[end + depth]].append(end)
            total = sum(weights[end] for found in after.values() for end in found)
            for token, found in after.items():
                path = chance * sum(weights[end] for end in found) / total
                if path >= _MIN_PROBABILITY:
                    heappush(frontier, (-path, next(numbers), parent, token, depth, found))

        push(ROOT, 0, weights, 1.0)
        while frontier and len(guesses.tree) < max_nodes:
            negative, _, parent, token, depth, ends = heappop(frontier)
            push(guesses.add(parent, token, -negative), depth + 1, ends, -negative)

    def learn(self, rows: VerifiedRows) -> None:
        """Learns nothing: the text is all there is."""

    def forget(self, request_id: str) -> None:
        self._requests.pop(request_id, None)
