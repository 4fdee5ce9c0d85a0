"""Tables of speed runs: ratios prompt by prompt, tokens per step, and whether answers agree.

    python tables.py runs.jsonl [--against none]

A cell is the median over units of an arm's tokens per second over the other arm's, with the
quartiles (of fewer than four units: the extremes); a unit's turns count as one. In batches a
second table counts only while all places were busy, as in a server that always has requests
waiting: in the whole, one long answer at the end decides. Geometric means
are over workloads, with the range that holds nine of ten means of units drawn again (bootstrap).
`best stock` is, for each workload, the one of vLLM's own arms that is fastest there. `equal` counts
completions that are token for token those of the arm `none`.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STOCK, BEST = "none", "best stock"
STOCK_KINDS = ("none", "ngram", "draft", "suffix")
NUM_DRAWS = 2000


@dataclass
class Totals:
    """What one arm did in one unit, or in several."""

    seconds: float = 0.0
    tokens: int = 0
    busy_s: float = 0.0
    busy_tokens: int = 0
    decode_s: float = 0.0
    steps: int = 0
    nodes: int = 0
    predicted: int = 0
    cost_error: float = 0.0
    answers: list[list[int]] = field(default_factory=list)
    parts: Counter[str] = field(default_factory=Counter)

    def add(self, record: Mapping[str, Any]) -> None:
        self.seconds += record["seconds"]
        self.busy_s += record.get("busy_s", 0.0)
        self.busy_tokens += record.get("busy_tokens", 0)
        self.decode_s += record["seconds"] - record["first_s"]
        self.steps += record["steps"]
        self.tokens += sum(map(len, record["tokens"]))
        self.answers += record["tokens"]
        self.nodes += record.get("nodes", 0)
        self.predicted += record.get("predicted", 0)
        self.cost_error += record.get("cost_error", 0.0)
        self.parts.update(record.get("parts", {}))

    def merge(self, other: Totals) -> None:
        for name in (
            *("seconds", "tokens", "busy_s", "busy_tokens", "decode_s", "steps"),
            *("nodes", "predicted", "cost_error"),
        ):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.answers = self.answers + other.answers
        self.parts.update(other.parts)

    @property
    def rate(self) -> float:
        """Tokens per second, prompts included."""
        return self.tokens / self.seconds

    @property
    def decode_rate(self) -> float:
        """Tokens per second after every request of a batch had its first."""
        return (self.tokens - len(self.answers)) / self.decode_s


Units = dict[tuple[str, int], dict[str, Totals]]
"""(workload, unit) -> arm -> what it did."""


def units_of(records: Iterable[Mapping[str, Any]]) -> Units:
    """Returns the units in which every arm took part."""
    found: Units = defaultdict(lambda: defaultdict(Totals))
    for record in records:
        found[record["workload"], record["unit"]][record["arm"]].add(record)
    return found


def while_busy(units: Units) -> Units:
    """Returns what was done while all places were busy, of the units that know."""
    return {
        unit: {arm: Totals(seconds=one.busy_s, tokens=one.busy_tokens) for arm, one in arms.items()}
        for unit, arms in units.items()
        if all(one.busy_s for one in arms.values())
    }


def best_stock(units: Units, workload: str) -> str:
    """Returns the arm of vLLM's own that is fastest in a workload, as its median says."""
    arms = dict.fromkeys(arm for told in units.values() for arm in told)
    speeds = {
        arm: statistics.median(values)
        for arm in arms
        if arm.partition(":")[0] in STOCK_KINDS and (values := ratios(units, workload, arm, STOCK))
    }
    return max(speeds, key=lambda arm: speeds[arm])


def ratios(units: Units, workload: str, arm: str, other: str) -> list[float]:
    """Returns an arm's speed over another's, unit by unit."""
    if other == BEST:
        other = best_stock(units, workload)
    return [
        arms[arm].rate / arms[other].rate
        for (name, _), arms in units.items()
        if name == workload and arm in arms and other in arms
    ]


def spread(values: list[float]) -> str:
    """The median and the quartiles; the extremes of fewer than four values."""
    if len(values) < 4:
        low, high = min(values), max(values)
    else:
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{statistics.median(values):.2f} ({low:.2f}-{high:.2f})"


def mean_with_range(cells: list[list[float]]) -> str:
    """The geometric mean of the cells' medians, and the range of it if units are drawn again."""
    rng = random.Random(0)
    drawn = sorted(
        statistics.geometric_mean(
            statistics.median(rng.choices(values, k=len(values))) for values in cells
        )
        for _ in range(NUM_DRAWS)
    )
    mean = statistics.geometric_mean(map(statistics.median, cells))
    low, high = drawn[NUM_DRAWS // 20], drawn[-NUM_DRAWS // 20]
    return f"**{mean:.2f}** ({low:.2f}-{high:.2f})"


def table(units: Units, other: str) -> list[str]:
    """Lines of a table: workloads down, arms across."""
    workloads = list(dict.fromkeys(name for name, _ in units))
    arms = list(dict.fromkeys(arm for told in units.values() for arm in told))
    lines = [f"| workload (units) | {' | '.join(arms)} |", "|---" * (len(arms) + 1) + "|"]
    found: dict[str, list[list[float]]] = defaultdict(list)
    for workload in workloads:
        cells = []
        for arm in arms:
            if values := ratios(units, workload, arm, other):
                found[arm].append(values)
            cells.append(spread(values) if values else "not run")
        num_units = sum(name == workload for name, _ in units)
        lines.append(f"| {workload} ({num_units}) | {' | '.join(cells)} |")
    means = [
        mean_with_range(found[arm]) if len(found[arm]) == len(workloads) else "not all run"
        for arm in arms
    ]
    return [*lines, f"| geometric mean | {' | '.join(means)} |"]


def details(units: Units) -> list[str]:
    """Lines of a table: an arm's rates over everything, tokens per step and equal answers."""
    lines = [
        "| arm | tokens/s | decoding only | tokens per step | equal answers | nodes per step "
        "| step cost off by | ms per step: draft, learn, walk, move |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm in dict.fromkeys(arm for told in units.values() for arm in told):
        total, equal = Totals(), 0
        for told in units.values():
            if arm not in told or STOCK not in told:
                continue
            one, stock = told[arm], told[STOCK]
            equal += sum(a == b for a, b in zip(one.answers, stock.answers, strict=True))
            total.merge(one)
        lines.append(
            f"| {arm} | {total.rate:.1f} | {total.decode_rate:.1f} | "
            f"{total.tokens / total.steps:.2f} | {equal} of {len(total.answers)} | "
            f"{of_trees(total)} |"
        )
    return lines


def of_trees(total: Totals) -> str:
    """The cells that only an arm with trees has."""
    if not total.predicted:
        return "| |"
    parts = ", ".join(
        f"{1e3 * total.parts[part] / total.steps:.2f}"
        for part in ("draft", "learn", "walk", "move")
    )
    error = total.cost_error / total.predicted
    return f"{total.nodes / total.steps:.1f} | {100 * error:.0f}% | {parts}"


def over_best(units: Units) -> list[str]:
    """Lines of a table against the best stock arm, if there is one."""
    if not any(STOCK in told for told in units.values()):
        return []
    names = dict.fromkeys(name for name, _ in units)
    best = ", ".join(f"{name}: {best_stock(units, name)}" for name in names)
    return ["", f"Speed over the best stock arm ({best})", "", *table(units, BEST)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--against", default=STOCK, help="The arm that is 1.")
    given = parser.parse_args()
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for path in given.runs:
        for line in path.read_text().splitlines():
            record = json.loads(line)
            names = ("model", "dtype", "batch", "temperature")
            key = (*(record[name] for name in names), record.get("per_place", 1))
            groups[key].append(record)
    for (model, dtype, batch, temperature, per_place), records in groups.items():
        units = units_of(records)
        print(f"\n{model}, {dtype}, batch {batch}, {per_place} requests a place, "
              f"temperature {temperature}: speed over `{given.against}`\n")  # fmt: skip
        lines = [*table(units, given.against), "", *details(units), *over_best(units)]
        if batch > 1 and (busy := while_busy(units)):
            lines += ["", "While all places are busy", "", *table(busy, given.against)]
            lines += over_best(busy)
        print("\n".join(lines))


if __name__ == "__main__":
    main()
