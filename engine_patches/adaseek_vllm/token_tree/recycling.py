"""Guesses recycled from the target's own rows: what it found likely after a token before."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import overload

import numpy as np
from numpy.typing import NDArray

from adaseek_vllm.token_tree.guesses import Continue
from adaseek_vllm.token_tree.sources import DraftRequest, VerifiedRows

__all__ = ["RecyclingSource"]

_EDGES = np.array([0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.98, 0.99, 0.997])
"""Between the kinds of chances that are told apart."""
_CENTRES = np.array([0.01, *(_EDGES[1:] + _EDGES[:-1]) / 2, 0.999])
_MEMORY = 1.0 - 1.0 / 200.0
"""What one more guess leaves of the weight of older ones of its kind."""
_PRIOR = 4.0
"""Guesses that what is assumed of a kind counts as."""
_NUM_PAIRS = 1 << 17
_MAX_TENANTS = 32
"""Of 10 MiB each when full; the tenant that asked longest ago is forgotten."""
_MULTIPLIERS = 0x9E3779B1, 0x85EBCA77
"""Odd and without a pattern, to spread keys over the slots."""


class _Memory:
    """Key -> the target's likeliest next tokens, the latest ones; a new key may displace one.

    A successor's chance is what the target gave it then, as a kind (one of `_CENTRES`). How often
    those of a kind come true is learned on the way.
    """

    def __init__(self, num_slots: int, width: int, trust: float) -> None:
        """Args:
        trust: share of the chance then that is assumed to be left.
        """
        self._keys: NDArray[np.int64] = np.full(num_slots, -1, dtype=np.int64)
        self._tokens: NDArray[np.int32] = np.zeros((num_slots, width), dtype=np.int32)
        self._kinds: NDArray[np.uint8] = np.zeros((num_slots, width), dtype=np.uint8)
        self._hits = _PRIOR * trust * _CENTRES
        self._seen = np.full(len(_CENTRES), _PRIOR)
        self._worth: list[float] = (self._hits / self._seen).tolist()

    def find(self, key: int) -> list[tuple[int, float]] | None:
        """Returns the tokens after a key with their chances, if they are known."""
        slot = _slots(key, len(self._keys))
        if self._keys[slot] != key:
            return None
        worth = self._worth
        pairs = zip(self._tokens[slot].tolist(), self._kinds[slot].tolist(), strict=True)
        return [(token, worth[kind]) for token, kind in pairs]

    def knows(self, keys: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which keys are remembered, [keys]."""
        known: NDArray[np.bool_] = self._keys[_slots(keys, len(self._keys))] == keys
        return known

    def judge(self, keys: NDArray[np.int64], said: NDArray[np.int64]) -> None:
        """Learns how well the tokens of known keys foretold what was said."""
        slots = _slots(keys, len(self._keys))
        hits = self._tokens[slots] == said[:, None]
        # A token that is there twice came true once.
        hits[:, 1:] &= ~hits[:, :1]
        kinds = self._kinds[slots].ravel()
        seen = np.bincount(kinds, minlength=len(_CENTRES))
        self._hits = self._hits * _MEMORY**seen + np.bincount(kinds, hits.ravel(), len(_CENTRES))
        self._seen = self._seen * _MEMORY**seen + seen
        self._worth = (self._hits / self._seen).tolist()

    def remember(
        self, keys: NDArray[np.int64], tokens: NDArray[np.int64], chances: NDArray[np.float32]
    ) -> None:
        slots = _slots(keys, len(self._keys))
        self._keys[slots], self._tokens[slots] = keys, tokens
        self._kinds[slots] = np.searchsorted(_EDGES, chances)


class _Successors:
    """What the target found likely after each token and each pair, in one tenant's requests."""

    def __init__(self, width: int) -> None:
        self._pairs = _Memory(_NUM_PAIRS, width, 0.7)
        self._singles = _Memory(_NUM_PAIRS, width, 0.4)

    def after(self, previous: int, token: int) -> Iterable[tuple[int, float]]:
        """Returns the successors of a pair, or of its second token, with their chances."""
        if (found := self._pairs.find((previous << 32) | token)) is None:
            found = self._singles.find(token)
        return found or ()

    def learn(self, rows: VerifiedRows, own: NDArray[np.bool_], width: int) -> None:
        """Remembers the first `width` successors of its `own` rows, and learns how well the
        remembered ones did."""
        tokens, said = rows.tokens[own], rows.said[own]
        pairs = _pair(rows.previous[own], tokens)
        successors, chances = rows.successors[own, :width], rows.chances[own, :width]
        knows_pair, on_path = self._pairs.knows(pairs), said >= 0
        for memory, keys, judged in (
            (self._pairs, pairs, on_path & knows_pair),
            (self._singles, tokens, on_path & ~knows_pair & self._singles.knows(tokens)),
        ):
            memory.judge(keys[judged], said[judged])
            memory.remember(keys, successors, chances)


class RecyclingSource:
    """The likeliest successors of each pair of tokens as the target gave them last.

    Rows off the accepted path teach as well. A pair that was never seen is looked up by its second
    token alone. A successor is as likely as those were that the target had been as sure of, which
    is learned on the way, for pairs and for single tokens.

    Requests share the memory, as in the paper, but only those of one tenant, that is with the same
    cache salt: an answer comes faster where another request was told similar things, and how fast
    it comes must not tell one tenant what another one was told. Requests without a salt are one
    tenant.

    Source: Token Recycling (arXiv 2408.08696), which looks single tokens up and has one fixed tree;
    pairs, chances and tenants are ours.
    """

    num_successors = 6

    def __init__(self) -> None:
        self._tenants: OrderedDict[str, _Successors] = OrderedDict()

    def begin(self, request: DraftRequest) -> Continue:
        """Returns a look-up of what the target found likely after a path's last two tokens."""
        before = (-1, *request.tokens[-2:].tolist())[-2:]
        known = self._of(request.tenant)

        def after(path: tuple[int, ...]) -> Iterable[tuple[int, float]]:
            previous, token = (*before, *path[-2:])[-2:]
            return known.after(previous, token)

        return after

    def learn(self, rows: VerifiedRows) -> None:
        """Remembers the rows' successors and learns how well the remembered ones did."""
        for tenant in dict.fromkeys(rows.tenants):
            own = np.array([other == tenant for other in rows.tenants])
            self._of(tenant).learn(rows, own, self.num_successors)

    def forget(self, request_id: str) -> None:
        """Keeps everything: a token's successors belong to no request."""

    def _of(self, tenant: str) -> _Successors:
        """What a tenant's requests taught; the tenant is now the one that asked last."""
        if tenant not in self._tenants:
            self._tenants[tenant] = _Successors(self.num_successors)
        self._tenants.move_to_end(tenant)
        if len(self._tenants) > _MAX_TENANTS:
            self._tenants.popitem(last=False)
        return self._tenants[tenant]


@overload
def _slots(keys: int, num_slots: int) -> int: ...
@overload
def _slots(keys: NDArray[np.int64], num_slots: int) -> NDArray[np.int64]: ...
def _slots(keys: NDArray[np.int64] | int, num_slots: int) -> NDArray[np.int64] | int:
    mixed = (keys & 0xFFFFFFFF) * _MULTIPLIERS[0] + (keys >> 32) * _MULTIPLIERS[1]
    return (mixed >> 7) % num_slots


def _pair(previous: NDArray[np.int64], tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    return (previous << 32) | tokens
