"""The supervisor ends a server and everything it started, whatever happens to whom.

The server here is a script that ignores SIGTERM and has a child in a session of its own, which
is as hard to end as a server can make it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from adaseek.testing import _supervisor

STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],
                         start_new_session=True)
print(os.getpid(), child.pid, flush=True)
time.sleep(600)
"""
POLITE = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print(os.getpid(), flush=True)
time.sleep(600)
"""
# A process that wants a server, as the tests of a user would be.
PARENT = """
import os, subprocess, sys, time
subprocess.Popen([sys.executable, sys.argv[1], str(os.getpid()), *sys.argv[2:]])
time.sleep(600)
"""
GRACE_S = "0.3"


def command(server: str) -> list[str]:
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    return [GRACE_S, cores, sys.executable, "-c", server]


@pytest.fixture
def start() -> Iterator[Callable[[list[str]], tuple[subprocess.Popen[str], list[int]]]]:
    """A function that starts a process, and says which processes that reports."""
    started: list[subprocess.Popen[str]] = []

    def run(arguments: list[str]) -> tuple[subprocess.Popen[str], list[int]]:
        process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        return process, [int(pid) for pid in process.stdout.readline().split()]

    yield run
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def supervisor(server: str) -> list[str]:
    return [_supervisor.__file__, str(os.getpid()), *command(server)]


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # a zombie has ended; its parent has not yet asked how


def wait_until_dead(pids: list[int]) -> None:
    """Returns once all are gone; a test's own timeout ends a wait in vain."""
    while any(is_alive(pid) for pid in pids):
        time.sleep(0.02)


Start = Callable[[list[str]], tuple[subprocess.Popen[str], list[int]]]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_server_and_its_child_are_gone_when_the_supervisor_ends(
    start: Start, number: signal.Signals
) -> None:
    process, pids = start(supervisor(STUBBORN))
    assert len(pids) == 2
    assert all(is_alive(pid) for pid in pids)
    process.send_signal(number)
    process.wait()
    assert not any(is_alive(pid) for pid in pids)


def test_server_may_end_in_its_own_way(start: Start) -> None:
    process, _ = start(supervisor(POLITE))
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 7


def test_status_of_a_server_that_ends_by_itself_is_passed_on(start: Start) -> None:
    process, _ = start(supervisor("raise SystemExit(3)"))
    assert process.wait() == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.timeout(60)
def test_server_ends_with_a_parent_that_is_killed(start: Start, number: signal.Signals) -> None:
    parent, pids = start(["-c", PARENT, _supervisor.__file__, *command(STUBBORN)])
    assert len(pids) == 2
    parent.send_signal(number)
    parent.wait()
    wait_until_dead(pids)


@pytest.mark.timeout(60)
def test_server_ends_with_a_supervisor_that_is_killed(start: Start) -> None:
    process, (server, child) = start(supervisor(STUBBORN))
    process.kill()
    wait_until_dead([server])
    os.kill(child, signal.SIGKILL)  # only the supervisor would have found it


def test_server_runs_on_the_given_cores_only(start: Start) -> None:
    core = min(os.sched_getaffinity(0))
    code = "import os; print(*os.sched_getaffinity(0), flush=True)"
    arguments = [_supervisor.__file__, str(os.getpid()), GRACE_S, str(core)]
    _, cores = start([*arguments, sys.executable, "-c", code])
    assert cores == [core]
