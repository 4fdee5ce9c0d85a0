"""A real vLLM engine in this process, as `play` wants it, and the tiny model that it runs.

Import this before vLLM: it sets the environment that makes steps steady on a CPU.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ |= {
    # In one process, the engine's busy loop does not take a core from the computation.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # Matrices this small gain nothing from a second thread, which a busy machine may not have.
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}

import torch
import transformers
import vllm
from adaseek_vllm.flags import with_features
from play import Arm

# Keys and values of six layers, two heads of 64 numbers of four bytes each.
TOKEN_BYTES = 6 * 2 * 2 * 64 * 4

__all__ = ["EngineClient", "EngineSize", "open_engine", "save_model"]


@dataclass(frozen=True)
class EngineSize:
    """What the engine can hold.

    Args:
        pool_tokens: tokens of the KV cache.
        block_tokens: tokens of a block; the CPU backend wants a multiple of 32.
        step_tokens: tokens that a step computes at most.
        max_num_seqs: requests that run together at most.
        max_model_len: tokens of a request at most.
    """

    pool_tokens: int
    block_tokens: int = 32
    step_tokens: int = 512
    max_num_seqs: int = 64
    max_model_len: int = 4096

    @property
    def num_blocks(self) -> int:
        """Blocks of the pool, with vLLM's null block; one request fits in any case."""
        return max(self.pool_tokens, self.max_model_len) // self.block_tokens + 1


@dataclass
class EngineRecord:
    """One request; see `play.Record`."""

    prompt: list[int]
    submitted_s: float
    output: list[int] = field(default_factory=list)
    first_token_s: float | None = None
    finished_s: float | None = None


@dataclass(frozen=True)
class Step:
    """One step of the engine: what it computed, and how long it took by two clocks.

    Args:
        num_tokens: tokens that it computed.
        num_requests: requests that they belong to.
        context_pairs: sum over them of the tokens that they attended to.
        seconds: since the end of the step before, with what vLLM and its clients did meanwhile.
        cpu_s: of the scheduler's two calls.
    """

    num_tokens: int
    num_requests: int
    context_pairs: float
    seconds: float
    cpu_s: float


def save_model(directory: Path) -> None:
    """Saves a Llama of six layers with random weights: nobody reads what it says.

    Weights are large, so that no two tokens are about as likely and float32's rounding, which
    differs with the batch, does not decide which one is taken.
    """
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=8192,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=8192,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
    )
    transformers.LlamaForCausalLM(config).to(torch.float32).save_pretrained(directory)


class Clock:
    """Seconds that one engine was at work, or waited with nothing to do.

    It stands still while another engine of this process works.
    """

    def __init__(self) -> None:
        self._passed_s = 0.0
        self._since_s: float | None = None

    def __call__(self) -> float:
        working_s = time.perf_counter() - self._since_s if self._since_s is not None else 0.0
        return self._passed_s + working_s

    @contextmanager
    def working(self) -> Iterator[None]:
        """Lets it run."""
        self._since_s = time.perf_counter()
        try:
            yield
        finally:
            self._passed_s, self._since_s = self(), None

    def wait_until(self, at_s: float) -> None:
        """Puts it forward."""
        self._passed_s = max(self._passed_s, at_s)


class EngineClient:
    """Runs requests in an engine, greedily and to their exact lengths.

    Args:
        llm: the engine.
        clock: of the engine.
        arrival_order: whether a turn queues where its session's first turn did.
        sleeps: whether waiting takes real time, in which copies go on.
    """

    vocabulary = 8192

    def __init__(
        self, llm: vllm.LLM, clock: Clock, *, arrival_order: bool, sleeps: bool = False
    ) -> None:
        self._engine = llm.llm_engine
        self._clock = clock
        self._arrival_order = arrival_order
        self._sleeps = sleeps
        self._open: dict[str, EngineRecord] = {}
        self.steps: list[Step] = []
        self.num_preemptions = 0
        # When the engine last had nothing to wait for but itself.
        self._since_s = self.now_s
        self._scheduled = Step(0, 0, 0.0, 0.0, 0.0)
        self._watch()

    @property
    def now_s(self) -> float:
        return self._clock()

    @property
    def is_busy(self) -> bool:
        return bool(self._open)

    @property
    def scheduler(self) -> Any:
        core: Any = self._engine.engine_core
        return core.engine_core.scheduler

    @property
    def num_computed_tokens(self) -> int:
        return sum(step.num_tokens for step in self.steps)

    def submit(
        self,
        name: str,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        session: str | None,
        first_arrival_s: float,
        hints: Mapping[str, object],
    ) -> EngineRecord:
        params = vllm.SamplingParams(
            temperature=0.0, max_tokens=max_tokens, ignore_eos=True, detokenize=False,
            extra_args=dict(hints) or None,
        )  # fmt: skip
        record = EngineRecord(list(prompt), self.now_s)
        if not self._open:
            self._since_s = record.submitted_s
        self._open[name] = record
        with self._clock.working():
            self._engine.add_request(
                name,
                {"prompt_token_ids": record.prompt},
                params,
                arrival_time=first_arrival_s if self._arrival_order else record.submitted_s,
                session_id=session,
            )
        return record

    def step(self) -> list[str]:
        ended = []
        with self._clock.working():
            outputs = self._engine.step()
        for output in outputs:
            record, now_s = self._open[output.request_id], self.now_s
            record.output = list(output.outputs[0].token_ids)
            if record.output and record.first_token_s is None:
                record.first_token_s = now_s
            if output.finished:
                record.finished_s = now_s
                del self._open[output.request_id]
                ended.append(output.request_id)
        seconds = self.now_s - self._since_s
        self.steps.append(replace(self._scheduled, seconds=seconds))
        self._since_s = self.now_s
        return ended

    def wait_until(self, at_s: float) -> None:
        if self._sleeps:
            time.sleep(max(0.0, at_s - self.now_s))
        self._clock.wait_until(at_s)

    def _watch(self) -> None:
        """Counts what the scheduler schedules and preempts, and the CPU time that it takes."""
        scheduler = self.scheduler
        schedule, update, preempt = (
            scheduler.schedule, scheduler.update_from_output, scheduler._preempt_request,
        )  # fmt: skip

        def watched_schedule(*args: Any, **kwargs: Any) -> Any:
            cpu_s = time.process_time()
            output = schedule(*args, **kwargs)
            used_s = time.process_time() - cpu_s
            pairs = sum(
                new * (scheduler.requests[name].num_computed_tokens - new / 2)
                for name, new in output.num_scheduled_tokens.items()
            )
            num_requests = len(output.num_scheduled_tokens)
            num_tokens = output.total_num_scheduled_tokens
            self._scheduled = Step(num_tokens, num_requests, pairs, 0.0, used_s)
            return output

        def watched_update(*args: Any, **kwargs: Any) -> Any:
            cpu_s = time.process_time()
            outputs = update(*args, **kwargs)
            used_s = self._scheduled.cpu_s + time.process_time() - cpu_s
            self._scheduled = replace(self._scheduled, cpu_s=used_s)
            return outputs

        def watched_preempt(*args: Any, **kwargs: Any) -> Any:
            self.num_preemptions += 1
            return preempt(*args, **kwargs)

        scheduler.schedule = watched_schedule
        scheduler.update_from_output = watched_update
        scheduler._preempt_request = watched_preempt


@contextmanager
def open_engine(
    model: str, size: EngineSize, arm: Arm, *, copy_token_s: float | None = None
) -> Iterator[EngineClient]:
    """Yields a fresh engine, warmed up and with an empty cache; there may be several.

    Args:
        model: folder of the model.
        size: of the engine.
        arm: what it is.
        copy_token_s: seconds to copy a token to host memory or back; None for as fast as it goes.
    """
    settings = arm.settings_with(size.num_blocks, size.block_tokens * TOKEN_BYTES)
    if settings is not None and not arm.host_pools:
        # Numbers need a connector, and vLLM knows one in a process.
        settings = {**settings, "metrics": False}
    elif settings is not None and copy_token_s is not None:
        settings = {**settings, "emulate_gbps": TOKEN_BYTES / copy_token_s / 1e9}
    by_arrival = arm.settings is not None or arm.arrival_order
    llm = vllm.LLM(
        **with_features(
            model=model,
            dtype="float32",
            enforce_eager=True,
            skip_tokenizer_init=True,
            max_model_len=size.max_model_len,
            max_num_seqs=size.max_num_seqs,
            max_num_batched_tokens=size.step_tokens,
            block_size=size.block_tokens,
            num_gpu_blocks_override=size.num_blocks,
            enable_prefix_caching=arm.prefix_caching,
            scheduling_policy="priority" if by_arrival else "fcfs",
            kv_retention=settings,
        )
    )
    core: Any = llm.llm_engine.engine_core
    # Retention's clock stands still with its engine's.
    core.engine_core.scheduler.retention_clock = clock = Clock()
    prompts = [{"prompt_token_ids": [5 + index] * 300} for index in range(4)]
    params = vllm.SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, detokenize=False)
    llm.generate(prompts, params, use_tqdm=False)
    llm.reset_prefix_cache()
    try:
        yield EngineClient(llm, clock, arrival_order=arm.arrival_order, sleeps=bool(arm.host_pools))
    finally:
        core.shutdown()
        del llm, core
        gc.collect()
