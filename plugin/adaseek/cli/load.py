"""What the command line reads: the user's program and functions, examples, prices, bounds."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, cast  # Any: the program and its data are the user's own

from adaseek._canonical import fingerprint
from adaseek.errors import AdaseekError, ConfigurationError, ExampleError, choices, require
from adaseek.search.base import OBJECTIVES, Constraint, Objective
from adaseek.workflow import Example

__all__ = ["function", "parse_constraint", "prices", "program", "read_examples", "rewards"]

_CONSTRAINT = re.compile(r"\s*(\w+)\s*(<=|>=)\s*([0-9.]+(?:e[-+]?\d+)?)(x?)\s*", re.IGNORECASE)


def program(spec: str) -> Any:
    """Returns the program that `MODULE:ATTR` or `path/to/file.py:ATTR` names.

    A class, or a function without arguments, is called and its result taken.

    Raises:
        ConfigurationError: if it cannot be imported, or the factory fails or needs arguments.
    """
    found = _attribute(spec, "PROGRAM")
    if not (inspect.isroutine(found) or inspect.isclass(found)):
        return found
    with _working_directory_importable(), _user_code(f"calling {spec}"):
        return found()


def function(spec: str, name: str) -> Callable[..., Any]:
    """Returns the function that `MODULE:ATTR` or `path/to/file.py:ATTR` names.

    Raises:
        ConfigurationError: if it cannot be imported or called.
    """
    found = _attribute(spec, name)
    require(callable(found), name, spec, "must name a function")
    return cast(Callable[..., Any], found)


def read_examples(
    path: Path, *, inputs: Sequence[str] = (), default_inputs: Sequence[str] = ()
) -> list[Example]:
    """Returns the examples in a JSON Lines file.

    Args:
        path: a file with one JSON object per line; empty lines are skipped.
        inputs: names of the fields that the program is called with; the others are labels.
        default_inputs: the program's own inputs, for when `inputs` is empty.

    Raises:
        ExampleError: if a line is not an object or lacks an input; the message has its number.
        ConfigurationError: if nothing tells the inputs.
    """
    names = list(inputs or default_inputs)
    require(
        bool(names),
        "--inputs",
        ",".join(inputs),
        "must be given: the program does not say what it is called with",
        cure="Write --inputs question,context.",
    )
    examples: list[Example] = []
    for number, row in _rows(path):
        missing = [name for name in names if name not in row]
        if missing:
            raise ExampleError(
                f"{path}, line {number}: the input {choices(missing)} is missing; the line has "
                f"{choices(row) or 'no fields'}. Name the inputs with --inputs."
            )
        known = {name: row[name] for name in names}
        labels = {name: value for name, value in row.items() if name not in names}
        identifier = fingerprint({"inputs": known, "labels": labels})
        examples.append(Example(identifier, known, labels))
    require(bool(examples), "examples", str(path), "must hold at least one line")
    return examples


def prices(path: Path | None) -> Mapping[str, Mapping[str, float]] | None:
    """Returns the prices in a JSON file: model -> {"input": ..., "output": ...}.

    Raises:
        ConfigurationError: if the file is not a JSON object.
    """
    if path is None:
        return None
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"`--prices` is {str(path)!r}, but not JSON: {error}.") from None
    require(isinstance(body, dict), "--prices", str(path), "must hold a JSON object")
    return cast(Mapping[str, Mapping[str, float]], body)


def rewards(specs: Sequence[str]) -> dict[str, Callable[..., Any]]:
    """Returns the reward functions that `NAME=MODULE:FN` texts name.

    Raises:
        ConfigurationError: for another form, a name given twice, or a function that is not there.
    """
    found: dict[str, Callable[..., Any]] = {}
    for spec in specs:
        name, separator, source = spec.partition("=")
        require(bool(separator and name), "--reward", spec, "must look like NAME=MODULE:FN")
        require(name not in found, "--reward", spec, f"'{name}' must be given once")
        found[name] = function(source, "--reward")
    return found


def parse_constraint(text: str) -> Constraint:
    """Returns the bound that `text` states, e.g. `cost<=0.01`, or `latency<=0.8x` of the original.

    Raises:
        ConfigurationError: for any other form, and for a bound on the wrong side.
    """
    match = _CONSTRAINT.fullmatch(text)
    rule = "must look like quality>=0.7, cost<=0.01 (USD per run) or latency<=0.8x (of original)"
    if match is None or match[1] not in OBJECTIVES:
        raise ConfigurationError(f"`--constraint` is {text!r}, but {rule}.")
    sign = ">=" if match[1] == "quality" else "<="
    require(match[2] == sign, "--constraint", text, f"{match[1]} can only be bounded with {sign}")
    try:
        bound = float(match[3])
    except ValueError:
        raise ConfigurationError(f"`--constraint` is {text!r}, but {rule}.") from None
    return Constraint(cast(Objective, match[1]), bound, relative=bool(match[4]))


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields line number and object of every line that is not empty."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ExampleError(f"{path} is not UTF-8 text: {error}.") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ExampleError(f"{path}, line {number} is not JSON: {error}.") from None
        if not isinstance(row, dict):
            raise ExampleError(
                f"{path}, line {number} holds a {type(row).__name__}, but must be an object such "
                'as {"question": "...", "answer": "..."}.'
            )
        yield number, row


def _attribute(spec: str, name: str) -> Any:
    """Returns what `spec` names; `name` is the setting that an error blames."""
    source, separator, path = spec.rpartition(":")
    require(
        bool(separator and source and path),
        name,
        spec,
        "must be MODULE:ATTR or path/to/file.py:ATTR",
    )
    with _working_directory_importable():
        found: Any = _file(Path(source)) if source.endswith(".py") else _module(source, name)
    for part in path.split("."):
        if not hasattr(found, part):
            public = [
                other
                for other, value in vars(found).items()
                if not other.startswith("_") and not inspect.ismodule(value)
            ]
            raise ConfigurationError(
                f"`{name}` is {spec!r}, but there is no `{part}`. There are: {choices(public)}."
            )
        found = getattr(found, part)
    return found


def _module(source: str, name: str) -> ModuleType:
    try:
        missing = importlib.util.find_spec(source) is None
    except (ModuleNotFoundError, ValueError):  # a parent package is missing, or is no package
        missing = True
    require(
        not missing,
        name,
        source,
        "is no module that can be imported from here",
        cure="Run in the folder that holds it, or write path/to/file.py:ATTR.",
    )
    with _user_code(f"importing {source}"):
        return importlib.import_module(source)


def _file(path: Path) -> ModuleType:
    """Returns the module in file `path`, imported once; its own folder is importable meanwhile."""
    path = path.resolve()
    require(path.is_file(), "file", str(path), "does not exist")
    name = f"adaseek_user_{path.stem}"
    while name in sys.modules and getattr(sys.modules[name], "__file__", None) != str(path):
        name += "_"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, path  # it ends with .py
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickle look the module up while it is being executed.
    sys.modules[name] = module
    try:
        with _importable(path.parent), _user_code(f"importing {path}"):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def _user_code(what: str) -> Iterator[None]:
    """Turns whatever the user's own code raises into one line that says where it happened."""
    try:
        yield
    except AdaseekError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise ConfigurationError(
            f"{what} raised {type(error).__name__}: {error}. Run with --debug for the traceback."
        ) from error


def _working_directory_importable() -> Any:
    return _importable(Path.cwd())


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Puts `folder` in front of the import path for a while."""
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)
