"""The kernel in C++, built where a compiler is at hand."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import logging
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Unpack

import torch
from platformdirs import user_cache_path
from torch.utils import cpp_extension

from adaseek_vllm.token_tree.kernels.interface import Scoring
from adaseek_vllm.token_tree.step import TreeStep

__all__ = ["CompiledKernel", "compiled_kernel"]

_logger = logging.getLogger(__name__)
_SOURCES = Path(__file__).parent
# Masked scores are infinities, so these must stay what they are, and sums keep their order, or
# rounding would not be vLLM's. OpenMP's own library is not linked: torch has loaded one, and two of
# them would keep two pools of threads.
_FLAGS = (
    *("-O3", "-march=native", "-mprefer-vector-width=512", "-fopenmp"),
    *("-ffast-math", "-fno-finite-math-only", "-fno-associative-math"),
)
_CPU_INFO = Path("/proc/cpuinfo")


class CompiledKernel:
    """Runs the C++ next to this file.

    Args:
        module: the compiled extension.
    """

    takes_first_of_equals = True

    def __init__(self, module: Any) -> None:
        self._module = module
        self.reads_amx: bool = module.has_amx()

    def attend(
        self,
        query: torch.Tensor,
        cache: torch.Tensor,
        block_table: torch.Tensor,
        step: TreeStep,
        output: torch.Tensor,
        **scoring: Unpack[Scoring],
    ) -> None:
        self._module.tree_attention(
            query,
            cache,
            block_table,
            *step.tensors,
            output,
            scoring["scale"],
            scoring["softcap"],
            scoring["window"],
            scoring["layout"] == "amx",
        )

    def move_rows(
        self,
        caches: Sequence[torch.Tensor],
        sources: torch.Tensor,
        targets: torch.Tensor,
        *,
        layout: str,
    ) -> None:
        # Pairs that were made one by one come as the two columns of a matrix.
        self._module.move_rows(
            list(caches), sources.contiguous(), targets.contiguous(), layout == "amx"
        )

    def top_tokens(self, logits: torch.Tensor, count: int) -> torch.Tensor:
        top = torch.empty(len(logits), count, dtype=torch.int64)
        self._module.top_tokens(logits, top)
        return top


@functools.cache
def compiled_kernel() -> CompiledKernel | None:
    """Returns the C++ kernel, built on first use and kept in the user's cache; or None.

    A missing compiler is no error: the result is the same without, only slower.
    """
    try:
        with _build_directory() as directory:
            module = cpp_extension.load(
                name="adaseek_tree_attention",
                sources=[str(_SOURCES / "tree_attention.cpp")],
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
    return CompiledKernel(module)


@contextmanager
def _build_directory() -> Iterator[Path]:
    """Yields the folder to build in, which no other process uses meanwhile."""
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    name = f"{python}-torch{torch.__version__}-{_digest()}"
    directory = user_cache_path("adaseek") / "kernels" / name
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "building").open("w") as building:
        fcntl.flock(building, fcntl.LOCK_EX)
        # torch's own lock is a file that a killed build leaves behind, and then waits for ever.
        (directory / "lock").unlink(missing_ok=True)
        yield directory


def _digest() -> str:
    """Of the source and of this CPU's features: a home directory may be shared by machines."""
    digest = hashlib.sha256(" ".join(_FLAGS).encode())
    for path in sorted(_SOURCES.glob("*.[ch]*")):
        digest.update(path.read_bytes())
    if _CPU_INFO.exists():
        lines = _CPU_INFO.read_text().splitlines()
        digest.update(next((line for line in lines if line.startswith("flags")), "").encode())
    return digest.hexdigest()[:12]
