"""Guesses that text goes on as it did the last times, by looking up its last tokens."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from adaseek_vllm.token_tree.guesses import Continue, Path
from adaseek_vllm.token_tree.sources import DraftRequest, VerifiedRows

__all__ = ["PastSource", "SuffixSource"]

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
_MAX_PAST = 1 << 13
"""Tokens of past answers after which a tenant's older ones are put aside, and then forgotten:
some 8 MiB."""
_MAX_TENANTS = 32
_END = -1
"""Between two answers; no token."""


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
    """Tokens, and where each of their short pieces occurs."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._ends: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)

    def extend(self, tokens: Iterable[int]) -> None:
        for token in tokens:
            self.tokens.append(token)
            for length in _KEY_TOKENS:
                if len(self.tokens) >= length:
                    self._ends[tuple(self.tokens[-length:])].append(len(self.tokens))

    def places(self, end: Path) -> list[tuple[int, int]]:
        """(position after it, tokens in common) of the latest places like an end of a text."""
        for length in _KEY_TOKENS:
            ends = self._ends.get(end[-length:], [])[-_MAX_PLACES - 1 :]
            # Nothing is known of what comes after the text's own end.
            if earlier := [at for at in ends if at < len(self.tokens) and self.tokens[at] != _END]:
                return [(at, self._match(at, end, min(length, len(end)))) for at in earlier]
        return []

    def _match(self, at: int, end: Path, length: int) -> int:
        """How many tokens before `at` equal the last ones, of which `length` are known to."""
        tokens, longest = self.tokens, min(len(end), at)
        while length < longest and tokens[at - length - 1] == end[-length - 1]:
            length += 1
        return length


@dataclass
class _Record:
    """How the guesses about one request did."""

    asked: dict[Path, tuple[int, set[int]]] = field(default_factory=dict)
    """Path -> tokens in common and what was guessed after it, in the last step."""
    hits: float = 0.0
    expected: float = 0.0
    """Of its own guesses, how many came true and how many should have."""

    @property
    def skill(self) -> float:
        """How much more often than others' its guesses come true."""
        found = (self.hits + _PRIOR_OF_REQUEST) / (self.expected + _PRIOR_OF_REQUEST)
        return max(found, _MIN_SKILL)


class _Judge:
    """What a look-up is worth, learned over all requests and for each."""

    def __init__(self) -> None:
        self._chances = _Chances()

    def learn(self, record: _Record, said: Sequence[int]) -> None:
        """Learns how the last guesses did, as far down as the path was looked at."""
        for depth, token in enumerate(said):
            if (asked := record.asked.get(tuple(said[:depth]))) is not None:
                match, guessed = asked
                record.expected += self._chances(match)
                record.hits += token in guessed
                self._chances.count(match, token in guessed)
        record.asked = {}

    def after(
        self, record: _Record, path: Path, texts: Iterable[_Text], end: Path
    ) -> Iterable[tuple[int, float]]:
        """Returns how the first of the texts that has places like `end` went on there, longer
        matches weighing more."""
        for text in texts:
            if places := text.places(end):
                break
        else:
            return ()
        weights: defaultdict[int, float] = defaultdict(float)
        for at, match in places:
            weights[text.tokens[at]] += 2.0**match
        longest, total = max(match for _, match in places), sum(weights.values())
        record.asked[path] = longest, set(weights)
        # The longer the match, the less often the text turns away from it.
        chance = min(_MAX_CHANCE, record.skill * self._chances(longest))
        return [(token, chance * weight / total) for token, weight in weights.items()]


@dataclass
class _Own:
    """What is kept of one request."""

    text: _Text = field(default_factory=_Text)
    record: _Record = field(default_factory=_Record)


class SuffixSource:
    """Retrieval from the same request's prompt and output.

    How often a match of a length goes on as guessed is learned, over all requests and for each.

    Source: in the spirit of suffix decoding (arXiv 2411.04975); places and scores are ours.
    """

    num_successors = 0

    def __init__(self) -> None:
        self._requests: dict[str, _Own] = {}
        self._judge = _Judge()

    def begin(self, request: DraftRequest) -> Continue:
        """Returns a look-up of how the request's own text went on after a path's last tokens."""
        known = self._requests.setdefault(request.request_id, _Own())
        text, record = known.text, known.record
        new = request.tokens[len(text.tokens) :].tolist()
        self._judge.learn(record, new)
        text.extend(new)
        last = tuple(text.tokens[-_MAX_MATCH:])
        return lambda path: self._judge.after(record, path, [text], (*last, *path)[-_MAX_MATCH:])

    def learn(self, rows: VerifiedRows) -> None:
        """Learns nothing: the text is all there is."""

    def forget(self, request_id: str) -> None:
        self._requests.pop(request_id, None)


class _Past:
    """A tenant's last answers, the newest text first, and what looking them up is worth."""

    def __init__(self) -> None:
        self.texts = [_Text(), _Text()]
        self.judge = _Judge()

    def add(self, answer: Iterable[int]) -> None:
        newest = self.texts[0]
        newest.extend(answer)
        newest.extend([_END])
        if len(newest.tokens) > _MAX_PAST:
            self.texts = [_Text(), newest]


@dataclass
class _Answer:
    """A request that is being answered."""

    tenant: str
    tokens: list[int]
    """From the prompt's last tokens on, since an answer's beginning is a guess as well."""
    num_read: int
    """Tokens of the request, prompt included, of which `tokens` has the last."""
    record: _Record = field(default_factory=_Record)


class PastSource:
    """Retrieval from past answers to requests of the same tenant, that is with the same cache salt.

    An answer comes faster where another request was told something similar, and how fast it comes
    must not tell one tenant what another one was told. Requests without a salt are one tenant.

    Source: the global tree of suffix decoding (arXiv 2411.04975); places, scores and tenants are
    ours.
    """

    num_successors = 0

    def __init__(self) -> None:
        self._requests: dict[str, _Answer] = {}
        self._tenants: OrderedDict[str, _Past] = OrderedDict()

    def begin(self, request: DraftRequest) -> Continue:
        """Returns a look-up of how past answers went on after a path's last tokens."""
        known = self._requests.get(request.request_id)
        if known is None:
            first = max(0, len(request.tokens) - request.num_new_tokens - _MAX_MATCH)
            known = _Answer(request.tenant, [], first)
            self._requests[request.request_id] = known
        new = request.tokens[known.num_read :].tolist()
        known.num_read += len(new)
        known.tokens += new
        past, record = self._of(known.tenant), known.record
        past.judge.learn(record, new)
        last = tuple(known.tokens[-_MAX_MATCH:])
        return lambda path: past.judge.after(record, path, past.texts, (*last, *path)[-_MAX_MATCH:])

    def learn(self, rows: VerifiedRows) -> None:
        """Learns nothing: the texts are all there is."""

    def forget(self, request_id: str) -> None:
        """Remembers a request's answer, now that it has ended."""
        if (ended := self._requests.pop(request_id, None)) is not None:
            self._of(ended.tenant).add(ended.tokens)

    def _of(self, tenant: str) -> _Past:
        """A tenant's answers; the tenant is now the one that asked last."""
        past = self._tenants.setdefault(tenant, _Past())
        self._tenants.move_to_end(tenant)
        if len(self._tenants) > _MAX_TENANTS:
            self._tenants.popitem(last=False)
        return past
