"""Tables of many runs: means, and differences paired by seed with their intervals."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["COLUMNS", "Row", "group", "mean_table", "paired_ratio"]

Row = Mapping[str, Any]

COLUMNS = {
    "sessions/s": ("sessions_per_s", "{:.2f}"),
    "latency ms/token mean": ("latency_mean_ms", "{:.0f}"),
    "p50": ("latency_p50_ms", "{:.0f}"),
    "p90": ("latency_p90_ms", "{:.0f}"),
    "p99": ("latency_p99_ms", "{:.0f}"),
    "resume TTFT s p50": ("resume_ttft_p50_s", "{:.2f}"),
    "TTFT p90": ("resume_ttft_p90_s", "{:.2f}"),
    "one-shot ms/token p99": ("one_shot_p99_ms", "{:.0f}"),
    "computed again": ("computed_again", "{:.2f}"),
    "paused memory": ("waste_preserve", "{:.1%}"),
    "recomputing memory": ("waste_recompute", "{:.1%}"),
    "idle while wanted": ("waste_idle", "{:.1%}"),
    "preemptions": ("preemptions", "{:.0f}"),
}
"""Column -> key of a run's measures, and its format."""
# What is claimed: with the lowest and highest of the seeds.
_SPREAD = ("sessions_per_s", "latency_p90_ms", "one_shot_p99_ms")


def group(rows: Iterable[Row], *keys: str) -> dict[tuple[Any, ...], list[Row]]:
    """Returns the rows by the values of `keys`, in the order of their first."""
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[tuple(row[key] for key in keys)].append(row)
    return dict(groups)


def mean_table(rows: Sequence[Row]) -> str:
    """Returns a row for each arm of one case: means over seeds, for some with their spread."""
    lines = [_line(["arm", *COLUMNS]), _line(["---"] * (len(COLUMNS) + 1))]
    for (arm,), runs in group(rows, "arm").items():
        cells = [_cell([run[key] for run in runs], key, form) for key, form in COLUMNS.values()]
        lines.append(_line([arm, *cells]))
    return "\n".join(lines)


def paired_ratio(
    rows: Sequence[Row], key: str, arm: str, base: str
) -> tuple[float, float, float] | None:
    """Returns the ratio of an arm to another with a 95% interval, None if they share no seed.

    Geometric mean over what they share (one case and seed each); the interval is a bootstrap over
    seeds, all the cases of a seed together.

    Args:
        rows: runs of one or more cases.
        key: which measure.
        arm: its numerator's arm.
        base: its denominator's.
    """
    cases = group(rows, "preset", "mix", "load", "seed")
    by_seed: dict[Any, list[float]] = defaultdict(list)
    for (*_, seed), runs in cases.items():
        values = {run["arm"]: run[key] for run in runs}
        if arm in values and base in values and values[arm] > 0 and values[base] > 0:
            by_seed[seed].append(math.log(values[arm] / values[base]))
    if not by_seed:
        return None
    means = np.array([np.mean(logs) for logs in by_seed.values()])
    rng = np.random.default_rng(0)
    draws = rng.choice(means, (2000, len(means))).mean(axis=1)
    low, high = np.percentile(draws, (2.5, 97.5))
    return math.exp(means.mean()), math.exp(low), math.exp(high)


def _cell(values: Sequence[float], key: str, form: str) -> str:
    mean = form.format(float(np.nanmean(values)))
    if key not in _SPREAD or len(values) < 2:
        return mean
    return f"{mean} ({form.format(np.nanmin(values))} to {form.format(np.nanmax(values))})"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
