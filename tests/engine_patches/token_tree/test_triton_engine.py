"""A real engine says the same with the attention for GPUs: see triton_scenarios.py for how."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")
pytest.importorskip("triton")

from adaseek_vllm._compat import tree_gpu
from adaseek_vllm.config import FeatureSettingsError
from vllm.v1.attention.backend import AttentionCGSupport

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    script = Path(__file__).with_name("triton_scenarios.py")
    model = tmp_path_factory.mktemp("tiny")
    done = subprocess.run(
        [sys.executable, str(script), str(model)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULTS ")]
    assert lines, done.stdout[-2000:] + done.stderr[-4000:]
    found: dict[str, Any] = json.loads(lines[0].removeprefix("RESULTS "))
    return found


def test_attention_for_gpus_says_what_plain_decoding_says(results: dict[str, Any]) -> None:
    assert results["layer"] == "TreeGPUAttention"
    assert results["different"] == 0


def test_trees_went_through_the_triton_kernel_beside_prompts_and_without(
    results: dict[str, Any],
) -> None:
    assert 0 < results["mixed"] < results["attend"]


def test_accepted_drafts_save_steps(results: dict[str, Any]) -> None:
    # Five answers of twelve tokens, four at a time: 24 steps without drafts.
    assert results["steps"] < 20


@pytest.mark.parametrize("part", ["causal mask", "no moves"])
def test_control_missing_part_is_noticed(results: dict[str, Any], part: str) -> None:
    assert results["controls"][part] > 0


def test_no_cuda_graph_holds_the_attention_to_trees() -> None:
    support = tree_gpu.TreeGPUMetadataBuilder.get_cudagraph_support(None, None)
    assert support is AttentionCGSupport.NEVER


def test_backend_keeps_the_name_that_vllm_looks_for() -> None:
    assert tree_gpu.TreeGPUBackend.get_name() == "TRITON_ATTN"
    assert tree_gpu.TreeGPUModelRunner.tree_backend[0].name == "TRITON_ATTN"


def test_output_is_not_quantised_on_the_way() -> None:
    attention = object.__new__(tree_gpu.TreeGPUAttention)
    assert not attention.fused_output_quant_supported(None)


@pytest.mark.parametrize(("given", "window"), [((-1, -1), 0), ((7, 0), 8)])
def test_window_counts_the_own_token(given: tuple[int, int], window: int) -> None:
    attention = object.__new__(tree_gpu.TreeGPUAttention)
    vars(attention).update(scale=1.0, logits_soft_cap=0, sliding_window=given)
    assert attention.scoring(None)["window"] == window


def test_worker_says_at_start_that_no_gpu_ran_it(monkeypatch: pytest.MonkeyPatch) -> None:
    said = list[str]()
    monkeypatch.setattr(tree_gpu.current_platform, "is_cuda", lambda: True)
    monkeypatch.setattr(tree_gpu.Worker, "init_device", lambda _self: said.append("started"))
    monkeypatch.setattr(tree_gpu._logger, "warning", said.append)
    object.__new__(tree_gpu.TreeGPUWorker).init_device()
    assert "was not run on a GPU yet" in said[0]
    assert said[1:] == ["started"]


def test_worker_on_another_accelerator_is_refused() -> None:
    with pytest.raises(FeatureSettingsError, match="knows CPUs and NVIDIA GPUs"):
        object.__new__(tree_gpu.TreeGPUWorker).init_device()
