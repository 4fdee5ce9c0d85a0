"""The command line over a scripted tuner and a framework made up for the test."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import adaseek.tuner
import pytest
from adaseek import plugins
from adaseek.cli import app as cli_app
from adaseek.cli import inspection, main
from adaseek.hooks import hookimpl
from adaseek.recipe import Recipe, Setting
from adaseek.result import Candidate, Estimate, Spending, TuningResult
from adaseek.workflow import Edge, Field, ModelRef, Signature, Step, Workflow

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
