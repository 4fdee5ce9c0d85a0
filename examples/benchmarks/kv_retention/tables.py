"""The results file of the benchmark: tables as Markdown, and a plot as HTML.

python examples/benchmarks/kv_retention/tables.py RUNS.jsonl
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from arms import SIMPLE_RULES
from report import Row, group, mean_table, paired_ratio

__all__ = ["simulated_path", "write_plot", "write_results"]

OURS, NO_CACHE, STOCK = "ours", "stock, no prefix cache", "stock, prefix cache"


def write_results(runs: Path) -> str:
    """Returns the tables of a file of runs as Markdown, and writes its plot beside it."""
    rows = [json.loads(line) for line in runs.read_text().splitlines()]
    parts = ["## Targets\n", targets(rows)]
    for (preset, mix, load), case in group(rows, "preset", "mix", "load").items():
        seeds = sorted({row["seed"] for row in case})
        name = f"load {load:g} of stock's capacity" if load else "closed loop"
        parts += [f"\n## {preset}, {mix}, {name}, seeds {seeds}\n", mean_table(case)]
    if any("turns_compared" in row for row in rows):
        num_compared, num_different = (
            sum(row.get(key, 0) for row in rows) for key in ("turns_compared", "turns_different")
        )
        parts.append(f"\n{num_compared} turns compared with another arm's, {num_different} differ.")
    if simulated_path(runs).exists():
        lines = simulated_path(runs).read_text().splitlines()
        error = simulator_error(rows, [json.loads(line) for line in lines])
        parts += ["\n## The simulator against these runs\n", error]
    write_plot(rows, runs.with_suffix(".html"))
    return "\n".join(parts)


def targets(rows: Sequence[Row]) -> str:
    """Returns ours over the baselines, for each case, with 95% intervals over seeds."""
    lines = [
        "| case | sessions/s over no cache | p90 of no cache over ours | sessions/s over stock "
        "| p90 below stock | sessions/s over the best simple rule | p90 over its |",
        "|---|---|---|---|---|---|---|",
    ]
    for (preset, mix, load), case in group(rows, "preset", "mix", "load").items():
        best_rate = _best(case, "sessions_per_s", max)
        best_p90 = _best(case, "latency_p90_ms", min)
        cells = [
            f"{preset}, {mix}, {load:g}" if load else f"{preset}, {mix}, closed",
            _ratio(case, "sessions_per_s", OURS, NO_CACHE),
            _ratio(case, "latency_p90_ms", NO_CACHE, OURS),
            _ratio(case, "sessions_per_s", OURS, STOCK),
            _percent_below(case, "latency_p90_ms", OURS, STOCK),
            f"{_ratio(case, 'sessions_per_s', OURS, best_rate)} {best_rate}",
            f"{_ratio(case, 'latency_p90_ms', OURS, best_p90)} {best_p90}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def simulated_path(runs: Path) -> Path:
    """Returns the file of what the simulator said of the same runs."""
    return runs.with_suffix(".simulated.jsonl")


def simulator_error(rows: Sequence[Row], simulated: Sequence[Row]) -> str:
    """Returns, by arm, what the simulator said over what was measured: medians, and the range."""
    keys = ("sessions_per_s", "latency_p50_ms", "latency_p90_ms", "computed_again")
    names = ("arm", "preset", "mix", "load", "seed")
    said = {tuple(row[name] for name in names): row for row in simulated}
    lines = ["| arm | runs | " + " | ".join(keys) + " |", "|---|---|" + "---|" * len(keys)]
    for (arm,), runs in group(rows, "arm").items():
        pairs = [(s, r) for r in runs if (s := said.get(tuple(r[name] for name in names)))]
        cells = []
        for key in keys:
            ratios = [s[key] / r[key] for s, r in pairs if r[key] > 0]
            found = "{:.2f} ({:.2f} to {:.2f})"
            cells.append(found.format(*np.percentile(ratios, (50, 0, 100))) if ratios else "")
        lines.append(f"| {arm} | {len(pairs)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_plot(rows: Sequence[Row], path: Path) -> None:
    """Writes p90 latency over load, a curve for each arm; nothing without plotly."""
    try:
        import plotly.graph_objects as go
        from plotly.subplots import make_subplots
    except ImportError:
        print("No plot: plotly is not installed (the extra `report`).")
        return
    cases = group([row for row in rows if row["load"]], "preset", "mix")
    figure = make_subplots(
        rows=max(1, len(cases)),
        cols=2,
        subplot_titles=[
            f"{preset}, {mix}: {what}"
            for preset, mix in cases
            for what in ("p90 latency, ms a token", "sessions done a second")
        ],
    )
    for index, case in enumerate(cases.values(), 1):
        for number, ((arm,), runs) in enumerate(group(case, "arm").items()):
            by_load = sorted(group(runs, "load").items())
            for column, key in enumerate(("latency_p90_ms", "sessions_per_s"), 1):
                figure.add_trace(
                    go.Scatter(
                        x=[load for (load,), _ in by_load],
                        y=[float(np.mean([r[key] for r in same])) for _, same in by_load],
                        name=arm,
                        legendgroup=arm,
                        showlegend=index == column == 1,
                        line={"color": _COLOURS[number % len(_COLOURS)]},
                    ),
                    row=index,
                    col=column,
                )
            figure.update_yaxes(type="log", row=index, col=1)
    figure.update_layout(height=420 * max(1, len(cases)), width=1200, template="plotly_white")
    figure.update_xaxes(title="load, of what stock vLLM with its prefix cache sustains")
    figure.write_html(path, include_plotlyjs=True)


_COLOURS = (
    *("#888888", "#bbbbbb", "#000000", "#7a5195", "#d45087", "#ff7c43"),
    *("#ffa600", "#2f9e8f", "#7fd1c7", "#1f5fd0", "#86aef0"),
)


def _best(case: Sequence[Row], key: str, choose: object) -> str:
    """Returns the simple rule that is best in a case, over all its seeds."""
    means = {
        arm: float(np.mean([row[key] for row in runs]))
        for (arm,), runs in group(case, "arm").items()
        if arm in SIMPLE_RULES
    }
    if not means:
        return STOCK
    return (max if choose is max else min)(means, key=lambda arm: means[arm])


def _ratio(case: Sequence[Row], key: str, arm: str, base: str) -> str:
    ratio = paired_ratio(case, key, arm, base)
    return "" if ratio is None else "{:.2f} ({:.2f} to {:.2f})".format(*ratio)


def _percent_below(case: Sequence[Row], key: str, arm: str, base: str) -> str:
    ratio = paired_ratio(case, key, arm, base)
    if ratio is None:
        return ""
    middle, low, high = (1 - value for value in ratio)
    return f"{middle:.0%} ({high:.0%} to {low:.0%})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    print(write_results(parser.parse_args().runs))
