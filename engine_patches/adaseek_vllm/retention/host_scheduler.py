"""The scheduler's half of copies to host memory: requests and blocks in, vLLM's jobs out."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.offloading.common import (
    OffloadingConnectorMetadata,
    TransferJob,
    TransferStats,
)
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.config import build_offloading_config
from vllm.v1.core.kv_cache_utils import make_block_hash_with_group_id
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.kv_offload.base import GPULoadStoreSpec
from vllm.v1.kv_offload.cpu.common import CPULoadStoreSpec

from adaseek_vllm.config import FeatureSettingsError
from adaseek_vllm.retention.host_costs import CopyRate, HostCost
from adaseek_vllm.retention.host_jobs import CopyJob, HostSwap
from adaseek_vllm.retention.host_pool import HostPool
from adaseek_vllm.retention.host_worker import HostSpec
from adaseek_vllm.retention.metrics import Meter
from adaseek_vllm.retention.settings import FLAG

__all__ = ["HostScheduler", "check_host"]

# Of what can be copied in the time of a step; the rest is left for loads.
_STEP_SHARE = 0.8


class HostScheduler:
    """Says what to copy in each step.

    Args:
        spec: sizes of host memory.
        vllm_config: vLLM's configuration.
        kv_cache_config: vLLM's description of the KV cache.
    """

    # The arguments are vLLM's, which are not followed by every type checker.
    def __init__(self, spec: HostSpec, vllm_config: Any, kv_cache_config: Any) -> None:
        extra = vllm_config.kv_transfer_config.kv_connector_extra_config
        check_host(spec, kv_cache_config, int(extra["cpu_bytes_to_use"]))
        self.block_tokens = int(spec.tokens_per_block[0])
        self.block_bytes = int(spec.config.worker_kv_bytes_per_block)
        self.meter: Meter = Meter()
        self.step_s = 0.01
        self.rate_out, self.rate_in = CopyRate(), CopyRate()
        self.swap = HostSwap(
            HostPool(
                spec.num_chunks,
                max_tenant_slots=int(extra.get("tenant_fraction", 1.0) * spec.num_chunks),
            ),
            max_in_flight=int(extra.get("inflight_fraction", 0.125) * kv_cache_config.num_blocks),
            key_of=self.key_of,
        )
        self._pool: Any = None
        # Whether a request's context is on its way already; the scheduler knows.
        self.is_awaited: Callable[[str], bool] = lambda _: False
        # Requests that failed to load once compute what is missing.
        self._given_up: set[str] = set()
        self._loaded: dict[str, int] = {}

    @staticmethod
    def make_spec(vllm_config: Any, kv_cache_config: Any) -> HostSpec:
        """Returns the sizes of host memory; the same in every process."""
        return HostSpec(build_offloading_config(vllm_config, kv_cache_config))

    def bind(self, kv_cache_manager: Any) -> None:
        """Takes the block pool, once vLLM has made it."""
        self._pool = kv_cache_manager.block_pool

    @property
    def cost(self) -> HostCost:
        """Time of copies as it is known now."""
        token_bytes = self.block_bytes / self.block_tokens
        return HostCost(
            out_s=token_bytes / self.rate_out.bytes_per_s,
            in_s=token_bytes / self.rate_in.bytes_per_s,
            queued_tokens=self.swap.num_in_flight * self.block_tokens,
        )

    @property
    def num_tokens(self) -> int:
        """Tokens with a copy in host memory."""
        return len(self.swap.pool) * self.block_tokens

    def num_loadable_tokens(self, request: Any, num_computed_tokens: int) -> int | None:
        """Returns how many tokens of a prompt could be loaded after those that are there.

        vLLM computes the last token of a prompt in any case. None if they are on their way, so
        that the request should wait for them.
        """
        if request.request_id in self._given_up or request.skip_reading_prefix_cache:
            return 0
        if self.is_awaited(request.request_id):
            return None
        return self.block_tokens * self.swap.pool.num_ready(
            self._prompt_keys(request, num_computed_tokens // self.block_tokens)
        )

    def load(self, request: Any, block_ids: tuple[list[int], ...], num_tokens: int) -> None:
        """Begins to load the first blocks that a request has no KV for.

        Args:
            request: has been given its blocks.
            block_ids: all its blocks, by cache group.
            num_tokens: what `num_loadable_tokens` returned.
        """
        (blocks,) = block_ids
        num_blocks = num_tokens // self.block_tokens
        first = self._num_local_blocks(request, blocks, num_blocks)
        keys = list(itertools.islice(self._prompt_keys(request, first), num_blocks))
        self.swap.load(request.request_id, keys, blocks[first : first + num_blocks])
        self._loaded[request.request_id] = num_tokens

    def take_loaded(self, request_id: str) -> int:
        """Returns how many tokens were loaded for a request that runs now."""
        return self._loaded.pop(request_id, 0)

    def ended(self, request_id: str) -> None:
        """Forgets a request that ended."""
        self._given_up.discard(request_id)
        self._loaded.pop(request_id, None)

    def next_jobs(self) -> OffloadingConnectorMetadata:
        """Returns the copies to begin in this step."""
        if not self.swap.has_work:
            return OffloadingConnectorMetadata(load_jobs={}, store_jobs={})
        loads = {job.job_id: _load_job(job) for job in self.swap.take_loads()}
        per_step = self.rate_out.bytes_per_s * self.step_s * _STEP_SHARE / self.block_bytes
        most = int(per_step) if self.rate_out.num_samples else self.swap.max_in_flight
        stores = {job.job_id: _store_job(job) for job in self.swap.start(most)}
        return OffloadingConnectorMetadata(load_jobs=loads, store_jobs=stores)

    def finished(self, job_id: int, *, is_good: bool) -> None:
        """Records that a copy ended on every worker."""
        job = self.swap.finished(job_id, is_good=is_good)
        if not is_good:
            self.meter.count("swap_failures", 1, "in" if job.is_back else "out")
        if not is_good and job.request_id:
            self._given_up.add(job.request_id)
            self._loaded.pop(job.request_id, None)

    def copies_took(self, stats: TransferStats) -> None:
        """Learns from copies that ended."""
        for one, rate, name in (
            (stats.store, self.rate_out, "out"),
            (stats.load, self.rate_in, "in"),
        ):
            if one.bytes:
                rate.observe(one.bytes, one.time)
                self.meter.count("swap_bytes", one.bytes, name)
                self.meter.count("swap_seconds", one.time, name)
                tokens = one.bytes / self.block_bytes * self.block_tokens
                self.meter.count("waste_token_seconds", tokens * one.time, "swap")

    def keys_of(self, request: Any, first_block: int) -> Iterator[bytes]:
        """Yields what a request's full blocks are known by, from `first_block` on."""
        hashes = request.block_hashes
        return (make_block_hash_with_group_id(h, 0) for h in hashes[first_block:])

    def _prompt_keys(self, request: Any, first_block: int) -> Iterator[bytes]:
        last = (request.num_tokens - 1) // self.block_tokens
        return itertools.islice(self.keys_of(request, first_block), max(0, last - first_block))

    def key_of(self, block: int) -> bytes | None:
        """Returns what a block's data is known by; None if it is not a full, cached block."""
        key: bytes | None = self._pool.blocks[block].block_hash
        return key

    def _num_local_blocks(self, request: Any, blocks: list[int], num_loaded: int) -> int:
        """Returns how many of a request's first blocks have KV on the device already."""
        for index, block in enumerate(blocks):
            if self.key_of(block) is None:
                return index
        raise AssertionError(f"{request.request_id} loads {num_loaded} blocks, but lacks none")


def check_host(spec: HostSpec, kv_cache_config: Any, num_bytes: int) -> None:
    """Raises `FeatureSettingsError` if a model's blocks cannot be copied, or not that many."""
    groups = kv_cache_config.kv_cache_groups
    if len(groups) != 1 or not isinstance(groups[0].kv_cache_spec, FullAttentionSpec):
        raise FeatureSettingsError(
            f"{FLAG}: `host_bytes` is for models with full attention in every layer: set it to 0."
        )
    if spec.tokens_per_block[0] != spec.tokens_per_hash:
        raise FeatureSettingsError(
            f"{FLAG}: `host_bytes` needs one hash a block, but blocks have "
            f"{spec.tokens_per_block[0]} tokens and hashes {spec.tokens_per_hash}: set it to 0."
        )
    if spec.num_chunks < 1:
        raise FeatureSettingsError(
            f"{FLAG}: `host_bytes` is {num_bytes}, but one block takes {spec.kv_bytes_per_chunk}."
        )
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if num_bytes > there:
        raise FeatureSettingsError(
            f"{FLAG}: `host_bytes` is {num_bytes}, but this machine has {there} bytes of memory."
        )


def _load_job(job: CopyJob) -> TransferJob:
    return TransferJob(job.request_id, CPULoadStoreSpec(job.slots), _device_spec(job))


def _store_job(job: CopyJob) -> TransferJob:
    return TransferJob("", _device_spec(job), CPULoadStoreSpec(job.slots))


def _device_spec(job: CopyJob) -> GPULoadStoreSpec:
    return GPULoadStoreSpec(job.blocks, group_sizes=(len(job.blocks),), block_indices=(0,))
