"""Runs a server and makes sure that it, and all it started, ends with this test run.

Run as a script: PARENT_PID GRACE_S CORES COMMAND..., with CORES like "0,1". It lives between the
process that wants the server and the server, because neither can be relied on: the one may be
killed with SIGKILL, the other has children that outlive it. Orphans of the server come back to
this process (it is their "subreaper"), so at the end it can find and kill every one of them.

SIGTERM asks the server to end and kills what is left after GRACE_S; SIGUSR1 kills at once. The
parent's death counts as SIGTERM.

Only the standard library is used, and nothing of AdaSeek: it must start fast and stay small.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.1


def run(parent_pid: int, grace_s: float, command: list[str]) -> int:
    """Runs `command` until it ends or must end; returns its exit status."""
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, lambda received, _frame: asked.append(received))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    # If even this process is killed, the kernel kills the server. (The signal follows the thread
    # that forks, here the only one, which is why the caller cannot do this itself.)
    server = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
    )
    while server.poll() is None and not asked and os.getppid() == parent_pid:
        time.sleep(_POLL_S)
    if server.poll() is None and signal.SIGUSR1 not in asked:
        _signal(server.pid, signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while server.poll() is None and signal.SIGUSR1 not in asked:
            if time.monotonic() > deadline:
                break
            time.sleep(_POLL_S)
    _kill_all(server)
    return server.wait()


def _kill_all(server: subprocess.Popen[bytes]) -> None:
    """Kills every descendant until none is left; the kernel hands their orphans to us."""
    while children := _children(os.getpid()):
        for pid in children:
            _signal(pid, signal.SIGKILL)
        server.poll()
        for pid in children:
            if pid != server.pid:
                _reap(pid)
        time.sleep(_POLL_S / 10)


def _children(pid: int) -> list[int]:
    """Returns the processes, dead but unreaped ones too, whose parent is `pid`."""
    children = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # "pid (name) state parent ...", where the name may hold spaces and brackets.
            parent = stat.read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue  # it ended meanwhile
        if int(parent) == pid:
            children.append(int(stat.parent.name))
    return children


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _reap(pid: int) -> None:
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


if __name__ == "__main__":
    # Before anything starts: every thread and process of the server inherits its cores.
    os.sched_setaffinity(0, {int(core) for core in sys.argv[3].split(",")})
    sys.exit(run(int(sys.argv[1]), float(sys.argv[2]), sys.argv[4:]))
