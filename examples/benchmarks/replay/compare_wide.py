"""Compares search methods on landscapes of known truth over wide spaces.

The landscapes here were never looked at while AdaSeek was improved: other spaces and other seeds
were used for that.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from itertools import product
from pathlib import Path

import numpy as np
import optuna
from adaseek.evaluation.statistics import mean_interval, paired_difference
from adaseek.search.base import Constraint, Objective, Space
from numpy.typing import NDArray
from replay_methods import METHODS, Problem
from wide import KINDS, Wide, wide_space

SPACES: dict[str, Space] = {
    "two steps, members apart": wide_space(2, num_demos=3, members=2),
    "three steps": wide_space(3, num_demos=4),
}
FIRST_SEED = 100
"""Seeds below were used to develop the search, with spaces of two and of four steps."""
SETTINGS: dict[str, tuple[tuple[Objective, ...], tuple[Constraint, ...]]] = {
    "quality, cost and latency": (
        ("quality", "cost", "latency"),
        (Constraint("quality", 1.0, relative=True),),
    ),
    "quality only": (("quality",), ()),
}
CHOSEN = ("flat TPE", "AdaSeek", "AdaSeek, one layer")


@dataclass(frozen=True)
class Result:
    """One search, judged by the truth."""

    space: str
    kind: str
    setting: str
    budget: int
    method: str
    seed: int
    regret: float
    hypervolume: float


def num_examples(budget: int) -> int:
    """Returns the examples per config that a tuning run of this budget would use."""
    return max(8, min(40, budget // 16))


def search(land: Wide, space: str, setting: str, budget: int, method: str, seed: int) -> Result:
    """Runs one search and judges it."""
    size = num_examples(budget)
    problem = Problem(
        land.space, land.evaluate, budget, size, [""] * size, *SETTINGS[setting], seed
    )
    found = METHODS[method](problem)
    regret, volume = land.regret(found.chosen), land.hypervolume(found.archive)
    return Result(space, land.kind, setting, budget, method, seed, regret, volume)


def _all_of_seed(job: tuple[int, Sequence[int]]) -> list[Result]:
    seed, budgets = job
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")  # Optuna's, on its experimental and deprecated arguments
    results = []
    for space, kind in product(SPACES, KINDS):
        land = Wide(SPACES[space], kind, seed)
        results += [
            search(land, space, setting, budget, method, seed)
            for setting, budget, method in product(SETTINGS, budgets, CHOSEN)
        ]
    return results


# The report ---------------------------------------------------------------------------------


def report(results: Sequence[Result]) -> str:
    """Returns the tables: over all landscapes, then by kind and space."""
    lines = []
    budgets = sorted({r.budget for r in results})
    for setting in SETTINGS:
        lines += [f"## {setting.capitalize()}", "", *_HEAD]
        part = [r for r in results if r.setting == setting]
        for budget in budgets:
            lines += _rows([r for r in part if r.budget == budget], f"{budget} | all")
        lines += ["", "By landscape:", "", *_HEAD]
        for budget, kind, space in product(budgets, KINDS, SPACES):
            group = [r for r in part if (r.budget, r.kind, r.space) == (budget, kind, space)]
            lines += _rows(group, f"{budget} | {kind}, {space}")
        lines.append("")
    return "\n".join(lines)


_HEAD = (
    "| runs | landscapes | method | regret, points | hypervolume | regret to TPE | volume to TPE |",
    "|---|---|---|---|---|---|---|",
)


def _rows(results: Sequence[Result], label: str) -> list[str]:
    lines = []
    for method in CHOSEN:
        cells = [label, method]
        gaps = []
        for name, factor, digits in (("regret", 100, 2), ("hypervolume", 1, 3)):
            mine, base = (factor * _values(results, m, name) for m in (method, CHOSEN[0]))
            cells.append(f"{mean_interval(mine).mean:.{digits}f}")
            gap = paired_difference(mine, base)
            good = gap.high < 0 if name == "regret" else gap.low > 0
            bad = gap.low > 0 if name == "regret" else gap.high < 0
            mark = " better" if good else " **worse**" if bad else ""
            text = f"{gap.mean:+.{digits}f} [{gap.low:+.{digits}f}, {gap.high:+.{digits}f}]{mark}"
            gaps.append("" if method == CHOSEN[0] else text)
        lines.append(f"| {' | '.join([*cells, *gaps])} |")
    return lines


def _values(results: Sequence[Result], method: str, name: str) -> NDArray[np.float64]:
    chosen = sorted(
        (r for r in results if r.method == method), key=lambda r: (r.space, r.kind, r.seed)
    )
    return np.asarray([getattr(r, name) for r in chosen], dtype=np.float64)


def _header(arguments: argparse.Namespace, seconds: float) -> str:
    commit = subprocess.run(
        ["git", "describe", "--always"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    versions = ", ".join(f"{n} {metadata.version(n)}" for n in ("adaseek", "optuna", "numpy"))
    sizes = "; ".join(f"{name}: {space.size():,} configs" for name, space in SPACES.items())
    return (
        "# Search methods on landscapes of known truth\n\n"
        f"- command: `python examples/benchmarks/replay/compare_wide.py --seeds {arguments.seeds} "
        f"--budgets {' '.join(map(str, arguments.budgets))}`\n"
        f"- commit {commit.stdout.strip()}, {time.strftime('%Y-%m-%d')}; {versions}, "
        f"Python {platform.python_version()}\n"
        f"- {sizes}; kinds: {', '.join(KINDS)}; seeds {FIRST_SEED} to "
        f"{FIRST_SEED + arguments.seeds - 1}. Simulated: no model runs.\n"
        f"- {arguments.processes} processes on a shared machine, {seconds:.0f} s.\n\n"
    )


def main() -> None:
    arguments = _arguments()
    began = time.monotonic()
    jobs = [(FIRST_SEED + i, arguments.budgets) for i in range(arguments.seeds)]
    with ProcessPoolExecutor(arguments.processes) as pool:
        results = [r for batch in pool.map(_all_of_seed, jobs) for r in batch]
    text = _header(arguments, time.monotonic() - began) + report(results)
    Path(arguments.output).write_text(text, encoding="utf-8")
    print(text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--budgets", type=int, nargs="+", default=[240, 960])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--output", default=str(Path(__file__).parent / "wide_cpu_202611.md"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
