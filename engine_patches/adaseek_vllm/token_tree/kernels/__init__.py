"""Attention of tree rows: compiled where a compiler is at hand, in plain torch otherwise."""

from __future__ import annotations

import functools
import logging
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from torch.utils import cpp_extension

from adaseek_vllm.token_tree.attention import tree_attention as torch_attention
from adaseek_vllm.token_tree.step import RequestTree

__all__ = ["compiled_kernel", "tree_attention"]

_logger = logging.getLogger(__name__)
_SOURCE = Path(__file__).with_name("tree_attention.cpp")
# Masked scores are infinities, so these must stay what they are.
_FLAGS = ("-O3", "-march=native", "-ffast-math", "-fno-finite-math-only")


@functools.cache
def compiled_kernel() -> ModuleType | None:
    """Returns the C++ kernel, built on first use and kept in torch's extension cache; or None.

    A missing compiler is no error: the result is the same without, only slower.
    """
    try:
        module = cpp_extension.load(
            name="adaseek_tree_attention", sources=[str(_SOURCE)], extra_cflags=list(_FLAGS)
        )
    except (OSError, RuntimeError, ImportError, subprocess.SubprocessError) as error:
        _logger.warning(
            "--token-tree attends in plain torch, which is slower, because its C++ kernel could "
            "not be built; a C++ compiler and ninja are needed: %s",
            str(error).splitlines()[0] if str(error) else type(error).__name__,
        )
        return None
    return cast(ModuleType, module)


def tree_attention(
    query_rhgd: torch.Tensor,
    kv_cache: torch.Tensor,
    block_ids_b: torch.Tensor,
    tree: RequestTree,
    output_rhgd: torch.Tensor,
    *,
    scale: float,
    softcap: float = 0.0,
    window: int = -1,
    kernel: Any = None,
) -> None:
    """Writes the attention output of one request's tree rows.

    The arguments are those of `adaseek_vllm.token_tree.attention.tree_attention`, and:

    Args:
        output_rhgd: written, [r, h * g, d].
        kernel: what `compiled_kernel` returned; None: plain torch.
    """
    if kernel is None:
        output_rhgd.copy_(
            torch_attention(
                query_rhgd,
                kv_cache,
                block_ids_b,
                tree,
                scale=scale,
                softcap=softcap,
                window=window,
            )
        )
        return
    kernel.tree_attention(
        query_rhgd.contiguous(),
        kv_cache,
        block_ids_b,
        torch.from_numpy(tree.words.view("int64")),
        torch.from_numpy(tree.depths),
        output_rhgd,
        tree.num_context_tokens,
        scale,
        softcap,
        window,
    )
