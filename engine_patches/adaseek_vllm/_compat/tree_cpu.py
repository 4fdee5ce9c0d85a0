"""vLLM's CPU attention, runner and worker with trees (vLLM 0.32).

vllm/v1/attention/backends/cpu_attn.py, vllm/v1/worker/cpu_model_runner.py and cpu_worker.py hold
the originals.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, cast

from vllm.logger import init_logger
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadataBuilder,
)
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.cpu_worker import CPUWorker

from adaseek_vllm._compat.tree_attention import TreeAttention, TreeMetadataBuilder
from adaseek_vllm._compat.tree_runner import TreeModelRunner
from adaseek_vllm.token_tree.cost import measured_widths
from adaseek_vllm.token_tree.kernels import Scoring
from adaseek_vllm.token_tree.layouts import CPU_LAYOUTS

# vLLM's classes are not followed by every type checker, hence the ignored subclassing below.
__all__ = [
    "TreeCPUAttention",
    "TreeCPUBackend",
    "TreeCPUMetadataBuilder",
    "TreeCPUModelRunner",
    "TreeCPUWorker",
    "cache_layout",
]

# One of vLLM's own, or the line would not reach the log.
_logger = init_logger("vllm.adaseek.token_tree")


class TreeCPUMetadataBuilder(TreeMetadataBuilder, CPUAttentionMetadataBuilder):  # type: ignore[misc]
    """vLLM's builder for the CPU, with trees."""


class TreeCPUAttention(TreeAttention, CPUAttentionBackendImpl):  # type: ignore[misc]
    """vLLM's attention on the CPU, with trees."""

    def scoring(self, layer: Any) -> Scoring:
        return {
            "layout": layer.isa,
            "scale": self.scale,
            "softcap": self.logits_soft_cap,
            "window": self.sliding_window,
        }

    def obstacle(self) -> str | None:
        return "its KV cache is quantised" if self.is_fp8_kv_cache else super().obstacle()


class TreeCPUBackend(CPUAttentionBackend):  # type: ignore[misc]
    """vLLM's CPU backend, whose layers know trees. Its name must stay CPU_ATTN."""

    @staticmethod
    def get_impl_cls() -> type[CPUAttentionBackendImpl]:
        return TreeCPUAttention

    @staticmethod
    def get_builder_cls() -> type[CPUAttentionMetadataBuilder]:
        return TreeCPUMetadataBuilder


class TreeCPUModelRunner(TreeModelRunner, CPUModelRunner):  # type: ignore[misc]
    """vLLM's CPU runner, with trees."""

    tree_backend = (AttentionBackendEnum.CPU_ATTN, TreeCPUBackend)

    def _cache_layout(self) -> str:
        return cache_layout(self.compilation_config.static_forward_context)

    def measure_steps(self) -> None:
        """Measures what steps cost by their rows, without attention: that is learned later."""
        settings = self._proposer.settings
        max_rows = min(self.max_num_tokens, self.max_num_reqs * (1 + settings.num_nodes), 128)
        if settings.budget == "cost" and max_rows > 1:
            costs = measured_widths(max_rows, self._dummy_seconds)
            self._proposer.step_cost.measure(costs)
            found = ", ".join(f"{rows}: {1e3 * seconds:.1f}" for rows, seconds in costs.items())
            _logger.info("Token trees: milliseconds of a step by its rows: %s", found)

    def _dummy_seconds(self, num_rows: int) -> float:
        began_s, model = time.perf_counter(), cast(Any, self.model)
        hidden_states, _ = self._dummy_run(num_rows)
        model.compute_logits(hidden_states[:num_rows])
        return time.perf_counter() - began_s


class TreeCPUWorker(CPUWorker):  # type: ignore[misc]
    """vLLM's CPU worker with a runner that verifies trees."""

    def init_device(self) -> None:
        super().init_device()
        runner = self.model_runner
        assert type(runner) is CPUModelRunner, type(runner)
        # The runner is made inside a long method, so its class is changed before anything ran.
        runner.__class__ = TreeCPUModelRunner

    def compile_or_warm_up_model(self) -> Any:
        runner = self.model_runner
        assert isinstance(runner, TreeCPUModelRunner), type(runner)
        # Before vLLM sets its random seed.
        runner.measure_steps()
        return super().compile_or_warm_up_model()


def cache_layout(static_forward_context: Mapping[str, Any]) -> str:
    """Returns the layout of a model's KV caches, one of `layouts.CPU_LAYOUTS`.

    Raises:
        ValueError: the layers have several, or one that AdaSeek does not know.
    """
    found = sorted({layer.isa for layer in static_forward_context.values()})
    if len(found) != 1 or found[0] not in CPU_LAYOUTS:
        raise ValueError(
            f"its KV caches are laid out for {', '.join(found)} kernels, but trees need one of "
            f"{', '.join(CPU_LAYOUTS)}"
        )
    return str(found[0])
