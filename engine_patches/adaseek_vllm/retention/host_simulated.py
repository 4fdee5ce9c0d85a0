"""Copies to host memory in virtual time: what vLLM's worker would report, without bytes.

What a block or a slot holds is stood for by the hash that it is known by, so that a copy of the
wrong data, or of data that changed on the way, is seen when it is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from adaseek_vllm.retention.host_jobs import CopyJob

__all__ = ["SimulatedCopies"]

_CHANGED = b"changed while it was copied"


@dataclass
class _Copy:
    job: CopyJob
    done_s: float
    seconds: float
    before: list[bytes | None]
    is_good: bool


class SimulatedCopies:
    """A link to host memory that carries one copy at a time in each direction.

    Args:
        host: the scheduler's half (`HostScheduler`, whose module needs vLLM).
        bytes_per_s: of the link.
        fails: returns whether the copy with a number fails.
    """

    def __init__(
        self, host: Any, *, bytes_per_s: float, fails: Callable[[int], bool] = lambda _: False
    ) -> None:
        self.num_loads = 0
        self._host = host
        self._bytes_per_s = bytes_per_s
        self._fails = fails
        self._slots: dict[int, bytes | None] = {}
        self._under_way: list[_Copy] = []
        self._free_s = {True: 0.0, False: 0.0}

    def begin(self, metadata: Any, now_s: float) -> None:
        """Begins the copies that the scheduler asks for (`OffloadingConnectorMetadata`)."""
        for job_id in [*metadata.load_jobs, *metadata.store_jobs]:
            job = self._host.swap.job(job_id)
            is_load = job.is_back
            self.num_loads += is_load
            seconds = len(job.blocks) * self._host.block_bytes / self._bytes_per_s
            done_s = max(now_s, self._free_s[is_load]) + seconds
            self._free_s[is_load] = done_s
            before = self._sources(job)
            self._under_way.append(_Copy(job, done_s, seconds, before, not self._fails(job_id)))

    def report(self, now_s: float) -> Any:
        """Returns vLLM's `KVConnectorOutput` for the copies that are done; None if none is."""
        from vllm.v1.outputs import KVConnectorOutput

        from adaseek_vllm.retention.host_worker import HostWorkerMetadata

        done = [copy for copy in self._under_way if copy.done_s <= now_s]
        if not done:
            return None
        self._under_way = [copy for copy in self._under_way if copy.done_s > now_s]
        meta = HostWorkerMetadata()
        for copy in done:
            self._end(copy)
            meta.mark_completed(copy.job.job_id)
            stats = meta.transfer_stats
            direction = stats.load if copy.job.is_back else stats.store
            direction.record(len(copy.job.blocks) * self._host.block_bytes, copy.seconds)
        loads = [copy for copy in done if copy.job.request_id]
        meta.failed_jobs = frozenset(copy.job.job_id for copy in done if not copy.is_good)
        return KVConnectorOutput(
            finished_recving={copy.job.request_id for copy in loads},
            failed_recving={copy.job.request_id for copy in loads if not copy.is_good},
            kv_connector_worker_meta=meta,
        )

    def _sources(self, job: CopyJob) -> list[bytes | None]:
        if job.is_back:
            return [self._slots.get(slot) for slot in job.slots]
        return [self._host.key_of(block) for block in job.blocks]

    def _end(self, copy: _Copy) -> None:
        now = self._sources(copy.job)
        moved = [old if old == new else _CHANGED for old, new in zip(copy.before, now, strict=True)]
        if copy.job.is_back:
            who = copy.job.request_id or copy.job.session
            assert moved == copy.job.keys, f"{who} was given other data"
        elif copy.is_good:
            self._slots |= dict(zip(copy.job.slots, moved, strict=True))
