"""The Triton kernel against float64, in Triton's interpreter: see triton_cases.py for the cases."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from adaseek_vllm.token_tree import kernels  # noqa: E402
from adaseek_vllm.token_tree.kernels import TorchKernel, gpu  # noqa: E402

NUM_CASES = 520


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    script = Path(__file__).with_name("triton_cases.py")
    # One thread: with matrices this small, others only get in the way.
    done = subprocess.run(
        [sys.executable, str(script), str(NUM_CASES)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULTS ")]
    assert lines, done.stdout[-2000:] + done.stderr[-4000:]
    found: dict[str, Any] = json.loads(lines[0].removeprefix("RESULTS "))
    return found


@pytest.mark.timeout(600)
def test_random_batches_equal_float64(results: dict[str, Any]) -> None:
    cases = results["cases"]
    assert len(cases) >= 500
    wrong = [seed for seed, case in enumerate(cases) if not case["error"] <= case["limit"]]
    assert wrong == []


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("dtype", ["torch.float32", "torch.float16", "torch.bfloat16"]),
        ("size", [64, 80, 96, 128, 256]),
        ("groups", [1, 2, 3, 4, 6, 7, 8]),
        ("trees", [1, 2, 3]),
        ("words", [1, 2]),
        ("parts", [1, 2, 4]),
        ("softcap", [False, True]),
        ("window", [False, True]),
        ("root only", [True]),
        ("no context", [True]),
    ],
)
def test_batches_cover_what_the_kernel_can(
    results: dict[str, Any], name: str, values: list[object]
) -> None:
    found = [case[name] for case in results["cases"]]
    assert min(found.count(value) for value in values) >= 15


@pytest.mark.parametrize("name", ["wrong bit", "shifted blocks"])
def test_control_wrong_input_is_noticed(results: dict[str, Any], name: str) -> None:
    controls = results[name]
    assert len(controls) == 15
    assert all(control["error"] > 10 * control["limit"] for control in controls)


def test_few_programs_and_long_sequences_are_split() -> None:
    assert gpu.num_parts(num_programs=4, num_tokens=4096, num_processors=108) == 16
    assert gpu.num_parts(num_programs=1, num_tokens=100_000, num_processors=132) == 32
    assert gpu.num_parts(num_programs=4, num_tokens=511, num_processors=108) == 1
    assert gpu.num_parts(num_programs=100, num_tokens=4096, num_processors=108) == 1


def test_without_triton_plain_torch_is_used_and_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "adaseek_vllm.token_tree.kernels.gpu")
    monkeypatch.delitem(sys.modules, "adaseek_vllm.token_tree.kernels.tree_attention_triton")
    with caplog.at_level(logging.WARNING):
        assert type(kernels.gpu_kernel.__wrapped__()) is TorchKernel
    assert "Triton cannot be imported; `pip install triton`" in caplog.text


def test_importing_the_kernels_imports_no_triton() -> None:
    code = "import sys, adaseek_vllm.token_tree.kernels; print('triton' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
