"""Equal requests that are asked at the same time: one is made, the others wait for its answer."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from adaseek.evaluation.base import CallMemo, CallRecord

__all__ = ["SingleFlight"]

_PATIENCE_S = 300.0


class SingleFlight:
    """Makes equal requests one, for all threads that share a memo. Thread-safe.

    Nobody waits for ever, whatever the user's code holds locked meanwhile: a waiting caller asks
    for itself when its patience ends. A caller that is inside another request must not wait at
    all (`may_wait`): two such callers could wait for each other.
    """

    def __init__(self, *, patience_s: float = _PATIENCE_S) -> None:
        """Begins without requests; `patience_s` is the longest that a caller waits."""
        self._patience_s = patience_s
        self._under_way = _UnderWay()

    @contextmanager
    def answer(
        self, memo: CallMemo, key: str, *, may_wait: bool = True, wait_s: float | None = None
    ) -> Iterator[CallRecord | None]:
        """Yields the memo's answer, after waiting for it if another caller is just asking.

        None: make the request now, and put its answer into the memo before the block ends. If the
        block raises, one of the waiting callers takes over. Async code needs `aanswer`: a caller
        in an event loop does not wait here, as the request may be under way in that very loop.

        Args:
            may_wait: False if this caller is itself inside a request.
            wait_s: longest time to wait, where it is shorter than the patience.
        """
        turn = _Turn(self._under_way, memo, key, may_wait=may_wait and not _in_event_loop())
        until_s = time.monotonic() + self._longest(wait_s)
        while (other := turn.next()) is not None:
            try:
                turn.landed(answered=other.result(max(0.0, until_s - time.monotonic())))
            except FutureTimeoutError:
                turn.may_wait = False
        with turn.taken() as record:
            yield record

    @asynccontextmanager
    async def aanswer(
        self, memo: CallMemo, key: str, *, may_wait: bool = True, wait_s: float | None = None
    ) -> AsyncIterator[CallRecord | None]:
        """As `answer`, while the event loop goes on."""
        turn = _Turn(self._under_way, memo, key, may_wait=may_wait)
        until_s = time.monotonic() + self._longest(wait_s)
        while (other := turn.next()) is not None:
            # Shielded: a caller that is cancelled must not cancel what the others wait for. And no
            # thread: asyncio's are few, and the one that is asking may need one of them.
            landing = asyncio.shield(asyncio.wrap_future(other))
            try:
                rest_s = max(0.0, until_s - time.monotonic())
                turn.landed(answered=await asyncio.wait_for(landing, rest_s))
            except TimeoutError:
                turn.may_wait = False
        with turn.taken() as record:
            yield record

    def _longest(self, wait_s: float | None) -> float:
        return self._patience_s if wait_s is None else min(self._patience_s, wait_s)


class _UnderWay:
    """The requests that are being made now, by key; a future turns true if one was answered."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: dict[str, Future[bool]] = {}

    def join(self, key: str) -> Future[bool] | None:
        """Returns the request for `key`; None: there was none, and now it is the caller's."""
        with self._lock:
            other = self._requests.get(key)
            if other is None:
                self._requests[key] = Future()
            return other

    def land(self, key: str, *, answered: bool) -> None:
        """Ends the caller's request and wakes everybody who waits for it."""
        with self._lock:
            request = self._requests.pop(key)
        request.set_result(answered)


@dataclass
class _Turn:
    """One caller's way to an answer; `leads` means that its own request is the one to wait for."""

    under_way: _UnderWay
    memo: CallMemo
    key: str
    may_wait: bool
    record: CallRecord | None = None
    leads: bool = False

    def next(self) -> Future[bool] | None:
        """Returns what to wait for; None when this caller has an answer or has to ask."""
        self.record = self.memo.get(self.key)
        if self.record is not None or not self.may_wait:
            return None
        other = self.under_way.join(self.key)
        self.leads = other is None
        return other

    def landed(self, *, answered: bool) -> None:
        # An answer that the memo cannot keep is of no use to others: they ask side by side. After
        # a failure they take turns.
        self.may_wait = not answered

    @contextmanager
    def taken(self) -> Iterator[CallRecord | None]:
        """Yields the answer, or None to the caller that has to ask, and wakes the others after."""
        if not self.leads:
            yield self.record
            return
        answered = False
        try:
            # The answer may have come between the look into the memo and the taking of the lead.
            yield self.memo.get(self.key)
            answered = True
        finally:
            self.under_way.land(self.key, answered=answered)


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
