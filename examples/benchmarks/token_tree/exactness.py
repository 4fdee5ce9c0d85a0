"""Same tokens with trees as without: counts completions that differ from vLLM's own.

    python examples/benchmarks/token_tree/exactness.py MODEL --prompts 200 --tokens 128

Greedy prompts and seeded ones with penalties, top-p, top-k and log probabilities, in float32, in
batches of 1 to 8. Drafts are the real sources', and in a second pass trees of `scripted` shape
that hide the known continuation among wrong guesses. MODEL is a directory or a name on the hub.

In bfloat16 (`--dtype bfloat16 --modes greedy`) rounding depends on the number of rows, in vLLM's
own linear speculation as well: `gap` is how much likelier, as a log probability, the first token
that differs was than the one in its place, the largest of all completions; `ngram` is vLLM's.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import time
from typing import Any

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

import numpy as np
import vllm
from adaseek_vllm.flags import with_features
from adaseek_vllm.token_tree.guesses import Guesses
from adaseek_vllm.token_tree.sources import DraftRequest
from adaseek_vllm.token_tree.tree import ROOT
from vllm import SamplingParams

SUBJECTS = (
    *("a lighthouse", "prime numbers", "sourdough bread", "the French Revolution", "a cat"),
    *("photosynthesis", "bicycle gears", "a lost letter", "the moon", "binary search"),
)
TASKS = ("Write a short story about {}.", "Explain {} to a child.", "List five facts about {}.",
         "Write a Python function about {} with comments.", "Write a poem about {}.",
         "Repeat twice and then continue: everything about {} is",
         "Write a JSON object that describes {}.", "Write an email that asks about {}.",
         "Compare {} with something similar.", "Give step by step instructions about {}.",
         "Write a dialogue about {}.", "Summarise what is known of {}.",
         "Ask ten questions about {}.", "Write a table about {}.", "Criticise {}.",
         "Translate to French: I like {}.", "Write a headline about {}.",
         "Write a C program about {}.", "Define {}.", "Write an advertisement for {}.")  # fmt: skip

LINEAR = {
    "speculative_config": {
        "method": "ngram",
        "num_speculative_tokens": 4,
        "prompt_lookup_min": 1,
        "prompt_lookup_max": 4,
    }
}


class Scripted:
    """Hides the known continuation in random places of random trees."""

    num_successors = 0

    def __init__(self, texts: list[list[int]]) -> None:
        self.texts, self.rng = texts, np.random.default_rng(0)

    def draft(self, request: DraftRequest, max_nodes: int) -> Guesses:
        tokens, rng, guesses = request.tokens.tolist(), self.rng, Guesses()
        coming = next((t[len(tokens) :] for t in self.texts if t[: len(tokens)] == tokens), [])
        coming, spine, nodes = coming[: int(rng.integers(0, 9))], ROOT, [ROOT]
        for _ in range(int(rng.integers(0, max_nodes + 1))):
            if coming and rng.random() < 0.5:
                spine = guesses.add(spine, coming.pop(0), 0.9)
                nodes.append(spine)
            else:
                # The right token in a wrong place, too.
                token = coming[0] if coming and rng.random() < 0.3 else rng.integers(100, 4000)
                nodes.append(guesses.add(nodes[int(rng.integers(len(nodes)))], int(token), 0.9))
        return guesses

    def learn(self, rows: Any) -> None:
        raise AssertionError("no successors were asked for")

    def forget(self, request_id: str) -> None:
        pass


def parameters(index: int, num_tokens: int, *, seeded: bool) -> SamplingParams:
    common: dict[str, Any] = {"max_tokens": num_tokens, "detokenize": False}
    if not seeded:
        return SamplingParams(temperature=0, ignore_eos=True, logprobs=4, **common)
    features: list[dict[str, Any]] = [
        {"top_p": 0.95},
        {"top_k": 20, "logprobs": 3},
        {"repetition_penalty": 1.2, "frequency_penalty": 0.3, "logprobs": 1},
        {"presence_penalty": 0.5, "top_p": 0.8, "min_tokens": 20},
    ]
    chosen = features[index % len(features)]
    return SamplingParams(temperature=0.8, seed=1000 + index, **common, **chosen)


def run(model: str, prompts: list[str], given: Any, **arguments: Any) -> tuple[list[Any], float]:
    """Returns all completions, in batches of 1 to 8, and the number of tokens per step."""
    llm = vllm.LLM(
        **with_features(
            model=model,
            dtype=given.dtype,
            enforce_eager=True,
            max_model_len=1024,
            max_num_seqs=8,
            **arguments,
        )
    )
    core: Any = llm.llm_engine.engine_core
    runner = core.engine_core.model_executor.driver_worker.worker.model_runner
    num_steps, execute = 0, runner.execute_model

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal num_steps
        num_steps += 1
        return execute(*args, **kwargs)

    runner.execute_model = counted
    if given.texts is not None:
        runner.drafter.sources = [Scripted(given.texts)]
    outputs: list[Any] = []
    while len(outputs) < len(prompts):
        first = len(outputs)
        batch = prompts[first : first + 1 + first % 8]
        settings = [
            parameters(first + index, given.tokens, seeded=given.seeded)
            for index in range(len(batch))
        ]
        chats = [[{"role": "user", "content": prompt}] for prompt in batch]
        outputs += llm.chat(chats, settings, use_tqdm=False)
    num_tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    core.shutdown()
    del llm, runner, core
    gc.collect()
    return outputs, num_tokens / num_steps


def different(stock: list[Any], trees: list[Any]) -> dict[str, Any]:
    """Counts completions with other tokens, or other log probabilities than rounding explains."""
    tokens, worst, gap = 0, 0.0, 0.0
    for one, other in zip(stock, trees, strict=True):
        (a,), (b,) = one.outputs, other.outputs
        if list(a.token_ids) != list(b.token_ids):
            tokens += 1
            gap = max(gap, first_gap(a, b))
        elif a.logprobs is not None:
            pairs = zip(a.logprobs, b.logprobs, strict=True)
            worst = max(
                worst, *(abs(p[t].logprob - q[t].logprob) for p, q in pairs for t in p if t in q)
            )
    return {"different": tokens, "gap": round(gap, 4), "logprob_error": round(worst, 6)}


def first_gap(stock: Any, other: Any) -> float:
    """How much likelier stock's token was than the other one where they first differ."""
    pairs = enumerate(zip(stock.token_ids, other.token_ids, strict=False))
    differing = next(((at, a, b) for at, (a, b) in pairs if a != b), None)
    if differing is None or stock.logprobs is None:
        return math.inf
    at, a, b = differing
    likely = stock.logprobs[at]
    return likely[a].logprob - likely[b].logprob if b in likely else math.inf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--nodes", type=int, default=12)
    parser.add_argument("--modes", nargs="+", default=["greedy", "seeded"])
    parser.add_argument("--drafts", nargs="+", default=["sources", "scripted"],
                        choices=["sources", "scripted", "ngram"])  # fmt: skip
    parser.add_argument("--dtype", default="float32")
    given = parser.parse_args()
    prompts = [task.format(subject) for task in TASKS for subject in SUBJECTS][: given.prompts]
    for mode in given.modes:
        given.seeded, given.texts = mode == "seeded", None
        started = time.monotonic()
        stock, stock_rate = run(given.model, prompts, given)
        texts = [[*one.prompt_token_ids, *one.outputs[0].token_ids] for one in stock]
        tree = {"token_tree": {"num_nodes": given.nodes, "budget": "full"}}
        for drafts in given.drafts:
            given.texts = texts if drafts == "scripted" else None
            trees, rate = run(
                given.model, prompts, given, **(LINEAR if drafts == "ngram" else tree)
            )
            result = {
                "mode": f"{mode} {given.dtype}",
                "drafts": drafts,
                "completions": len(stock),
                "tokens": sum(len(one.outputs[0].token_ids) for one in stock),
                **different(stock, trees),
                "tokens_per_step": round(rate, 2),
                "stock": round(stock_rate, 2),
                "seconds": round(time.monotonic() - started),
            }
            print("RESULT " + json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
