"""Tables for a terminal."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from adaseek.recipe import Recipe
from adaseek.result import Candidate, Estimate, Spending, TuningResult
from adaseek.table import comparison_table, frontier_table, text_table
from adaseek.workflow import Workflow
from rich.console import Console
from rich.table import Table


@pytest.fixture
def result() -> TuningResult:
    train = {"quality": Estimate(0.4, 0.3, 0.5, 8), "latency": Estimate(1.0, 0.9, 1.1, 8)}
    validated = {**train, "quality": Estimate(0.5, 0.4, 0.6, 20)}
    better = {**train, "quality": Estimate(0.8, 0.7, 0.9, 20)}
    original = Candidate("original", {}, Recipe(), train, validated)
    tuned = Candidate("trial [1]", {}, Recipe(), train, better, pareto=True)
    return TuningResult(
        workflow=Workflow("toy", {}),
        objectives=("quality", "cost", "latency"),
        original=original,
        candidates=(original, tuned),
        recommended=tuned,
        verdict="",
        spending=Spending(1, 1),
        improvement={
            "quality": Estimate(0.3, 0.2, 0.4, 20),
            "latency": Estimate(0.2, 0.1, 0.3, 20),
        },
    )


def shown(table: Table, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_original_and_tuned_stand_side_by_side(result: TuningResult) -> None:
    text = shown(comparison_table(result))
    quality = next(line for line in text.splitlines() if "quality" in line)
    assert [cell.strip() for cell in quality.split("│")[1:-1]] == [
        "quality",
        "0.500",
        "0.800",
        "+0.300",
        "better",
    ]
    assert "validation, n=20" in text and "[+0.200, +0.400]" in text and "+60%" in text
    assert "worse" in text and "unknown" in text


def test_a_name_in_square_brackets_is_no_markup(result: TuningResult) -> None:
    assert "original against trial [1]" in shown(comparison_table(result))
    assert "[red]" in shown(text_table("[b]", ["[i]"], [["[red]"]]))


def test_the_original_alone_has_no_difference(result: TuningResult) -> None:
    text = shown(comparison_table(replace(result, recommended=result.original)))
    assert "nothing was reliably better" in text
    assert "better\n" not in text and "+0.300" not in text


def test_without_validation_training_means_are_compared(result: TuningResult) -> None:
    tuned = replace(result.recommended, validation={})
    text = shown(comparison_table(replace(result, recommended=tuned, improvement={})))
    assert "training, n=8" in text and "validation" not in text


def test_the_pareto_set_names_the_recommended(result: TuningResult) -> None:
    text = shown(frontier_table(result), width=120)
    assert "trial [1]" in text and "recommended" in text
    assert "0.800 [0.700, 0.900]" in text and "unknown" in text
