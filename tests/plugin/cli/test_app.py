"""What the commands hand on, print and exit with."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from adaseek._version import __version__
from adaseek.cli import main
from adaseek.errors import EndpointError, RunInterrupted
from adaseek.recipe import Recipe
from adaseek.result import TuningResult
from adaseek.search.base import Constraint

OPTIONS = {
    "tune": "--train --val --metric --inputs --model --prices --reward --seed --threads "
    "--budget --auto --objectives --constraint --max-cost-usd --max-seconds --run-dir "
    "--no-instructions --decompose --quiet --debug --help",
    "evaluate": "--data --metric --inputs --model --prices --reward --seed --threads --recipe "
    "--json --debug --help",
    "inspect": "--json --mermaid --probe --debug --help",
    "report": "--output --debug --help",
}
Run = Callable[..., Any]
TUNE = ("tune", "qa_program:program", "--train", "data.jsonl", "--metric", "qa_program:metric")


def test_the_commands_are_pinned(run: Run) -> None:
    listed = run("--help").out.partition("Commands:\n")[2]
    names = [
        line.split()[0] for line in listed.splitlines() if line.startswith("  ") and line[2] != " "
    ]
    assert names[:6] == ["drafts", "evaluate", "inspect", "report", "serve", "tune"]


@pytest.mark.parametrize("command", OPTIONS)
def test_the_options_are_pinned(run: Run, command: str) -> None:
    options = run(command, "--help").out.partition("Options:\n")[2]
    starts = [line.split() for line in options.splitlines() if line.startswith("  -")]
    names = [next(word for word in words if word.startswith("--")) for words in starts]
    assert names == OPTIONS[command].split()


def test_the_version_is_printed(run: Run) -> None:
    assert run("--version").out == f"adaseek {__version__}\n"


def test_wrong_usage_exits_with_2(run: Run) -> None:
    assert run("tune", "qa_program:program").code == 2
    assert run("tune", "--no-such-option").code == 2
    assert run("report").code == 2


def test_the_installed_command_starts() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from adaseek.cli import main; main()", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("adaseek ")


# tune -------------------------------------------------------------------------------------


def test_tune_hands_everything_to_the_tuner(run: Run, tuner: Any, folder: Path) -> None:
    (folder / "prices.json").write_text('{"big": {"input": 1.0, "output": 2.0}}')
    (folder / "val.jsonl").write_text('{"question": "v", "answer": "w"}\n')
    options = (
        *("--val", "val.jsonl", "--budget", "80", "--objectives", "quality, cost"),
        *("--model", "a@http://127.0.0.1:8000/v1", "--model", "b", "--prices", "prices.json"),
        *("--seed", "5", "--threads", "3", "--max-cost-usd", "2.5", "--max-seconds", "60"),
        *("--run-dir", "runs/x", "--constraint", "cost<=0.01", "--constraint", "latency<=0.8x"),
        *("--reward", "exact=qa_program:metric", "--quiet"),
    )
    assert run(*TUNE, *options).code == 0
    settings = tuner.settings
    assert settings.pop("metric").__name__ == "metric"
    assert settings.pop("rewards").keys() == {"exact"}
    assert settings == {
        "models": ["a@http://127.0.0.1:8000/v1", "b"],
        "prices": {"big": {"input": 1.0, "output": 2.0}},
        "seed": 5,
        "num_threads": 3,
        "cogs": None,
        "constraints": [Constraint("cost", 0.01), Constraint("latency", 0.8, relative=True)],
        "objectives": ["quality", "cost"],
        "run_dir": Path("runs/x"),
        "proposer": "the program's model",
        "verbose": False,
        "budget": 80,
        "auto": None,
        "max_cost_usd": 2.5,
        "max_seconds": 60.0,
    }
    call = tuner.calls[0]
    assert type(call["program"]).__name__ == "Toy"
    assert [e.inputs["question"] for e in call["trainset"]] == ["q0", "q1", "q2"]
    assert call["trainset"][0].labels == {"answer": "a0"}
    assert [e.inputs["question"] for e in call["valset"]] == ["v"]


def test_what_is_not_given_is_left_to_the_tuner(run: Run, tuner: Any) -> None:
    assert run(*TUNE, "--no-instructions").code == 0
    names = ("constraints", "objectives", "run_dir", "proposer", "budget", "auto", "prices", "cogs")
    assert {name: tuner.settings[name] for name in names} == dict.fromkeys(names)
    assert tuner.settings["verbose"] is True
    assert tuner.calls[0]["valset"] is None


def test_decompose_is_one_cog_more(run: Run, tuner: Any) -> None:
    assert run(*TUNE, "--decompose").code == 0
    names = [cog.name for cog in tuner.settings["cogs"]]
    assert names[-1] == "decompose" and "few_shot" in names and len(set(names)) == len(names)


def test_tune_prints_the_table_and_writes_the_report(run: Run, result: TuningResult) -> None:
    ran = run(*TUNE)
    assert "original against trial 3" in ran.out
    assert "[0.400, 0.600]" in ran.out and "[+0.100, +0.300]" in ran.out
    assert "better" in ran.out and "+40%" in ran.out
    assert result.verdict in ran.out
    assert f"recipe: {result.run_dir}/recipe.json" in ran.out
    assert f"report: {result.run_dir}/report.html" in ran.out
    assert (Path(result.run_dir) / "report.html").exists()


def test_no_gain_is_success(run: Run, tuner: Any, result: TuningResult) -> None:
    tuner.result = replace(
        result, recommended=result.original, improvement={}, verdict="No significant gain."
    )
    ran = run(*TUNE)
    assert ran.code == 0
    assert "nothing was reliably better" in ran.out and "No significant gain." in ran.out


@pytest.mark.parametrize(
    ("ended", "code"),
    [
        ("budget", 0),
        ("converged", 0),
        ("BudgetExhausted: `max_cost_usd` is 1, and 1.02 are used.", 3),
        ("Endpoint: it went away", 3),
        ("RunInterrupted: 3 runs were not begun", 130),
        ("interrupted", 130),
    ],
)
def test_the_exit_code_says_how_the_run_ended(
    run: Run, tuner: Any, result: TuningResult, ended: str, code: int
) -> None:
    tuner.result = replace(result, ended=ended)
    ran = run(*TUNE)
    assert ran.code == code
    assert result.verdict in ran.out
    cure = f"The same command with --run-dir {result.run_dir} goes on from here."
    assert ran.err == ("" if code == 0 else f"ended early: {ended}\n{cure}\n")


def test_ctrl_c_exits_with_130(run: Run, tuner: Any) -> None:
    tuner.error = KeyboardInterrupt()  # type: ignore[assignment]
    ran = run(*TUNE)
    assert ran.code == 130 and ran.err.strip() == "interrupted"


def test_being_asked_to_end_before_anything_was_found_exits_with_130(run: Run, tuner: Any) -> None:
    tuner.error = RunInterrupted("Interrupted: 9 workflow runs are journalled.")
    ran = run(*TUNE)
    assert ran.code == 130 and ran.err.startswith("error: Interrupted: 9 workflow runs")


def test_a_missing_plotly_does_not_fail_a_paid_run(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    ran = run(*TUNE)
    assert ran.code == 0
    assert ran.err.startswith("no report: The report needs plotly")


def test_an_error_is_one_line_without_traceback(run: Run, tuner: Any) -> None:
    tuner.error = EndpointError("The server is away. Start it.")
    ran = run(*TUNE)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == "error: The server is away. Start it.\n"


def test_debug_lets_the_error_through(run: Run, tuner: Any) -> None:
    tuner.error = EndpointError("The server is away.")
    with pytest.raises(EndpointError, match="away"):
        main((*TUNE, "--debug"))


# evaluate ---------------------------------------------------------------------------------

EVALUATE = (
    *("evaluate", "qa_program:program", "--data", "data.jsonl"),
    *("--metric", "qa_program:metric"),
)


def test_evaluate_compares_a_recipe_with_the_original(
    run: Run, tuner: Any, result: TuningResult
) -> None:
    path = result.recipe.save(Path(result.run_dir) / "recipe.json")
    ran = run(*EVALUATE, "--recipe", str(path.parent))
    assert ran.code == 0
    assert tuner.calls[0]["recipe"] == result.recipe
    assert len(tuner.calls[0]["examples"]) == 3
    assert "held-out, n=20" in ran.out
    assert "[+0.100, +0.300]" in ran.out and "better" in ran.out


def test_evaluate_without_a_recipe_measures_the_original(run: Run, tuner: Any) -> None:
    ran = run(*EVALUATE)
    assert tuner.calls[0]["recipe"] == Recipe()
    assert "original program" in ran.out and "0.500 [0.400, 0.600]" in ran.out
    assert "0.700" not in ran.out and "better" not in ran.out


def test_evaluate_prints_json(run: Run, result: TuningResult) -> None:
    path = result.recipe.save(Path(result.run_dir) / "recipe.json")
    body = json.loads(run(*EVALUATE, "--recipe", str(path), "--json").out)
    assert body["quality"]["difference"] == {"mean": 0.2, "low": 0.1, "high": 0.3, "num": 20}


def test_a_recipe_that_is_not_there_is_an_error(run: Run) -> None:
    ran = run(*EVALUATE, "--recipe", "nowhere.json")
    assert ran.code == 1 and "no such file exists" in ran.err


# serve ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("model", "--kv-retention", "--token-tree", '{"nodes": 8}', "--port", "8001"),
        ("model", "--help"),
        ("--debug",),
        (),
    ],
)
def test_serve_passes_everything_on(
    run: Run, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    seen: list[list[str]] = []

    def serve(argv: list[str]) -> int:
        seen.append(argv)
        return 7

    module = types.ModuleType("adaseek_vllm.serve")
    monkeypatch.setattr(module, "main", serve, raising=False)
    monkeypatch.setitem(sys.modules, "adaseek_vllm.serve", module)
    assert run("serve", *arguments).code == 7
    assert seen == [list(arguments)]
