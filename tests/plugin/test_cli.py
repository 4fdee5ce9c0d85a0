"""The command line, over a scripted tuner and a framework made up for the test."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import adaseek.tuner
import pytest
from adaseek import plugins
from adaseek._version import __version__
from adaseek.cli import app as cli_app
from adaseek.cli import inspection, load, main
from adaseek.errors import ConfigurationError, EndpointError, ExampleError, RunInterrupted
from adaseek.hooks import hookimpl
from adaseek.recipe import Recipe, Setting
from adaseek.result import Candidate, Estimate, Spending, TuningResult
from adaseek.search.base import Constraint
from adaseek.workflow import Edge, Example, Field, ModelRef, Signature, Step, Workflow

OPTIONS = {
    "tune": "--train --val --metric --inputs --model --prices --reward --seed --threads "
    "--budget --auto --objectives --constraint --max-cost-usd --max-seconds --run-dir "
    "--no-instructions --decompose --quiet --debug --help",
    "evaluate": "--data --metric --inputs --model --prices --reward --seed --threads --recipe "
    "--json --debug --help",
    "inspect": "--json --mermaid --probe --debug --help",
    "report": "--output --debug --help",
}
PROGRAM = """
class Toy:
    is_toy = True

program = Toy()

def make():
    return Toy()

def needs(argument):
    return Toy()

def metric(example, output):
    return 1.0

number = 3
"""


@dataclass(frozen=True)
class Ran:
    """What a run of the command line left: exit code and both streams."""

    code: int
    out: str
    err: str


@dataclass
class FakeTuner:
    """Stands for `adaseek.tuner.Tuner`: keeps how it was called and answers from the script."""

    result: TuningResult
    error: Exception | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    calls: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, metric: Callable[..., Any], **settings: Any) -> FakeTuner:
        self.settings = {"metric": metric, **settings}
        return self

    def tune(
        self, program: Any, *, trainset: Sequence[Any], valset: Sequence[Any] | None
    ) -> TuningResult:
        self.calls.append({"program": program, "trainset": trainset, "valset": valset})
        if self.error is not None:
            raise self.error
        return self.result

    def evaluate(self, program: Any, recipe: Recipe, examples: Sequence[Any]) -> Any:
        self.calls.append({"program": program, "recipe": recipe, "examples": examples})
        original = {"quality": Estimate(0.5, 0.4, 0.6, 20)}
        tuned = {"quality": Estimate(0.7, 0.6, 0.8, 20)}
        difference = {"quality": Estimate(0.2, 0.1, 0.3, 20)}
        return adaseek.tuner.Heldout(original, tuned, difference)


class ToyPlugin:
    """Translates objects with `is_toy`; its edge is only found by a probe."""

    @hookimpl
    def adaseek_translate(self, obj: Any, options: Mapping[str, Any]) -> Workflow | None:
        return WORKFLOW if getattr(obj, "is_toy", False) else None

    @hookimpl
    def adaseek_probe(self, obj: Any, workflow: Workflow) -> frozenset[Edge]:
        return frozenset({Edge("INPUT", "answer", "question", "question", "probe")})

    @hookimpl
    def adaseek_models(self, obj: Any) -> list[Any]:
        return ["the program's model"]


WORKFLOW = Workflow(
    "toy",
    {
        "answer": Step(
            "answer",
            signature=Signature("Answer.", (Field("question", "input"), Field("text", "output"))),
            model=ModelRef("big"),
            allowed=frozenset({"reasoning", "model"}),
            blocked={"few_shot": "The [b]toy[/b] has no demos."},
        )
    },
    inputs=("question",),
    name="Toy",
)


@pytest.fixture
def result(tmp_path: Path) -> TuningResult:
    recipe = Recipe({"answer": Setting(reasoning="chain_of_thought")}).bind(WORKFLOW)
    values = {"quality": Estimate(0.5, 0.4, 0.6, 20), "cost": Estimate(0.002, 0.001, 0.003, 20)}
    original = Candidate("original", {"answer:reasoning": "off"}, Recipe(), values, values)
    better = {**values, "quality": Estimate(0.7, 0.6, 0.8, 20)}
    tuned = Candidate("trial 3", {"answer:reasoning": "on"}, recipe, better, better, pareto=True)
    folder = tmp_path / "run"
    folder.mkdir()
    return TuningResult(
        workflow=WORKFLOW,
        objectives=("quality", "cost"),
        original=original,
        candidates=(original, tuned),
        recommended=tuned,
        verdict="trial 3 gains +0.2 quality [+0.1, +0.3] on held-out examples.",
        spending=Spending(100, 90, cost_usd=1.25, phases={"search": 70, "validation": 20}),
        improvement={"quality": Estimate(0.2, 0.1, 0.3, 20), "cost": Estimate(0, -1e-4, 1e-4, 20)},
        importance={"answer:reasoning": 0.9},
        run_dir=str(folder),
    )


@pytest.fixture
def tuner(result: TuningResult, monkeypatch: pytest.MonkeyPatch) -> FakeTuner:
    fake = FakeTuner(result)
    monkeypatch.setattr(adaseek.tuner, "Tuner", fake)
    return fake


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory: a module, a file of examples, and the toy framework installed."""
    monkeypatch.chdir(tmp_path)
    for module in (cli_app, inspection):
        monkeypatch.setattr(module, "load_plugins", lambda: plugins.load_plugins([ToyPlugin()]))
    (tmp_path / "qa_program.py").write_text(PROGRAM)
    rows = ({"question": f"q{i}", "answer": f"a{i}"} for i in range(3))
    (tmp_path / "data.jsonl").write_text("\n\n".join(json.dumps(row) for row in rows) + "\n")
    yield tmp_path
    imported = {
        n for n, m in sys.modules.items() if _is_below(getattr(m, "__file__", ""), tmp_path)
    }
    for name in imported:
        del sys.modules[name]


def _is_below(file: str | None, folder: Path) -> bool:
    return bool(file) and folder in Path(str(file)).parents


@pytest.fixture
def run(folder: Path, tuner: FakeTuner, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    def run(*arguments: str) -> Ran:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        streams = capsys.readouterr()
        return Ran(int(ended.value.code or 0), streams.out, streams.err)

    return run


Run = Callable[..., Ran]
TUNE = ("tune", "qa_program:program", "--train", "data.jsonl", "--metric", "qa_program:metric")


# The surface ------------------------------------------------------------------------------


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


def test_tune_hands_everything_to_the_tuner(run: Run, tuner: FakeTuner, folder: Path) -> None:
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


def test_what_is_not_given_is_left_to_the_tuner(run: Run, tuner: FakeTuner) -> None:
    assert run(*TUNE, "--no-instructions").code == 0
    names = ("constraints", "objectives", "run_dir", "proposer", "budget", "auto", "prices", "cogs")
    assert {name: tuner.settings[name] for name in names} == dict.fromkeys(names)
    assert tuner.settings["verbose"] is True
    assert tuner.calls[0]["valset"] is None


def test_decompose_is_one_cog_more(run: Run, tuner: FakeTuner) -> None:
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


def test_no_gain_is_success(run: Run, tuner: FakeTuner, result: TuningResult) -> None:
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
    run: Run, tuner: FakeTuner, result: TuningResult, ended: str, code: int
) -> None:
    tuner.result = replace(result, ended=ended)
    ran = run(*TUNE)
    assert ran.code == code
    assert result.verdict in ran.out
    cure = f"The same command with --run-dir {result.run_dir} goes on from here."
    assert ran.err == ("" if code == 0 else f"ended early: {ended}\n{cure}\n")


def test_ctrl_c_exits_with_130(run: Run, tuner: FakeTuner) -> None:
    tuner.error = KeyboardInterrupt()  # type: ignore[assignment]
    ran = run(*TUNE)
    assert ran.code == 130 and ran.err.strip() == "interrupted"


def test_being_asked_to_end_before_anything_was_found_exits_with_130(
    run: Run, tuner: FakeTuner
) -> None:
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


def test_an_error_is_one_line_without_traceback(run: Run, tuner: FakeTuner) -> None:
    tuner.error = EndpointError("The server is away. Start it.")
    assert run(*TUNE) == Ran(1, "", "error: The server is away. Start it.\n")


def test_debug_lets_the_error_through(run: Run, tuner: FakeTuner) -> None:
    tuner.error = EndpointError("The server is away.")
    with pytest.raises(EndpointError, match="away"):
        main((*TUNE, "--debug"))


# Programs ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    [
        "qa_program:program",
        "qa_program:Toy",
        "qa_program:make",
        "qa_program.py:program",
        "./qa_program.py:make",
    ],
)
def test_a_program_is_an_object_or_what_makes_it(folder: Path, spec: str) -> None:
    before = list(sys.path)
    assert type(load.program(spec)).__name__ == "Toy"
    assert sys.path == before


def test_a_file_is_imported_once(folder: Path) -> None:
    assert type(load.program("qa_program.py:program")) is load.function("qa_program.py:Toy", "fn")


def test_two_files_of_one_name_are_two_modules(folder: Path) -> None:
    (folder / "other").mkdir()
    (folder / "other" / "qa_program.py").write_text("def program():\n    return 'other'\n")
    assert load.program("other/qa_program.py:program") == "other"
    assert type(load.program("qa_program.py:program")).__name__ == "Toy"


def test_a_file_imports_its_neighbours(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "a_neighbour.py").write_text("value = 7\n")
    (folder / "sub" / "prog.py").write_text("import a_neighbour\nvalue = a_neighbour.value\n")
    assert load.program("sub/prog.py:value") == 7


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("qa_program", "must be MODULE:ATTR"),
        (":program", "must be MODULE:ATTR"),
        ("no_such_module:program", "is no module that can be imported from here"),
        ("no.such.module:program", "is no module that can be imported from here"),
        ("nowhere.py:program", "does not exist"),
        ("qa_program:nothing", "there is no `nothing`. There are: 'Toy', 'program'"),
        ("qa_program:needs", "calling qa_program:needs raised TypeError"),
        ("broken_module:program", "importing broken_module raised ZeroDivisionError"),
        ("broken_module.py:program", "raised ZeroDivisionError"),
    ],
)
def test_a_program_that_cannot_be_loaded_is_an_error_that_says_why(
    folder: Path, spec: str, message: str
) -> None:
    (folder / "broken_module.py").write_text("1 / 0\n")
    with pytest.raises(ConfigurationError) as error:
        load.program(spec)
    assert message in str(error.value)


def test_a_module_that_failed_can_be_imported_again(folder: Path) -> None:
    file = folder / "mended.py"
    file.write_text("1 / 0\n")
    with pytest.raises(ConfigurationError):
        load.program("mended.py:value")
    file.write_text("value = 1\n")
    assert load.program("mended.py:value") == 1


def test_a_metric_must_be_callable(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="must name a function"):
        load.function("qa_program:number", "--metric")


# Examples, prices, bounds -----------------------------------------------------------------


def test_named_inputs_replace_the_programs_own(folder: Path) -> None:
    found = load.read_examples(
        folder / "data.jsonl", inputs=["answer"], default_inputs=["question"]
    )
    assert found[1] == Example(found[1].id, {"answer": "a1"}, {"question": "q1"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"question": "a"}\n[1]', "line 2 holds a list"),
        ('{"question": "a"}\n\n{"question":', "line 3 is not JSON"),
        ('{"answer": "a"}', "line 1: the input 'question' is missing; the line has 'answer'"),
    ],
)
def test_a_bad_line_is_named(folder: Path, text: str, message: str) -> None:
    file = folder / "bad.jsonl"
    file.write_text(text)
    with pytest.raises(ExampleError) as error:
        load.read_examples(file, inputs=["question"])
    assert message in str(error.value)


def test_text_in_another_encoding_is_an_error(folder: Path) -> None:
    (folder / "latin.jsonl").write_bytes('{"question": "\xe9"}'.encode("latin-1"))
    with pytest.raises(ExampleError, match="is not UTF-8"):
        load.read_examples(folder / "latin.jsonl", inputs=["question"])


def test_a_line_separator_inside_a_text_does_not_end_the_line(folder: Path) -> None:
    file = folder / "unicode.jsonl"
    file.write_text('{"question": "a\u2028b\x0b"}'.replace("\x0b", "\\u000b"), encoding="utf-8")
    found = load.read_examples(file, inputs=["question"])
    assert found[0].inputs == {"question": "a\u2028b\x0b"}


def test_an_empty_file_is_an_error(folder: Path) -> None:
    (folder / "empty.jsonl").write_text("\n")
    with pytest.raises(ConfigurationError, match="at least one line"):
        load.read_examples(folder / "empty.jsonl", inputs=["question"])


def test_without_inputs_the_cure_is_named(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="--inputs question,context"):
        load.read_examples(folder / "data.jsonl")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("quality>=0.7", Constraint("quality", 0.7)),
        (" cost <= 1e-3 ", Constraint("cost", 0.001)),
        ("latency<=0.8x", Constraint("latency", 0.8, relative=True)),
        ("quality>=1X", Constraint("quality", 1.0, relative=True)),
    ],
)
def test_bounds_are_read(text: str, expected: Constraint) -> None:
    assert load.parse_constraint(text) == expected


@pytest.mark.parametrize(
    "text", ["", "cost", "cost<=", "cost<=x", "speed<=1", "cost>=1", "quality<=1", "cost<=1.2.3"]
)
def test_other_bounds_are_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--constraint"):
        load.parse_constraint(text)


@pytest.mark.parametrize(
    "specs", [["metric"], ["=app.py:metric"], ["a=nowhere"], ["a=json:dumps", "a=json:loads"]]
)
def test_rewards_that_cannot_be_found_are_refused(specs: list[str]) -> None:
    with pytest.raises(ConfigurationError, match="--reward"):
        load.rewards(specs)


def test_what_there_is_instead_is_named_without_imported_modules(folder: Path) -> None:
    (folder / "plain.py").write_text("import json\ndef metric(example, prediction): ...\n")
    with pytest.raises(ConfigurationError, match=r"There are: 'metric'\."):
        load.function("plain.py:metrc", "--metric")
    sys.modules.pop("adaseek_user_plain", None)


def test_rewards_are_read_by_name() -> None:
    assert load.rewards(["a=json:dumps", "b=json:loads"]) == {"a": json.dumps, "b": json.loads}


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_prices_must_be_a_json_object(tmp_path: Path, text: str) -> None:
    (tmp_path / "prices.json").write_text(text)
    with pytest.raises(ConfigurationError, match="--prices"):
        load.prices(tmp_path / "prices.json")


# evaluate ---------------------------------------------------------------------------------

EVALUATE = (
    *("evaluate", "qa_program:program", "--data", "data.jsonl"),
    *("--metric", "qa_program:metric"),
)


def test_evaluate_compares_a_recipe_with_the_original(
    run: Run, tuner: FakeTuner, result: TuningResult
) -> None:
    path = result.recipe.save(Path(result.run_dir) / "recipe.json")
    ran = run(*EVALUATE, "--recipe", str(path.parent))
    assert ran.code == 0
    assert tuner.calls[0]["recipe"] == result.recipe
    assert len(tuner.calls[0]["examples"]) == 3
    assert "held-out, n=20" in ran.out
    assert "[+0.100, +0.300]" in ran.out and "better" in ran.out


def test_evaluate_without_a_recipe_measures_the_original(run: Run, tuner: FakeTuner) -> None:
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


# inspect and report -----------------------------------------------------------------------


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
