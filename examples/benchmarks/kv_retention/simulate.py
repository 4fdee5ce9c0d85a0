"""Policies of KV retention on InferCept's sessions: vLLM's real scheduler, a pretended GPU.

    python examples/benchmarks/kv_retention/simulate.py --quick

Sessions arrive as a Poisson process (open loop). Each turn is a request; its tool then takes the
time that the trace says, and the next turn repeats the context. A step takes a fixed time and a
time for each token, the constants of InferCept's code for GPT-J-6B on an A100. Simulated: no model
runs, and swapping to host memory is not part of it yet. Prints a table as Markdown.
"""

from __future__ import annotations

import argparse
import csv
import heapq
import itertools
import logging
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
from adaseek_vllm.retention.simulator import EngineShape, SimulatedEngine, SimulatedRequest
from adaseek_vllm.retention.waste import StepCost

TRACE = Path(__file__).parent / "data" / "infercept_sessions.csv"
GPT_J_6B = StepCost(fixed_s=0.010, per_token_s=0.0463e-3)
BLOCK = 16
# Every arm that holds may hold the same share of memory.
SHARE = {"max_pinned_fraction": 0.9}


@dataclass(frozen=True)
class Turn:
    new_tokens: int
    completion_tokens: int
    tool_s: float


@dataclass(frozen=True)
class TraceSession:
    kind: str
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Arm:
    """One engine to compare.

    Args:
        name: its row in the table.
        settings: of retention; None for stock vLLM.
        prefix_caching: vLLM's.
        is_told: whether clients say how long their tools will take, and which turn is the last.
    """

    name: str
    settings: dict[str, object] | None
    prefix_caching: bool = True
    is_told: bool = False


ARMS = (
    Arm("stock, no prefix cache", None, prefix_caching=False),
    Arm("stock, prefix cache", None),
    Arm("session order only", {"policy": "soft"}),
    Arm("preserve always", {"policy": "pin", **SHARE}),
    Arm("fixed threshold 1 s", {"policy": "heuristic", **SHARE}),
    Arm("time to live 10 s", {"policy": "ttl", **SHARE}),
    Arm("InferCept's rule, elapsed", {"policy": "infercept", "estimate": "elapsed", **SHARE}),
    Arm(
        "InferCept's rule, oracle", {"policy": "infercept", "estimate": "hint", **SHARE}, True, True
    ),
    Arm("least waste (ours)", {"policy": "auto", **SHARE}),
    Arm("least waste, oracle", {"policy": "auto", "estimate": "hint", **SHARE}, True, True),
)
QUICK = (
    "stock, no prefix cache",
    "stock, prefix cache",
    "preserve always",
    "fixed threshold 1 s",
    "least waste (ours)",
)


@dataclass
class Running:
    """One session in the simulation."""

    name: str
    trace: TraceSession
    arrival_s: float
    rng: random.Random
    context: list[int] = field(default_factory=list)
    turn: int = 0
    tool_s: float = 0.0
    num_output: int = 0
    resume_ttft_s: list[float] = field(default_factory=list)
    finished_s: float | None = None


@dataclass
class Result:
    """What one arm did with one workload."""

    sessions: list[Running]
    window_s: float
    num_needed: int
    engine: SimulatedEngine
    wall_s: float

    def row(self) -> list[str]:
        done = [s for s in self.sessions if s.finished_s is not None]
        latency = [
            (s.finished_s - s.arrival_s - s.tool_s) / max(1, s.num_output) * 1000
            for s in done
            if s.finished_s is not None
        ]
        ttft = [value for s in self.sessions for value in s.resume_ttft_s]
        again = self.engine.num_computed_tokens - self.num_needed
        return [
            f"{len(done) / self.window_s:.2f}",
            *(f"{value:.1f}" for value in _percentiles(latency, (50, 90, 99))),
            *(f"{value:.2f}" for value in _percentiles(ttft, (50, 90))),
            f"{again / max(1, self.num_needed):.2f}",
            str(self.engine.num_preemptions),
        ]


def read_trace(path: Path = TRACE) -> list[TraceSession]:
    """Returns the sessions of the trace."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    sessions = []
    for _, group in itertools.groupby(rows, key=lambda row: row["session"]):
        turns = list(group)
        sessions.append(
            TraceSession(
                turns[0]["kind"],
                tuple(
                    Turn(
                        max(1, int(row["new_tokens"])),
                        max(1, int(row["completion_tokens"])),
                        float(row["tool_seconds"] or 0.0),
                    )
                    for row in turns
                ),
            )
        )
    return sessions


def arrivals(
    trace: Sequence[TraceSession], *, rate: float, window_s: float, seed: int
) -> Iterator[Running]:
    """Yields sessions in the order of their arrival, the same for every arm."""
    rng, now_s = random.Random(seed), 0.0
    for index in itertools.count():
        now_s += rng.expovariate(rate)
        if now_s > window_s:
            return
        yield Running(f"s{index}", rng.choice(trace), now_s, random.Random(seed * 100_003 + index))


def simulate(
    arm: Arm, trace: Sequence[TraceSession], *, rate: float, window_s: float, pool: int, seed: int
) -> Result:
    """Returns what `arm` does until the window ends; sessions under way then count as not done."""
    shape = EngineShape(
        num_blocks=pool // BLOCK,
        block_tokens=BLOCK,
        max_num_seqs=256,
        step_tokens=512,
        max_model_len=8192,
        prefix_caching=arm.prefix_caching,
        session_order=arm.settings is not None,
        cost=GPT_J_6B,
    )
    started = time.perf_counter()
    engine = SimulatedEngine(shape, retention=arm.settings)
    sessions = list(arrivals(trace, rate=rate, window_s=window_s, seed=seed))
    due = [(s.arrival_s, index, s) for index, s in enumerate(sessions)]
    heapq.heapify(due)
    order = itertools.count(len(due))
    waiting: dict[str, tuple[Running, SimulatedRequest]] = {}
    num_needed = 0
    while engine.now_s < window_s:
        while due and due[0][0] <= engine.now_s:
            session = heapq.heappop(due)[2]
            waiting[f"{session.name}.{session.turn}"] = (session, _submit(engine, arm, session))
        if not engine.scheduler.has_unfinished_requests():
            if not due:
                break
            engine.now_s = max(engine.now_s, due[0][0])
            continue
        engine.step()
        for name in [name for name, (_, request) in waiting.items() if request.is_finished]:
            session, request = waiting.pop(name)
            num_needed += _end_turn(session, request)
            if session.finished_s is None:
                heapq.heappush(due, (engine.now_s + _pause(session), next(order), session))
    return Result(sessions, window_s, num_needed, engine, time.perf_counter() - started)


def _submit(engine: SimulatedEngine, arm: Arm, session: Running) -> SimulatedRequest:
    turn = session.trace.turns[session.turn]
    session.context += [session.rng.randrange(3, 50_000) for _ in range(turn.new_tokens)]
    is_last = session.turn == len(session.trace.turns) - 1
    hints: dict[str, object] = {}
    if not is_last:
        hints["kvret_tool"] = session.trace.kind
        if arm.is_told:
            hints["kvret_expect_s"] = turn.tool_s
    elif arm.is_told:
        hints["kvret_final"] = 1
    return engine.submit(
        f"{session.name}.{session.turn}",
        session.context,
        max_tokens=turn.completion_tokens,
        session=session.name,
        hints=hints,
    )


def _end_turn(session: Running, request: SimulatedRequest) -> int:
    """Records a finished turn; returns the tokens that had to be computed for it at least."""
    turn = session.trace.turns[session.turn]
    session.context = [*request.prompt, *request.output]
    session.num_output += len(request.output)
    if session.turn and request.first_token_s is not None:
        session.resume_ttft_s.append(request.first_token_s - request.submitted_s)
    session.turn += 1
    if session.turn == len(session.trace.turns):
        session.finished_s = request.finished_s
    return turn.new_tokens + turn.completion_tokens


def _pause(session: Running) -> float:
    tool_s = session.trace.turns[session.turn - 1].tool_s
    session.tool_s += tool_s
    return tool_s


def _percentiles(values: Sequence[float], which: Sequence[int]) -> list[float]:
    return [float(np.percentile(values, q)) if values else float("nan") for q in which]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="five arms, one load, a short window")
    parser.add_argument("--arms", nargs="+", metavar="NAME", help="only arms with these names")
    parser.add_argument("--rates", type=float, nargs="+", help="sessions a second")
    parser.add_argument("--window", type=float, help="simulated seconds")
    parser.add_argument("--pool", type=int, default=32_768, help="tokens of KV cache")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    rates = options.rates or ([2.0] if options.quick else [1.0, 2.0, 3.0])
    window_s = options.window or (60.0 if options.quick else 180.0)
    names = options.arms or (QUICK if options.quick else [arm.name for arm in ARMS])
    if unknown := set(names) - {arm.name for arm in ARMS}:
        parser.error(f"no arm {sorted(unknown)}; there are {[arm.name for arm in ARMS]}")
    arms = [arm for arm in ARMS if arm.name in names]
    trace = read_trace()
    print(
        f"Simulated, pool of {options.pool} tokens, window {window_s:g} s, seed {options.seed}.\n"
    )
    head = [
        *("sessions/s in", "arm", "sessions/s done", "latency ms/token p50", "p90", "p99"),
        *("resume TTFT s p50", "p90", "computed again / needed", "preemptions"),
    ]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head), flush=True)
    for rate in rates:
        for arm in arms:
            result = simulate(
                arm, trace, rate=rate, window_s=window_s, pool=options.pool, seed=options.seed
            )
            print(f"| {rate:g} | {arm.name} | " + " | ".join(result.row()) + " |", flush=True)
            print(f"{arm.name}: {result.wall_s:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
