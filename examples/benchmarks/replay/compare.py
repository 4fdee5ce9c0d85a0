"""Compares search methods on the recorded table at equal numbers of workflow runs.

Each seed splits the table's examples into two halves: methods see one, the other one says how
good what they chose really is. No model runs; a thousand searches take minutes.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import time
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from itertools import product
from pathlib import Path

import numpy as np
import optuna
from adaseek.evaluation.statistics import mean_interval, paired_difference
from adaseek.search import pareto
from adaseek.search.base import Constraint, LeafRun, Objective, Outcome
from adaseek.search.records import Archive, Record
from numpy.typing import NDArray
from replay_methods import METHODS, Problem, best_observed
from replay_table import HERE, ReplayTable, Split, load_table

KEEP_QUALITY = (Constraint("quality", 1.0, relative=True),)
SETTINGS: dict[str, tuple[tuple[Objective, ...], tuple[Constraint, ...]]] = {
    "quality, cost and latency": (("quality", "cost", "latency"), KEEP_QUALITY),
    "quality only": (("quality",), ()),
}
BUDGETS = (120, 240, 480, 960)
MEASURES = ("regret", "hypervolume", "num_configs", "num_complete", "num_runs", "overhead_ms")
BASELINE = next(iter(METHODS))
EXHAUSTIVE = "every config, all runs"
"""What is left of regret when every config has been run on all training examples."""


@dataclass(frozen=True)
class Result:
    """One search, judged on the held-out examples.

    Attributes:
        regret: held-out quality of the best config of the table minus that of the chosen one.
        hypervolume: of the found front, by held-out means, see `Judge`.
        num_configs, num_complete: configs tried, and those tried on all training examples.
        num_runs: workflow runs used.
        overhead_ms: processor time per workflow run, the table's answers left out.
    """

    setting: str
    budget: int
    method: str
    seed: int
    regret: float
    hypervolume: float
    num_configs: int
    num_complete: int
    num_runs: int
    overhead_ms: float


class Judge:
    """Scores what was found by the means over held-out examples.

    Hypervolume is normalised by constants of the whole table: 0 is the original's quality, or
    the highest cost, or the longest latency of any config; 1 in all three is the best quality at
    the lowest cost and latency. So a front that never beats the original has 0.
    """

    def __init__(self, table: ReplayTable, split: Split) -> None:
        self._table = table
        self._held = table.means(split.held)
        whole = table.means(range(len(table.labels)))
        original = whole[table.row(table.space.original())]
        self._worst = np.asarray([-original[0], whole[:, 1].max(), whole[:, 2].max()])
        best = np.asarray([-whole[:, 0].max(), whole[:, 1].min(), whole[:, 2].min()])
        self._span = self._worst - best

    def regret(self, chosen: Record) -> float:
        """Returns by how much the quality of `chosen` is below that of the best config."""
        return float(self._held[:, 0].max() - self._held[self._row(chosen), 0])

    def hypervolume(self, archive: Archive) -> float:
        rows = [self._row(record) for record in archive.front()]
        points = self._held[rows].reshape(len(rows), 3) * [-1.0, 1.0, 1.0]
        return pareto.hypervolume((points - self._worst) / self._span + 1.0, [1.0] * 3)

    def _row(self, record: Record) -> int:
        return self._table.row(record.config)


def search(table: ReplayTable, setting: str, budget: int, method: str, seed: int) -> Result:
    """Runs one search and judges it."""
    split = table.split(seed)
    lookup = _Timed(table, split)
    objectives, constraints = SETTINGS[setting]
    problem = Problem(
        space=table.space,
        evaluate=lookup,
        budget=budget,
        num_examples=len(split.train),
        labels=[table.labels[e] for e in split.train],
        objectives=objectives,
        constraints=constraints,
        seed=seed,
    )
    began = time.process_time()
    found = METHODS[method](problem)
    overhead_s = time.process_time() - began - lookup.seconds
    judge = Judge(table, split)
    return Result(
        setting=setting,
        budget=budget,
        method=method,
        seed=seed,
        regret=judge.regret(found.chosen),
        hypervolume=judge.hypervolume(found.archive),
        num_configs=len(found.archive.records),
        num_complete=sum(r.state == "complete" for r in found.archive.records),
        num_runs=lookup.num_runs,
        overhead_ms=1000 * overhead_s / lookup.num_runs,
    )


def exhaustive(table: ReplayTable, setting: str, seed: int) -> Result:
    """Judges a search that has seen every config on all training examples."""
    split = table.split(seed)
    evaluate = table.evaluator(split)
    archive = Archive(*SETTINGS[setting])
    original = table.space.original()
    for config in sorted(table.configs, key=lambda c: c != original):
        record = Record(len(archive.records), config, state="complete")
        record.outcomes.extend(evaluate([LeafRun(config, e) for e in range(len(split.train))]))
        archive.records.append(record)
    judge = Judge(table, split)
    num = len(archive.records)
    regret, volume = judge.regret(best_observed(archive)), judge.hypervolume(archive)
    return Result(
        setting, 0, EXHAUSTIVE, seed, regret, volume, num, num, evaluate.num_runs, float("nan")
    )


class _Timed:
    """A table's evaluator that knows its own processor time."""

    def __init__(self, table: ReplayTable, split: Split) -> None:
        self._evaluate = table.evaluator(split)
        self.seconds = 0.0

    @property
    def num_runs(self) -> int:
        return self._evaluate.num_runs

    def __call__(self, runs: Sequence[LeafRun]) -> list[Outcome]:
        began = time.process_time()
        outcomes = self._evaluate(runs)
        self.seconds += time.process_time() - began
        return outcomes


def _all_of_seed(seed: int) -> list[Result]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")  # Optuna's, on its experimental and deprecated arguments
    table = load_table()
    results = [
        search(table, setting, budget, method, seed)
        for setting, budget, method in product(SETTINGS, BUDGETS, METHODS)
    ]
    return results + [exhaustive(table, setting, seed) for setting in SETTINGS]


# The report ---------------------------------------------------------------------------------


def _values(results: Iterable[Result], name: str) -> NDArray[np.float64]:
    ordered = sorted(results, key=lambda r: r.seed)
    return np.asarray([getattr(r, name) for r in ordered], dtype=np.float64)


def report(
    results: Sequence[Result], table: ReplayTable, *, budgets: Sequence[int] = BUDGETS
) -> str:
    """Returns the result file's tables, as Markdown."""
    lines = [*_landscape(table)]
    for setting in SETTINGS:
        here = [r for r in results if r.setting == setting]
        lines += ["", f"## {setting.capitalize()}", "", *_means(here, budgets), ""]
        lines += _differences(here, budgets)
    return "\n".join(lines) + "\n"


def _landscape(table: ReplayTable) -> list[str]:
    whole = table.means(range(len(table.labels)))
    first = whole[table.row(table.space.original())]
    best = whole[int(np.argmax(whole[:, 0]))]
    feasible = whole[whole[:, 0] >= first[0]]
    front = np.unique(feasible[pareto.front(feasible * [-1.0, 1.0, 1.0])], axis=0)
    return [
        "## The table",
        "",
        f"{len(table.configs)} configs, {len(table.labels)} examples, "
        f"{np.isnan(table.quality).mean():.1%} of the runs failed. All examples:",
        "",
        "| | quality | cost, USD per 1000 runs | latency, s |",
        "|---|---|---|---|",
        f"| original | {first[0]:.3f} | {1000 * first[1]:.4f} | {first[2]:.1f} |",
        f"| best quality | {best[0]:.3f} | {1000 * best[1]:.4f} | {best[2]:.1f} |",
        f"| cheapest as good as the original | | {1000 * feasible[:, 1].min():.4f} | |",
        f"| fastest as good as the original | | | {feasible[:, 2].min():.1f} |",
        "",
        f"{len(feasible)} configs are at least as good as the original; "
        f"{len(front)} distinct points are on their front.",
    ]


def _means(results: Sequence[Result], budgets: Sequence[int]) -> list[str]:
    lines = [
        "Mean over seeds [95% bootstrap interval]; the last columns are medians.",
        "",
        "| runs | method | regret, points | hypervolume | configs | complete | used | ms/run |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for budget, method in [*product(budgets, METHODS), (0, EXHAUSTIVE)]:
        mine = [r for r in results if (r.budget, r.method) == (budget, method)]
        regret = mean_interval(100 * _values(mine, "regret"))
        volume = mean_interval(_values(mine, "hypervolume"))
        medians = [float(np.median(_values(mine, name))) for name in MEASURES[2:]]
        counts = " | ".join(f"{value:.0f}" for value in medians[:3])
        overhead = "" if np.isnan(medians[3]) else f"{medians[3]:.2f}"
        lines.append(
            f"| {budget or 'all'} | {method} "
            f"| {regret.mean:.2f} [{regret.low:.2f}, {regret.high:.2f}] "
            f"| {volume.mean:.4f} [{volume.low:.4f}, {volume.high:.4f}] "
            f"| {counts} | {overhead} |"
        )
    return lines


def _differences(results: Sequence[Result], budgets: Sequence[int]) -> list[str]:
    lines = [
        f"Paired difference to {BASELINE} (less regret and more hypervolume are better); an "
        "interval without 0 is marked.",
        "",
        "| runs | method | regret, points | hypervolume |",
        "|---|---|---|---|",
    ]
    for budget, method in product(budgets, list(METHODS)[1:]):
        cells = []
        for name, factor, digits in (("regret", 100, 2), ("hypervolume", 1, 4)):
            mine, base = (
                factor * _values([r for r in results if (r.budget, r.method) == key], name)
                for key in ((budget, method), (budget, BASELINE))
            )
            gap = paired_difference(mine, base)
            good = gap.high < 0 if name == "regret" else gap.low > 0
            bad = gap.low > 0 if name == "regret" else gap.high < 0
            mark = " better" if good else " **worse**" if bad else ""
            cells.append(
                f"{gap.mean:+.{digits}f} [{gap.low:+.{digits}f}, {gap.high:+.{digits}f}]{mark}"
            )
        lines.append(f"| {budget} | {method} | {' | '.join(cells)} |")
    return lines


def _header(arguments: argparse.Namespace, seconds: float) -> str:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=HERE,
        capture_output=True,
        text=True,
        check=False,
    )
    versions = ", ".join(f"{n} {metadata.version(n)}" for n in ("adaseek", "optuna", "numpy"))
    return (
        "# Search methods on the replayed table\n\n"
        f"- command: `python examples/benchmarks/replay/compare.py --seeds {arguments.seeds}`\n"
        f"- commit {commit.stdout.strip()}, {time.strftime('%Y-%m-%d')}; {versions}, "
        f"Python {platform.python_version()}\n"
        f"- {arguments.seeds} seeds, each with a split of its own: half of the examples to "
        "search on, the other half to judge. Model answers are replayed, not made.\n"
        f"- {arguments.processes} processes on a shared machine, {seconds:.0f} s; overhead is "
        "processor time.\n\n"
    )


def main() -> None:
    arguments = _arguments()
    began = time.monotonic()
    with ProcessPoolExecutor(arguments.processes) as pool:
        results = [r for batch in pool.map(_all_of_seed, range(arguments.seeds)) for r in batch]
    text = _header(arguments, time.monotonic() - began) + report(results, load_table())
    Path(arguments.output).write_text(text, encoding="utf-8")
    print(text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--output", default=str(HERE / "replay_cpu_202611.md"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
