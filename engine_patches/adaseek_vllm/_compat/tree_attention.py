"""What vLLM's attention learns about trees, on any device (vLLM 0.32).

vllm/v1/attention/backend.py holds the base classes, `tree_cpu` and `tree_gpu` what is theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from vllm.v1.attention.backend import AttentionImpl, AttentionMetadataBuilder, AttentionType
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
from vllm.v1.attention.selector import _cached_get_attn_backend

from adaseek_vllm.token_tree.kernels import Kernel, Scoring
from adaseek_vllm.token_tree.step import TreeStep

# vLLM's classes are not followed by every type checker, hence the ignored subclassing below.
__all__ = [
    "TreeAttention",
    "TreeForward",
    "TreeMetadataBuilder",
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


class TreeMetadataBuilder(AttentionMetadataBuilder):  # type: ignore[misc]
    """Goes before a builder of vLLM's; hands a step's trees to the layers.

    Its runner sets them for the step.
    """

    tree_forward: TreeForward | None = None

    # The arguments and the result are vLLM's.
    def build(
        self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False
    ) -> Any:
        forward, common = self.tree_forward, common_attn_metadata
        if forward is not None and not forward.is_whole:
            # vLLM's kernel computes every row. Without its context, a tree costs it little.
            common = common.replace(seq_lens=_without_context(common.seq_lens, forward.step))
        # Abstract here, but not in the class that this one goes before.
        metadata: Any = super().build(common_prefix_len, common, fast_build)  # pyright: ignore[reportAbstractUsage]
        metadata.tree_forward = forward
        return metadata


class TreeAttention(AttentionImpl):  # type: ignore[misc]
    """Goes before an attention of vLLM's; attends along the branches where a step has trees."""

    # vLLM's classes set them.
    attn_type: Any
    alibi_slopes: Any
    sinks: Any

    def scoring(self, layer: Any) -> Scoring:
        """Returns how a layer attends."""
        raise NotImplementedError

    def obstacle(self) -> str | None:
        """Returns why this attention cannot go along branches."""
        if self.attn_type != AttentionType.DECODER:
            return f"its attention is of type {self.attn_type}"
        if self.alibi_slopes is not None or self.sinks is not None:
            return "its attention has linear biases or sinks"
        return None

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
            super().forward(  # pyright: ignore[reportAbstractUsage]
                layer, query, key, value, kv_cache, attn_metadata, output, *args, **kwargs
            )
        if forward is not None:
            forward.kernel.attend(
                query,
                kv_cache,
                attn_metadata.block_table,
                forward.step,
                output.view(query.shape),
                **self.scoring(layer),
            )
        return output


def _without_context(lengths: torch.Tensor, step: TreeStep) -> torch.Tensor:
    """Returns the lengths of a batch's sequences, [requests], where trees have their rows only."""
    requests, rows = (
        torch.tensor(values, device=lengths.device, dtype=lengths.dtype)
        for values in zip(*((tree.request, tree.num_rows) for tree in step.trees), strict=True)
    )
    return lengths.index_copy(0, requests.long(), rows)


@contextmanager
def registered_backend(replaced: AttentionBackendEnum, backend: type) -> Iterator[None]:
    """Lets the layers of a model that is loaded meanwhile attend along trees.

    vLLM remembers which class a backend's name stands for. Another engine of the process must
    neither leave its class to this one nor get this one's.

    Args:
        replaced: what `backend` stands in for; both have the same name.
        backend: a backend of ours.
    """
    register_backend(replaced, f"{backend.__module__}.{backend.__qualname__}")
    _cached_get_attn_backend.cache_clear()
    try:
        yield
    finally:
        replaced.clear_override()
        _cached_get_attn_backend.cache_clear()


def model_obstacle(model_config: Any) -> str | None:
    """Returns why trees cannot be used with a model, as far as its configuration tells."""
    if model_config.is_encoder_decoder:
        return "it is an encoder and a decoder"
    if model_config.uses_mrope:
        return "its rows have positions in several dimensions, and a tree's are its depths"
    if model_config.rswa_window is not None:
        return "its attention window starts after a part of the prompt that is always seen"
    return None


def layers_without_trees(static_forward_context: Mapping[str, Any]) -> dict[str, str]:
    """Returns the layers of a loaded model that cannot attend along trees, and why."""
    found = {name: _obstacle(layer) for name, layer in static_forward_context.items()}
    return {name: reason for name, reason in found.items() if reason is not None}


def _obstacle(layer: Any) -> str | None:
    impl = getattr(layer, "impl", None)
    return impl.obstacle() if isinstance(impl, TreeAttention) else "it is no plain attention"
