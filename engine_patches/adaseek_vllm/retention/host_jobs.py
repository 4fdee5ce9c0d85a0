"""Copies of paused contexts to host memory and back: what to copy when. Pure: no vLLM, no bytes.

Blocks that are copied out stay held by their session until their copies are complete. If they
are let go earlier, their memory is free at once and the copy counts for nothing, so that nobody
ever waits for a copy.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from adaseek_vllm.retention.host_pool import HostPool
from adaseek_vllm.retention.sessions import SessionKey

__all__ = ["CopyJob", "HostSwap"]


@dataclass
class CopyJob:
    """One copy of some blocks, in one direction.

    Args:
        job_id: different for every job.
        blocks: blocks on the device.
        slots: their slots in host memory.
        keys: what the copies are known by.
        request_id: who waits for the blocks; "" if they are copied out, or back ahead of a turn.
        session: whose context is copied out, or back ahead of its turn.
        end: how many blocks of the session come before the end of these.
        is_stale: whether a source was let go before its copy was complete.
        is_back: whether it is from host memory to the device.
    """

    job_id: int
    blocks: list[int]
    slots: list[int]
    keys: list[bytes]
    request_id: str = ""
    session: SessionKey | None = None
    end: int = 0
    is_stale: bool = False
    is_back: bool = False


@dataclass
class _Outgoing:
    """A context on its way to host memory, from its start."""

    blocks: list[int]
    keys: list[bytes]
    next: int = 0
    jobs: set[int] = field(default_factory=set)


class HostSwap:
    """The copies that are wanted, under way and done.

    Args:
        pool: the slots of host memory.
        max_in_flight: blocks that are copied out at a time, at most.
        key_of: returns what a block's data is known by; None if it is not a full, cached block.
    """

    def __init__(
        self, pool: HostPool, *, max_in_flight: int, key_of: Callable[[int], bytes | None]
    ) -> None:
        self.pool = pool
        self.max_in_flight = max(1, max_in_flight)
        self._key_of = key_of
        self._outgoing: dict[SessionKey, _Outgoing] = {}
        self._jobs: dict[int, CopyJob] = {}
        self._new_loads: list[CopyJob] = []
        self._copied: list[SessionKey] = []
        self._brought: list[tuple[SessionKey, bool]] = []
        self._ids = itertools.count(1)

    @property
    def num_outgoing(self) -> int:
        """Contexts that are not all copied yet."""
        return len(self._outgoing)

    @property
    def has_work(self) -> bool:
        """Whether there may be a copy to begin."""
        return bool(self._outgoing or self._new_loads)

    @property
    def num_in_flight(self) -> int:
        """Blocks that are being copied out."""
        return sum(len(job.blocks) for job in self._jobs.values() if not job.is_back)

    @property
    def num_loading(self) -> int:
        """Copies back to the device that have not ended."""
        return sum(job.is_back for job in self._jobs.values())

    @property
    def num_bringing(self) -> int:
        """Of these, copies that nobody asked for yet."""
        return sum(job.is_back and not job.request_id for job in self._jobs.values())

    @property
    def num_jobs(self) -> int:
        """Copies whose end was not reported yet."""
        return len(self._jobs)

    def job(self, job_id: int) -> CopyJob:
        """Returns a copy whose end was not reported yet."""
        return self._jobs[job_id]

    def is_copying(self, session: SessionKey) -> bool:
        """Returns whether a session's context is on its way to host memory, or just arrived."""
        return session in self._outgoing or session in self._copied

    def num_copied(self, blocks: Sequence[int]) -> int:
        """Returns how many of the first `blocks` have a copy that can be read.

        In a time that hardly grows with their number: heads are copied first and forgotten last.
        """
        return bisect.bisect_left(blocks, True, key=lambda block: not self._has_copy(block))

    def forget(self, blocks: Sequence[int]) -> None:
        """Gives the slots of copies that nobody is expected to want to others."""
        self.pool.drop(key for block in blocks if (key := self._key_of(block)) is not None)

    def copy_out(self, session: SessionKey, blocks: Sequence[int]) -> None:
        """Begins to copy a context, from its start, as far as there are slots at all."""
        self.cancel(session, 0)
        wanted = list(blocks[: self.pool.num_slots_of(session.tenant)])
        keys = list(itertools.takewhile(bool, map(self._key_of, wanted)))
        known = [key for key in keys if key is not None]
        self.pool.used(known)
        self._outgoing[session] = _Outgoing(wanted[: len(known)], known)

    def cancel(self, session: SessionKey, num_kept: int) -> None:
        """Records that a session has let all but its first `num_kept` blocks go."""
        outgoing = self._outgoing.get(session)
        if outgoing is None:
            return
        for job_id in list(outgoing.jobs):
            if (job := self._jobs[job_id]).end > num_kept:
                job.is_stale = True
                # What is kept of its blocks is copied again.
                outgoing.next = min(outgoing.next, job.end - len(job.blocks))
                self.pool.drop(job.keys)
                outgoing.jobs.discard(job_id)
        del outgoing.blocks[num_kept:], outgoing.keys[num_kept:]
        outgoing.next = min(outgoing.next, num_kept)
        if num_kept == 0:
            del self._outgoing[session]

    def start(self, max_blocks: int) -> list[CopyJob]:
        """Returns copies out to begin now: at most `max_blocks`, and at most what may be in flight.

        Args:
            max_blocks: what can be copied in a step; a step that copies nothing may begin one.
        """
        num_in_flight = self.num_in_flight
        left = min(max_blocks, self.max_in_flight) - num_in_flight
        if num_in_flight == 0:
            left = max(left, 1)
        jobs: list[CopyJob] = []
        for session, outgoing in list(self._outgoing.items()):
            if left <= 0:
                break
            if (job := self._start(session, outgoing, left)) is not None:
                jobs.append(job)
                left -= len(job.blocks)
            self._end(session)
        return jobs

    def load(self, request_id: str, keys: list[bytes], blocks: list[int]) -> None:
        """Copies blocks back for a request that waits for them."""
        self._begin_back(blocks, keys, request_id=request_id)

    def bring_back(self, session: SessionKey, keys: list[bytes], blocks: list[int]) -> None:
        """Copies blocks of a paused context back, for a turn that is expected."""
        self._begin_back(blocks, keys, session=session)

    def take_loads(self) -> list[CopyJob]:
        """Returns the copies back that were not begun yet."""
        loads, self._new_loads = self._new_loads, []
        return loads

    def finished(self, job_id: int, *, is_good: bool) -> CopyJob:
        """Ends a copy; returns it."""
        job = self._jobs.pop(job_id)
        if job.is_back:
            self.pool.was_read(job.keys)
            if not is_good:
                self.pool.drop(job.keys)
            if job.session is not None:
                self._brought.append((job.session, is_good))
            return job
        self.pool.written(job.keys, is_good=is_good)
        outgoing = self._outgoing.get(job.session) if job.session is not None else None
        if job.session is not None and outgoing is not None and job_id in outgoing.jobs:
            outgoing.jobs.discard(job_id)
            if is_good:
                self._end(job.session)
            else:
                # Its blocks are still there: the session stays as it is.
                self.cancel(job.session, 0)
        return job

    def take_copied(self) -> list[SessionKey]:
        """Returns the sessions whose contexts were copied since the last call."""
        copied, self._copied = self._copied, []
        return copied

    def take_brought(self) -> list[tuple[SessionKey, bool]]:
        """Returns whose contexts came back since the last call, and whether they are good."""
        brought, self._brought = self._brought, []
        return brought

    def clear(self) -> None:
        """Forgets every copy, wanted or made; copies under way end as worthless."""
        for session in list(self._outgoing):
            self.cancel(session, 0)
        self._copied.clear()
        self.pool.clear()

    def _begin_back(self, blocks: list[int], keys: list[bytes], **who: Any) -> None:
        slots = self.pool.read(keys)
        job = CopyJob(next(self._ids), blocks, slots, keys, is_back=True, **who)
        self.pool.used(keys)
        self._jobs[job.job_id] = job
        self._new_loads.append(job)

    def _has_copy(self, block: int) -> bool:
        key = self._key_of(block)
        return key is not None and self.pool.is_ready(key)

    def _start(self, session: SessionKey, outgoing: _Outgoing, most: int) -> CopyJob | None:
        """Begins the next copy of a context, if there are slots for it."""
        keys, pool = outgoing.keys, self.pool
        while outgoing.next < len(keys) and pool.is_ready(keys[outgoing.next]):
            outgoing.next += 1
        # What another session is copying just now is waited for: it may come to nothing.
        first = outgoing.next
        wanted = list(itertools.takewhile(lambda key: key not in pool, keys[first : first + most]))
        slots = pool.reserve(wanted, tenant=session.tenant)
        if not slots:
            if wanted and not self._jobs:
                # Nothing that ends would make room: what is copied has to do.
                del outgoing.blocks[first:], outgoing.keys[first:]
            return None
        outgoing.next = first + len(slots)
        job = CopyJob(
            next(self._ids),
            outgoing.blocks[first : outgoing.next],
            slots,
            keys[first : outgoing.next],
            session=session,
            end=outgoing.next,
        )
        self._jobs[job.job_id] = job
        outgoing.jobs.add(job.job_id)
        return job

    def _end(self, session: SessionKey) -> None:
        """Takes note if nothing of a context is left to copy."""
        outgoing = self._outgoing.get(session)
        if outgoing is None or outgoing.jobs or outgoing.next < len(outgoing.keys):
            return
        del self._outgoing[session]
        self.pool.used(outgoing.keys)
        self._copied.append(session)
