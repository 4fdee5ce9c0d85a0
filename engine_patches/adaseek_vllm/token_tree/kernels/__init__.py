"""Attention of tree rows: compiled where a compiler is at hand, in plain torch otherwise."""

from __future__ import annotations

import fcntl
import functools
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from platformdirs import user_cache_path
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
    """Returns the C++ kernel, built on first use and kept in the user's cache; or None.

    A missing compiler is no error: the result is the same without, only slower.
    """
    try:
        with _build_directory() as directory:
            module = cpp_extension.load(
                name="adaseek_tree_attention",
                sources=[str(_SOURCE)],
                extra_cflags=list(_FLAGS),
                build_directory=str(directory),
            )
    except (OSError, RuntimeError, ImportError, subprocess.SubprocessError) as error:
        _logger.warning(
            "--token-tree attends in plain torch, which is slower, because its C++ kernel could "
            "not be built; a C++ compiler and ninja are needed: %s",
            str(error).splitlines()[0] if str(error) else type(error).__name__,
        )
        return None
    return cast(ModuleType, module)


@contextmanager
def _build_directory() -> Iterator[Path]:
    """Yields the folder to build in, which no other process uses meanwhile."""
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    directory = user_cache_path("adaseek") / "kernels" / f"{python}-torch{torch.__version__}"
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "building").open("w") as building:
        fcntl.flock(building, fcntl.LOCK_EX)
        # torch's own lock is a file that a killed build leaves behind, and then waits for ever.
        (directory / "lock").unlink(missing_ok=True)
        yield directory


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
