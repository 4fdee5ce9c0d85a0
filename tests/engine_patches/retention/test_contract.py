"""What retention needs of vLLM's internals: these fail first when vLLM moves."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.config import build_offloading_config
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.worker import (
    OffloadingConnectorWorker,
)
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import FreeKVCacheBlockQueue, make_block_hash_with_group_id
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_offload.base import OffloadingWorker
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec
from vllm.v1.request import Request, RequestStatus


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (Scheduler.schedule, ["self", "throttle_prefills"]),
        (Scheduler.update_from_output, ["self", "scheduler_output", "model_runner_output"]),
        (Scheduler.add_request, ["self", "request"]),
        (Scheduler._free_blocks, ["self", "request"]),
        (Scheduler._free_request, ["self", "request", "delay_free_blocks"]),
        (Scheduler.reset_prefix_cache, ["self", "reset_running_requests", "reset_connector"]),
        (Scheduler.shutdown, ["self"]),
        (BlockPool.touch, ["self", "blocks"]),
        (BlockPool.free_blocks, ["self", "ordered_blocks"]),
        (BlockPool.get_num_free_blocks, ["self"]),
        (BlockPool.get_new_blocks, ["self", "num_blocks"]),
        (KVConnectorBase_V1.has_pending_block_frees, ["self"]),
        (FreeKVCacheBlockQueue.remove, ["self", "block"]),
        (FreeKVCacheBlockQueue.prepend_n, ["self", "blocks"]),
        (KVConnectorBase_V1.get_num_new_matched_tokens, ["self", "request", "num_computed_tokens"]),
        (KVConnectorBase_V1.update_connector_output, ["self", "connector_output"]),
        (KVConnectorBase_V1.build_connector_meta, ["self", "scheduler_output"]),
        (KVConnectorBase_V1.get_transfer_results, ["self", "finished_req_ids"]),
        (OffloadingConnectorWorker.__init__, ["self", "spec", "vllm_config", "kv_cache_config"]),
        (OffloadingConnectorWorker.start_kv_transfers, ["self", "metadata"]),
        (OffloadingConnectorWorker.prepare_store_kv, ["self", "metadata"]),
        (OffloadingWorker.submit_store, ["self", "job_id", "src_spec", "dst_spec"]),
        (OffloadingWorker.submit_load, ["self", "job_id", "src_spec", "dst_spec"]),
        (CPUOffloadingSpec.get_worker, ["self", "kv_caches"]),
        (build_offloading_config, ["vllm_config", "kv_cache_config"]),
        (make_block_hash_with_group_id, ["block_hash", "group_id"]),
        (EngineArgs.from_cli_args, ["args"]),
        (EngineArgs.add_cli_args, ["parser"]),
    ],
)
def test_signatures(function: Any, expected: list[str]) -> None:
    assert parameters(function) == expected


def test_blocks_are_published_by_request_and_range() -> None:
    assert parameters(BlockPool.cache_full_blocks)[:7] == [
        *("self", "request", "blocks", "num_cached_blocks", "num_full_blocks"),
        *("block_size", "kv_cache_group_id"),
    ]


def test_slots_are_allocated_by_request_and_number() -> None:
    names = parameters(KVCacheManager.allocate_slots)
    assert names[:3] == ["self", "request", "num_new_tokens"]
    assert "num_new_computed_tokens" in names


def test_asynchronous_scheduler_extends_the_synchronous_one() -> None:
    assert issubclass(AsyncScheduler, Scheduler)
    for name in ("schedule", "_free_blocks", "_free_request", "update_from_output"):
        assert name not in vars(AsyncScheduler)


def test_request_carries_what_a_session_is_known_by() -> None:
    names = parameters(Request.__init__)
    assert {"session_id", "cache_salt", "lora_request", "arrival_time"} <= set(names)
    assert RequestStatus.FINISHED_STOPPED > RequestStatus.PREEMPTED > RequestStatus.RUNNING
