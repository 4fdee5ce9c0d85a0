"""Guesses that text goes on as it did the last times, by looking up its last tokens."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from adaseek_vllm.token_tree.guesses import Continue
from adaseek_vllm.token_tree.sources import DraftRequest, VerifiedRows

__all__ = ["SuffixSource"]

_KEY_TOKENS = (4, 2, 1)
"""A place counts as alike if so many last tokens are the same; the most that any place has."""
_MAX_PLACES = 24
_MAX_MATCH = 16
_PRIOR = 4.0
"""Guesses that what is assumed of a match's length counts as."""
_PRIOR_OF_REQUEST = 4.0
"""Hits that what is known of all requests counts as for one of them."""
_MAX_CHANCE = 0.99
_MIN_SKILL, _MIN_CHANCE = 0.25, 0.1
"""Without a guess, nothing could be learned of it."""
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

    def places(self, path: tuple[int, ...]) -> list[tuple[int, int]]:
        """(position after it, tokens in common) of the latest places like the end of a path."""
        end = (*self.tokens[-_MAX_MATCH:], *path)[-_MAX_MATCH:]
        for length in _KEY_TOKENS:
            ends = self._ends.get(end[-length:], [])[-_MAX_PLACES - 1 :]
            # The text's own end has nothing after it.
            if earlier := [at for at in ends if at < len(self.tokens)]:
                return [(at, self._match(at, end, min(length, len(end)))) for at in earlier]
        return []

    def _match(self, at: int, end: tuple[int, ...], length: int) -> int:
        """How many tokens before `at` equal the last ones, of which `length` are known to."""
        tokens, longest = self.tokens, min(len(end), at)
        while length < longest and tokens[at - length - 1] == end[-length - 1]:
            length += 1
        return length


@dataclass
class _Known:
    """What is kept of one request."""

    text: _Text = field(default_factory=_Text)
    asked: dict[tuple[int, ...], tuple[int, set[int]]] = field(default_factory=dict)
    """Path -> tokens in common and what was guessed after it, in the last step."""
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

    def begin(self, request: DraftRequest) -> Continue:
        """Returns a look-up of how the request's own text went on after a path's last tokens."""
        known = self._requests.setdefault(request.request_id, _Known())
        new = request.tokens[len(known.text.tokens) :].tolist()
        self._judge(known, new)
        known.text.extend(new)
        known.asked = {}
        return lambda path: self._after(known, path)

    def _judge(self, known: _Known, said: Sequence[int]) -> None:
        """Learns how the last guesses did, as far down as the path was looked at."""
        for depth, token in enumerate(said):
            if (asked := known.asked.get(tuple(said[:depth]))) is not None:
                match, guessed = asked
                known.expected += self._chances(match)
                known.hits += token in guessed
                self._chances.count(match, token in guessed)

    def _after(self, known: _Known, path: tuple[int, ...]) -> Iterable[tuple[int, float]]:
        """Continuations of earlier places, longer matches weighing more."""
        places, tokens = known.text.places(path), known.text.tokens
        if not places:
            return ()
        weights: defaultdict[int, float] = defaultdict(float)
        for at, match in places:
            weights[tokens[at]] += 2.0**match
        longest, total = max(match for _, match in places), sum(weights.values())
        known.asked[path] = longest, set(weights)
        # The longer the match, the less often the text turns away from it.
        chance = min(_MAX_CHANCE, known.skill * self._chances(longest))
        return [(token, chance * weight / total) for token, weight in weights.items()]

    def learn(self, rows: VerifiedRows) -> None:
        """Learns nothing: the text is all there is."""

    def forget(self, request_id: str) -> None:
        self._requests.pop(request_id, None)
