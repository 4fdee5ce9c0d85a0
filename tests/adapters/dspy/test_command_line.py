"""The command line on a real DSPy program, from JSON Lines to the report."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from adaseek.cli import main
from adaseek.recipe import Recipe
from adaseek.result import TuningResult
from adaseek.testing.loopback import LoopbackServer, Reply

PROGRAM = """
import os

import dspy


class QA(dspy.Module):
    def __init__(self):
        super().__init__()
        self.answer = dspy.Predict("question -> answer")
        server = os.environ["QA_SERVER"]
        self.answer.lm = dspy.LM("openai/m", api_base=server, api_key="secret", cache=False)

    def forward(self, question):
        return self.answer(question=question)


def metric(example, prediction, trace=None):
    assert type(example).__name__ == "Example" and "answer" in example.labels()
    return example.answer == prediction.answer
"""


def answer(body: Mapping[str, Any]) -> Reply:
    """Knows every answer, but only if it may reason first."""
    messages = body["messages"]
    reasons = "reasoning" in messages[0]["content"]
    number = re.findall(r"q(\d+)", messages[-1]["content"])[-1]
    values = {"reasoning": "Let me think."} if reasons else {}
    values["answer"] = f"a{number}" if reasons else "no idea"
    parts = [f"[[ ## {name} ## ]]\n{value}\n" for name, value in values.items()]
    return Reply("\n".join([*parts, "[[ ## completed ## ]]"]))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "qa.py").write_text(PROGRAM)
    for name, start in (("train", 0), ("val", 24), ("test", 48)):
        rows = ({"question": f"q{i}", "answer": f"a{i}"} for i in range(start, start + 24))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    with LoopbackServer(answer, models=("m",)) as server:
        monkeypatch.setenv("QA_SERVER", server.url)
        yield tmp_path
    sys.modules.pop("adaseek_user_qa", None)


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def run(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        return int(ended.value.code or 0), capsys.readouterr().out

    return run


def test_a_program_is_tuned_measured_and_shown(
    run: Callable[..., tuple[int, str]], folder: Path
) -> None:
    data = ("--train", "train.jsonl", "--val", "val.jsonl", "--metric", "qa.py:metric")
    options = ("--objectives", "quality", "--budget", "110", "--run-dir", "run", "--quiet")
    code, shown = run("tune", "qa.py:QA", *data, *options, "--no-instructions")
    assert code == 0, shown
    assert "gains" in shown
    assert not Recipe.load("run").is_empty
    assert TuningResult.load("run").recommended.value("quality") == 1.0
    assert (folder / "run" / "report.html").stat().st_size > 1_000_000

    held_out = ("--data", "test.jsonl", "--metric", "qa.py:metric", "--recipe", "run", "--json")
    code, measured = run("evaluate", "qa.py:QA", *held_out)
    quality = json.loads(measured)["quality"]
    assert (quality["original"]["mean"], quality["tuned"]["mean"]) == (0.0, 1.0)
    assert quality["difference"]["low"] > 0

    assert "Pareto set" in run("inspect", "run")[1]


def test_a_program_is_inspected_before_anything_is_spent(
    run: Callable[..., tuple[int, str]],
) -> None:
    body = json.loads(run("inspect", "qa.py:QA", "--json")[1])
    assert body["workflow"]["framework"] == "dspy"
    assert "answer:reasoning" in body["dimensions"]
    refused = {refusal["cog"]: refusal["reason"] for refusal in body["refused"]}
    assert refused["few_shot"].startswith("allowed, but has options only in a run")
    assert '|"question"|' in run("inspect", "qa.py:QA", "--mermaid", "--probe")[1]


def test_evaluate_refuses_an_endpoint_that_is_down_at_once(
    run: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("QA_SERVER", "http://127.0.0.1:9/v1")
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "qa.py:QA", "--data", "test.jsonl", "--metric", "qa.py:metric"])
    assert ended.value.code == 1
    assert "does not answer" in capsys.readouterr().err
