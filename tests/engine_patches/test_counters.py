"""The directory of a server's counters goes with its server."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from adaseek_vllm import counters


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def become_server(directory: Path, then: str) -> None:
    """Runs a process that makes a directory, becomes another program, and does `then` there."""
    server = (
        "import os, sys; from adaseek_vllm import plugin\n"
        "plugin.register()\n"
        f"assert os.path.isdir(os.environ['{counters.VARIABLE}'])\n"
        f"{then}"
    )
    code = (
        "import os, sys; from adaseek_vllm import counters\n"
        "made = {counters.VARIABLE: str(counters.make_directory())}\n"
        f"command = [sys.executable, '-c', {server!r}, '--token-tree']\n"
        "os.execve(sys.executable, command, os.environ | made)"
    )
    environment = {**os.environ, "TMPDIR": str(directory), "PYTHONWARNINGS": "ignore"}
    subprocess.run([sys.executable, "-c", code], check=False, env=environment)


@pytest.mark.parametrize("then", ["pass", "raise SystemExit(1)"])
def test_server_removes_its_directory_when_it_ends(directory: Path, then: str) -> None:
    pytest.importorskip("vllm")
    become_server(directory, then)
    assert list(directory.glob("adaseek-counters-*")) == []


def test_what_a_killed_server_leaves_is_removed_by_the_next_one(directory: Path) -> None:
    pytest.importorskip("vllm")
    become_server(directory, "os.kill(os.getpid(), 9)")
    (left,) = directory.glob("adaseek-counters-*")
    made = counters.make_directory()
    assert not left.exists()
    assert counters.make_directory() != made
    assert made.exists()


def test_another_process_leaves_the_directory_alone(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered = list[object]()
    monkeypatch.setattr(counters.atexit, "register", lambda *given: registered.append(given))
    parent = directory / f"adaseek-counters-{os.getppid()}-x"
    for path in (parent, directory / "of-the-user", Path()):
        counters.remove_at_exit({counters.VARIABLE: str(path)})
    counters.remove_at_exit({})
    assert registered == []
    parent.mkdir()
    counters._remove(parent)
    assert parent.exists()
