"""Runs one tiny random model in vLLM under several policies; prints outputs and hits as JSON.

A program of its own, because an engine in its process leaves much behind. Agents' turns follow
one another while one-shot requests want more memory than there is; greedy, in float32.

    python engine_scenarios.py NUM_SESSIONS NUM_TURNS [ARM,...]

ADASEEK_NUM_ROUNDS plays so many groups of sessions, one after the other (default 1); a turn adds
20 tokens to a context of 120, and MAX_LEN allows 19 of them.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

os.environ |= {
    # Two spinning threads for matrices this small lose to one on a busy machine.
    "OMP_NUM_THREADS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}

import numpy as np
import torch
import transformers
import vllm
from adaseek_vllm.flags import with_features
from vllm.distributed.kv_transfer import get_kv_transfer_group

VOCABULARY = 160
BLOCK, NUM_BLOCKS, MAX_LEN = 32, 40, 512
# Two layers, keys and values, one head of 32 numbers of four bytes.
BLOCK_BYTES = 2 * 2 * 32 * 4 * BLOCK
HOST = {"policy": "host", "max_pinned_fraction": 0.9, "host_bytes": "64MiB"}
ARMS: dict[str, object] = {
    "stock": None,
    "auto": "auto",
    "pin": {"policy": "pin", "max_pinned_fraction": 0.9},
    "soft": {"policy": "soft"},
    "drop": {"policy": "drop"},
    "infercept": {"policy": "infercept"},
    "host": {**HOST, "prefetch": False},
    "prefetch_host": {**HOST, "prefetch": True, "inflight_fraction": 0.5},
    "small_host": {"policy": "host", "max_pinned_fraction": 0.9, "host_bytes": 20 * BLOCK_BYTES},
    "slow_host": {"policy": "host", "host_bytes": "64MiB", "emulate_gbps": 0.002},
    "auto_host": {"policy": "auto", "host_bytes": "64MiB"},
    "faulty_host": {**HOST, "prefetch": False},
}
FAIL_EVERY = {"faulty_host": 3}


def save_model(directory: Path) -> None:
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=MAX_LEN,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
    )
    transformers.LlamaForCausalLM(config).to(torch.float32).save_pretrained(directory)


class CheckedCopies:
    """Checks every copy against what its block held when it was copied out; may fail some.

    Args:
        scheduler: the engine's, in the same process.
        fail_every: every so many copies fail; 0 for none.
    """

    def __init__(self, scheduler: Any, fail_every: int) -> None:
        self.swap = scheduler.retention_host.swap
        self.fail_every = fail_every
        self.sums: dict[bytes, int] = {}
        self.num_checked = self.num_copies = 0
        self.worker: Any = get_kv_transfer_group()._worker.worker
        self.copy, self.move = self.worker._copy, self.worker._move
        self.worker._copy, self.worker._move = self.checked, self.failing

    def checked(self, job_id: int, sources: Any, targets: Any, rows: Any, to: Any) -> None:
        keys = self.swap._jobs[job_id].keys
        is_out = sources is self.worker._device
        if is_out:
            self.sums |= dict(zip(keys, self.checksums(rows), strict=True))
        self.copy(job_id, sources, targets, rows, to)
        if not is_out and job_id not in self.worker._failed:
            assert self.checksums(to) == [self.sums[key] for key in keys], "a copy differs"
            self.num_checked += len(keys)

    def failing(self, *args: Any) -> None:
        self.num_copies += 1
        if self.fail_every and self.num_copies % self.fail_every == 0:
            raise RuntimeError("injected")
        self.move(*args)

    def checksums(self, blocks: Any) -> list[int]:
        rows = [
            [tensor[block].numpy().tobytes() for tensor in self.worker._device] for block in blocks
        ]
        return [zlib.crc32(b"".join(row)) for row in rows]


def run_arm(
    model: str, setting: object, num_sessions: int, num_turns: int, *, fail_every: int
) -> dict[str, Any]:
    llm = vllm.LLM(
        **with_features(
            model=model,
            dtype="float32",
            enforce_eager=True,
            max_model_len=MAX_LEN,
            max_num_seqs=4,
            max_num_batched_tokens=256,
            block_size=BLOCK,
            num_gpu_blocks_override=NUM_BLOCKS,
            skip_tokenizer_init=True,
            kv_retention=setting,
        )
    )
    core: Any = llm.llm_engine.engine_core
    scheduler = core.engine_core.scheduler
    has_host = getattr(scheduler, "retention_host", None) is not None
    copies = CheckedCopies(scheduler, fail_every) if has_host else None
    outputs: list[Any] = []
    num_cached = 0
    for seed in range(int(os.environ.get("ADASEEK_NUM_ROUNDS", "1"))):
        written, num_hit = play(llm, num_sessions, num_turns, seed)
        outputs += written
        num_cached += num_hit
    retention = getattr(scheduler, "retention", None)
    result = {
        "scheduler": type(scheduler).__name__,
        "outputs": hashlib.sha256(json.dumps(outputs).encode()).hexdigest(),
        "num_cached_tokens": num_cached,
        "num_resumed": retention.counts.num_resumed if retention else 0,
        "decisions": retention.counts.decisions if retention else {},
        "prefetches": retention.counts.prefetches if retention else {},
        "num_loaded": retention.counts.num_resumed_loaded if retention else 0,
        "num_checked": copies.num_checked if copies else 0,
        "num_host_tokens": scheduler.retention_host.num_tokens if copies else 0,
        "can_reset": llm.reset_prefix_cache(),
        "num_left": scheduler.retention_host.num_tokens if copies else 0,
    }
    core.shutdown()
    del llm, core, scheduler
    gc.collect()
    return result


def play(llm: Any, num_sessions: int, num_turns: int, seed: int) -> tuple[list[Any], int]:
    rng = np.random.default_rng(7 + seed)
    contexts = [rng.integers(3, VOCABULARY, 120).tolist() for _ in range(num_sessions)]
    outputs, num_cached = [], 0
    for turn in range(num_turns):
        names = [f"session-{index}" for index in range(num_sessions)]
        is_last = turn == num_turns - 1
        for start in range(0, num_sessions, 2):
            pair = slice(start, start + 2)
            answers = generate(llm, contexts[pair], names[pair], is_last=is_last)
            for index, answer in enumerate(answers, start):
                outputs.append([index, turn, list(answer.outputs[0].token_ids)])
                num_cached += answer.num_cached_tokens or 0
                tool = rng.integers(3, VOCABULARY, 9).tolist()
                contexts[index] += [*answer.outputs[0].token_ids, *tool]
            crowd = [rng.integers(3, VOCABULARY, 300).tolist() for _ in range(2)]
            others = generate(llm, crowd, [None] * 2, is_last=False)
            outputs += [list(answer.outputs[0].token_ids) for answer in others]
    return outputs, num_cached


def generate(llm: Any, prompts: list[Any], sessions: list[Any], *, is_last: bool) -> list[Any]:
    params = []
    for session in sessions:
        hints: dict[str, Any] = {"session_id": session, "kvret_tool": "t"} if session else {}
        if session and is_last:
            hints["kvret_final"] = 1
        params.append(
            vllm.SamplingParams(
                temperature=0.0, max_tokens=11, ignore_eos=True, extra_args=hints or None
            )
        )
    inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
    return list(llm.generate(inputs, params, use_tqdm=False))


def main() -> None:
    num_sessions, num_turns = int(sys.argv[1]), int(sys.argv[2])
    arms = sys.argv[3].split(",") if len(sys.argv) > 3 else list(ARMS)
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder))
        results = {
            name: run_arm(
                folder, ARMS[name], num_sessions, num_turns, fail_every=FAIL_EVERY.get(name, 0)
            )
            for name in arms
        }
    print("RESULT " + json.dumps(results))


if __name__ == "__main__":
    main()
