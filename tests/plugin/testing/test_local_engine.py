"""A real engine: it starts, answers, and is really gone afterwards."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import httpx
import pytest
from adaseek.errors import ConfigurationError
from adaseek.testing.local_engine import (
    LocalEngine,
    LocalEngineError,
    local_engine,
    local_engines,
)
from adaseek.testing.models import ensure_model

if TYPE_CHECKING:  # pytest must be the first to import a plugin
    from adaseek.testing.fixtures import LocalEngineFactory

pytest_plugins = ["adaseek.testing.fixtures"]

MODEL = "SmolLM2-135M-Instruct"
MAX_MODEL_LEN = 512
START_TIMEOUT_S = 240.0


def complete(engine: LocalEngine) -> str:
    body = {"model": engine.model, "prompt": "1 2 3 4", "max_tokens": 4, "temperature": 0}
    with httpx.Client(timeout=60, trust_env=False) as client:
        answer = client.post(f"{engine.base_url}/completions", json=body).raise_for_status()
    text: str = answer.json()["choices"][0]["text"]
    return text


def descendants(pid: int) -> list[int]:
    """Returns all processes below `pid`."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        parents.setdefault(parent, []).append(int(stat.parent.name))
    found, queue = [], [pid]
    while queue:
        children = parents.get(queue.pop(), [])
        found += children
        queue += children
    return found


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def accepts_connections(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.engine
@pytest.mark.timeout(300)
def test_engine_answers_on_loopback_and_leaves_nothing_behind(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    with local_engine(
        MODEL, max_model_len=MAX_MODEL_LEN, log_path=log, ready_timeout_s=START_TIMEOUT_S
    ) as engine:
        assert engine.base_url == f"http://127.0.0.1:{engine.port}/v1"
        assert engine.model == MODEL
        assert "5" in complete(engine)
        processes = descendants(engine.process.pid)
        # The server, its engine core and its worker at least.
        assert len(alive(processes)) >= 3
    assert engine.process.returncode is not None
    assert alive(processes) == []
    assert not accepts_connections(engine.port)
    assert MODEL in log.read_text()


PARENT = """
import json, sys, time
from adaseek.testing.local_engine import local_engine
with local_engine(sys.argv[1], max_model_len=512, ready_timeout_s=float(sys.argv[2])) as engine:
    print(json.dumps([engine.process.pid, engine.port]), flush=True)
    time.sleep(600)
"""


@pytest.mark.engine
@pytest.mark.timeout(300)
def test_engine_ends_with_a_parent_killed_by_sigkill() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, MODEL, str(START_TIMEOUT_S)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    with parent.stdout:
        supervisor, port = json.loads(parent.stdout.readline())
    processes = [supervisor, *descendants(supervisor)]
    assert len(processes) >= 4
    assert accepts_connections(port)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    while alive(processes):  # this test's timeout is the limit
        time.sleep(0.1)
    assert not accepts_connections(port)


@pytest.mark.engine
@pytest.mark.timeout(300)
def test_early_death_shows_the_end_of_the_log(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    with (
        pytest.raises(LocalEngineError, match="ended with status 2") as caught,
        local_engine(MODEL, flags=["--no-such-flag"], log_path=log),
    ):
        pytest.fail("it must not start")
    assert "unrecognized arguments: --no-such-flag" in str(caught.value)
    assert str(log) in str(caught.value)


def test_cores_of_others_are_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    core = max(os.sched_getaffinity(0)) + 1
    with (
        pytest.raises(ConfigurationError, match=rf"`cores` is \[{core}\]"),
        local_engine(str(tmp_path), cores=[core]),
    ):
        pytest.fail("it must not start")


class FakeProcess:
    """A server process that a test can end."""

    def __init__(self) -> None:
        self.status: int | None = None

    def poll(self) -> int | None:
        return self.status


def test_factory_keeps_engines_replaces_dead_ones_and_stops_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from adaseek.testing import fixtures

    running: list[FakeProcess] = []

    @contextmanager
    def fake_engine(_model: str, **_settings: object) -> Iterator[SimpleNamespace]:
        process = FakeProcess()
        running.append(process)
        yield SimpleNamespace(process=process)
        running.remove(process)

    monkeypatch.setattr(fixtures, "local_engine", fake_engine)
    with ExitStack() as stack:
        factory = fixtures.LocalEngineFactory(stack)
        first = factory("m", cores=[0])
        assert factory("m", cores=[0]) is first
        assert factory("m", cores=[1]) is not first
        running[0].status = -9
        assert factory("m", cores=[0]) is not first
        assert len(running) == 3
    assert running == []


@pytest.mark.engine
@pytest.mark.timeout(300)
def test_factory_of_the_session_gives_an_engine_that_answers(
    local_engine_factory: LocalEngineFactory,
) -> None:
    assert complete(local_engine_factory(MODEL, max_model_len=MAX_MODEL_LEN))


@pytest.mark.engine
@pytest.mark.timeout(400)
def test_two_engines_start_side_by_side_on_cores_and_ports_of_their_own() -> None:
    cores = sorted(os.sched_getaffinity(0))
    port = free_port()
    with local_engines(
        # Two names of one model: a small machine holds both.
        {MODEL: cores[:1], str(ensure_model(MODEL)): cores[-1:]},
        ports={MODEL: port},
        max_model_len=MAX_MODEL_LEN,
        ready_timeout_s=START_TIMEOUT_S,
    ) as engines:
        first, second = engines
        assert first.port == port
        assert second.port != port
        assert complete(first) == complete(second)
        for engine, core in zip(engines, (cores[0], cores[-1]), strict=True):
            for process in descendants(engine.process.pid):
                assert os.sched_getaffinity(process) == {core}
    assert not any(accepts_connections(engine.port) for engine in engines)
