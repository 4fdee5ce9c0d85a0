"""CPU time that retention adds to a step of vLLM's scheduler, over a pretended model.

    python examples/benchmarks/kv_retention/overhead.py

Engines, stock and with retention, step in turn with the same 64 running requests, of sessions of
their own; with retention, 64 more sessions are paused and looked at now and then. Measured is the
process's CPU time in `schedule` and `update_from_output`, which a busy machine stretches little.
The mean holds what is not done in every step: looks at paused sessions, learning, numbers that are
sent. Its interval is a bootstrap's over twenty stretches of steps.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import time
from collections.abc import Mapping
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import numpy as np
from adaseek_vllm.retention.simulator import EngineShape, SimulatedEngine
from numpy.typing import NDArray

PROMPT, LONG = 200, 100_000


def make_engine(settings: Mapping[str, object] | None, *, running: int, paused: int) -> Any:
    """Returns an engine with so many running requests and so many paused sessions."""
    shape = EngineShape(
        num_blocks=(running + paused) * 400,
        max_num_seqs=running,
        step_tokens=8192,
        max_model_len=LONG + 2 * PROMPT,
    )
    engine, rng = SimulatedEngine(shape, retention=settings), random.Random(0)
    for index in range(paused + running):
        prompt = [rng.randrange(3, 50_000) for _ in range(PROMPT)]
        length = 4 if index < paused else LONG
        session = f"s{index}"
        engine.submit(
            session, prompt, max_tokens=length, session=session, hints={"kvret_tool": "t"}
        )
        if index == paused - 1:
            engine.drain(max_steps=1000)
    for _ in range(50):
        engine.step()
    return engine


def watch(engine: SimulatedEngine) -> list[float]:
    """Returns a list that gets the microseconds of each step from now on."""
    scheduler, used = engine.scheduler, []
    schedule, update = scheduler.schedule, scheduler.update_from_output

    def watched_schedule(*args: Any) -> Any:
        start = time.process_time_ns()
        output = schedule(*args)
        used.append((time.process_time_ns() - start) / 1000)
        return output

    def watched_update(*args: Any) -> Any:
        start = time.process_time_ns()
        outputs = update(*args)
        used[-1] += (time.process_time_ns() - start) / 1000
        return outputs

    scheduler.schedule, scheduler.update_from_output = watched_schedule, watched_update
    return used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--running", type=int, default=64)
    parser.add_argument("--paused", type=int, default=64)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    engines = {
        name: make_engine(settings, running=options.running, paused=options.paused)
        for name, settings in (
            ("stock", None),
            ("auto", {"policy": "auto"}),
            ("auto, host memory", {"policy": "auto", "host_bytes": "64MiB"}),
            ("pin", {"policy": "pin", "max_ttl_s": 86400.0}),
        )
    }
    used = {name: watch(engine) for name, engine in engines.items()}
    for _ in range(options.steps):
        for engine in engines.values():
            engine.step()
    print(
        "| arm | paused sessions that hold | median us/step | p90 | over stock, median | mean |\n"
        "|---|---|---|---|---|---|"
    )
    for name, steps in used.items():
        retention = getattr(engines[name].scheduler, "retention", None)
        num_holding = len(retention.holding) if retention else 0
        extra = np.array(steps) - np.array(used["stock"])
        print(
            f"| {name} | {num_holding} | {np.median(steps):.0f} | {np.percentile(steps, 90):.0f} "
            f"| {np.median(extra):+.0f} | {mean_with_interval(extra)} |"
        )


def mean_with_interval(extra: NDArray[np.float64], *, stretches: int = 20) -> str:
    """Returns a mean and its 95% interval; steps that took far longer, as a machine's do, count."""
    means = np.array([stretch.mean() for stretch in np.array_split(extra, stretches)])
    drawn = np.random.default_rng(0).choice(means, (2000, stretches)).mean(axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return f"{extra.mean():+.0f} ({low:+.0f} to {high:+.0f})"


if __name__ == "__main__":
    main()
