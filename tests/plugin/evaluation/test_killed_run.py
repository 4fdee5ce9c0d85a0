"""A run killed by SIGKILL at random points loses at most what was in flight."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from adaseek.evaluation.base import RunContext, Task
from adaseek.evaluation.journal import Journal
from adaseek.evaluation.runner import Runner
from adaseek.recipe import Recipe
from adaseek.workflow import Call, Example, Trace, Usage

NUM_THREADS = 4
NUM_TASKS = 60

CHILD = """
import os, sys, time
from adaseek.evaluation.journal import Journal
from adaseek.errors import RunInterrupted
from adaseek.evaluation.runner import Runner
from adaseek.evaluation.base import Task
from adaseek.recipe import Recipe
from adaseek.workflow import Call, Example, Trace, Usage

def run(recipe, example, context):
    os.write(1, f"started {example.id}\\n".encode())  # one write: threads must not mix lines
    time.sleep(0.005)
    usage = Usage(requests=1, cost_usd=0.5)
    return Trace((Call("c", "s", usage=usage),), output=example.id)

with Journal.open(sys.argv[1], identity={"seed": 0}) as journal:
    runner = Runner(run=run, metric=lambda e, t: 1.0, journal=journal, num_threads=4)
    tasks = [Task(Recipe(), Example(str(i), {})) for i in range(60)]
    print("ready", flush=True)
    for start in range(0, len(tasks), 12):
        for evaluation in runner(tasks[start : start + 12]):
            print("used", evaluation.task_key, flush=True)
"""


def test_killed_run_keeps_every_outcome_it_used(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    rng = random.Random(7)
    started: list[str] = []
    used: set[str] = set()
    num_kills = 0
    for _ in range(10):
        lines, code = _run_until_killed(path, rng.uniform(0.0, 0.08))
        num_kills += code == -signal.SIGKILL
        started += [line.split()[1] for line in lines if line.startswith("started")]
        used |= {line.split()[1] for line in lines if line.startswith("used")}
        with Journal.open(path, identity={"seed": 0}) as journal:
            kept = {evaluation.task_key for evaluation in journal.evaluations()}
        assert used <= kept
        # Each kill may cost what was in flight, and nothing is ever run again beyond that.
        assert len(started) <= len(kept) + num_kills * NUM_THREADS
        if code == 0:
            break
    assert num_kills >= 2
    assert _finish(path) == [f"{Recipe().fingerprint}/{i}/0" for i in range(NUM_TASKS)]


TERMINATED = """
import os, sys, time
from adaseek.evaluation.journal import Journal
from adaseek.errors import RunInterrupted
from adaseek.evaluation.runner import Runner
from adaseek.evaluation.signals import graceful_signals
from adaseek.evaluation.base import Task
from adaseek.recipe import Recipe
from adaseek.workflow import Example, Trace

def run(recipe, example, context):
    os.write(1, f"started {example.id}\\n".encode())  # one write: threads must not mix lines
    time.sleep(0.5)
    return Trace(output=example.id)

with graceful_signals() as stop, Journal.open(sys.argv[1], identity={"seed": 0}) as journal:
    runner = Runner(
        run=run, metric=lambda e, t: 1.0, journal=journal, num_threads=4, stop=stop
    )
    try:
        runner([Task(Recipe(), Example(str(i), {})) for i in range(60)])
    except RunInterrupted as error:
        print("interrupted", journal.count(), error, flush=True)
"""


def test_terminated_run_finishes_what_is_in_flight(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    command = [sys.executable, "-c", TERMINATED, str(path)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    with child.stdout:
        first = child.stdout.readline()
        child.send_signal(signal.SIGTERM)
        lines = [first, *child.stdout]
    assert child.wait() == 0
    started = [line.split()[1] for line in lines if line.startswith("started")]
    assert lines[-1].startswith(f"interrupted {len(started)} Interrupted: {len(started)} workflow")
    with Journal.open(path, identity={"seed": 0}) as journal:
        kept = {evaluation.task_key.split("/")[1] for evaluation in journal.evaluations()}
    assert kept == set(started)
    assert len(started) <= 2 * NUM_THREADS


def _run_until_killed(path: Path, after_s: float) -> tuple[list[str], int]:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    with child.stdout:
        assert child.stdout.readline() == "ready\n"
        time.sleep(after_s)
        child.kill()
        # A last line that the kill cut short was not seen by anybody.
        lines = child.stdout.read().splitlines(keepends=True)
    return [line.rstrip("\n") for line in lines if line.endswith("\n")], child.wait()


def _finish(path: Path) -> list[str]:
    def run(recipe: Recipe, example: Example, context: RunContext) -> Trace:
        return Trace((Call("c", "s", usage=Usage(requests=1)),), output=example.id)

    tasks = [Task(Recipe(), Example(str(i), {})) for i in range(NUM_TASKS)]
    with (
        Journal.open(path, identity={"seed": 0}) as journal,
        Runner(run=run, metric=lambda example, trace: 1.0, journal=journal) as runner,
    ):
        runner(tasks)
        return [evaluation.task_key for evaluation in journal.evaluations()]
