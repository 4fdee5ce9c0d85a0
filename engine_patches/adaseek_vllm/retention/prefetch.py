"""Brings paused contexts back from host memory shortly before their turns. No vLLM, no clock.

A context that comes back takes free blocks only, never held ones, and no more than may be in
flight; while it is copied, its blocks cannot be given to anybody. Whoever lacks memory meanwhile
cancels it: its blocks are free as soon as the copy ends. Once there, it is held like any other
paused context, and goes first to whoever needs its memory.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from adaseek_vllm.retention.holdings import Holdings
from adaseek_vllm.retention.outlook import Outlook
from adaseek_vllm.retention.sessions import Prefetch, Session, SessionKey

__all__ = ["HostReturns", "Prefetcher"]

# Contexts looked at each time: a look costs ten microseconds or so.
_NUM_LOOKS = 8
# What was brought back is let go only if holding it wastes this much more than loading it again.
_HYSTERESIS = 0.15


class HostReturns(Protocol):
    """Copies contexts from host memory into free blocks of the GPU."""

    def lacking(self, context: object) -> tuple[list[int], int]:
        """Returns a context's first blocks that are on the GPU, and how many could be added."""
        ...

    def begin(self, session: SessionKey, context: object, first: int, num_blocks: int) -> list[int]:
        """Begins to copy `num_blocks` from the block `first` on; returns the blocks it takes."""
        ...

    def take_ended(self) -> list[tuple[SessionKey, bool]]:
        """Returns whose copies ended since the last call, and whether they are good."""
        ...

    def publish(self, context: object, first: int, blocks: Sequence[int]) -> None:
        """Lets the next turn hit blocks that were copied."""
        ...

    def give_back(self, blocks: Sequence[int]) -> None:
        """Frees what `begin` took, as far as nobody else refers to it."""
        ...


@dataclass
class _Coming:
    """A context on its way back, behind its first blocks, which never left."""

    session: Session
    context: object
    first: int
    blocks: list[int]
    is_cancelled: bool = False


class Prefetcher:
    """Knows the contexts that are in host memory only, and brings some of them back.

    Args:
        holdings: who holds which blocks.
        outlook: what is expected of sessions and of the engine.
        returns: copies; None brings nothing back.
        count: called with what becomes of each: `hit`, `late` or `wasted`.
        max_in_flight: blocks that are copied back at a time, at most.
        block_tokens: tokens of a block.
    """

    def __init__(
        self,
        holdings: Holdings,
        outlook: Outlook,
        returns: HostReturns | None,
        count: Callable[[str], None],
        *,
        max_in_flight: int,
        block_tokens: int,
    ) -> None:
        self.on_host: OrderedDict[SessionKey, Session] = OrderedDict()
        self.max_in_flight = max_in_flight
        self._holdings = holdings
        self._outlook = outlook
        self._returns = returns
        self._count = count
        self._block_tokens = block_tokens
        self._coming: dict[SessionKey, _Coming] = {}

    @property
    def in_flight(self) -> list[int]:
        """Blocks that are being copied to; nobody else can have them yet."""
        return [block for coming in self._coming.values() for block in coming.blocks]

    @property
    def num_in_flight(self) -> int:
        """How many they are."""
        return sum(len(coming.blocks) for coming in self._coming.values())

    def is_coming(self, session: Session) -> bool:
        """Returns whether a context is on its way, and would be of use."""
        coming = self._coming.get(session.key)
        return coming is not None and coming.session is session and not coming.is_cancelled

    def left(self, session: Session) -> None:
        """Records that a context is in host memory, and need not be on the GPU."""
        self.on_host[session.key] = session

    def forget(self, session: Session) -> None:
        """Records that a context is not to be brought back."""
        self.on_host.pop(session.key, None)
        if not session.held:
            session.context = None

    def resumed(self, session: Session) -> None:
        """Records that a session's next turn has come."""
        if session.prefetch is Prefetch.HELD:
            self._count("hit")
        elif self.is_coming(session):
            self._count("late")
        self.on_host.pop(session.key, None)

    def let_go(self, session: Session, num_kept: int) -> None:
        """Records that a session is about to hold only its first `num_kept` blocks."""
        if self.is_coming(session) and num_kept < max(1, self._coming[session.key].first):
            self._cancel(self._coming[session.key])
        is_away = session.paused_s is not None
        if session.prefetch is Prefetch.HELD and is_away and num_kept < len(session.held):
            self._waste(session)
            self.on_host[session.key] = session
        if num_kept == 0 and session.key not in self.on_host:
            session.context = None

    def cancel_all(self) -> None:
        """Records that somebody lacks memory, or that what is copied may be wrong."""
        for coming in self._coming.values():
            if not coming.is_cancelled:
                self._cancel(coming)

    def is_worth_holding(self, session: Session, now_s: float) -> bool:
        """Returns whether a context that was brought back should still wait for its turn."""
        num_tokens = len(session.held) * self._block_tokens
        gain = self._outlook.prefetch_gain(session, num_tokens, now_s, hysteresis=_HYSTERESIS)
        return gain > 0

    def look(self, now_s: float) -> None:
        """Begins to bring back, of the contexts whose turn it is to be looked at, what is worth it.

        Nothing is begun while somebody lacks memory.
        """
        if self._returns is None:
            return
        for session in list(self._next_few()):
            self._consider(self._returns, session, now_s)

    def take_ended(self) -> None:
        """Holds the contexts that are back, for their turns."""
        if self._returns is None or not self._coming:
            return
        for key, is_good in self._returns.take_ended():
            coming = self._coming.pop(key)
            if coming.is_cancelled:
                pass
            elif is_good and len(coming.session.held) == coming.first:
                self._arrive(self._returns, coming)
            else:
                self._waste(coming.session)
            self._returns.give_back(coming.blocks)

    # Within.

    def _next_few(self) -> Iterator[Session]:
        for key in list(itertools.islice(self.on_host, _NUM_LOOKS)):
            self.on_host.move_to_end(key)
            yield self.on_host[key]

    def _consider(self, returns: HostReturns, session: Session, now_s: float) -> None:
        is_tried = session.prefetch is not Prefetch.NOT or session.key in self._coming
        if is_tried or session.held or session.paused_s is None or session.context is None:
            return
        if now_s >= session.expires_s:
            session.context = None
            return
        if self._outlook.prefetch_gain(session, session.context_tokens, now_s) <= 0:
            return
        there, num_lacking = returns.lacking(session.context)
        if not num_lacking:
            if not there:
                self.forget(session)
            return
        num_blocks = min(num_lacking, self.max_in_flight)
        num_tokens = num_blocks * self._block_tokens
        is_worth_it = self._outlook.prefetch_gain(session, num_tokens, now_s) > 0
        if not is_worth_it or not self._has_room(session, there, num_blocks):
            return
        self._holdings.take(session, there)
        blocks = returns.begin(session.key, session.context, len(there), num_blocks)
        self._coming[session.key] = _Coming(session, session.context, len(there), blocks)
        session.prefetch = Prefetch.COMING

    def _has_room(self, session: Session, there: Sequence[int], num_blocks: int) -> bool:
        """Returns whether free blocks are left for all that a step can want, and limits allow."""
        load = self._outlook.load
        # One for each request that generates, and a step full of prompts.
        reserve = load.decode_tokens + math.ceil(load.step_tokens / self._block_tokens)
        num_left = self._holdings.num_free() - len(there) - num_blocks
        is_allowed = self._holdings.has_room(session, there, num_blocks + self.num_in_flight)
        return (
            is_allowed
            and num_left >= reserve
            and self.num_in_flight + num_blocks <= self.max_in_flight
        )

    def _arrive(self, returns: HostReturns, coming: _Coming) -> None:
        session = coming.session
        returns.publish(coming.context, coming.first, coming.blocks)
        self._holdings.take(session, self._holdings.fitting(session, coming.blocks))
        self._outlook.forget(session)
        self.on_host.pop(session.key, None)
        session.prefetch = Prefetch.HELD

    def _cancel(self, coming: _Coming) -> None:
        coming.is_cancelled = True
        self._waste(coming.session)

    def _waste(self, session: Session) -> None:
        session.prefetch = Prefetch.SPENT
        # One whose turn has come was counted as late.
        if session.paused_s is not None:
            self._count("wasted")
