"""vLLM's real scheduler, with or without retention, over a pretended model and clock.

Nothing is computed: a step takes the time that a `StepCost` says, and a request's tokens are a
function of its id. So a policy's decisions, deadlocks and order can be seen in milliseconds.
"""

from __future__ import annotations

import json
import tempfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adaseek_vllm.retention.feature import connector_config
from adaseek_vllm.retention.host_simulated import SimulatedCopies
from adaseek_vllm.retention.settings import RetentionSettings
from adaseek_vllm.retention.waste import StepCost
from adaseek_vllm.scheduler import scheduler_class

__all__ = [
    "EngineShape",
    "SimulatedEngine",
    "SimulatedRequest",
    "block_bytes",
    "pretended_config",
    "slot_bytes",
]

# vLLM copies whole pages of host memory.
_PAGE_BYTES = 4096

_MODEL_KV_HEADS, _MODEL_HEAD_DIM = 2, 16
_MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": _MODEL_KV_HEADS,
    "head_dim": _MODEL_HEAD_DIM,
    "vocab_size": 50_000,
    "max_position_embeddings": 1 << 20,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class EngineShape:
    """What the pretended engine can hold and how fast it is.

    Args:
        num_blocks: blocks of the KV cache, one of them the null block.
        block_tokens: tokens of a block.
        max_num_seqs: requests that run together at most.
        step_tokens: tokens that a step computes at most.
        max_model_len: tokens of a request at most.
        prefix_caching: whether blocks of ended requests may be hit.
        session_order: whether waiting requests are ordered by arrival (vLLM's priority policy).
        async_scheduling: whether a step is scheduled before the last one's output is there.
        cost: time of a step.
        per_request_s: seconds that each request in a step takes besides.
        link_bytes_per_s: bandwidth of host memory, in each direction.
    """

    num_blocks: int
    block_tokens: int = 16
    max_num_seqs: int = 16
    step_tokens: int = 512
    max_model_len: int = 4096
    prefix_caching: bool = True
    session_order: bool = True
    async_scheduling: bool = False
    cost: StepCost = field(default_factory=lambda: StepCost(fixed_s=0.010, per_token_s=5e-5))
    per_request_s: float = 0.0
    link_bytes_per_s: float = 25e9


@dataclass
class SimulatedRequest:
    """One request and what became of it; times are the virtual clock's."""

    request_id: str
    prompt: list[int]
    output: list[int] = field(default_factory=list)
    submitted_s: float = 0.0
    first_token_s: float | None = None
    finished_s: float | None = None
    cached_tokens: int = 0
    is_finished: bool = False
    report: Mapping[str, object] | None = None


class SimulatedEngine:
    """Runs requests through a real scheduler in virtual time.

    Args:
        shape: the engine.
        retention: settings of `--kv-retention`; None leaves vLLM as it is.
        config: what `pretended_config` returned for the two, to use it for several engines.
        copy_fails: returns whether the copy to or from host memory with a number fails.
    """

    def __init__(
        self,
        shape: EngineShape,
        *,
        retention: Mapping[str, object] | None,
        config: Any = None,
        copy_fails: Callable[[int], bool] = lambda _: False,
    ) -> None:
        self.shape = shape
        self.now_s = 0.0
        self.requests: dict[str, SimulatedRequest] = {}
        self.num_preemptions = 0
        self.num_computed_tokens = 0
        self.num_steps = 0
        self._ended: list[str] = []
        self._in_flight: deque[tuple[Any, dict[str, bool], float]] = deque()
        self._device_free_s = 0.0
        self.scheduler = _make_scheduler(shape, config or pretended_config(shape, retention), self)
        self._hasher = _block_hasher(shape.block_tokens)
        host = getattr(self.scheduler, "retention_host", None)
        self.copies: SimulatedCopies | None = None
        if host is not None:
            self.copies = SimulatedCopies(
                host, bytes_per_s=shape.link_bytes_per_s, fails=copy_fails
            )

    def submit(
        self,
        request_id: str,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        session: str | None = None,
        tenant: str | None = None,
        hints: Mapping[str, object] | None = None,
        arrival_s: float | None = None,
    ) -> SimulatedRequest:
        """Queues a request that generates exactly `max_tokens` tokens, arriving now by default."""
        from vllm.sampling_params import SamplingParams
        from vllm.v1.request import Request

        request = Request(
            request_id,
            list(prompt),
            SamplingParams(
                max_tokens=max_tokens, ignore_eos=True, extra_args=dict(hints) if hints else None
            ),
            None,
            arrival_time=self.now_s if arrival_s is None else arrival_s,
            cache_salt=tenant,
            block_hasher=self._hasher,
            session_id=session,
        )
        self.requests[request_id] = SimulatedRequest(
            request_id, list(prompt), submitted_s=self.now_s
        )
        self.scheduler.add_request(request)
        return self.requests[request_id]

    @property
    def num_in_flight(self) -> int:
        """Steps that were scheduled and whose output is not there yet."""
        return len(self._in_flight)

    def abort(self, request_id: str) -> None:
        """Ends a request as if its client had gone."""
        from vllm.v1.request import RequestStatus

        self.scheduler.finish_requests(request_id, RequestStatus.FINISHED_ABORTED)
        self.requests[request_id].is_finished = True

    def step(self) -> int:
        """Schedules a step and finishes the oldest in flight; returns the tokens scheduled."""
        output = self.scheduler.schedule()
        sampling = {
            request_id: not self.scheduler.requests[request_id].is_prefill_chunk
            for request_id in output.num_scheduled_tokens
        }
        for new in output.scheduled_new_reqs:
            self.requests[new.req_id].cached_tokens = new.num_computed_tokens
        num_tokens = int(output.total_num_scheduled_tokens)
        self.num_computed_tokens += num_tokens
        self.num_steps += 1
        step_s = self._step_s(output, num_tokens)
        self._device_free_s = max(self.now_s, self._device_free_s) + step_s
        self._in_flight.append((output, sampling, self._device_free_s))
        if self.copies is not None:
            self.copies.begin(output.kv_connector_metadata, self.now_s)
        depth = 2 if self.shape.async_scheduling and num_tokens else 1
        while len(self._in_flight) >= depth:
            self._finish_oldest()
        return num_tokens

    def drain(self, *, max_steps: int) -> bool:
        """Steps until no request is left; returns whether that took at most `max_steps`."""
        for _ in range(max_steps):
            if not self.scheduler.has_unfinished_requests():
                while self._in_flight:
                    self._finish_oldest()
                return True
            self.step()
        return not self.scheduler.has_unfinished_requests()

    def take_ended(self) -> list[str]:
        """Returns the requests that ended by themselves since the last call."""
        ended, self._ended = self._ended, []
        return ended

    def _step_s(self, output: Any, num_tokens: int) -> float:
        cost = self.shape.cost
        pairs = 0.0
        if cost.per_context_token_s:
            for request_id, num_new in output.num_scheduled_tokens.items():
                # The scheduler has already counted the new tokens as computed.
                computed = self.scheduler.requests[request_id].num_computed_tokens
                pairs += num_new * (computed - num_new / 2)
        for_requests_s = self.shape.per_request_s * len(output.num_scheduled_tokens)
        return cost.step_s(num_tokens, pairs) + for_requests_s

    def _finish_oldest(self) -> None:
        from vllm.v1.outputs import ModelRunnerOutput

        output, sampling, done_s = self._in_flight.popleft()
        self.now_s = max(self.now_s, done_s)
        ids = list(output.num_scheduled_tokens)
        sampled = [[self._token(request_id)] if sampling[request_id] else [] for request_id in ids]
        results = self.scheduler.update_from_output(
            output,
            ModelRunnerOutput(
                req_ids=ids,
                req_id_to_index={request_id: index for index, request_id in enumerate(ids)},
                sampled_token_ids=sampled,
                logprobs=None,
                prompt_logprobs_dict={},
                pooler_output=[],
                kv_connector_output=self.copies.report(self.now_s) if self.copies else None,
            ),
        )
        for group in results.values():
            for result in group.outputs:
                self._record(result)

    def _record(self, result: Any) -> None:
        request = self.requests[result.request_id]
        request.output.extend(result.new_token_ids)
        if result.new_token_ids and request.first_token_s is None:
            request.first_token_s = self.now_s
        if result.finish_reason is not None:
            request.is_finished = True
            request.finished_s = self.now_s
            self._ended.append(result.request_id)
            if result.kv_transfer_params:
                request.report = result.kv_transfer_params.get("kv_retention")

    def _token(self, request_id: str) -> int:
        request = self.requests[request_id]
        seed = sum(map(ord, request_id)) * 31 + len(request.output) * 7
        return 1000 + seed % 40_000


def _make_scheduler(shape: EngineShape, config: Any, engine: SimulatedEngine) -> Any:
    """Returns a scheduler whose retention reads the engine's clock, and that counts preemptions."""
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    base: Any = scheduler_class(config.additional_config, async_scheduling=shape.async_scheduling)

    class Simulated(base):  # type: ignore[misc]  # which class it is depends on the settings
        def _preempt_request(self, *args: Any, **kwargs: Any) -> None:
            engine.num_preemptions += 1
            super()._preempt_request(*args, **kwargs)

    spec = FullAttentionSpec(
        block_size=shape.block_tokens,
        num_kv_heads=_MODEL_KV_HEADS,
        head_size=_MODEL_HEAD_DIM,
        dtype=torch.float32,
    )
    scheduler = Simulated(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(
            num_blocks=shape.num_blocks,
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
        ),
        structured_output_manager=StructuredOutputManager(config),
        block_size=shape.block_tokens,
        hash_block_size=shape.block_tokens,
        log_stats=True,
    )
    scheduler.retention_clock = lambda: engine.now_s
    return scheduler


def block_bytes(shape: EngineShape) -> int:
    """Returns the bytes of a block: the keys and values of its tokens, four bytes a number."""
    return 2 * _MODEL_KV_HEADS * _MODEL_HEAD_DIM * 4 * shape.block_tokens


def slot_bytes(shape: EngineShape) -> int:
    """Returns the bytes of host memory that the copy of a block takes."""
    return -(-block_bytes(shape) // _PAGE_BYTES) * _PAGE_BYTES


def pretended_config(shape: EngineShape, retention: Mapping[str, object] | None) -> Any:
    """Returns vLLM's configuration for a pretended engine; takes longer to make than to run."""
    from vllm.config import (
        CacheConfig,
        DeviceConfig,
        KVTransferConfig,
        ModelConfig,
        ParallelConfig,
        SchedulerConfig,
        VllmConfig,
    )

    settings = RetentionSettings.read(retention or {})
    # Numbers are read from the scheduler itself: a connector is needed for copies only.
    connector: dict[str, Any] = {}
    if settings.host_bytes:
        connector |= connector_config(settings.as_mapping())
    scheduler = SchedulerConfig(
        max_num_seqs=shape.max_num_seqs,
        max_num_batched_tokens=shape.step_tokens,
        max_model_len=shape.max_model_len,
        is_encoder_decoder=False,
        enable_chunked_prefill=True,
        policy="priority" if shape.session_order else "fcfs",
        async_scheduling=shape.async_scheduling,
    )
    cache = CacheConfig(
        block_size=shape.block_tokens,
        gpu_memory_utilization=0.1,
        enable_prefix_caching=shape.prefix_caching,
    )
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(_MODEL))
        model = ModelConfig(
            model=folder,
            tokenizer=folder,
            skip_tokenizer_init=True,
            dtype="float32",
            seed=0,
            max_model_len=shape.max_model_len,
        )
        config = VllmConfig(
            model_config=model,
            scheduler_config=scheduler,
            cache_config=cache,
            device_config=DeviceConfig("cpu"),
            parallel_config=ParallelConfig(),
            additional_config={} if retention is None else {"kv_retention": dict(retention)},
            kv_transfer_config=KVTransferConfig(**connector) if connector else None,
        )
    # The CPU's platform turns it off; the class of scheduler is what is simulated.
    config.scheduler_config.async_scheduling = shape.async_scheduling
    config.cache_config.num_gpu_blocks = shape.num_blocks
    return config


def _block_hasher(block_tokens: int) -> Any:
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash

    init_none_hash(sha256)
    return get_request_block_hasher(block_tokens, sha256)
