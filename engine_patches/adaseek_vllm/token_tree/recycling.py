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

_MEMORY = 1.0 / 500.0
"""Weight of one more row in the learned chances of the ranks."""
_NUM_PAIRS = 1 << 17
_MAX_TENANTS = 32
"""Of 8 MiB each when full; the tenant that asked longest ago is forgotten."""
_MULTIPLIERS = 0x9E3779B1, 0x85EBCA77
"""Odd and without a pattern, to spread keys over the slots."""


class _Memory:
    """Key -> the target's likeliest next tokens, the latest ones; a new key may displace one.

    How often a remembered token of each rank comes true is learned on the way.
    """

    def __init__(self, num_slots: int, width: int, first_chance: float) -> None:
        self._keys: NDArray[np.int64] = np.full(num_slots, -1, dtype=np.int64)
        self._tokens: NDArray[np.int32] = np.zeros((num_slots, width), dtype=np.int32)
        self.chances: NDArray[np.float64] = np.array(
            [first_chance * 0.5**rank for rank in range(width)]
        )

    def find(self, key: int) -> list[int] | None:
        """Returns the tokens after a key, if they are known."""
        slot = _slots(key, len(self._keys))
        if self._keys[slot] != key:
            return None
        tokens: list[int] = self._tokens[slot].tolist()
        return tokens

    def knows(self, keys: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which keys are remembered, [keys]."""
        known: NDArray[np.bool_] = self._keys[_slots(keys, len(self._keys))] == keys
        return known

    def judge(self, keys: NDArray[np.int64], said: NDArray[np.int64]) -> None:
        """Learns how well the tokens of known keys foretold what was said."""
        for hits in self._tokens[_slots(keys, len(self._keys))] == said[:, None]:
            self.chances += _MEMORY * (hits - self.chances)

    def remember(self, keys: NDArray[np.int64], tokens: NDArray[np.int64]) -> None:
        slots = _slots(keys, len(self._keys))
        self._keys[slots], self._tokens[slots] = keys, tokens


class _Successors:
    """What the target found likely after each token and each pair, in one tenant's requests."""

    def __init__(self, width: int) -> None:
        self._pairs = _Memory(_NUM_PAIRS, width, 0.5)
        self._singles = _Memory(_NUM_PAIRS, width, 0.3)

    def after(self, previous: int, token: int) -> Iterable[tuple[int, float]]:
        """Returns the successors of a pair, or of its second token, with their chances."""
        for memory, key in ((self._pairs, (previous << 32) | token), (self._singles, token)):
            if (found := memory.find(key)) is not None:
                return zip(found, memory.chances.tolist(), strict=True)
        return ()

    def learn(
        self,
        pairs: NDArray[np.int64],
        singles: NDArray[np.int64],
        successors: NDArray[np.int64],
        said: NDArray[np.int64],
    ) -> None:
        """Remembers successors of rows and learns how well the remembered ones did."""
        knows_pair = self._pairs.knows(pairs)
        on_path = said >= 0
        for memory, keys, judged in (
            (self._pairs, pairs, on_path & knows_pair),
            (self._singles, singles, on_path & ~knows_pair & self._singles.knows(singles)),
        ):
            memory.judge(keys[judged], said[judged])
            memory.remember(keys, successors)


class RecyclingSource:
    """The likeliest successors of each pair of tokens as the target gave them last.

    Rows off the accepted path teach as well. A pair that was never seen is looked up by its second
    token alone. How often a successor of each rank comes true is learned on the way, for pairs and
    for single tokens, so a rank's chance needs no tuning.

    Requests share the memory, as in the paper, but only those of one tenant, that is with the same
    cache salt: an answer comes faster where another request was told similar things, and how fast
    it comes must not tell one tenant what another one was told. Requests without a salt are one
    tenant.

    Source: Token Recycling (arXiv 2408.08696), which looks single tokens up and has one fixed tree;
    pairs, learned chances and tenants are ours.
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
        pairs, successors = _pair(rows.previous, rows.tokens), rows.successors
        for tenant in dict.fromkeys(rows.tenants):
            own = np.array([other == tenant for other in rows.tenants])
            self._of(tenant).learn(
                pairs[own],
                rows.tokens[own],
                successors[own, : self.num_successors],
                rows.said[own],
            )

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
