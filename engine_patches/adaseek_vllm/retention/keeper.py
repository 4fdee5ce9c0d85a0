"""Holds blocks for paused sessions, and decides who gives when others want them. No vLLM."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from adaseek_vllm.retention.accounts import Accounts
from adaseek_vllm.retention.holdings import Holdings, HostCopies
from adaseek_vllm.retention.outlook import Outlook
from adaseek_vllm.retention.policy import Action, PausedSession, Policy
from adaseek_vllm.retention.prefetch import Prefetcher
from adaseek_vllm.retention.sessions import Prefetch, Session
from adaseek_vllm.retention.turns import Released

__all__ = ["Keeper"]


class Keeper:
    """Moves references to blocks, as a policy says.

    Args:
        policy: says who is worth most.
        holdings: who holds which blocks.
        outlook: what is expected of sessions and of the engine.
        accounts: counts what is done.
        prefetcher: knows who is on the way back from host memory.
        host: copies in host memory; None if there is no room for any.
        min_blocks: fewer are never held.
        now: returns the time in seconds.
    """

    def __init__(
        self,
        policy: Policy,
        holdings: Holdings,
        outlook: Outlook,
        accounts: Accounts,
        prefetcher: Prefetcher,
        host: HostCopies | None,
        *,
        min_blocks: float,
        now: Callable[[], float],
    ) -> None:
        self._policy = policy
        self._holdings = holdings
        self._outlook = outlook
        self._accounts = accounts
        self._prefetcher = prefetcher
        self._host = host
        self._min_blocks = min_blocks
        self._now = now

    def reclaim(self, num_blocks: int, own: Session | None, *, must: bool) -> Released | None:
        """Releases blocks of the session that is worth least; returns them, None if there are none.

        Args:
            num_blocks: blocks wanted; at least one is released.
            own: whose turn wants them; what it holds is taken last.
            must: whether sessions that are worth holding must give, too.
        """
        victim = self._least_worth(own, must=must)
        if victim is None and must and own is not None and own.held:
            victim = own
        if victim is None:
            return None
        # The tail goes first: without the head of a context, its tail is never hit.
        taken = self.let_go(victim, max(0, len(victim.held) - max(1, num_blocks)))
        self._accounts.counts.num_reclaimed_blocks += len(taken)
        return Released(victim, taken)

    def restore(self, released: Sequence[Released]) -> None:
        """Holds again what `reclaim` released in vain; nobody may have taken a block since."""
        for given in reversed(released):
            self._holdings.take(given.session, given.blocks)
            self._accounts.counts.num_reclaimed_blocks -= len(given.blocks)

    def look_again(self, session: Session, now_s: float) -> Sequence[int]:
        """Lets a session go if it is time; returns blocks to reuse first."""
        # Each is looked at in turn: those that stay go to the end of the line.
        self._holdings.looked_at(session)
        if session.paused_s is None:
            return ()
        if now_s >= session.expires_s:
            self._accounts.counts.num_expired += 1
            self._accounts.let_go(len(self.let_go(session, 0)), "ttl")
            return ()
        if self._prefetcher.is_coming(session):
            return ()
        if session.prefetch is Prefetch.HELD:
            if not self._prefetcher.is_worth_holding(session, now_s):
                self.let_go(session, 0)
            return ()
        action = self._policy.choose(self._outlook.of(session, now_s), self._outlook.load).action
        is_copying = self._host is not None and self._host.is_copying(session.key)
        if action is Action.PIN or (action is Action.HOST and is_copying):
            return ()
        self._accounts.decided(action, "again")
        if action is Action.HOST:
            if self._host is not None:
                self._host.copy_out(session.key, session.held)
            return ()
        released = self.let_go(session, 0)
        return released[session.num_first_blocks :] if action is Action.DROP else ()

    def _least_worth(self, own: Session | None, *, must: bool) -> Session | None:
        """Returns who is worth least of those who hold blocks, `own` left out."""
        now_s, load = self._now(), self._outlook.load
        values = [
            (self._policy.keep_value(self._outlook.of(session, now_s), load), index, session)
            for index, session in enumerate(self._holdings.sessions)
            if session is not own
        ]
        if not values:
            return None
        value, _, session = min(values)
        return session if must or value < 0 else None

    def hold(self, session: Session, blocks: Sequence[int], view: PausedSession) -> None:
        """Holds as much of the start of a context as the limits allow."""
        allowed = self._holdings.allowed(session, blocks)
        if (num_over := self._holdings.num_over(allowed)) > 0:
            self._make_room(num_over, worth_more_than=view)
        fitting = self._holdings.fitting(session, allowed)
        if len(fitting) >= self._min_blocks:
            self._holdings.take(session, fitting)

    def _make_room(self, num_blocks: int, *, worth_more_than: PausedSession) -> None:
        """Lets sessions go that are worth less than a new one, until `num_blocks` are not held."""
        enough = self._holdings.num_blocks - num_blocks
        load = self._outlook.load
        mine = self._policy.keep_value(worth_more_than, load)
        while self._holdings.num_blocks > enough:
            victim = self._least_worth(None, must=True)
            if victim is None:
                return
            theirs = self._policy.keep_value(
                self._outlook.of(victim, self._now()), self._outlook.load
            )
            if theirs >= mine:
                return
            num_over = self._holdings.num_blocks - enough
            taken = self.let_go(victim, max(0, len(victim.held) - num_over))
            self._accounts.let_go(len(taken), "quota")

    def let_go(self, session: Session, num_kept: int) -> list[int]:
        """Releases all but the first `num_kept` blocks of a session; returns what it released."""
        self._prefetcher.let_go(session, num_kept)
        released = self._holdings.let_go(session, num_kept)
        if released:
            self._outlook.forget(session)
            if self._host is not None:
                self._host.cancel(session.key, num_kept)
        return released
