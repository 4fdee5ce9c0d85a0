"""The benchmark of KV retention: its workload, its statistics, and a short simulated run."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


@pytest.fixture(scope="module")
def load(load_example: Callable[[str], ModuleType]) -> Callable[[str], ModuleType]:
    """Returns a function that imports a module of the benchmark."""
    return lambda name: load_example(f"benchmarks/kv_retention/{name}")


def test_every_arm_sees_the_same_sessions(load: Any) -> None:
    workload = load("workload")
    for mix in workload.MIXES:
        scale = workload.Scale(tokens=2.0, time=0.5)
        first, second = (
            list(workload.arrivals(mix, rate=2.0, window_s=30.0, seed=3, scale=scale))
            for _ in range(2)
        )
        assert first == second
        assert 30 < len(first) < 100
        assert [a.at_s for a in first] == sorted(a.at_s for a in first)


def test_scaling_divides_texts_and_multiplies_pauses(load: Any) -> None:
    workload = load("workload")
    session = workload.Session("qa", (workload.Turn(100, 10, 2.0), workload.Turn(1, 1, 0.0)))
    scaled = workload.Scale(tokens=4.0, time=0.5).apply(session)
    assert scaled.turns == (workload.Turn(25, 2, 1.0), workload.Turn(1, 1, 0.0))


def test_drawn_sessions_have_the_tables_means(load: Any) -> None:
    workload = load("workload")
    drawn = workload.arrivals("table", rate=1.0, window_s=1e9, seed=0, scale=workload.Scale())
    sessions = [arrival.session for arrival in itertools.islice(drawn, 4000)]
    for kind, calls, context in (
        ("math", 3.75, 1422),
        ("qa", 2.52, 1846),
        ("embodied", 28.2, 2185),
    ):
        mine = [session for session in sessions if session.kind == kind]
        mean_calls = sum(len(session.turns) - 1 for session in mine) / len(mine)
        assert mean_calls == pytest.approx(calls, rel=0.15)
        assert workload.mean_context(mine) == pytest.approx(context, rel=0.15)


def test_ratio_is_paired_by_seed(load: Any) -> None:
    report = load("report")
    rows = [
        {"preset": "p", "mix": "m", "load": 1.0, "seed": seed, "arm": arm, "x": value * 10.0**seed}
        for seed in range(4)
        for arm, value in (("a", 2.0), ("b", 1.0))
    ]
    assert report.paired_ratio(rows, "x", "a", "b") == pytest.approx((2.0, 2.0, 2.0))
    assert report.paired_ratio(rows, "x", "a", "c") is None


def test_fit_finds_the_line_among_outliers(load: Any) -> None:
    fit = load("fit")

    class Step:
        def __init__(self, index: int) -> None:
            self.num_tokens = 1 + index * 37 % 200
            self.num_requests = 1 + index * 13 % 40
            self.context_pairs = float(index * 91 % 5000)
            self.seconds = 0.01 + 2e-4 * self.num_tokens + 1e-6 * self.context_pairs
            self.seconds += 3e-4 * self.num_requests
            self.seconds += 1.0 if index % 17 == 3 else 0.0

    fitted = fit.fit_step_cost([Step(index) for index in range(200)])
    assert fitted.per_request_s == pytest.approx(3e-4, rel=0.01)
    cost = fitted.cost
    assert cost.fixed_s == pytest.approx(0.01, rel=0.01)
    assert cost.per_token_s == pytest.approx(2e-4, rel=0.01)
    assert cost.per_context_token_s == pytest.approx(1e-6, rel=0.01)
    with pytest.raises(ValueError, match="20"):
        fit.fit_step_cost([])


def test_slower_machine_takes_longer_for_every_step(load: Any) -> None:
    fit = load("fit")
    cost = fit.FittedCost(fit.StepCost(0.006, 1e-4, 5e-8), 3e-4)
    step = SimpleNamespace(num_tokens=80, num_requests=7, context_pairs=9000.0)
    assert cost.scaled(1.6).step_s(step) == pytest.approx(1.6 * cost.step_s(step))


def test_short_simulation_is_resumed_not_repeated(load: Any, tmp_path: Path) -> None:
    simulate, arms = load("simulate"), load("arms")
    bench = simulate.Bench(scale=8, window_s=12.0)
    chosen = arms.choose_arms(["stock, prefix cache", "ours"])
    cases = [simulate.Case("6b-small", "trace", 0.9, 0)]
    out = tmp_path / "runs.jsonl"
    simulate.run_all(bench, cases, chosen, out)
    text = out.read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert [row["arm"] for row in rows] == ["stock, prefix cache", "ours"]
    assert all(row["latency_p50_ms"] > 0 for row in rows)
    simulate.run_all(bench, cases, chosen, out)
    assert out.read_text() == text
    table = load("tables").write_results(out)
    assert "| ours |" in table
    assert out.with_suffix(".html").exists()


def test_runs_of_another_window_are_not_mixed(load: Any, tmp_path: Path) -> None:
    run = load("run")
    files = {"known": tmp_path / "machine.json", "said": tmp_path / "said.json"}
    cost = {"fixed_s": 0.006, "per_token_s": 1e-4, "per_context_token_s": 5e-8}
    known = {"cost": cost, "per_request_s": 3e-4, "time_scale": 0.05, "capacity": {"trace": 4.0}}
    files["known"].write_text(json.dumps(known | {"window_s": 16.0}))
    run.Bench("", window_s=16.0, tokens=4.0, **files).calibrate(["trace"])
    with pytest.raises(SystemExit, match="--window 16, not 60: give the same one"):
        run.Bench("", window_s=60.0, tokens=4.0, **files).calibrate(["trace"])


def test_simulation_in_place_of_engines_is_resumed(load: Any, tmp_path: Path) -> None:
    run, arms = load("run"), load("arms")
    files = {"known": tmp_path / "machine.json", "said": tmp_path / "said.json"}
    bench = run.Bench("", window_s=4.0, tokens=8.0, **files)
    bench.cost = run.FittedCost(run.StepCost(0.006, 1e-4, 5e-8), 3e-4)
    bench.time_scale, bench.capacity = 0.05, {"trace": 4.0}
    case, out = run.Case("trace", 1.0, 0), tmp_path / "simulated.jsonl"
    runs = [(case, arm, bench.cost) for arm in arms.choose_arms(["our order only", "ours"])]
    run.simulate_all(bench, runs[:1], out)
    run.simulate_all(bench, runs, out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["arm"], row["preset"]) for row in rows] == [
        ("our order only", "cpu"),
        ("ours", "cpu"),
    ]


def test_unknown_arm_is_named(load: Any) -> None:
    with pytest.raises(ValueError, match="no arm \\['nonsense'\\]"):
        load("arms").choose_arms(["nonsense"])


class Metronome:
    """An engine whose steps take a fixed time and end every request after one."""

    vocabulary = 100

    def __init__(self, step_s: float, log: list[str], name: str) -> None:
        self.now_s = 0.0
        self.scheduler = SimpleNamespace(running=(), waiting=())
        self._step_s, self._log, self._name = step_s, log, name
        self._open: dict[str, SimpleNamespace] = {}

    @property
    def is_busy(self) -> bool:
        return bool(self._open)

    def submit(self, name: str, prompt: list[int], **_: Any) -> SimpleNamespace:
        record = SimpleNamespace(prompt=prompt, submitted_s=self.now_s)
        self._open[name] = record
        return record

    def step(self) -> list[str]:
        self.now_s += self._step_s
        self._log.append(self._name)
        ended, self._open = self._open, {}
        for record in ended.values():
            record.output, record.first_token_s, record.finished_s = [1], self.now_s, self.now_s
        return list(ended)

    def wait_until(self, at_s: float) -> None:
        self.now_s = max(self.now_s, at_s)


def test_engines_that_play_in_turn_keep_their_own_time(load: Any) -> None:
    play, workload = load("play"), load("workload")
    turns = (workload.Turn(3, 1, 0.5), workload.Turn(2, 1, 0.0))
    log: list[str] = []
    players = [
        play.Player(
            Metronome(step_s, log, name),
            play.Arm(name),
            [workload.Arrival(i, float(i), workload.Session("qa", turns)) for i in range(2)],
            stop_s=100.0,
            seed=0,
        )
        for name, step_s in (("slow", 3.0), ("fast", 1.0))
    ]
    slow, fast = play.play_in_turn(players)
    # What one does costs the other no time, and the one whose clock is behind goes first.
    assert [s.finished_s for s in fast.sessions] == [3.0, 4.0]
    assert [s.finished_s for s in slow.sessions] == [9.0, 12.0]
    assert log[:4] == ["slow", "fast", "fast", "fast"]
    assert slow.sessions[0].outputs == fast.sessions[0].outputs
