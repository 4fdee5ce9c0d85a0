"""The temporary directory that holds a server's counters of several processes, and its end.

`adaseek serve` makes it and then becomes the server, which keeps its process id: so the id in the
directory's name tells who may remove it. The server does so at its exit; what a killed one leaves
is removed when the next one starts. Imports nothing of vLLM.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

__all__ = ["VARIABLE", "make_directory", "remove_at_exit"]

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_PREFIX = "adaseek-counters-"


def make_directory() -> Path:
    """Returns a new directory of this process; removes those of processes that have ended."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        if not _is_running(_owner(path)):
            shutil.rmtree(path, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))


def remove_at_exit(environment: Mapping[str, str]) -> None:
    """Removes the directory that `environment` names at this process's exit, if it is its own."""
    path = Path(environment.get(VARIABLE, ""))
    if path.name.startswith(_PREFIX) and _owner(path) == os.getpid():
        atexit.unregister(_remove)
        atexit.register(_remove, path)


def _remove(path: Path) -> None:
    # A forked process inherits what is to be done at exit.
    if _owner(path) == os.getpid():
        shutil.rmtree(path, ignore_errors=True)


def _owner(path: Path) -> int:
    """Returns the process id in a directory's name; 0, which no process has, without one."""
    number = path.name.removeprefix(_PREFIX).split("-")[0]
    return int(number) if number.isdecimal() else 0


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return process > 0
