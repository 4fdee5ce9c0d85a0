"""Counts what retention does, under the names that `/metrics` shows. No vLLM; no clock."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["METRICS", "PREFIX", "Kind", "Meter", "Metric", "Samples", "merge"]

PREFIX = "vllm:kv_retention_"
# Labels of one series are one string, because vLLM carries these numbers between processes.
SEPARATOR = "\x1f"

Samples = dict[str, dict[str, dict[str, float | list[float]]]]
"""Kind -> name -> joined labels -> number, or numbers for a histogram."""

# Tools are named by clients: those seen first have a series of their own, the rest share one.
_MAX_TOOLS = 32
_OTHER = "other"
# Observations kept when nobody reads them.
_MAX_UNREAD = 1024
_SECONDS = (0.001, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


class Kind(enum.Enum):
    """How a metric is summed up."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True)
class Metric:
    """One name on `/metrics`."""

    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


def _counter(text: str, *labels: str) -> Metric:
    return Metric(Kind.COUNTER, text, labels)


def _gauge(text: str, *labels: str) -> Metric:
    return Metric(Kind.GAUGE, text, labels)


def _histogram(text: str, buckets: tuple[float, ...], *labels: str) -> Metric:
    return Metric(Kind.HISTOGRAM, text, labels, buckets)


METRICS: Mapping[str, Metric] = {
    "decisions": _counter("Decisions for paused sessions.", "action", "reason"),
    "resumes": _counter("Turns that continued a paused session.", "outcome"),
    "saved_tokens": _counter("Tokens of paused contexts that a next turn did not compute again."),
    "recomputed_tokens": _counter("Tokens of paused contexts that a next turn computed again."),
    "reclaimed_blocks": _counter("Held blocks that were let go early.", "for"),
    "waste_token_seconds": _counter("Memory held or refilled without making tokens.", "kind"),
    "prefetch": _counter("Contexts copied back ahead of a turn, by what came of it.", "outcome"),
    "swap_bytes": _counter("KV copied to host memory (out) and back (in).", "direction"),
    "swap_seconds": _counter("Time that copies took.", "direction"),
    "swap_failures": _counter("Copies that failed; the tokens are computed again.", "direction"),
    "overhead_seconds": _counter("Time that the scheduler spent on retention."),
    "tool_seconds": _histogram("Time between a session's turns.", _SECONDS, "tool"),
    "duration_abs_error_seconds": _histogram(
        "How far the time between turns was from what was expected.", _SECONDS
    ),
    "resume_ttft_seconds": _histogram(
        "Time from the arrival of a paused session's next turn to its first token.", _SECONDS
    ),
    "admission_delay_seconds": _histogram(
        "Time from when a waiting request first lacked memory until it ran.", _SECONDS
    ),
    "prefix_survival_ratio": _histogram(
        "Share of a held context that the next turn repeats.", (0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1)
    ),
    "sessions": _gauge("Sessions that are known, by where their context is.", "state"),
    "pinned_blocks": _gauge("KV blocks that paused sessions hold."),
    "pinned_ratio": _gauge("Share of the KV blocks that paused sessions hold."),
    "host_tokens": _gauge("Tokens with a copy in host memory."),
    "memory_price": _gauge("Share of recent steps in which memory was short."),
    "cost_coeff": _gauge("What was learned of the machine.", "name"),
}


class Meter:
    """Adds up what happens between two readings."""

    def __init__(self) -> None:
        self._samples: Samples = {}
        self._tools: set[str] = set()

    @property
    def is_empty(self) -> bool:
        """Whether nothing happened since the last reading."""
        return not self._samples

    def count(self, name: str, value: float = 1.0, *labels: str) -> None:
        """Adds to a counter."""
        series = self._samples.setdefault(Kind.COUNTER.value, {}).setdefault(name, {})
        key = SEPARATOR.join(labels)
        known = series.get(key, 0.0)
        assert not isinstance(known, list), f"{name} is a histogram"
        series[key] = known + value

    def observe(self, name: str, value: float, *labels: str) -> None:
        """Adds an observation to a histogram."""
        series = self._samples.setdefault(Kind.HISTOGRAM.value, {}).setdefault(name, {})
        values = series.setdefault(SEPARATOR.join(labels), [])
        assert isinstance(values, list), f"{name} is a counter"
        if len(values) < _MAX_UNREAD:
            values.append(value)

    def tool(self, name: str) -> str:
        """Returns the label for a tool's name; there is a bounded number of them."""
        if name not in self._tools and len(self._tools) >= _MAX_TOOLS:
            return _OTHER
        self._tools.add(name)
        return name

    def take(self, gauges: Mapping[tuple[str, ...], float]) -> Samples:
        """Returns what was added up, with `gauges` by name and labels, and starts again."""
        taken, self._samples = self._samples, {}
        for (name, *labels), value in gauges.items():
            series = taken.setdefault(Kind.GAUGE.value, {}).setdefault(name, {})
            series[SEPARATOR.join(labels)] = value
        return taken


def merge(into: Samples, more: Samples) -> None:
    """Adds a later reading to `into`."""
    for kind, metrics in more.items():
        for name, series in metrics.items():
            known = into.setdefault(kind, {}).setdefault(name, {})
            for labels, value in series.items():
                before = known.get(labels)
                if before is None or kind == Kind.GAUGE.value:
                    known[labels] = list(value) if isinstance(value, list) else value
                elif isinstance(before, list) and isinstance(value, list):
                    before.extend(value)
                elif not isinstance(before, list) and not isinstance(value, list):
                    known[labels] = before + value
