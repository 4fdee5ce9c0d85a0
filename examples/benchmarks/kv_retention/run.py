"""Policies of KV retention in real vLLM engines on this machine's CPU.

    python examples/benchmarks/kv_retention/run.py --quick      # twelve minutes
    python examples/benchmarks/kv_retention/run.py              # many hours; may be stopped

Sessions of InferCept's trace (or its table) run in a fresh engine for each arm. The arms' engines
step in turn, each on a clock that runs while it works or has nothing to do: what slows the machine
for a while slows them all at about the same of their times. Arms with host memory run after them,
one by one, as copies go on beside the steps. A tiny Llama with random weights stands for the model:
lengths, pauses and pool are scaled so that a pause weighs against computing a context again as on
the paper's machine. --out gets a line of JSON a run, from which the tables are made; a second call
continues it, with the step's time and the capacity that the first one found. After the engines the
same sessions run through the simulator, with the time that their steps took; --simulate never puts
that off, --simulate only makes up for it, and --simulate instead runs no engines at all.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import logging
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from adaseek_vllm.retention.simulator import EngineShape, pretended_config
from adaseek_vllm.retention.waste import StepCost
from arms import ARMS, choose_arms
from engine import EngineClient, EngineSize, open_engine, save_model
from fit import FittedCost, fit_error, fit_step_cost
from measures import measure
from play import Arm, Player, Run, play_in_turn
from simulate import (
    ONE_SHOTS,
    PRESETS,
    SimulatedClient,
    link_bytes_per_s,
    read,
    settings_for,
)
from tables import NO_CACHE, STOCK, simulated_path, write_results
from workload import MIXES, Arrival, Scale, arrivals, mean_context, sample, with_one_shots

QUICK = ("stock, no prefix cache", "stock, prefix cache", "fixed threshold 1 s", "ours")
# Agents of the closed loop for each mean context that the pool holds: with their tools most of
# the time, they keep the engine busy.
AGENTS_PER_CONTEXT = 4


@dataclass(frozen=True)
class Case:
    """One workload.

    Args:
        mix: which sessions.
        load: share of what stock vLLM with its prefix cache can do; 0 for the closed loop.
        seed: of sessions, arrivals and tokens.
        pool_contexts: mean contexts that the KV cache holds.
    """

    mix: str
    load: float
    seed: int
    pool_contexts: int = 16

    @property
    def preset(self) -> str:
        """What the tables call it."""
        return "cpu" if self.pool_contexts == 16 else "cpu, idle memory"


class Bench:
    """Real engines, and what they were found to be able to do.

    Args:
        model: folder of the model.
        window_s: seconds in which sessions arrive.
        tokens: real tokens that one token stands for.
        known: file of what was found before; made if it is not there.
        said: file of what each turn said in the first arm that ran it; made if it is not there.
    """

    def __init__(
        self, model: str, *, window_s: float, tokens: float, known: Path, said: Path
    ) -> None:
        self.model = model
        self.window_s = window_s
        self.tokens = tokens
        self.known = known
        self.cost = FittedCost(StepCost(0.0, 0.0))
        self.time_scale = 1.0
        self.capacity: dict[str, float] = {}
        self.said = said
        self._outputs: dict[str, str] = json.loads(said.read_text()) if said.exists() else {}
        self._configs: dict[str, Any] = {}

    def calibrate(self, mixes: Sequence[str]) -> None:
        """Measures a step's time, from it how pauses are scaled, and what stock vLLM sustains.

        Pauses are scaled so that they weigh against computing a full pool's tokens as on the
        paper's GPT-J-6B.
        """
        if self.known.exists():
            known = json.loads(self.known.read_text())
            if (window_s := known.get("window_s", self.window_s)) != self.window_s:
                raise SystemExit(
                    f"{self.known} is of runs with --window {window_s:g}, not {self.window_s:g}: "
                    "give the same one, or another --out."
                )
            self.cost = FittedCost(StepCost(**known["cost"]), known["per_request_s"])
            self.time_scale, self.capacity = known["time_scale"], known["capacity"]
        else:
            self._measure_step(Case("trace", 1.0, 999))
        for mix in mixes:
            if mix not in self.capacity:
                self.capacity[mix] = self._sustained(Case(mix, 1.0, 999))
        known = {
            **asdict(self.cost),
            "time_scale": self.time_scale,
            "capacity": self.capacity,
            "window_s": self.window_s,
        }
        self.known.write_text(json.dumps(known))

    def _measure_step(self, case: Case) -> None:
        gpu, size = PRESETS["6b"], self.size(case)
        assert gpu.pool_tokens is not None
        # From an empty engine to more than it sustains, so that batches of all sizes are seen.
        arriving = self._arrivals(case, 10.0, 15.0)
        clients = self._play_together(
            case, [(arm, arriving, 15.0) for arm in choose_arms([NO_CACHE, STOCK])]
        )
        self.cost = fit_step_cost([step for client, _ in clients for step in client.steps])
        ours = self.cost.cost.per_token_s * size.pool_tokens
        self.time_scale = ours / (gpu.cost.per_token_s * gpu.pool_tokens)

    def _sustained(self, case: Case) -> float:
        """Returns the highest of some rates at which next to nobody waits when arrivals end.

        Rates are tried side by side: first far apart, then between the two that were found.
        """
        (arm,) = choose_arms([STOCK])
        low, high = 1.0, 12.0
        for _ in range(2):
            rates = np.geomspace(low, high, 8).tolist()
            played = self._play_together(
                case,
                [(arm, self._arrivals(case, rate, self.window_s), self.window_s) for rate in rates],
            )
            waiting = [run.num_waiting for _, run in played]
            print(f"{[round(r, 2) for r in rates]} sessions/s: {waiting} turns wait", flush=True)
            is_over = [run.num_waiting > 2 + len(run.sessions) / 100 for _, run in played]
            first = is_over.index(True) if True in is_over else len(rates) - 1
            low, high = rates[max(0, first - 1)], rates[first]
        return low

    def _play_together(
        self, case: Case, plays: Sequence[tuple[Arm, Sequence[Arrival], float]]
    ) -> list[tuple[EngineClient, Run]]:
        """Plays arms, what arrives and until when, side by side; returns the engines, closed."""
        with ExitStack() as stack:
            clients, players = [], []
            for arm, arriving, stop_s in plays:
                client = stack.enter_context(open_engine(self.model, self.size(case), arm))
                clients.append(client)
                players.append(Player(client, arm, arriving, stop_s=stop_s, seed=case.seed))
            runs = play_in_turn(players)
        return list(zip(clients, runs, strict=True))

    @property
    def copy_token_s(self) -> float:
        """Seconds to copy a token to host memory: against computing it, what it is for 6B."""
        gpu = PRESETS["6b"]
        return self.cost.cost.per_token_s * gpu.copy_token_s / gpu.cost.per_token_s

    def size(self, case: Case) -> EngineSize:
        """Returns the size of the engine for a case."""
        context = mean_context(sample(case.mix)) / self.tokens
        return EngineSize(round(case.pool_contexts * context), max_model_len=2048)

    def run(self, case: Case, arms: Sequence[Arm]) -> Iterator[tuple[Arm, dict[str, float]]]:
        """Yields the measures of arms in one case, run side by side by fresh engines."""
        size = self.size(case)
        with ExitStack() as stack:
            clients = [
                stack.enter_context(
                    open_engine(self.model, size, arm, copy_token_s=self.copy_token_s)
                )
                for arm in arms
            ]
            runs = play_in_turn(
                [self._player(client, case, arm) for client, arm in zip(clients, arms, strict=True)]
            )
            for arm, client, run in zip(arms, clients, runs, strict=True):
                result = self._measure(run, size, client.num_computed_tokens)
                used = [step.cpu_s * 1e6 for step in client.steps if step.num_tokens]
                result |= {
                    "preemptions": client.num_preemptions,
                    "scheduler_cpu_us_p50": float(np.median(used)),
                    "steps": len(client.steps),
                    "step_time_error": fit_error(client.steps, self.cost),
                }
                yield arm, result | self._compare_outputs(case, run)

    def simulate(self, case: Case, arm: Arm, cost: FittedCost) -> dict[str, float]:
        """Returns the measures of the same sessions with a pretended engine of that cost."""
        client = self._pretended(case, arm, cost)
        (run,) = play_in_turn([self._player(client, case, arm)])
        return self._measure(run, self.size(case), client.engine.num_computed_tokens)

    def _pretended(self, case: Case, arm: Arm, cost: FittedCost) -> SimulatedClient:
        size = self.size(case)
        shape = EngineShape(
            num_blocks=size.num_blocks,
            block_tokens=size.block_tokens,
            max_num_seqs=size.max_num_seqs,
            step_tokens=size.step_tokens,
            max_model_len=size.max_model_len,
            prefix_caching=arm.prefix_caching,
            session_order=arm.settings is not None or arm.arrival_order,
            cost=cost.cost,
            per_request_s=cost.per_request_s,
        )
        shape = replace(shape, link_bytes_per_s=link_bytes_per_s(shape, self.copy_token_s))
        settings = settings_for(arm, shape)
        key = f"{shape} {settings}"
        if key not in self._configs:
            self._configs[key] = pretended_config(shape, settings)
        return SimulatedClient(shape, arm, self._configs[key])

    def _player(self, client: EngineClient | SimulatedClient, case: Case, arm: Arm) -> Player:
        if case.load > 0:
            rate = case.load * self.capacity[case.mix]
            arriving = self._arrivals(case, rate, self.window_s)
            return Player(client, arm, arriving, stop_s=self.window_s * 1.25, seed=case.seed)
        supply = arrivals(
            case.mix, rate=math.inf, window_s=math.inf, seed=case.seed, scale=self._scale
        )
        agents = itertools.islice(supply, AGENTS_PER_CONTEXT * case.pool_contexts)
        return Player(
            client, arm, list(agents), stop_s=self.window_s, seed=case.seed, supply=supply
        )

    @property
    def _scale(self) -> Scale:
        return Scale(self.tokens, self.time_scale)

    def _arrivals(self, case: Case, rate: float, window_s: float) -> list[Arrival]:
        agents = arrivals(case.mix, rate=rate, window_s=window_s, seed=case.seed, scale=self._scale)
        return with_one_shots(list(agents), per_agent=ONE_SHOTS, seed=case.seed, scale=self._scale)

    def _measure(self, run: Run, size: EngineSize, num_computed: int) -> dict[str, float]:
        return measure(
            run,
            from_s=self.window_s / 4,
            until_s=self.window_s,
            pool_tokens=(size.num_blocks - 1) * size.block_tokens,
            num_computed=num_computed,
            tokens=self.tokens,
        )

    def _compare_outputs(self, case: Case, run: Run) -> dict[str, float]:
        """Returns how many turns another arm had, too, and for how many of them its tokens differ.

        A turn's prompt holds the last one's output.
        """
        num_compared = num_different = 0
        for played in run.sessions:
            for turn, output in enumerate(played.outputs):
                key = f"{astuple(case)} {played.arrival.index} {turn}"
                found = hashlib.sha256(json.dumps(list(output)).encode()).hexdigest()[:16]
                num_compared += key in self._outputs
                num_different += self._outputs.setdefault(key, found) != found
        self.said.write_text(json.dumps(self._outputs))
        return {"turns_compared": num_compared, "turns_different": num_different}


def make_cases(
    *, mixes: Sequence[str], loads: Sequence[float], seeds: Sequence[int], num_idle: int
) -> list[Case]:
    """Returns the cases, one seed after the other; the last have more memory than anyone needs."""
    cases = [Case(mix, load, seed) for seed in seeds for mix in mixes for load in loads]
    return [*cases, *(Case(mixes[0], 0.5, seed, pool_contexts=64) for seed in seeds[:num_idle])]


def run_all(bench: Bench, cases: Sequence[Case], arms: Sequence[Arm], out: Path) -> None:
    """Runs every arm in every case that is not in `out` yet."""
    names = [field.name for field in fields(Case)]
    done = {(row["arm"], *(row[name] for name in names)) for row in read(out)}
    for case in cases:
        left = [arm for arm in arms if (arm.name, *astuple(case)) not in done]
        together = [arm for arm in left if not arm.host_pools]
        alone = [[arm] for arm in left if arm.host_pools]
        for some in filter(None, [together, *alone]):
            for arm, result in bench.run(case, some):
                row = {
                    **asdict(case),
                    "preset": case.preset,
                    "arm": arm.name,
                    "machine_load": os.getloadavg()[0],
                    **result,
                }
                with out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(f"{case} {arm.name}: {result['sessions_per_s']:.2f} sessions/s", flush=True)


def measured(bench: Bench, out: Path) -> Iterator[tuple[Case, Arm, FittedCost]]:
    """Yields what the engines ran, and what a step of each run cost.

    That is what the line says, times what the steps of that very run took over it: the machine's
    speed moves, and a line is not equally right for small and large batches.
    """
    for row in read(out):
        case = Case(**{field.name: row[field.name] for field in fields(Case)})
        (arm,) = choose_arms([row["arm"]])
        yield case, arm, bench.cost.scaled(1 / (1 + row["step_time_error"]))


def simulate_all(bench: Bench, runs: Iterable[tuple[Case, Arm, FittedCost]], out: Path) -> None:
    """Runs through the simulator what it has not run yet."""
    names = [field.name for field in fields(Case)]
    done = {(row["arm"], *(row[name] for name in names)) for row in read(out)}
    for case, arm, cost in runs:
        if (arm.name, *astuple(case)) in done:
            continue
        result = bench.simulate(case, arm, cost)
        line = {**asdict(case), "preset": case.preset, "arm": arm.name, **result}
        with out.open("a") as file:
            file.write(json.dumps(line) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="four arms, one load, two seeds")
    parser.add_argument("--arms", nargs="+", metavar="NAME", help="only arms with these names")
    parser.add_argument("--mixes", nargs="+", choices=MIXES)
    parser.add_argument("--loads", type=float, nargs="+", help="shares of capacity; 0: closed loop")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--window", type=float, help="seconds in which sessions arrive")
    parser.add_argument("--idle", type=int, help="seeds that also run with memory for everyone")
    parser.add_argument("--tokens", type=float, default=4.0, help="real tokens of one token")
    parser.add_argument(
        "--simulate",
        choices=["after", "never", "only", "instead"],
        default="after",
        help="after the engines; only what they ran before; or instead of them, at the fitted cost",
    )
    parser.add_argument("--out", type=Path, default=Path("kv_retention_cpu.jsonl"))
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    is_quick = options.quick
    arms = choose_arms(options.arms or (list(QUICK) if is_quick else [arm.name for arm in ARMS]))
    mixes = options.mixes or (["trace"] if is_quick else list(MIXES))
    loads = options.loads or ([0.9, 0.0] if is_quick else [0.5, 0.75, 0.9, 1.1, 0.0])
    seeds = options.seeds or list(range(2 if is_quick else 4))
    window_s = options.window or (16.0 if is_quick else 60.0)
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder))
        bench = Bench(
            folder,
            window_s=window_s,
            tokens=options.tokens,
            known=options.out.with_suffix(".machine.json"),
            said=options.out.with_suffix(".said.json"),
        )
        bench.calibrate(mixes)
        print(f"step {bench.cost}, pauses x {bench.time_scale:.3f}, capacity {bench.capacity}")
        num_idle = (1 if is_quick else 2) if options.idle is None else options.idle
        cases = make_cases(mixes=mixes, loads=loads, seeds=seeds, num_idle=num_idle)
        simulated = simulated_path(options.out)
        if options.simulate == "instead":
            simulate_all(
                bench, ((case, arm, bench.cost) for case in cases for arm in arms), simulated
            )
            print(write_results(simulated))
            return
        if options.simulate != "only":
            run_all(bench, cases, arms, options.out)
        if options.simulate != "never":
            simulate_all(bench, measured(bench, options.out), simulated)
    print(write_results(options.out))


if __name__ == "__main__":
    main()
