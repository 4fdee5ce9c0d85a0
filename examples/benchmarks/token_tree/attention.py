"""Time of the tree attention kernel over vLLM's own for the same rows, interleaved.

    python examples/benchmarks/token_tree/attention.py [--rounds 40] [--layout vec]

vLLM's kernel gets the same queries and cache with a causal mask, so its output is another one.
Prints per shape the median time of a call of each, and the median ratio.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from adaseek_vllm.token_tree.kernels import compiled_kernel
from adaseek_vllm.token_tree.step import RequestTree, TreeStep
from adaseek_vllm.token_tree.tree import TreeTokens
from vllm import _custom_ops as ops

BLOCK = 128
# Query heads, KV heads, head size.
MODELS = {
    "SmolLM2-135M": (9, 3, 64),
    "Qwen2.5-0.5B": (14, 2, 64),
    "Qwen2.5-1.5B": (12, 2, 128),
}


def random_tree(num_nodes: int) -> TreeTokens:
    rng = np.random.default_rng(num_nodes)
    return TreeTokens(range(num_nodes), [int(rng.integers(-1, node)) for node in range(num_nodes)])


def vllm_attention(
    query: torch.Tensor,
    cache: torch.Tensor,
    table: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    output: torch.Tensor,
    *,
    layout: str,
) -> Callable[[], None]:
    """Returns a call of vLLM's kernel, with a causal mask, that fills `output`.

    Args:
        query, output: [num_rows, num_heads, size].
        cache: [num_blocks, num_kv_heads, BLOCK, 2 * size], of the query's type.
        table: [num_reqs, max_num_blocks] int32.
        starts: [num_reqs + 1] int32, a request's first row.
        lengths: [num_reqs] int32, tokens of a request with its rows.
    """
    num_heads, size = query.shape[1:]
    num_kv_heads = cache.shape[1]
    keys, values = cache.view(len(cache), num_kv_heads, 2 * BLOCK, size).chunk(2, dim=2)
    plan = ops.cpu_attn_get_scheduler_metadata(
        num_reqs=len(lengths),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=size,
        seq_lens=lengths,
        dtype=query.dtype,
        query_start_loc=starts,
        causal=True,
        sliding_window_size=-1,
        isa=layout,
        enable_kv_split=True,
    )

    def call() -> None:
        ops.cpu_attention_with_kv_cache(
            query=query,
            key_cache=keys,
            value_cache=values,
            output=output,
            query_start_loc=starts,
            seq_lens=lengths,
            scale=size**-0.5,
            causal=True,
            alibi_slopes=None,
            sliding_window=-1,
            block_table=table,
            softcap=0,
            scheduler_metadata=plan,
            s_aux=None,
        )

    return call


def both(
    heads: tuple[int, int, int], context: int, rows: int, batch: int, layout: str, dtype: Any
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Returns calls of vLLM's kernel and of ours on the same tensors."""
    num_heads, num_kv_heads, size = heads
    num_tokens = context + rows
    num_blocks = -(-num_tokens // BLOCK)
    cache = torch.randn(batch * num_blocks, num_kv_heads, BLOCK, 2 * size).to(dtype)
    table = torch.arange(len(cache), dtype=torch.int32).view(batch, num_blocks)
    query = torch.randn(batch * rows, num_heads, size).to(dtype)
    output = torch.empty_like(query)
    lengths = torch.full((batch,), num_tokens, dtype=torch.int32)
    starts = torch.arange(0, batch * rows + 1, rows, dtype=torch.int32)
    step = TreeStep(
        tuple(RequestTree(i, i * rows, context, random_tree(rows - 1)) for i in range(batch))
    )
    kernel = compiled_kernel()
    assert kernel is not None
    stock = vllm_attention(query, cache, table, starts, lengths, output, layout=layout)

    def ours() -> None:
        kernel.attend(
            query,
            cache,
            table,
            step,
            output,
            layout=layout,
            scale=size**-0.5,
            softcap=0.0,
            window=-1,
        )

    return stock, ours


def seconds(call: Callable[[], None], repeats: int) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - started) / repeats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--layout", choices=("vec", "amx"), default="vec")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 512, 1024, 4096])
    parser.add_argument("--rows", type=int, nargs="+", default=[3, 5, 9, 17, 33])
    parser.add_argument("--batches", type=int, nargs="+", default=[1])
    given = parser.parse_args()
    torch.manual_seed(0)
    dtype = getattr(torch, given.dtype)
    print(f"{given.layout} {given.dtype}: microseconds of vLLM's kernel, of ours, ratio")
    ratios = []
    for model, heads in MODELS.items():
        for batch in given.batches:
            for context in given.contexts:
                for rows in given.rows:
                    calls = both(heads, context, rows, batch, given.layout, dtype)
                    repeats = max(1, int(2e-3 / min(seconds(call, 2) for call in calls)))
                    pairs = [
                        tuple(seconds(call, repeats) for call in calls) for _ in range(given.rounds)
                    ]
                    stock, ours = (statistics.median(times) for times in zip(*pairs, strict=True))
                    ratio = statistics.median(b / a for a, b in pairs)
                    ratios.append(ratio)
                    print(
                        f"{model:13} batch {batch} context {context:4} rows {rows:2}  "
                        f"{stock * 1e6:7.0f} {ours * 1e6:7.0f}  {ratio:.2f}"
                    )
    print(f"ratio: geometric mean {statistics.geometric_mean(ratios):.2f}, worst {max(ratios):.2f}")


if __name__ == "__main__":
    main()
