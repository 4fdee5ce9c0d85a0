"""What a step with trees computes beside the model: in C++, in Triton, or in plain torch."""

from __future__ import annotations

import functools
import logging

import torch

from adaseek_vllm.token_tree import layouts
from adaseek_vllm.token_tree.kernels.compiled import CompiledKernel, compiled_kernel
from adaseek_vllm.token_tree.kernels.interface import Kernel, Scoring
from adaseek_vllm.token_tree.kernels.plain import TorchKernel

__all__ = [
    "CompiledKernel",
    "Kernel",
    "Scoring",
    "TorchKernel",
    "best_kernel",
    "compiled_kernel",
    "gpu_kernel",
]

_logger = logging.getLogger(__name__)


def best_kernel(layout: str) -> Kernel:
    """Returns the fastest kernel for caches of a layout; building it may take a minute, once."""
    if layout == layouts.GPU_LAYOUT:
        return gpu_kernel()
    compiled = compiled_kernel()
    if compiled is None or (layout == "amx" and not compiled.reads_amx):
        return TorchKernel()
    return compiled


@functools.cache
def gpu_kernel() -> Kernel:
    """Returns the Triton kernel for the current GPU, or plain torch where Triton is missing.

    Missing Triton is no error: the result is the same without, only slower. Triton is imported
    here, and compiles when the kernel is first used.
    """
    try:
        from adaseek_vllm.token_tree.kernels.gpu import TritonKernel
    except ImportError as error:
        _logger.warning(
            "--token-tree attends in plain torch, which is slower, because Triton cannot be "
            "imported; `pip install triton` cures that: %s",
            error,
        )
        return TorchKernel()
    device = torch.cuda.get_device_properties(torch.cuda.current_device())
    return TritonKernel(num_processors=device.multi_processor_count)
