"""vLLM's Triton attention, GPU runner and worker with trees (vLLM 0.32). Not run on a GPU yet.

vllm/v1/attention/backends/triton_attn.py, vllm/v1/worker/gpu_model_runner.py and gpu_worker.py hold
the originals. What was shown without a GPU: this attention in Triton's interpreter, in a whole
engine (tests/engine_patches/token_tree/test_triton_engine.py), and the runner's shared part on the
CPU (`tree_runner`).
"""

from __future__ import annotations

from typing import Any, ClassVar

from vllm.logger import init_logger
from vllm.platforms import current_platform
from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm.v1.attention.backends.triton_attn import (
    TritonAttentionBackend,
    TritonAttentionImpl,
    TritonAttentionMetadataBuilder,
)
from vllm.v1.kv_cache_interface import KVQuantMode
from vllm.v1.worker.gpu_model_runner import GPUModelRunner
from vllm.v1.worker.gpu_worker import Worker

from adaseek_vllm._compat.tree_attention import TreeAttention, TreeMetadataBuilder
from adaseek_vllm._compat.tree_runner import TreeModelRunner
from adaseek_vllm.config import FeatureSettingsError
from adaseek_vllm.token_tree.kernels import Scoring
from adaseek_vllm.token_tree.layouts import GPU_LAYOUT

# vLLM's classes are not followed by every type checker, hence the ignored subclassing below.
__all__ = [
    "TreeGPUAttention",
    "TreeGPUBackend",
    "TreeGPUMetadataBuilder",
    "TreeGPUModelRunner",
    "TreeGPUWorker",
]

_MOST_ELEMENTS = 256
"""What `token_tree.kernels.gpu` has tilings for."""

# One of vLLM's own, or the line would not reach the log.
_logger = init_logger("vllm.adaseek.token_tree")


class TreeGPUMetadataBuilder(TreeMetadataBuilder, TritonAttentionMetadataBuilder):  # type: ignore[misc]
    """vLLM's builder for Triton, with trees.

    A CUDA graph would replay the trees it was captured with: attention runs outside of graphs,
    which vLLM calls piecewise.
    """

    _cudagraph_support: ClassVar[AttentionCGSupport] = AttentionCGSupport.NEVER


class TreeGPUAttention(TreeAttention, TritonAttentionImpl):  # type: ignore[misc]
    """vLLM's attention in Triton, with trees; vLLM's own operator writes the KV cache."""

    def scoring(self, layer: Any) -> Scoring:
        return {
            "layout": GPU_LAYOUT,
            "scale": self.scale,
            "softcap": self.logits_soft_cap,
            # vLLM's counts the keys to the left, without the own one; -1 is none.
            "window": self.sliding_window[0] + 1,
        }

    def obstacle(self) -> str | None:
        if self._kv_quant_mode != KVQuantMode.NONE:
            return "its KV cache is quantised"
        if self.chunk_lookback >= 0:
            return "it attends inside chunks"
        if self.head_size % 16 or self.head_size > _MOST_ELEMENTS:
            return (
                f"its heads have {self.head_size} elements, and a multiple of 16 up to "
                f"{_MOST_ELEMENTS} is needed"
            )
        return super().obstacle()

    # vLLM's type of a quantisation.
    def fused_output_quant_supported(self, quant_key: Any) -> bool:
        # The rows of trees are written as they are.
        return False


class TreeGPUBackend(TritonAttentionBackend):  # type: ignore[misc]
    """vLLM's Triton backend, whose layers know trees. Its name must stay TRITON_ATTN."""

    @staticmethod
    def get_impl_cls() -> type[TritonAttentionImpl]:
        return TreeGPUAttention

    @staticmethod
    def get_builder_cls() -> type[TritonAttentionMetadataBuilder]:
        return TreeGPUMetadataBuilder


class TreeGPUModelRunner(TreeModelRunner, GPUModelRunner):  # type: ignore[misc]
    """vLLM's GPU runner, with trees."""

    tree_backend = (AttentionBackendEnum.TRITON_ATTN, TreeGPUBackend)

    def _cache_layout(self) -> str:
        return GPU_LAYOUT


class TreeGPUWorker(Worker):  # type: ignore[misc]
    """vLLM's GPU worker with a runner that verifies trees."""

    def init_device(self) -> None:
        if not current_platform.is_cuda():
            raise FeatureSettingsError(
                f"--token-tree knows CPUs and NVIDIA GPUs, but vLLM runs on "
                f"{current_platform.device_name}: leave the flag out."
            )
        _logger.warning(
            "--token-tree was not run on a GPU yet: its kernel was checked in Triton's interpreter "
            "and compiled for compute capabilities 8.0 and 9.0. Compare some answers with and "
            "without it before you rely on it."
        )
        super().init_device()

    def _make_model_runner(self) -> GPUModelRunner:
        assert not self.use_v2_model_runner, "a proposer of its own class has runner V1"
        return TreeGPUModelRunner(self.vllm_config, self.device)
