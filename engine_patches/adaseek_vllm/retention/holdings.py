"""The blocks that sessions hold, and the limits on them. No vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from adaseek_vllm.retention.sessions import Ledger, Session, SessionKey

__all__ = ["BlockStore", "Holdings", "HostCopies"]


class BlockStore(Protocol):
    """The blocks of the prefix cache, by id."""

    def hold(self, blocks: Sequence[int]) -> None:
        """Adds a reference to each block; a free one leaves the free queue."""
        ...

    def release(self, blocks: Sequence[int]) -> None:
        """Takes a reference off each block; the last of them is to be reused first."""
        ...

    def num_free(self) -> int:
        """Returns the number of blocks in the free queue."""
        ...


class HostCopies(Protocol):
    """Copies of contexts in host memory."""

    def copy_out(self, session: SessionKey, blocks: Sequence[int]) -> None:
        """Begins to copy the blocks that a session holds."""
        ...

    def is_copying(self, session: SessionKey) -> bool:
        """Returns whether a session's context is on its way to host memory."""
        ...

    def cancel(self, session: SessionKey, num_kept: int) -> None:
        """Records that a session has let all but its first `num_kept` blocks go."""
        ...

    def num_copied(self, blocks: Sequence[int]) -> int:
        """Returns how many of the first `blocks` have a copy that can be read."""
        ...

    def forget(self, blocks: Sequence[int]) -> None:
        """Forgets the copies of blocks that nobody is expected to want."""
        ...

    def clear(self) -> None:
        """Forgets every copy."""
        ...


class Holdings:
    """References to blocks, by session; each is counted once however many sessions share it.

    Args:
        blocks: the prefix cache's blocks.
        max_blocks: different blocks that all sessions may hold together.
        max_tenant_blocks: different blocks that one tenant's sessions may hold.
    """

    def __init__(self, blocks: BlockStore, *, max_blocks: int, max_tenant_blocks: int) -> None:
        self.ledger = Ledger()
        self.max_blocks = max_blocks
        self.max_tenant_blocks = max_tenant_blocks
        self._blocks = blocks
        self._sessions: dict[SessionKey, Session] = {}

    @property
    def sessions(self) -> list[Session]:
        """The sessions that hold blocks, those looked at longest ago first."""
        return list(self._sessions.values())

    @property
    def next_to_look_at(self) -> Session | None:
        """The session that was looked at longest ago; None if none holds blocks."""
        return next(iter(self._sessions.values()), None)

    @property
    def num_blocks(self) -> int:
        """Different blocks that are held."""
        return self.ledger.num_blocks

    def num_free(self) -> int:
        """Returns the number of blocks in the free queue."""
        return self._blocks.num_free()

    def looked_at(self, session: Session) -> None:
        """Moves a session that holds blocks to the end of the line."""
        self._sessions[session.key] = self._sessions.pop(session.key)

    def allowed(self, session: Session, blocks: Sequence[int]) -> list[int]:
        """Returns the start of `blocks` that its tenant may hold if nobody else held any."""
        return self._fitting(session, blocks, self.ledger.num_blocks + self.max_blocks)

    def fitting(self, session: Session, blocks: Sequence[int]) -> list[int]:
        """Returns the start of `blocks` that it may hold beside what is held."""
        return self._fitting(session, blocks, self.max_blocks)

    def num_over(self, blocks: Sequence[int]) -> int:
        """Returns how many blocks too many would be held with `blocks`; below zero, how few."""
        return self.ledger.num_blocks + self.ledger.num_new(blocks) - self.max_blocks

    def has_room(self, session: Session, blocks: Sequence[int], num_more: int) -> bool:
        """Returns whether it may hold `blocks` and `num_more` others beside what is held."""
        tenant = session.key.tenant
        num_new = self.ledger.num_new(blocks) + num_more
        num_mine = self.ledger.num_tenant_blocks(tenant) + len(blocks) + num_more
        return self.ledger.num_blocks + num_new <= self.max_blocks and (
            not tenant or num_mine <= self.max_tenant_blocks
        )

    def take(self, session: Session, blocks: list[int]) -> None:
        """Holds `blocks` for a session, after what it holds."""
        if not blocks:
            return
        self._blocks.hold(blocks)
        self.ledger.add(session.key.tenant, blocks)
        session.held = session.held + blocks
        self._sessions[session.key] = session

    def let_go(self, session: Session, num_kept: int) -> list[int]:
        """Releases all but the first `num_kept` blocks of a session; returns what it released."""
        released = session.held[num_kept:]
        if not released:
            return []
        session.held = session.held[:num_kept]
        self.ledger.remove(session.key.tenant, released)
        self._blocks.release(released)
        if not session.held:
            self._sessions.pop(session.key, None)
        return released

    def _fitting(self, session: Session, blocks: Sequence[int], max_blocks: int) -> list[int]:
        tenant = session.key.tenant
        return self.ledger.fitting(
            tenant,
            blocks,
            max_blocks=max_blocks,
            # Sessions without a salt are not one tenant: only the common limit binds them.
            max_tenant_blocks=self.max_tenant_blocks if tenant else self.max_blocks,
        )
