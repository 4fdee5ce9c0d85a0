"""Copies between KV tensors and host tensors, and how failures and time are reported."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from adaseek_vllm.retention.host_worker import (
    HostConnectorWorker,
    HostCopyWorker,
    HostSpec,
    HostWorkerMetadata,
)
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.common import (
    OffloadingConnectorMetadata,
    TransferJob,
)
from vllm.v1.kv_offload.base import (
    CanonicalKVCacheRef,
    CanonicalKVCaches,
    CanonicalKVCacheTensor,
    GPULoadStoreSpec,
)
from vllm.v1.kv_offload.cpu.common import CPULoadStoreSpec
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec

NUM_BLOCKS, PAGE = 6, 32


def caches() -> tuple[CanonicalKVCaches, list[torch.Tensor]]:
    """Two layers; the second one's rows lie apart, as where layers share memory."""
    torch.manual_seed(0)
    first = torch.randint(-100, 100, (NUM_BLOCKS, PAGE), dtype=torch.int8)
    apart = torch.randint(-100, 100, (NUM_BLOCKS, 2 * PAGE), dtype=torch.int8)[:, :PAGE]
    tensors = [first, apart]
    canonical = [CanonicalKVCacheTensor(tensor, PAGE) for tensor in tensors]
    return CanonicalKVCaches(canonical, [[CanonicalKVCacheRef(i, PAGE) for i in (0, 1)]]), tensors


def device(*blocks: int) -> GPULoadStoreSpec:
    return GPULoadStoreSpec(list(blocks), group_sizes=(len(blocks),), block_indices=(0,))


def slots(*numbers: int) -> CPULoadStoreSpec:
    return CPULoadStoreSpec(list(numbers))


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_blocks_come_back_into_other_blocks_as_they_were() -> None:
    kv, tensors = caches()
    before = [tensor.clone() for tensor in tensors]
    worker = HostCopyWorker(kv, 3)
    assert worker.submit_store(1, device(0, 4), slots(2, 0))
    for tensor in tensors:
        tensor[[0, 4]] = 0
    assert worker.submit_load(2, slots(0, 2), device(5, 1))
    for tensor, old in zip(tensors, before, strict=True):
        assert torch.equal(tensor[5], old[4])
        assert torch.equal(tensor[1], old[0])
        assert torch.equal(tensor[2:4], old[2:4])
    results = worker.get_finished()
    assert [(r.job_id, r.success, r.transfer_size) for r in results] == [
        (1, True, 4 * PAGE),
        (2, True, 4 * PAGE),
    ]
    assert worker.get_finished() == []


def test_link_takes_its_time_one_copy_after_the_other() -> None:
    kv, _ = caches()
    clock = Clock()
    # One block is 64 bytes: 0.1 s.
    worker = HostCopyWorker(kv, 6, gbps=640e-9, now=clock)
    worker.submit_store(1, device(0, 1), slots(0, 1))
    worker.submit_store(2, device(2), slots(2))
    worker.submit_load(3, slots(0), device(5))
    assert worker.get_finished() == []
    clock.now_s += 0.11
    # The other direction does not wait for this one.
    assert [result.job_id for result in worker.get_finished()] == [3]
    clock.now_s += 0.1
    (first,) = worker.get_finished()
    assert (first.job_id, first.transfer_time) == (1, pytest.approx(0.2))
    clock.now_s += 0.1
    (second,) = worker.get_finished()
    assert second.transfer_time == pytest.approx(0.1)


def test_failure_is_named_and_not_raised() -> None:
    kv, tensors = caches()
    before = tensors[0].clone()
    worker = HostCopyWorker(kv, 2)
    worker.submit_load(7, slots(9), device(0))
    assert torch.equal(tensors[0], before)
    assert worker.take_failed() == {7}
    assert worker.take_failed() == set()
    assert [result.job_id for result in worker.get_finished()] == [7]


def connector_worker(worker: HostCopyWorker) -> HostConnectorWorker:
    config = SimpleNamespace(canonical_layout=False, parallel=SimpleNamespace(rank=0))
    spec = SimpleNamespace(replicated_layout=False, config=config)
    made = HostConnectorWorker(spec, None, None)
    made.worker = worker
    return made


def test_failed_load_names_its_request_and_its_job() -> None:
    kv, _ = caches()
    half = connector_worker(HostCopyWorker(kv, 3))
    jobs = {
        1: TransferJob("good", slots(0), device(0)),
        2: TransferJob("bad", slots(9), device(1)),
    }
    half.start_kv_transfers(OffloadingConnectorMetadata(load_jobs=jobs, store_jobs={}))
    _, loaded = half.get_finished(set())
    assert loaded == {"good", "bad"}
    assert half.take_failed_requests(loaded) == {"bad"}
    assert half.take_failed_requests(loaded) == set()
    meta = half.build_connector_worker_meta()
    assert meta is not None
    assert (set(meta.completed_jobs), meta.failed_jobs) == ({1, 2}, {2})
    assert half.build_connector_worker_meta() is None


def test_failed_store_is_reported_with_the_step_that_began_it() -> None:
    kv, _ = caches()
    half = connector_worker(HostCopyWorker(kv, 3))
    store = {5: TransferJob("", device(0), slots(9))}
    half.prepare_store_kv(OffloadingConnectorMetadata(load_jobs={}, store_jobs=store))
    half.start_kv_transfers(OffloadingConnectorMetadata(load_jobs={}, store_jobs={}))
    half.get_finished(set())
    meta = half.build_connector_worker_meta()
    assert meta is not None
    assert meta.failed_jobs == {5}


def test_reports_of_several_workers_are_one() -> None:
    one, two = HostWorkerMetadata({1: 1, 2: 1}), HostWorkerMetadata({1: 1})
    two.failed_jobs = frozenset({1})
    both = one.aggregate(two)
    assert both.completed_jobs == {1: 2, 2: 1}
    assert both.failed_jobs == {1}


def test_gpu_gets_vllms_own_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of CUDA, as far as it goes without one."""
    asked: list[Any] = []
    monkeypatch.setattr(CPUOffloadingSpec, "get_worker", lambda self, kv: asked.append(kv) or "gpu")
    monkeypatch.setattr(
        "adaseek_vllm.retention.host_worker.current_platform",
        SimpleNamespace(is_cpu=lambda: False),
    )
    kv, _ = caches()
    spec = object.__new__(HostSpec)
    assert spec.get_worker(kv) == "gpu"
    assert asked == [kv]
