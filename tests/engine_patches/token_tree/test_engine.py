"""A real engine says the same with trees as without: see engine_scenarios.py for what it runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")
pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

SCENARIOS = (
    "greedy",
    "greedy one by one",
    "greedy with features",
    "seeded",
    "stop tokens",
    "longest sequence",
    "several completions",
    "long prompts",
    "prefix cache",
    "small engine",
    "wide trees",
    "deep trees",
    "aborts",
    "tenants",
    "json schema",
    "stock afterwards",
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    script = Path(__file__).with_name("engine_scenarios.py")
    model = tmp_path_factory.mktemp("tiny")
    done = subprocess.run(
        [sys.executable, str(script), str(model)], capture_output=True, text=True, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULTS ")]
    assert lines, done.stdout[-2000:] + done.stderr[-4000:]
    found: dict[str, Any] = json.loads(lines[0].removeprefix("RESULTS "))
    return found


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_trees_change_nothing_of_what_is_said(results: dict[str, Any], scenario: str) -> None:
    result = results[scenario]
    assert result["different"] == 0
    assert result["logprob_error"] < 1e-3


def test_accepted_drafts_save_steps(results: dict[str, Any]) -> None:
    one_by_one = results["greedy one by one"]
    assert one_by_one["tokens"] > 1.5 * one_by_one["steps"]


def test_cache_is_hit_beyond_the_prompt_after_tree_steps(results: dict[str, Any]) -> None:
    # Prompts of 150 tokens in blocks of 32: 160 cached tokens hold generated ones.
    assert results["prefix cache"]["cached"] == [160] * 6


def test_structured_output_keeps_branches(results: dict[str, Any]) -> None:
    json_schema = results["json schema"]
    assert json_schema["branching"] > 0.2 * json_schema["verified"]
    assert json_schema["tokens"] > 1.3 * json_schema["verified"]


def test_small_engine_really_preempts(results: dict[str, Any]) -> None:
    assert results["small engine"]["preempted"] > 0


def test_sources_learn_from_verified_rows(results: dict[str, Any]) -> None:
    assert results["prefix cache"]["learned"] > 0


def test_sources_are_told_whose_request_a_row_belongs_to(results: dict[str, Any]) -> None:
    tenants = results["tenants"]
    assert tenants["drafted"]
    assert set(tenants["learned"]) == {"a", "b", ""}
    # What ended is forgotten with the next step; four run at once.
    assert tenants["left"] <= 4


def test_trees_leave_no_class_behind(results: dict[str, Any]) -> None:
    assert results["stock afterwards"]["layer"] == "CPUAttentionBackendImpl"


@pytest.mark.parametrize("part", ["causal mask", "no moves"])
def test_control_missing_part_is_noticed(results: dict[str, Any], part: str) -> None:
    assert results["controls"][part] > 0
