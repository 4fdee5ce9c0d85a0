"""Cost of a step with a tree over a step with a chain of the same rows, step by step in turns.

    python examples/benchmarks/token_tree/step.py MODEL [--rows 16] [--context 512] [--batch 1]

One engine in this process; each of `--batch` requests has `--rows` rows in a step, all trees or all
chains. Trees and chains hold random tokens, so a step emits one token or two a request.
Chains take vLLM's own attention and need no moves. Prints medians in milliseconds: the step of
each, and of trees the parts that are ours. At temperature 0.8 with top_p 0.95 vLLM's rejection
sampler is timed on the same logits, which it sorts for every row.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections import defaultdict
from itertools import cycle
from typing import Any

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

import numpy as np
import torch
import vllm
from adaseek_vllm.flags import with_features
from adaseek_vllm.token_tree.guesses import Guesses
from adaseek_vllm.token_tree.sources import DraftRequest
from adaseek_vllm.token_tree.tree import ROOT
from vllm import SamplingParams


class InTurns:
    """In a step chains, in the next trees of the same size; both are wrong nearly always."""

    num_successors = 0

    def __init__(self, num_requests: int) -> None:
        self.is_tree, self.rng, self._num_requests = False, np.random.default_rng(0), num_requests
        self.start_over()

    def start_over(self) -> None:
        """Starts with a step in which all of the requests draft."""
        self._turns = cycle([True] * self._num_requests + [False] * self._num_requests)

    def draft(self, request: DraftRequest, max_nodes: int) -> Guesses:
        self.is_tree = next(self._turns)
        guesses = Guesses()
        for node in range(max_nodes):
            parent = int(self.rng.integers(-1, node)) if self.is_tree and node > 1 else node - 1
            parent = ROOT if self.is_tree and node == 1 else parent
            guesses.add(parent, int(self.rng.integers(1000, 40000)) + node, 0.9)
        return guesses

    def learn(self, rows: Any) -> None:
        raise AssertionError("no successors were asked for")

    def forget(self, request_id: str) -> None:
        pass


def median_ms(seconds: list[float]) -> float:
    return 1e3 * statistics.median(seconds)


def measure(llm: Any, source: InTurns, given: Any, sampling: dict[str, Any]) -> None:
    engine = llm.llm_engine
    runner = engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
    runner.drafter.sources = [source]
    # Wrong guesses would soon be given up, and no tree be left to measure.
    runner.drafter._hit_rates.worth = lambda _kind: 1.0
    steps: dict[str, list[float]] = defaultdict(list)
    sample = runner._sample

    def timed(logits: Any, metadata: Any) -> Any:
        if metadata is not None and sampling["temperature"] > 0:
            copied, started = logits.clone(), time.perf_counter()
            runner.rejection_sampler(metadata, None, copied, runner.input_batch.sampling_metadata)
            stock_s = time.perf_counter() - started
            steps["vLLM's rejection sampler"].append(stock_s)
            steps["overhead"].append(time.perf_counter() - started + 0.0)
        started = time.perf_counter()
        output = sample(logits, metadata)
        steps["our _sample"].append(time.perf_counter() - started)
        return output

    runner._sample = timed
    rng, names = np.random.default_rng(1), [str(number) for number in range(given.batch)]
    params = SamplingParams(
        max_tokens=2 * given.steps, ignore_eos=True, detokenize=False, **sampling
    )
    for name in names:
        prompt = rng.integers(1000, 40000, given.context).tolist()
        engine.add_request(name, {"prompt_token_ids": prompt}, params)
    for _ in range(4 + given.batch):
        engine.step()
    source.start_over()
    engine.step()
    for name in list(steps):
        steps[name].clear()
    parts: dict[str, list[float]] = defaultdict(list)
    report = runner._metrics.add

    def kept(stats: Any) -> None:
        if stats.num_branching:
            for part, seconds in stats.seconds.items():
                parts[part].append(seconds)
        report(stats)

    runner._metrics.add = kept
    for _ in range(given.steps):
        name = "tree" if source.is_tree else "chain"
        before, started = len(steps["overhead"]), time.perf_counter()
        engine.step()
        extra = sum(steps["overhead"][before:])
        steps[name].append(time.perf_counter() - started - extra)
    engine.abort_request(names)
    engine.step()
    runner._sample, runner._metrics.add = sample, report
    steps.pop("overhead", None)
    ratio = statistics.median(b / a for a, b in zip(steps["chain"], steps["tree"], strict=False))
    print(f"{sampling}: tree / chain {ratio:.3f}")
    for name, seconds in [*steps.items(), *((f"  {part}", s) for part, s in parts.items())]:
        print(f"  {name:26} {median_ms(seconds):8.3f} ms  ({len(seconds)})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1, help="Requests at once.")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--dtype", default="bfloat16")
    given = parser.parse_args()
    llm = vllm.LLM(
        **with_features(
            model=given.model,
            dtype=given.dtype,
            enforce_eager=True,
            max_model_len=4096,
            max_num_seqs=given.batch,
            enable_prefix_caching=False,
            token_tree={"num_nodes": given.rows - 1, "budget": "full"},
        )
    )
    torch.manual_seed(0)
    source = InTurns(given.batch)
    for sampling in ({"temperature": 0}, {"temperature": 0.8, "top_p": 0.95}):
        measure(llm, source, given, sampling)


if __name__ == "__main__":
    main()
