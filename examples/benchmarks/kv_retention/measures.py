"""What is measured of a run, as plain numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from play import Run

__all__ = ["measure"]


def measure(
    run: Run, *, from_s: float, until_s: float, pool_tokens: int, num_computed: int, tokens: float
) -> dict[str, float]:
    """Returns the measures of a run.

    Args:
        run: the run.
        from_s: sessions that arrive earlier only warm the engine up.
        until_s: end of the arrivals. Sessions that end between the two make the throughput.
        pool_tokens: tokens that the KV cache holds.
        num_computed: tokens that the engine computed.
        tokens: real tokens that one token stands for; latency is for a real one.
    """
    agents = [s for s in run.sessions if len(s.session.turns) > 1]
    others = [s for s in run.sessions if len(s.session.turns) == 1]
    done = [s.finished_s for s in agents if s.finished_s is not None]
    num_done = sum(from_s <= at_s < until_s for at_s in done)
    measured = [s for s in agents if s.arrival.at_s >= from_s]
    latency = [s.latency(run.end_s) * 1000 / tokens for s in measured]
    one_shot = [s.latency(run.end_s) * 1000 / tokens for s in others if s.arrival.at_s >= from_s]
    num_outputs = sum(
        len(output)
        for s in agents
        for output, at_s in zip(s.outputs, s.ended_s, strict=True)
        if from_s <= at_s < until_s
    )
    ttft = [value for s in measured for value in s.resume_ttft_s]
    memory = pool_tokens * run.end_s
    return {
        "sessions_per_s": num_done / (until_s - from_s),
        "outputs_per_s": num_outputs * tokens / (until_s - from_s),
        "finished_share": sum(s.finished_s is not None for s in measured) / max(1, len(measured)),
        "latency_mean_ms": float(np.mean(latency)) if latency else float("nan"),
        **_percentiles("latency", latency, (50, 90, 99), "ms"),
        **_percentiles("resume_ttft", ttft, (50, 90), "s"),
        **_percentiles("one_shot", one_shot, (50, 99), "ms"),
        "computed_again": num_computed / max(1, run.num_needed) - 1,
        "waste_preserve": run.waste.preserve / memory,
        "waste_recompute": run.waste.recompute / memory,
        "waste_idle": run.waste.idle / memory,
    }


def _percentiles(
    name: str, values: Sequence[float], which: Sequence[int], unit: str
) -> dict[str, float]:
    return {
        f"{name}_p{q}_{unit}": float(np.percentile(values, q)) if values else float("nan")
        for q in which
    }
