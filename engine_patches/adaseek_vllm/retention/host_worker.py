"""Copies KV blocks to host memory and back, in vLLM's worker process (vLLM 0.32).

On CUDA and XPU vLLM's own worker does it; that path was not run on hardware. On the CPU backend
"host memory" is a second tensor, and a copy takes as long as a link of `emulate_gbps` would.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.common import (
    OffloadingConnectorMetadata,
    OffloadingWorkerMetadata,
)
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.worker import (
    OffloadingConnectorWorker,
)
from vllm.platforms import current_platform
from vllm.v1.kv_offload.base import CanonicalKVCaches, OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec

__all__ = ["HostConnectorWorker", "HostCopyWorker", "HostSpec", "HostWorkerMetadata"]


# vLLM's types are not followed by every type checker.
class HostCopyWorker(OffloadingWorker):  # type: ignore[misc]
    """Copies rows of KV tensors to host tensors and back, within the call that asks for it.

    A copy is reported when a link of the given bandwidth, which carries one copy at a time in
    each direction, would have made it. A copy that fails is reported as done, and named by
    `take_failed`, because vLLM's own code takes a failed transfer for a defect.

    Args:
        kv_caches: tensors of [num_blocks, page_bytes] int8, and which of them a layer uses.
        num_slots: blocks that fit into host memory.
        gbps: 10^9 bytes that the link carries in a second; None for as fast as memory is.
        now: returns the time in seconds; only differences count.
    """

    def __init__(
        self,
        kv_caches: CanonicalKVCaches,
        num_slots: int,
        *,
        gbps: float | None = None,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        tensors = {ref.tensor_idx for refs in kv_caches.group_data_refs for ref in refs}
        self._device: list[torch.Tensor] = [kv_caches.tensors[i].tensor for i in sorted(tensors)]
        self._host = [
            torch.empty((num_slots, tensor.shape[1]), dtype=torch.int8) for tensor in self._device
        ]
        self._block_bytes = sum(tensor.shape[1] for tensor in self._device)
        self._bytes_per_s = None if gbps is None else gbps * 1e9
        self._now = now
        self._link_free_s = {True: 0.0, False: 0.0}
        self._results: list[tuple[float, TransferResult]] = []
        self._failed: set[int] = set()

    # The specs are vLLM's; they hold numpy arrays of block and slot numbers.
    def submit_store(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        self._copy(job_id, self._device, self._host, src_spec.block_ids, dst_spec.block_ids)
        return True

    def submit_load(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        self._copy(job_id, self._host, self._device, src_spec.block_ids, dst_spec.block_ids)
        return True

    def get_finished(self) -> list[TransferResult]:
        now_s = self._now()
        done = [result for due_s, result in self._results if due_s <= now_s]
        self._results = [item for item in self._results if item[0] > now_s]
        return done

    def wait(self, job_ids: set[int]) -> None:
        """Returns at once: the bytes are in place when a copy was submitted."""

    def take_failed(self) -> set[int]:
        """Returns the jobs that failed since the last call."""
        failed, self._failed = self._failed, set()
        return failed

    def _copy(
        self,
        job_id: int,
        sources: list[torch.Tensor],
        targets: list[torch.Tensor],
        source_rows: Any,
        target_rows: Any,
    ) -> None:
        started_s = self._now()
        try:
            self._move(sources, targets, source_rows, target_rows)
        except (RuntimeError, IndexError):
            # torch reports memory that is short, and rows that are not there, this way.
            self._failed.add(job_id)
        num_bytes = len(source_rows) * self._block_bytes
        is_out = sources is self._device
        done_s = self._now()
        if self._bytes_per_s is not None:
            begin_s = max(started_s, self._link_free_s[is_out])
            done_s = max(done_s, begin_s + num_bytes / self._bytes_per_s)
            started_s = min(begin_s, done_s)
        self._link_free_s[is_out] = done_s
        result = TransferResult(job_id, True, num_bytes, max(done_s - started_s, 1e-9))
        self._results.append((done_s, result))

    def _move(
        self,
        sources: list[torch.Tensor],
        targets: list[torch.Tensor],
        source_rows: Any,
        target_rows: Any,
    ) -> None:
        """Copies rows; a seam for tests of failures."""
        source_index = torch.as_tensor(source_rows, dtype=torch.int64)
        target_index = torch.as_tensor(target_rows, dtype=torch.int64)
        for source, target in zip(sources, targets, strict=True):
            target.index_copy_(0, target_index, source.index_select(0, source_index))


class HostSpec(CPUOffloadingSpec):  # type: ignore[misc]
    """Sizes of host memory, and who copies."""

    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        if not current_platform.is_cpu():
            return super().get_worker(kv_caches)
        gbps = self.extra_config.get("emulate_gbps")
        return HostCopyWorker(kv_caches, self.num_chunks, gbps=gbps)


class HostWorkerMetadata(OffloadingWorkerMetadata):  # type: ignore[misc]
    """What a worker reports of a step: copies that ended, and those of them that failed."""

    failed_jobs: frozenset[int] = frozenset()

    def aggregate(self, other: Any) -> HostWorkerMetadata:
        both: Any = super().aggregate(other)
        merged = HostWorkerMetadata(both.completed_jobs, both.transfer_stats)
        merged.failed_jobs = self.failed_jobs | other.failed_jobs
        return merged


class HostConnectorWorker(OffloadingConnectorWorker):  # type: ignore[misc]
    """vLLM's worker half, which also reports copies that failed."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._failed: set[int] = set()
        self._failed_requests: set[str] = set()

    def start_kv_transfers(self, metadata: OffloadingConnectorMetadata) -> None:
        super().start_kv_transfers(metadata)
        if isinstance(self.worker, HostCopyWorker):
            failed = self.worker.take_failed()
            self._failed |= failed
            loads = {job_id: job.req_id for job_id, job in metadata.load_jobs.items()}
            self._failed_requests |= {loads[job_id] for job_id in failed if loads.get(job_id)}

    def take_failed_requests(self, finished: set[str]) -> set[str]:
        """Returns those of the requests whose loads are over that did not get their blocks."""
        failed = self._failed_requests & finished
        self._failed_requests -= failed
        return failed

    def build_connector_worker_meta(self) -> HostWorkerMetadata | None:
        meta = super().build_connector_worker_meta()
        if meta is None:
            return None
        report = HostWorkerMetadata(meta.completed_jobs, meta.transfer_stats)
        report.failed_jobs = frozenset(self._failed & set(meta.completed_jobs))
        self._failed -= report.failed_jobs
        return report
