"""Asks a suite of tests something in a fresh interpreter."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from typing import Any  # Any: whatever JSON the program prints

__all__ = ["in_new_process"]

_LOAD = """
import importlib.util, json, sys
file, name, argument = sys.argv[1:]
if {needs_suite}:
    spec = importlib.util.spec_from_file_location({module!r}, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    suite = getattr(module, name)()
else:
    import adaseek.cli, adaseek.tuner, adaseek.plugins
    adaseek.plugins.load_plugins()
    from importlib.metadata import entry_points
    for entry in entry_points(group="adaseek.adapters"):
        if entry.name.partition(":")[0] == argument:
            entry.load()
"""


def in_new_process(program: str, suite: type, argument: str) -> Any:
    """Returns the JSON that `program` prints in a fresh interpreter, under another hash seed.

    Args:
        program: Python source, which finds `argument`, `json` and `sys`. If it names `suite`, the
            module of `suite` is loaded and an instance stands under that name; else AdaSeek is,
            with the adapter whose entry point is called `argument`.
    """
    load = _LOAD.format(needs_suite="suite" in program, module=suite.__module__)
    command = [sys.executable, "-c", load + program]
    told = subprocess.run(
        [*command, inspect.getfile(suite), suite.__qualname__, argument],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "4711"},
        check=False,
    )
    assert told.returncode == 0, told.stderr
    return json.loads(told.stdout.splitlines()[-1])
