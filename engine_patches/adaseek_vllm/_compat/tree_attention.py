"""vLLM's CPU attention with tree rows (vLLM 0.32, vllm/v1/attention/backends/cpu_attn.py)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from vllm.v1.attention.backend import AttentionType
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend, CPUAttentionBackendImpl
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
from vllm.v1.attention.selector import _cached_get_attn_backend

from adaseek_vllm.config import FeatureSettingsError
from adaseek_vllm.token_tree.attention import tree_attention
from adaseek_vllm.token_tree.step import TreeStep

__all__ = [
    "KvRows",
    "TreeAttentionBackend",
    "TreeForward",
    "layers_without_trees",
    "registered_backend",
]

# vLLM's name of its vector kernels for CPUs without matrix units.
_READABLE_LAYOUT = "vec"


@dataclass
class KvRows:
    """One layer's keys and values of a step's tree rows, and how to write them again."""

    # The layer and its implementation are vLLM's objects.
    impl: Any
    layer: Any
    key: torch.Tensor  # [rows, KV heads, head size]
    value: torch.Tensor  # [rows, KV heads, head size]
    kv_cache: torch.Tensor
    slots: torch.Tensor  # [rows] int64

    def move(self, sources: torch.Tensor, targets: torch.Tensor) -> None:
        """Writes the rows `sources` into the slots of the rows `targets`."""
        self.impl.do_kv_cache_update(
            self.layer, self.key[sources], self.value[sources], self.kv_cache, self.slots[targets]
        )


@dataclass
class TreeForward:
    """A step's trees on their way through the layers, and what the layers leave behind."""

    step: TreeStep
    rows: torch.Tensor  # [rows] int64
    written: list[KvRows] = field(default_factory=list)


class TreeAttentionImpl(CPUAttentionBackendImpl):  # type: ignore[misc]
    """Attends along the branches of a tree where a step has trees; otherwise vLLM's own."""

    def forward(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: Any,
        output: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        super().forward(layer, query, key, value, kv_cache, attn_metadata, output, *args, **kwargs)
        forward: TreeForward | None = getattr(attn_metadata, "tree_forward", None)
        if forward is None:
            return output
        if layer.isa != _READABLE_LAYOUT:
            raise FeatureSettingsError(
                f"--token-tree reads KV caches laid out for {_READABLE_LAYOUT} kernels, but this "
                f"one is for {layer.isa} kernels: leave the flag out, or try --dtype float32."
            )
        for tree in forward.step.trees:
            rows = slice(tree.first_row, tree.first_row + tree.num_rows)
            output[rows] = tree_attention(
                query[rows],
                kv_cache,
                attn_metadata.block_table[tree.request],
                tree,
                scale=self.scale,
                softcap=self.logits_soft_cap,
                window=self.sliding_window,
            ).view_as(output[rows])
        if self.kv_sharing_target_layer_name is None:
            slots = attn_metadata.slot_mapping[forward.rows]
            # Indexing copies: the projections' buffers are used again by the next layer.
            kept = KvRows(self, layer, key[forward.rows], value[forward.rows], kv_cache, slots)
            forward.written.append(kept)
        return output


class TreeAttentionBackend(CPUAttentionBackend):  # type: ignore[misc]
    """vLLM's CPU backend, whose layers know trees. Its name must stay CPU_ATTN."""

    @staticmethod
    def get_impl_cls() -> type[CPUAttentionBackendImpl]:
        return TreeAttentionImpl


@contextmanager
def registered_backend() -> Iterator[None]:
    """Lets the layers of a model that is loaded meanwhile attend along trees.

    vLLM remembers which class a backend's name stands for. Another engine of the process must
    neither leave its class to this one nor get this one's.
    """
    path = f"{TreeAttentionBackend.__module__}.{TreeAttentionBackend.__qualname__}"
    register_backend(AttentionBackendEnum.CPU_ATTN, path)
    _cached_get_attn_backend.cache_clear()
    try:
        yield
    finally:
        AttentionBackendEnum.CPU_ATTN.clear_override()
        _cached_get_attn_backend.cache_clear()


def layers_without_trees(static_forward_context: Mapping[str, Any]) -> dict[str, str]:
    """Returns the layers of a loaded model that cannot attend along trees, and why."""
    found = {name: _obstacle(layer) for name, layer in static_forward_context.items()}
    return {name: reason for name, reason in found.items() if reason is not None}


def _obstacle(layer: Any) -> str | None:
    impl = getattr(layer, "impl", None)
    if not isinstance(impl, TreeAttentionImpl):
        return "it is no plain attention"
    if impl.attn_type != AttentionType.DECODER:
        return f"its attention is of type {impl.attn_type}"
    if impl.alibi_slopes is not None or impl.sinks is not None:
        return "its attention has linear biases or sinks"
    if impl.is_fp8_kv_cache:
        return "its KV cache is quantised"
    return None
