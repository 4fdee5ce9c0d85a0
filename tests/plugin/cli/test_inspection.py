"""`adaseek inspect` and `adaseek report`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from adaseek.result import TuningResult

Run = Callable[..., Any]


@pytest.mark.parametrize("name", ["", "result.json"])
def test_inspect_shows_a_run(run: Run, result: TuningResult, name: str) -> None:
    result.save(result.run_dir)
    ran = run("inspect", str(Path(result.run_dir) / name))
    assert ran.code == 0
    assert result.verdict in ran.out
    assert "Pareto set" in ran.out and "recommended" in ran.out
    assert 'answer.reasoning: unchanged -> "chain_of_thought"' in ran.out
    assert "answer:reasoning" in ran.out and "90.0%" in ran.out
    assert "90 of 100" in ran.out and "$1.25" in ran.out


def test_inspect_prints_a_run_as_json(run: Run, result: TuningResult) -> None:
    result.save(result.run_dir)
    body = json.loads(run("inspect", result.run_dir, "--json").out)
    assert body["recommended"] == "trial 3"
    assert body["candidates"]["trial 3"]["validation"]["quality"]["mean"] == 0.7
    assert body["changes"] == ['answer.reasoning: unchanged -> "chain_of_thought"']
    assert body["spending"]["phases"] == {"search": 70, "validation": 20}


def test_inspect_shows_a_recipe(run: Run, result: TuningResult) -> None:
    recipe = replace(result.recipe, made_with={"seed": 3})
    path = recipe.save(Path(result.run_dir) / "recipe.json")
    shown = run("inspect", str(path)).out
    assert 'answer.reasoning: unchanged -> "chain_of_thought"' in shown
    assert "made with" in shown and "seed" in shown
    assert json.loads(run("inspect", result.run_dir, "--json").out) == recipe.to_json()
    assert run("inspect", str(path), "--mermaid").code == 1


def test_inspect_shows_a_program(run: Run) -> None:
    shown = run("inspect", "qa_program:program").out
    assert "steps of Toy" in shown and "question -> text" in shown and "big" in shown
    assert "answer:reasoning" in shown and "off, chain_of_thought" in shown
    # Models are given to `tune`, so here there is nothing to choose from yet.
    assert "allowed, but has options only in a run" in shown
    assert "does not support `ensemble`" in shown
    # Square brackets of the user's text are no markup.
    assert "The [b]toy[/b] has no demos." in shown


def test_inspect_prints_a_program_as_json(run: Run) -> None:
    body = json.loads(run("inspect", "qa_program:program", "--json").out)
    assert body["workflow"]["name"] == "Toy"
    assert body["dimensions"]["answer:reasoning"]["family"] == "weight"
    assert {"step": "answer", "cog": "few_shot", "reason": "The [b]toy[/b] has no demos."} in body[
        "refused"
    ]
    assert body["num_configs"] == len(body["dimensions"]["answer:reasoning"]["options"])


def test_inspect_prints_mermaid_text_with_probed_edges(run: Run, result: TuningResult) -> None:
    shown = run("inspect", "qa_program:program", "--mermaid").out
    assert shown == 'flowchart LR\n    n0["answer (lm)"]\n'
    probed = run("inspect", "qa_program:program", "--mermaid", "--probe").out
    assert '    n0 -->|"question"| n1\n' in probed
    result.save(result.run_dir)
    assert run("inspect", result.run_dir, "--mermaid").out == shown


def test_inspect_refuses_what_it_does_not_know(run: Run) -> None:
    assert run("inspect", "nowhere").code == 1
    assert "must be the folder of a run" in run("inspect", "nowhere").err
    assert "which no loaded adapter translates" in run("inspect", "qa_program:number").err


def test_report_writes_the_page_and_says_where(run: Run, result: TuningResult) -> None:
    result.save(result.run_dir)
    assert run("report", result.run_dir).out == f"{result.run_dir}/report.html\n"
    assert run("report", result.run_dir, "-o", "pages/x.html").out == "pages/x.html\n"
    assert Path("pages/x.html").exists()


def test_report_of_an_unfinished_run_is_an_error(run: Run, folder: Path) -> None:
    ran = run("report", str(folder))
    assert ran.code == 1 and "holds no result.json" in ran.err
