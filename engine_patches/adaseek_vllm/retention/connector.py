"""The KV connector of retention (vLLM 0.32): carries its numbers to `/metrics`, and copies KV.

vLLM makes one for its scheduler and one for each worker. Without host memory the connector copies
nothing and each half does next to nothing; with it, the scheduler's half says what to copy, and
vLLM's own offloading worker copies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1 import (
    KVConnectorBase_V1,
    KVConnectorRole,
    SupportsHMA,
)
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorTransferResults
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.common import (
    OffloadingConnectorMetadata,
)
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from adaseek_vllm.retention.host_scheduler import HostScheduler
from adaseek_vllm.retention.host_worker import HostConnectorWorker, HostWorkerMetadata
from adaseek_vllm.retention.metrics import Samples
from adaseek_vllm.retention.prometheus import RetentionPromMetrics, RetentionStats

__all__ = ["RetentionConnector"]


# vLLM's types are not followed by every type checker, and most arguments are vLLM's.
class RetentionConnector(KVConnectorBase_V1, SupportsHMA):  # type: ignore[misc]
    """Set by `--kv-retention` in `kv_transfer_config`."""

    _cache_hit_source = CacheHitSource.HOST

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self.host: HostScheduler | None = None
        # The scheduler sets it, once it has something to tell.
        self.read_stats: Callable[[], Samples | None] = lambda: None
        self._worker: HostConnectorWorker | None = None
        self._acks: Counter[int] = Counter()
        self._failed: set[int] = set()
        self._num_workers = vllm_config.parallel_config.world_size
        if not vllm_config.kv_transfer_config.kv_connector_extra_config.get("cpu_bytes_to_use"):
            return
        spec = HostScheduler.make_spec(vllm_config, kv_cache_config)
        if role == KVConnectorRole.SCHEDULER:
            self.host = HostScheduler(spec, vllm_config, kv_cache_config)
        else:
            self._worker = HostConnectorWorker(spec, vllm_config, kv_cache_config)

    @property
    def requires_kv_delivery(self) -> bool:
        """A lost copy is computed again: no request depends on one."""
        return False

    @classmethod
    def get_required_kvcache_layout(cls, vllm_config: Any) -> str | None:
        extra = vllm_config.kv_transfer_config.kv_connector_extra_config
        return "LBHNC" if extra.get("cpu_bytes_to_use") else None

    # The worker's half.

    def register_kv_caches(self, kv_caches: Any) -> None:
        if self._worker is not None:
            self._worker.register_kv_caches(kv_caches)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        if self._worker is not None:
            self._worker.start_kv_transfers(self._jobs())

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Returns at once: loads are waited for by requests, not by layers."""

    def save_kv_layer(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: whole blocks are copied, between steps."""

    def wait_for_save(self) -> None:
        if self._worker is not None:
            self._worker.prepare_store_kv(self._jobs())

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        if self._worker is None:
            return KVConnectorTransferResults()
        _, loaded = self._worker.get_finished(finished_req_ids)
        # Copies back ahead of a turn have no request.
        loaded = loaded - {""}
        failed = self._worker.take_failed_requests(loaded)
        return KVConnectorTransferResults(finished_recving=loaded, failed_recving=failed)

    def build_connector_worker_meta(self) -> HostWorkerMetadata | None:
        return self._worker.build_connector_worker_meta() if self._worker is not None else None

    def _jobs(self) -> OffloadingConnectorMetadata:
        jobs = self._get_connector_metadata()
        assert isinstance(jobs, OffloadingConnectorMetadata), f"{type(jobs).__name__} is not ours"
        return jobs

    # The scheduler's half.

    def bind_kv_cache_manager(self, kv_cache_manager: Any) -> None:
        super().bind_kv_cache_manager(kv_cache_manager)
        if self.host is not None:
            self.host.bind(kv_cache_manager)

    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        if self.host is None:
            return 0, False
        num_tokens = self.host.num_loadable_tokens(request, num_computed_tokens)
        return num_tokens, bool(num_tokens)

    def has_pending_block_frees(self) -> bool:
        """Whether a running request should wait for blocks rather than preempt another.

        Blocks that are copied back ahead of a turn are free when that ends, if anybody lacks them.
        """
        return self.host is not None and self.host.swap.num_bringing > 0

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if self.host is not None and num_external_tokens:
            self.host.load(request, blocks.get_block_ids(), num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> OffloadingConnectorMetadata:
        if self.host is None:
            return OffloadingConnectorMetadata(load_jobs={}, store_jobs={})
        return self.host.next_jobs()

    def update_connector_output(self, connector_output: Any) -> None:
        meta = connector_output.kv_connector_worker_meta
        if self.host is None or not isinstance(meta, HostWorkerMetadata):
            return
        self._failed |= meta.failed_jobs
        for job_id, num_workers in meta.completed_jobs.items():
            self._acks[job_id] += num_workers
            if self._acks[job_id] >= self._num_workers:
                del self._acks[job_id]
                self.host.finished(job_id, is_good=job_id not in self._failed)
                self._failed.discard(job_id)
        self.host.copies_took(meta.transfer_stats)

    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Lets vLLM free the blocks: what is to be copied is held by its session."""
        if self.host is not None:
            self.host.ended(request.request_id)
        return False, None

    def reset_cache(self) -> bool:
        if self.host is not None:
            self.host.swap.clear()
        return True

    # Numbers.

    def get_kv_connector_stats(self) -> RetentionStats | None:
        samples = self.read_stats()
        return RetentionStats(data=samples) if samples else None

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> RetentionStats:
        return RetentionStats(data=data if data is not None else {})

    @classmethod
    def build_prom_metrics(
        cls,
        vllm_config: Any,
        metric_types: Any,
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> RetentionPromMetrics:
        return RetentionPromMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)
