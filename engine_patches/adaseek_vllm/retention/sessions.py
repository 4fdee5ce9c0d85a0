"""What is remembered of sessions between their turns, and who holds which blocks."""

from __future__ import annotations

import enum
from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

__all__ = ["Ledger", "Prefetch", "Session", "SessionKey", "SessionTable"]


class Prefetch(enum.Enum):
    """What has become of a paused context in host memory; it is brought back once in a pause."""

    NOT = "not"
    COMING = "coming"
    HELD = "held"
    """It is back, and held for the next turn."""
    SPENT = "spent"
    """It was let go, or given up on the way."""


@dataclass(frozen=True)
class SessionKey:
    """Who a session belongs to.

    Args:
        tenant: stands for the cache salt; "" without one. Tenants never share blocks.
        adapter: name of the LoRA adapter; "" without one.
        name: the session id, or what stands for it.
    """

    tenant: str
    adapter: str
    name: str


@dataclass
class Session:
    """One session, between its first turn and the last one's expiry.

    Args:
        key: who it is.
        first_arrival_s: when its first turn arrived, on the engine's clock.
        tool: the tool that its last turn called; "" if unknown.
        kind: how its last turn ended: tool, plain or anonymous.
        paused_s: when its last turn ended; None while a turn is queued or runs.
        hint_s: what the client expects the tool to take.
        expected_s: what the tool was expected to take when its last turn ended.
        expires_s: when it is let go at the latest.
        context_tokens: tokens that its last turn ended with.
        num_context_blocks: blocks that held them.
        survival_ratio: share of what it held that its turns repeat, averaged.
        num_first_blocks: blocks of its first prompt, which other sessions may share.
        num_turns: turns that have ended.
        held: ids of the blocks it holds, from the start of the context, without gaps.
        next_request: the request of its next turn, while that waits to be scheduled.
        queued_s: when that request arrived.
        fingerprint: hash of the last full block of its context, to recognise a longer prompt.
        context: what stands for its context's tokens, as long as it may be in host memory only.
        prefetch: whether its context was brought back from there in this pause.
    """

    key: SessionKey
    first_arrival_s: float
    tool: str = ""
    kind: str = "plain"
    paused_s: float | None = None
    hint_s: float | None = None
    expected_s: float = 0.0
    expires_s: float = 0.0
    context_tokens: int = 0
    num_context_blocks: int = 0
    survival_ratio: float = 1.0
    num_first_blocks: int = 0
    num_turns: int = 0
    held: list[int] = field(default_factory=list)
    next_request: str | None = None
    queued_s: float = 0.0
    fingerprint: Hashable = None
    context: object = None
    prefetch: Prefetch = Prefetch.NOT


class Ledger:
    """Counts which blocks are held, once for all tenants and once for each."""

    def __init__(self) -> None:
        self._holders: Counter[int] = Counter()
        self._by_tenant: dict[str, Counter[int]] = {}

    @property
    def num_blocks(self) -> int:
        """Different blocks that are held by anyone."""
        return len(self._holders)

    def num_tenant_blocks(self, tenant: str) -> int:
        """Different blocks that sessions of `tenant` hold."""
        return len(self._by_tenant.get(tenant, ()))

    def num_holders(self, block: int) -> int:
        """Returns the number of sessions that hold `block`."""
        return self._holders[block]

    def num_exclusive(self, blocks: Iterable[int], *, held: bool = True) -> int:
        """Returns how many of `blocks` only their one session holds, or would hold.

        Args:
            blocks: blocks of one session.
            held: whether that session holds them now.
        """
        most = 1 if held else 0
        return sum(self._holders[block] <= most for block in blocks)

    def num_new(self, blocks: Iterable[int]) -> int:
        """Returns how many of `blocks` nobody holds."""
        return sum(block not in self._holders for block in blocks)

    def fitting(
        self, tenant: str, blocks: Iterable[int], *, max_blocks: int, max_tenant_blocks: int
    ) -> list[int]:
        """Returns the longest start of `blocks` that a tenant may hold beside what is held.

        Args:
            tenant: who would hold them.
            blocks: different blocks.
            max_blocks: limit on different blocks held by all.
            max_tenant_blocks: limit on different blocks held by `tenant`.
        """
        mine: Mapping[int, int] = self._by_tenant.get(tenant, {})
        num_all, num_mine = self.num_blocks, len(mine)
        taken: list[int] = []
        for block in blocks:
            num_all += block not in self._holders
            num_mine += block not in mine
            if num_all > max_blocks or num_mine > max_tenant_blocks:
                break
            taken.append(block)
        return taken

    def add(self, tenant: str, blocks: Iterable[int]) -> None:
        """Records that one more session of `tenant` holds `blocks`."""
        mine = self._by_tenant.setdefault(tenant, Counter())
        for block in blocks:
            self._holders[block] += 1
            mine[block] += 1

    def remove(self, tenant: str, blocks: Iterable[int]) -> None:
        """Records that one session of `tenant` lets go of `blocks`.

        Raises:
            KeyError: it does not hold one of them.
        """
        mine = self._by_tenant.get(tenant, Counter())
        for block in blocks:
            for counter in (self._holders, mine):
                if counter[block] < 1:
                    raise KeyError(f"block {block} is not held by {tenant!r}")
                counter[block] -= 1
                if counter[block] == 0:
                    del counter[block]
        if not mine:
            self._by_tenant.pop(tenant, None)


class SessionTable:
    """Sessions by key, least recently used first, bounded.

    Args:
        max_sessions: beyond this the least recently used session is returned for removal.
    """

    def __init__(self, max_sessions: int) -> None:
        self._max_sessions = max_sessions
        self._sessions: OrderedDict[SessionKey, Session] = OrderedDict()
        self._by_fingerprint: dict[Hashable, SessionKey] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._sessions.values()))

    def get(self, key: SessionKey) -> Session | None:
        return self._sessions.get(key)

    def find(self, fingerprints: Iterable[Hashable]) -> Session | None:
        """Returns the session whose context ends with the first known of `fingerprints`."""
        for fingerprint in fingerprints:
            if (key := self._by_fingerprint.get(fingerprint)) is not None:
                return self._sessions.get(key)
        return None

    def put(self, session: Session) -> list[Session]:
        """Adds or refreshes a session; returns those that no longer fit, removed."""
        self._sessions[session.key] = session
        self._sessions.move_to_end(session.key)
        overflow = []
        while len(self._sessions) > self._max_sessions:
            overflow.append(self.remove(next(iter(self._sessions))))
        return overflow

    def mark(self, session: Session, fingerprint: Hashable) -> None:
        """Records the fingerprint by which `find` knows the session from now on."""
        self._forget_fingerprint(session)
        session.fingerprint = fingerprint
        if fingerprint is not None:
            self._by_fingerprint[fingerprint] = session.key

    def remove(self, key: SessionKey) -> Session:
        """Removes and returns a session.

        Raises:
            KeyError: it is not there.
        """
        session = self._sessions.pop(key)
        self._forget_fingerprint(session)
        return session

    def _forget_fingerprint(self, session: Session) -> None:
        if self._by_fingerprint.get(session.fingerprint) == session.key:
            del self._by_fingerprint[session.fingerprint]
