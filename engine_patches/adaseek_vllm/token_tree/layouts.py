"""Where vLLM's kernels keep keys and values inside a block of the KV cache.

Shape legend: b blocks, h KV heads, s slots of a block, d head size. A cache is [b, h, s, 2 * d].
On a GPU each slot holds its key, then its value; the strides may be any. On a CPU the first half of
every (b, h) holds keys and the second values:

    plain  keys [d][s], values [s][d]                                (ISA "vec" and "vec16")
    amx    keys [s / 16][d / 2][16][2], values [d / 16][s / 2][16][2]  (ISA "amx")
"""

from __future__ import annotations

import torch

__all__ = ["CPU_LAYOUTS", "GPU_LAYOUT", "LAYOUTS", "by_slot", "move_rows", "read_blocks"]

CPU_LAYOUTS = ("vec", "vec16", "amx")
"""vLLM's names of the instruction sets whose layout is known."""
GPU_LAYOUT = "slots"
LAYOUTS = (*CPU_LAYOUTS, GPU_LAYOUT)


def read_blocks(cache: torch.Tensor, blocks_b: torch.Tensor, layout: str) -> list[torch.Tensor]:
    """Returns copies of the keys and of the values of some blocks, [h, b * s, d] each."""
    num_heads, size = cache.shape[1], cache.shape[3] // 2
    return [
        view.transpose(0, 1).reshape(num_heads, -1, size)
        for view in _views(cache[blocks_b], layout)
    ]


def by_slot(cache: torch.Tensor, layout: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns keys and values as views [b, h, s, d].

    Raises:
        ValueError: the layout is "amx", which has no such views.
    """
    num_blocks, num_heads, block_size, twice = cache.shape
    if layout == "amx":
        raise ValueError("a cache for matrix units has no view by slots")
    if layout == GPU_LAYOUT:
        return cache[..., : twice // 2], cache[..., twice // 2 :]
    halves = cache.view(num_blocks, num_heads, 2, block_size * twice // 2)
    keys = halves[:, :, 0].view(num_blocks, num_heads, twice // 2, block_size).transpose(2, 3)
    return keys, halves[:, :, 1].view(num_blocks, num_heads, block_size, twice // 2)


def move_rows(
    cache: torch.Tensor, sources: torch.Tensor, targets: torch.Tensor, layout: str
) -> None:
    """Copies the keys and values of slots `sources` to `targets`; reads all before it writes."""
    block_size = cache.shape[2]
    source, target = _places(sources, block_size), _places(targets, block_size)
    for view in _views(cache, layout):
        by_slot = view.transpose(0, 1)
        by_slot[target] = by_slot[source]


def _places(slots: torch.Tensor, block_size: int) -> tuple[slice | torch.Tensor, ...]:
    """Indices of slots in a view of `_views` with its heads in front."""
    slot = slots % block_size
    return slice(None), slots // block_size, slot // 16, slot % 16 // 2, slot % 2


def _views(cache: torch.Tensor, layout: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values as views [b, h, s / 16, 8, 2, d / 16, 8, 2], whatever their layout."""
    num_blocks, num_heads, block_size, twice = cache.shape
    slots, elements = block_size // 16, twice // 32
    halves = (num_blocks, num_heads, 2)
    if layout == "amx":
        keys = cache.view(*halves, slots, elements, 8, 8, 2, 2)[:, :, 0]
        values = cache.view(*halves, elements, slots, 8, 8, 2, 2)[:, :, 1]
        return keys.permute(0, 1, 2, 5, 6, 3, 4, 7), values.permute(0, 1, 3, 4, 7, 2, 5, 6)
    keys, values = (
        view.view(num_blocks, num_heads, slots, 8, 2, elements, 8, 2)
        for view in by_slot(cache, layout)
    )
    return keys, values
