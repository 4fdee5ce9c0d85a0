"""Scripts of the examples, as modules."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def load_example() -> Iterator[Callable[[str], ModuleType]]:
    """Imports a script by its path below `examples`, importable in one file of tests only.

    What a script sets in the environment, for its own process, is undone as well.
    """
    before, names, environment = list(sys.path), set(sys.modules), dict(os.environ)

    def load(script: str) -> ModuleType:
        folder = str((EXAMPLES / script).parent)
        if folder not in sys.path:
            sys.path.insert(0, folder)
        return importlib.import_module(Path(script).name)

    yield load
    sys.path[:] = before
    os.environ.clear()
    os.environ.update(environment)
    for name in set(sys.modules) - names:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(EXAMPLES)):
            del sys.modules[name]
