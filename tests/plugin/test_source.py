"""The identity of code changes with whatever it rests on, and with nothing else."""

from __future__ import annotations

import functools
import importlib
import json
import linecache
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from adaseek.source import source_identity

FILES = {
    "pack/__init__.py": "",
    "pack/metrics.py": """
import json
from . import words
from .limits import LIMIT as LOWEST
from .words import Word as Token

WEIGHTS = {"a": 1.0}
OTHER = 3

def metric(example, prediction):
    # unrelated() is only named here
    score = helper(prediction) + json.loads("0") + WEIGHTS["a"]
    return score >= LOWEST and Token(prediction).ok

def helper(text):
    return len(words.clean(text))

def unrelated():
    return OTHER

class Judge:
    def __call__(self, example, prediction):
        return helper(prediction) > 0

def bound(threshold):
    def inner(example, prediction):
        return helper(prediction) > threshold
    return inner

lambdas = [lambda example, prediction: helper(prediction)]
""",
    "pack/words.py": """
import re
from .limits import PATTERN

_SPACE = re.compile(PATTERN)

def clean(text):
    return _SPACE.sub(" ", text)

class Base:
    ok = True

class Word(Base):
    def __init__(self, text):
        self.text = text

def unused():
    return 0
""",
    "pack/limits.py": "LIMIT = 0.5\nPATTERN = 'x'\nUNUSED = 1\n",
}

Change = Callable[[str, str, str], Any]


@pytest.fixture
def change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Change]:
    """Puts `new` in place of `old` in a file, and returns the module `pack.metrics` anew."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "pack").mkdir()
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)

    def changed(name: str = "pack/__init__.py", old: str = "", new: str = "") -> Any:
        file = tmp_path / name
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new, 1))
        for module in [m for m in sys.modules if m.partition(".")[0] == "pack"]:
            del sys.modules[module]
        linecache.clearcache()
        importlib.invalidate_caches()
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        return importlib.import_module("pack.metrics")

    yield changed
    for module in [m for m in sys.modules if m.partition(".")[0] == "pack"]:
        del sys.modules[module]


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("pack/metrics.py", "score >= LOWEST", "score > LOWEST"),
        ("pack/metrics.py", "len(words", "2 * len(words"),
        ("pack/metrics.py", '{"a": 1.0}', '{"a": 2.0}'),
        ("pack/words.py", '" ", text', '"", text'),
        ("pack/words.py", "re.compile(PATTERN)", "re.compile(PATTERN, re.I)"),
        ("pack/words.py", "self.text = text", "self.text = text.lower()"),
        ("pack/words.py", "ok = True", "ok = False"),
        ("pack/limits.py", "LIMIT = 0.5", "LIMIT = 0.6"),
        ("pack/limits.py", "PATTERN = 'x'", "PATTERN = 'y'"),
    ],
)
def test_a_change_of_anything_that_it_rests_on_is_noticed(
    change: Change, name: str, old: str, new: str
) -> None:
    before = source_identity(change("pack/__init__.py", "", "").metric)
    assert source_identity(change(name, old, new).metric) != before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("pack/metrics.py", "return OTHER", "return 2 * OTHER"),
        ("pack/metrics.py", "OTHER = 3", "OTHER = 4"),
        ("pack/words.py", "return 0", "return 1"),
        ("pack/limits.py", "UNUSED = 1", "UNUSED = 2"),
        ("pack/__init__.py", "", "VERSION = 2"),
    ],
)
def test_a_change_of_anything_else_is_not(change: Change, name: str, old: str, new: str) -> None:
    before = source_identity(change("pack/__init__.py", "", "").metric)
    assert source_identity(change(name, old, new).metric) == before


@pytest.mark.parametrize(
    "pick",
    [
        lambda module: module.Judge(),
        lambda module: module.Judge,
        lambda module: module.Judge().__call__,
        lambda module: module.bound(0.5),
        lambda module: module.lambdas[0],
        lambda module: functools.partial(module.metric),
        lambda module: functools.wraps(module.metric)(functools.partial(module.metric)),
    ],
)
def test_helpers_are_reached_from_every_kind_of_code(change: Change, pick: Any) -> None:
    before = source_identity(pick(change("pack/__init__.py", "", "")))
    assert source_identity(pick(change("pack/words.py", "return 0", "return 1"))) == before
    assert source_identity(pick(change("pack/words.py", '" ", text', '"", text'))) != before


def test_bound_arguments_count(change: Change) -> None:
    metric = change("pack/__init__.py", "", "").metric
    one, two = (functools.partial(metric, prediction=text) for text in ("a", "b"))
    assert source_identity(one) != source_identity(two)
    assert source_identity(functools.partial(metric, object())).startswith("pack.metrics.metric#")


def test_a_script_rests_on_the_files_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)

    def identity(helper: str) -> str:
        (tmp_path / "side_helper.py").write_text(helper)
        (tmp_path / "side_script.py").write_text(
            "import side_helper\ndef metric(e, p):\n    return side_helper.clean(p)\n"
        )
        for name in ("side_helper", "side_script"):
            sys.modules.pop(name, None)
        linecache.clearcache()
        importlib.invalidate_caches()
        return source_identity(importlib.import_module("side_script").metric)

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    clean = "def clean(text):\n    return {}\n"
    first = identity(clean.format(1))
    assert identity(clean.format(1) + "\nOTHER = 1\n") == first
    assert identity(clean.format(22)) != first


def test_installed_code_is_read_but_not_what_it_names() -> None:
    identity = source_identity(json.dumps)
    assert identity.startswith("json.dumps#")


def test_code_without_source_is_its_name() -> None:
    assert source_identity(len) == "builtins.len"
    namespace: dict[str, Any] = {"__name__": "nowhere"}
    exec("def metric(e, p):\n    return 1", namespace)
    assert source_identity(namespace["metric"]) == "nowhere.metric"
