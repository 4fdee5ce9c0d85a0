"""Policies of KV retention on InferCept's sessions: vLLM's real scheduler, a pretended GPU.

    python examples/benchmarks/kv_retention/simulate.py --quick

Sessions arrive as a Poisson process (open loop) at shares of what stock vLLM with its prefix cache
can do; each turn is a request, its tool takes the time that the trace says, and the next turn
repeats the context. A step takes the time that a preset says. No model runs, and copies to host
memory take the time that they would, but copy nothing. --out gets a line of JSON a run, and a
second call continues it; a table follows.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from adaseek_vllm.retention.simulator import (
    EngineShape,
    SimulatedEngine,
    SimulatedRequest,
    block_bytes,
    pretended_config,
    slot_bytes,
)
from adaseek_vllm.retention.waste import StepCost
from arms import QUICK, choose_arms
from measures import measure
from play import Arm, play
from workload import (
    MIXES,
    Arrival,
    Scale,
    arrivals,
    mean_context,
    sample,
    with_one_shots,
)

BLOCK, STEP_TOKENS = 16, 512
# Requests of others beside the agents: a fifth of all who arrive.
ONE_SHOTS = 0.25
# Sessions end while others' tools still run: wait for them this many windows longer at most.
DRAIN_WINDOWS = 1.0


@dataclass(frozen=True)
class Preset:
    """A machine: the constants of InferCept's code where it has them, else as said.

    Args:
        cost: time of a step.
        pool_tokens: tokens of the KV cache; None for 16 contexts of the mix.
        copy_token_s: seconds to copy one token's KV to host memory or back: the bytes of one GPU's
            share over 25 GB/s, each way.
    """

    cost: StepCost
    pool_tokens: int | None
    copy_token_s: float


PRESETS = {
    "6b": Preset(StepCost(fixed_s=0.010, per_token_s=0.0463e-3), 130_000, 458_752 / 25e9),
    "6b-small": Preset(StepCost(fixed_s=0.010, per_token_s=0.0463e-3), None, 458_752 / 25e9),
    "13b-tp2": Preset(StepCost(fixed_s=0.0154, per_token_s=0.0279e-3), 130_000, 409_600 / 25e9),
    # Scaled from 13B by parameters over GPUs, and by the bytes read in a step.
    "70b-tp4": Preset(StepCost(fixed_s=0.035, per_token_s=0.075e-3), 400_000, 81_920 / 25e9),
}


@dataclass(frozen=True)
class Case:
    """One workload on one machine."""

    preset: str
    mix: str
    load: float
    seed: int


class SimulatedClient:
    """A pretended engine, as `play` wants it."""

    vocabulary = 50_000

    def __init__(self, shape: EngineShape, arm: Arm, config: Any) -> None:
        self.engine = SimulatedEngine(shape, retention=settings_for(arm, shape), config=config)
        self._arrival_order = arm.arrival_order

    @property
    def now_s(self) -> float:
        return self.engine.now_s

    @property
    def is_busy(self) -> bool:
        return bool(self.engine.scheduler.has_unfinished_requests())

    @property
    def scheduler(self) -> Any:
        return self.engine.scheduler

    def submit(
        self,
        name: str,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        session: str | None,
        first_arrival_s: float,
        hints: Mapping[str, object],
    ) -> SimulatedRequest:
        return self.engine.submit(
            name,
            prompt,
            max_tokens=max_tokens,
            session=session,
            hints=hints,
            arrival_s=first_arrival_s if self._arrival_order else None,
        )

    def step(self) -> list[str]:
        self.engine.step()
        return self.engine.take_ended()

    def wait_until(self, at_s: float) -> None:
        self.engine.now_s = max(self.engine.now_s, at_s)


class Bench:
    """Runs cases; remembers what is slow to make and what a machine can do.

    Args:
        scale: real tokens that one token of the simulation stands for. Steps then take as much
            longer, and blocks and pools are as much smaller: the same dynamics in fewer
            steps.
        window_s: time in which sessions arrive.
        known: file of the capacities that were found before; None to find them anew.
    """

    def __init__(self, *, scale: int, window_s: float, known: Path | None = None) -> None:
        self.scale = scale
        self.window_s = window_s
        self._configs: dict[str, Any] = {}
        self._known = known
        self._capacity: dict[str, float] = {}
        if known is not None and known.exists():
            self._capacity = json.loads(known.read_text())

    def run(self, case: Case, arm: Arm) -> dict[str, float]:
        """Returns the measures of one arm in one case."""
        rate = case.load * self.capacity(case.preset, case.mix)
        stop_s = self.window_s * (1 + DRAIN_WINDOWS)
        return self._measure(case, arm, rate, stop_s=stop_s) | {"rate": rate}

    def capacity(self, preset: str, mix: str) -> float:
        """Returns the sessions a second that stock vLLM with its prefix cache sustains.

        The rate, to a twentieth, beyond which turns still wait for their first step when the
        window ends. Far beyond it the cache thrashes and stock does even less.
        """
        key = f"{preset} {mix} {self.scale} {self.window_s:g}"
        if key not in self._capacity:
            case, (arm,) = Case(preset, mix, 0.0, seed=999), choose_arms(["stock, prefix cache"])
            shape = self._shape(preset, mix, arm)

            def is_sustained(rate: float) -> bool:
                client = SimulatedClient(shape, arm, self._config(shape, arm))
                arriving = self._arrivals(case, rate)
                run = play(client, arm, arriving, stop_s=self.window_s, seed=case.seed)
                return run.num_waiting <= 2 + len(run.sessions) / 100

            most = self._most(preset, mix)
            self._capacity[key] = sustained_rate(is_sustained, most / 16, most)
            if self._known is not None:
                self._known.write_text(json.dumps(self._capacity))
        return self._capacity[key]

    def _most(self, preset: str, mix: str) -> float:
        """Returns the sessions a second of a machine that computes nothing twice."""
        sessions, cost = sample(mix), PRESETS[preset].cost
        num_tokens = sum(t.new_tokens + t.completion_tokens for s in sessions for t in s.turns)
        batch = min(256.0, self._pool(preset, mix) / mean_context(sessions))
        num_steps = sum(s.num_output_tokens for s in sessions) / batch
        return len(sessions) / (num_tokens * cost.per_token_s + num_steps * cost.fixed_s)

    def _pool(self, preset: str, mix: str) -> int:
        return PRESETS[preset].pool_tokens or round(16 * mean_context(sample(mix)))

    def _shape(self, preset: str, mix: str, arm: Arm) -> EngineShape:
        machine, scale = PRESETS[preset], self.scale
        cost = machine.cost
        shape = EngineShape(
            num_blocks=self._pool(preset, mix) // BLOCK + 1,
            block_tokens=BLOCK // scale,
            max_num_seqs=256,
            step_tokens=STEP_TOKENS,
            max_model_len=8192 // scale,
            prefix_caching=arm.prefix_caching,
            session_order=arm.settings is not None or arm.arrival_order,
            cost=replace(cost, fixed_s=cost.fixed_s * scale, per_token_s=cost.per_token_s * scale),
        )
        link = link_bytes_per_s(shape, machine.copy_token_s * scale)
        return replace(shape, link_bytes_per_s=link)

    def _measure(self, case: Case, arm: Arm, rate: float, *, stop_s: float) -> dict[str, float]:
        shape = self._shape(case.preset, case.mix, arm)
        client, started_s = (
            SimulatedClient(shape, arm, self._config(shape, arm)),
            time.process_time(),
        )
        run = play(client, arm, self._arrivals(case, rate), stop_s=stop_s, seed=case.seed)
        result = measure(
            run,
            from_s=self.window_s / 4,
            until_s=self.window_s,
            pool_tokens=(shape.num_blocks - 1) * shape.block_tokens,
            num_computed=client.engine.num_computed_tokens,
            tokens=self.scale,
        )
        return result | {
            "preemptions": client.engine.num_preemptions,
            "steps": client.engine.num_steps,
            "cpu_s": time.process_time() - started_s,
        }

    def _config(self, shape: EngineShape, arm: Arm) -> Any:
        settings = settings_for(arm, shape)
        key = f"{shape} {settings}"
        if key not in self._configs:
            self._configs[key] = pretended_config(shape, settings)
        return self._configs[key]

    def _arrivals(self, case: Case, rate: float) -> list[Arrival]:
        scale = Scale(tokens=self.scale)
        agents = arrivals(case.mix, rate=rate, window_s=self.window_s, seed=case.seed, scale=scale)
        return with_one_shots(list(agents), per_agent=ONE_SHOTS, seed=case.seed, scale=scale)


def settings_for(arm: Arm, shape: EngineShape) -> Mapping[str, object] | None:
    """Returns an arm's settings for a pretended engine."""
    return arm.settings_with(shape.num_blocks, slot_bytes(shape))


def link_bytes_per_s(shape: EngineShape, copy_token_s: float) -> float:
    """Returns the bandwidth that copies a pretended engine's tokens in that time each."""
    return block_bytes(shape) / (shape.block_tokens * copy_token_s)


def sustained_rate(is_sustained: Callable[[float], bool], low: float, high: float) -> float:
    """Returns the highest rate that is sustained, to a twentieth, between two rates."""
    while high / low > 1.05:
        middle = math.sqrt(low * high)
        if is_sustained(middle):
            low = middle
        else:
            high = middle
    return low


def run_all(bench: Bench, cases: Sequence[Case], arms: Sequence[Arm], out: Path) -> None:
    """Runs what is not in `out` yet, arm beside arm, and appends a line for each run."""
    done = {(row["preset"], row["mix"], row["load"], row["seed"], row["arm"]) for row in read(out)}
    for case, arm in itertools.product(cases, arms):
        if (case.preset, case.mix, case.load, case.seed, arm.name) in done:
            continue
        result = bench.run(case, arm)
        row = {**asdict(case), "arm": arm.name, **{k: round(v, 5) for k, v in result.items()}}
        with out.open("a") as file:
            file.write(json.dumps(row) + "\n")


def read(out: Path) -> list[dict[str, Any]]:
    """Returns the runs that were written so far."""
    if not out.exists():
        return []
    return [json.loads(line) for line in out.read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="four arms, one load, three seeds")
    parser.add_argument("--arms", nargs="+", metavar="NAME", help="only arms with these names")
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=["6b"])
    parser.add_argument("--mixes", nargs="+", choices=MIXES, default=["trace"])
    parser.add_argument("--loads", type=float, nargs="+", help="shares of stock's capacity")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--window", type=float, default=120.0, help="simulated seconds")
    parser.add_argument("--scale", type=int, default=4, help="real tokens of a simulated one")
    parser.add_argument("--out", type=Path, default=Path("simulated.jsonl"))
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    loads = options.loads or ([0.9] if options.quick else [0.5, 0.75, 0.9, 1.1])
    seeds = options.seeds or (range(3) if options.quick else range(5))
    names = options.arms or (list(QUICK) if options.quick else None)
    cases = [
        Case(preset, mix, load, seed)
        for seed in seeds
        for preset in options.presets
        for mix in options.mixes
        for load in loads
    ]
    known = options.out.with_suffix(".capacity.json")
    bench = Bench(scale=options.scale, window_s=options.window, known=known)
    run_all(bench, cases, choose_arms(names), options.out)


if __name__ == "__main__":
    main()
