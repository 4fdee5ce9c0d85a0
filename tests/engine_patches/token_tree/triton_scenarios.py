"""Runs the attention for GPUs in a real engine on the CPU, and prints what differs as JSON.

Triton's interpreter runs vLLM's attention and cache kernels and ours on CPU tensors. The runner,
scheduler and proposer are those of the CPU engine; a GPU's runner and worker are not in this. A
program of its own, because Triton must know that it interprets before it is imported.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch
import triton
import triton.language as tl
import vllm.triton_utils
from engine_scenarios import (
    Engine,
    compared,
    controls,
    prompts,
    save_model,
    texts_of,
)
from vllm import SamplingParams
from vllm.v1.attention.backends.registry import AttentionBackendEnum

OPERATORS = (
    "triton_attention_helpers",
    "triton_unified_attention",
    "triton_prefill_attention",
    "triton_reshape_and_cache_flash",
)


@contextmanager
def real_triton() -> Iterator[None]:
    """Lets modules of vLLM that are imported meanwhile have Triton, which it does without here."""
    hidden = vllm.triton_utils.triton, vllm.triton_utils.tl
    vllm.triton_utils.triton, vllm.triton_utils.tl = triton, tl
    try:
        yield
    finally:
        vllm.triton_utils.triton, vllm.triton_utils.tl = hidden


with real_triton():
    for name in OPERATORS:
        importlib.import_module(f"vllm.v1.attention.ops.{name}")

from adaseek_vllm._compat import tree_runner  # noqa: E402
from adaseek_vllm._compat.tree_cpu import TreeCPUModelRunner  # noqa: E402
from adaseek_vllm._compat.tree_gpu import TreeGPUBackend  # noqa: E402
from adaseek_vllm.token_tree.kernels import gpu  # noqa: E402
from adaseek_vllm.token_tree.layouts import GPU_LAYOUT  # noqa: E402

CALLS = {"attend": 0, "mixed": 0}


class CountedKernel(gpu.TritonKernel):
    """Counts what it was asked for: once per layer and step."""

    def attend(self, query: Any, cache: Any, table: Any, step: Any, *args: Any, **how: Any) -> None:
        CALLS["attend"] += 1
        CALLS["mixed"] += len(step.rows) < len(query)
        super().attend(query, cache, table, step, *args, **how)


class InterpretedBackend(TreeGPUBackend):  # type: ignore[misc]
    """The GPU's backend under the name that vLLM's CPU platform asks for."""

    @staticmethod
    def get_name() -> str:
        return "CPU_ATTN"


def use_interpreter() -> None:
    """Makes engines with trees attend as on a GPU."""
    TreeCPUModelRunner.tree_backend = (AttentionBackendEnum.CPU_ATTN, InterpretedBackend)
    TreeCPUModelRunner._cache_layout = lambda _self: GPU_LAYOUT
    tree_runner.best_kernel = lambda _layout: CountedKernel(num_processors=1)
    # Every second layer splits its sequences, short as they are.
    gpu.num_parts = lambda *_: 1 + CALLS["attend"] % 2
    # vLLM's cache operator asks for it to choose its launch.
    torch.cuda.get_device_capability = lambda *_: (8, 0)


GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, detokenize=False)


def scenarios(model: str) -> dict[str, Any]:
    asked = [*prompts(4, 9), *prompts(1, 45, seed=1)]
    stock = Engine(model)
    expected = stock.generate(asked, GREEDY)
    stock.close()
    use_interpreter()
    engine = Engine(model, token_tree={"num_nodes": 10, "budget": "full"})
    texts = texts_of(expected)
    engine.use(texts)

    def run(engine: Engine) -> list[Any]:
        return engine.generate(asked, GREEDY)

    layer = next(iter(engine.runner.compilation_config.static_forward_context.values()))
    result = compared(expected, run(engine)) | {"steps": engine.num_steps}
    result |= CALLS | {"layer": type(layer.impl).__name__}
    result["controls"] = controls(engine, run, expected, texts)
    engine.close()
    return result


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    save_model(directory)
    print("RESULTS " + json.dumps(scenarios(str(directory))))
