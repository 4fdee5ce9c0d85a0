"""The Triton kernel compiles for GPUs that are not here, within their limits.

Triton's wheel brings NVIDIA's assembler, so this goes down to machine code, and the disassembler
that comes with it tells registers, spills and shared memory. Nothing is run.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

from adaseek_vllm.token_tree.kernels import gpu  # noqa: E402
from adaseek_vllm.token_tree.kernels.tree_attention_triton import (  # noqa: E402
    attend_parts,
    merge_parts,
)
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

# Four registers, which the assembler gives up where one program more then fits on a processor.
STACK = 16
# Compute capability -> bytes of shared memory that a program can have.
SHARED = {80: 163 << 10, 90: 227 << 10}
SIZES = (64, 80, 96, 128, 256)
POINTERS = {"bfloat16": "*bf16", "float16": "*fp16", "float32": "*fp32"}
FLOAT32 = ("part_ptr", "peak_ptr", "total_ptr")
INT32 = ("table_ptr", "trees_ptr", "words_ptr", "depths_ptr", "tokens_ptr")
# What Triton knows at a launch: addresses and strides, block tables' excepted, are multiples of 16.
DIVISIBLE = [["tt.divisibility", 16]]


def compiled(
    kernel: Any,
    capability: int,
    dtype: str,
    constants: Mapping[str, object],
    options: Mapping[str, int] | None = None,
) -> Any:
    """Compiles a kernel to machine code, as a launch would."""
    signature, attributes = {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            kind = "*fp32" if name in FLOAT32 else "*i32" if name in INT32 else POINTERS[dtype]
            signature[name] = kind
        else:
            signature[name] = "fp32" if name in ("scale", "softcap") else "i32"
        is_stride = name.endswith("_stride") and name not in ("table_stride", *constants)
        if is_stride or signature[name].startswith("*"):
            attributes[index,] = DIVISIBLE
    source = ASTSource(kernel, signature, dict(constants), attributes)
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options=dict(options or {}))


def attention(
    capability: int, dtype: str, size: int, num_queries: int, *, features: bool, groups: int = 6
) -> Any:
    """The attention kernel for a model; with `features`, everything it can do beside."""
    tile = gpu.tiling(size, getattr(torch, dtype), num_queries)
    constants = {
        "HEAD_SIZE": size,
        "PADDED_SIZE": triton.next_power_of_2(size),
        "GROUPS": groups,
        "BLOCK_SIZE": 16,
        "QUERIES": tile.queries,
        "TILE": tile.tokens,
        "HAS_SOFTCAP": features,
        "HAS_WINDOW": features,
        "IS_SPLIT": features,
        "PRECISION": gpu.precision(getattr(torch, dtype)),
        "key_element_stride": 1,
        "value_element_stride": 1,
    }
    options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
    return compiled(attend_parts, capability, dtype, constants, options)


def resources(binary: Any, directory: Path) -> dict[str, int]:
    """Registers of a thread, and bytes of its stack and local memory: what spilled."""
    path = directory / "kernel.cubin"
    path.write_bytes(binary.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    command = [str(tool), "-res-usage", str(path)]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(count) for name, count in re.findall(r"(REG|STACK|LOCAL):(\d+)", report)}


def assert_fits(binary: Any, capability: int, directory: Path) -> None:
    assert binary.metadata.shared <= SHARED[capability]
    used = resources(binary, directory)
    assert used["REG"] <= 255
    assert used["STACK"] <= STACK, "too much spilled"
    assert used["LOCAL"] == 0
    assert used["REG"] * binary.metadata.num_warps * 32 <= 64 << 10


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", POINTERS)
@pytest.mark.parametrize("capability", SHARED)
def test_attention_with_all_features_fits(
    capability: int, dtype: str, size: int, tmp_path: Path
) -> None:
    # Large trees have the larger tiles; float32 has one tiling.
    assert_fits(attention(capability, dtype, size, 128, features=True), capability, tmp_path)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("capability", SHARED)
def test_attention_of_small_trees_fits(capability: int, size: int, tmp_path: Path) -> None:
    assert_fits(attention(capability, "bfloat16", size, 16, features=True), capability, tmp_path)


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("capability", SHARED)
def test_attention_without_features_fits(capability: int, size: int, tmp_path: Path) -> None:
    binary = attention(capability, "bfloat16", size, 128, features=False)
    assert_fits(binary, capability, tmp_path)


@pytest.mark.parametrize("groups", [1, 8])
def test_attention_fits_for_other_groups_of_heads(groups: int, tmp_path: Path) -> None:
    binary = attention(80, "bfloat16", 128, 128, features=True, groups=groups)
    assert_fits(binary, 80, tmp_path)


@pytest.mark.parametrize("parts", [2, 32])
@pytest.mark.parametrize(("dtype", "size"), [("bfloat16", 80), ("float32", 256)])
@pytest.mark.parametrize("capability", SHARED)
def test_merge_fits(capability: int, dtype: str, size: int, parts: int, tmp_path: Path) -> None:
    padded_size = triton.next_power_of_2(size)
    constants = {"HEAD_SIZE": size, "PADDED_SIZE": padded_size, "PARTS": parts}
    assert_fits(compiled(merge_parts, capability, dtype, constants), capability, tmp_path)


def test_half_precision_uses_tensor_cores_and_float32_does_not(tmp_path: Path) -> None:
    half, single = (
        attention(80, dtype, 64, 16, features=False).asm["ptx"] for dtype in ("bfloat16", "float32")
    )
    assert "mma.sync" in half
    assert "mma.sync" not in single


def test_control_a_program_that_holds_too_much_is_noticed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu, "tiling", lambda *_: gpu.Tiling(64, 64, 4, 2))
    binary = attention(80, "bfloat16", 256, 128, features=False)
    with pytest.raises(AssertionError, match="spilled"):
        assert_fits(binary, 80, tmp_path)
