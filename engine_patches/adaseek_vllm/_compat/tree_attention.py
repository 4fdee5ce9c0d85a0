"""vLLM's CPU attention with tree rows (vLLM 0.32, vllm/v1/attention/backends/cpu_attn.py)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from vllm.v1.attention.backend import AttentionType
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadataBuilder,
)
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
from vllm.v1.attention.selector import _cached_get_attn_backend

from adaseek_vllm.token_tree.kernels import Kernel
from adaseek_vllm.token_tree.layouts import LAYOUTS
from adaseek_vllm.token_tree.step import TreeStep

__all__ = [
    "TreeAttentionBackend",
    "TreeAttentionMetadataBuilder",
    "TreeForward",
    "cache_layout",
    "layers_without_trees",
    "model_obstacle",
    "registered_backend",
]


@dataclass(frozen=True)
class TreeForward:
    """A step's trees on their way through the layers."""

    step: TreeStep
    kernel: Kernel
    num_requests: int

    @property
    def is_whole(self) -> bool:
        """Whether the step has no other rows than those of trees."""
        return len(self.step.trees) == self.num_requests


class TreeAttentionMetadataBuilder(CPUAttentionMetadataBuilder):  # type: ignore[misc]
    """Hands a step's trees to the layers; set for the step by its runner."""

    tree_forward: TreeForward | None = None

    # The arguments and the result are vLLM's.
    def build(
        self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False
    ) -> Any:
        forward, common = self.tree_forward, common_attn_metadata
        if forward is not None and not forward.is_whole:
            # vLLM's kernel computes every row. Without its context, a tree costs it little.
            lengths = common.seq_lens.clone()
            for tree in forward.step.trees:
                lengths[tree.request] = tree.num_rows
            common = common.replace(seq_lens=lengths)
        metadata: Any = super().build(common_prefix_len, common, fast_build)
        metadata.tree_forward = forward
        return metadata


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
        forward: TreeForward | None = getattr(attn_metadata, "tree_forward", None)
        if forward is None or not forward.is_whole:
            super().forward(
                layer, query, key, value, kv_cache, attn_metadata, output, *args, **kwargs
            )
        if forward is not None:
            forward.kernel.attend(
                query,
                kv_cache,
                attn_metadata.block_table,
                forward.step,
                output.view(query.shape),
                layout=layer.isa,
                scale=self.scale,
                softcap=self.logits_soft_cap,
                window=self.sliding_window,
            )
        return output


class TreeAttentionBackend(CPUAttentionBackend):  # type: ignore[misc]
    """vLLM's CPU backend, whose layers know trees. Its name must stay CPU_ATTN."""

    @staticmethod
    def get_impl_cls() -> type[CPUAttentionBackendImpl]:
        return TreeAttentionImpl

    @staticmethod
    def get_builder_cls() -> type[CPUAttentionMetadataBuilder]:
        return TreeAttentionMetadataBuilder


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


def model_obstacle(model_config: Any) -> str | None:
    """Returns why trees cannot be used with a model, as far as its configuration tells."""
    if model_config.is_encoder_decoder:
        return "it is an encoder and a decoder"
    if model_config.uses_mrope:
        return "its rows have positions in several dimensions, and a tree's are its depths"
    return None


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


def cache_layout(static_forward_context: Mapping[str, Any]) -> str:
    """Returns the layout of a model's KV caches, one of `layouts.LAYOUTS`.

    Raises:
        ValueError: the layers have several, or one that AdaSeek does not know.
    """
    found = sorted({layer.isa for layer in static_forward_context.values()})
    if len(found) != 1 or found[0] not in LAYOUTS:
        raise ValueError(
            f"its KV caches are laid out for {', '.join(found)} kernels, but trees need one of "
            f"{', '.join(LAYOUTS)}"
        )
    return str(found[0])
