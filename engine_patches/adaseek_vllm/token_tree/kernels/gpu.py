"""The kernel in Triton, for GPUs. Not run on a GPU yet: see `tree_attention_triton`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Unpack

import torch
import triton

from adaseek_vllm.token_tree import layouts
from adaseek_vllm.token_tree.kernels.interface import Scoring
from adaseek_vllm.token_tree.kernels.plain import TorchKernel
from adaseek_vllm.token_tree.kernels.tree_attention_triton import attend_parts, merge_parts
from adaseek_vllm.token_tree.step import TreeStep

__all__ = ["Tiling", "TritonKernel", "num_parts", "tiling"]


class Tiling(NamedTuple):
    """How much a program holds at once, and how it is compiled."""

    queries: int
    tokens: int
    num_warps: int
    num_stages: int


# By padded head size. Without tensor cores, float32 needs the registers for its operands.
_FLOAT32 = {
    64: Tiling(16, 32, num_warps=8, num_stages=2),
    128: Tiling(16, 16, num_warps=8, num_stages=2),
    256: Tiling(16, 16, num_warps=16, num_stages=1),
}
# For few queries and for many.
_FLOAT16 = {
    64: (Tiling(16, 64, 4, 2), Tiling(64, 64, 8, 2)),
    128: (Tiling(16, 32, 4, 2), Tiling(32, 64, 4, 2)),
    256: (Tiling(16, 32, 4, 2), Tiling(32, 32, 8, 2)),
}
_MOST_PARTS = 32
_LEAST_TOKENS_OF_A_PART = 256


@dataclass(frozen=True, eq=False)
class _PlacedStep:
    """A step's trees on the device, for all of its layers."""

    step: TreeStep
    # [trees, 5] int32: request, first token, rows, tokens of context, rows before
    trees: torch.Tensor
    # [rows, words] int32
    words: torch.Tensor
    # [rows] int32
    depths: torch.Tensor
    # [rows] int32, the rows' places among the step's tokens
    tokens: torch.Tensor
    most_rows: int
    most_tokens: int

    @classmethod
    def on(cls, device: torch.device, step: TreeStep) -> _PlacedStep:
        trees, words, depths = step.tensors
        rows_before = trees[:, 2].cumsum(0) - trees[:, 2]
        return cls(
            step,
            torch.cat([trees, rows_before[:, None]], dim=1).int().to(device, non_blocking=True),
            words.view(torch.int32).to(device, non_blocking=True),
            depths.to(device, non_blocking=True),
            torch.from_numpy(step.rows).int().to(device, non_blocking=True),
            max(tree.num_rows for tree in step.trees),
            max(tree.num_context_tokens + tree.num_rows for tree in step.trees),
        )


class TritonKernel(TorchKernel):
    """Attends in Triton; moves rows and finds likely tokens in torch.

    Args:
        num_processors: the GPU's multiprocessors; long sequences are split until each has work.
    """

    def __init__(self, *, num_processors: int) -> None:
        self._num_processors = num_processors
        self._placed: _PlacedStep | None = None

    def attend(
        self,
        query: torch.Tensor,
        cache: torch.Tensor,
        block_table: torch.Tensor,
        step: TreeStep,
        output: torch.Tensor,
        **scoring: Unpack[Scoring],
    ) -> None:
        placed = self._on_device(step, query.device)
        keys, values = layouts.by_slot(cache, scoring["layout"])
        _, num_heads, size = query.shape
        num_kv_heads = cache.shape[1]
        groups = num_heads // num_kv_heads
        for rows in (query, output):
            assert rows.stride()[1:] == (size, 1), "the heads of a row must be contiguous"
        tile = tiling(size, query.dtype, placed.most_rows * groups)
        num_blocks = num_kv_heads * triton.cdiv(placed.most_rows * groups, tile.queries)
        parts = num_parts(len(step.trees) * num_blocks, placed.most_tokens, self._num_processors)
        part, peak, total = _part_buffers(query, len(placed.tokens), parts)
        padded_size = triton.next_power_of_2(size)
        # A launch takes more than the kernel's arguments, and constants as they are.
        attend: Any = attend_parts[(len(step.trees), num_blocks, parts)]
        attend(
            output,
            part,
            peak,
            total,
            query,
            keys,
            values,
            block_table,
            placed.trees,
            placed.words,
            placed.depths,
            scoring["scale"],
            # vLLM's is an integer where there is none.
            float(scoring["softcap"]),
            scoring["window"],
            placed.words.shape[1],
            num_kv_heads,
            parts,
            output.stride(0),
            query.stride(0),
            block_table.stride(0),
            *keys.stride(),
            *values.stride(),
            HEAD_SIZE=size,
            PADDED_SIZE=padded_size,
            GROUPS=groups,
            BLOCK_SIZE=cache.shape[2],
            QUERIES=tile.queries,
            TILE=tile.tokens,
            HAS_SOFTCAP=scoring["softcap"] > 0,
            HAS_WINDOW=scoring["window"] > 0,
            IS_SPLIT=parts > 1,
            PRECISION=precision(query.dtype),
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )
        if parts > 1:
            merge: Any = merge_parts[(len(placed.tokens), num_heads)]
            merge(
                output,
                part,
                peak,
                total,
                placed.tokens,
                num_heads,
                output.stride(0),
                HEAD_SIZE=size,
                PADDED_SIZE=padded_size,
                PARTS=parts,
            )

    def _on_device(self, step: TreeStep, device: torch.device) -> _PlacedStep:
        """A step's layers come one after another, so the last step is kept."""
        if self._placed is None or self._placed.step is not step:
            self._placed = _PlacedStep.on(device, step)
        return self._placed


def tiling(size: int, dtype: torch.dtype, num_queries: int) -> Tiling:
    """Returns how much a program holds.

    Chosen so that at most four of a thread's registers spill for compute capabilities 8.0 and 9.0,
    which a test keeps; not tuned, because nothing was measured on a GPU yet.

    Args:
        size: head size.
        dtype: of queries and cache.
        num_queries: most queries of a tree and KV head.
    """
    if dtype == torch.float32:
        return _FLOAT32[_padded(size)]
    few, many = _FLOAT16[_padded(size)]
    return few if num_queries <= few.queries else many


def _padded(size: int) -> int:
    return max(64, int(triton.next_power_of_2(size)))


def precision(dtype: torch.dtype) -> str:
    """Returns how Triton multiplies: float32 stays float32, for answers equal to plain decoding."""
    return "ieee" if dtype == torch.float32 else "tf32"


def num_parts(num_programs: int, num_tokens: int, num_processors: int) -> int:
    """Returns in how many parts sequences are split, a power of two.

    Args:
        num_programs: programs without a split.
        num_tokens: tokens of the longest sequence.
        num_processors: the GPU's multiprocessors.
    """
    wanted = min(num_processors // num_programs, num_tokens // _LEAST_TOKENS_OF_A_PART, _MOST_PARTS)
    return 1 << max(wanted, 1).bit_length() - 1


def _part_buffers(
    query: torch.Tensor, num_rows: int, parts: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns room for parts' results, their peaks and totals; none for a single part."""
    shape = (num_rows, query.shape[1], parts) if parts > 1 else (0, 0, 0)
    part = query.new_empty(*shape, query.shape[2], dtype=torch.float32)
    peak, total = query.new_empty(2, *shape, dtype=torch.float32)
    return part, peak, total
