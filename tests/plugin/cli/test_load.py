"""Programs, functions, examples, prices and bounds as they are named on the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from adaseek.cli import load
from adaseek.errors import ConfigurationError, ExampleError
from adaseek.search.base import Constraint
from adaseek.workflow import Example

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
