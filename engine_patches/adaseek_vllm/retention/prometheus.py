"""Carries retention's numbers from vLLM's scheduler to its `/metrics` and its log (vLLM 0.32)."""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
    KVConnectorPromMetrics,
    KVConnectorStats,
)

from adaseek_vllm.retention.metrics import METRICS, PREFIX, SEPARATOR, Kind, Samples, merge

__all__ = ["RetentionPromMetrics", "RetentionStats"]


# vLLM's types are not followed by every type checker.
class RetentionStats(KVConnectorStats):  # type: ignore[misc]
    """What happened in some steps; `data` is `Samples`, which any serialiser takes."""

    data: Samples

    def reset(self) -> None:
        self.data = {}

    def is_empty(self) -> bool:
        return not self.data

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        merge(self.data, other.data)
        return self

    def reduce(self) -> dict[str, int | float]:
        """Returns the numbers of vLLM's log line, which it writes every ten seconds or so."""
        return {
            **self._by_label(Kind.GAUGE, "sessions"),
            "pinned_blocks": self._total(Kind.GAUGE, "pinned_blocks"),
            "host_tokens": self._total(Kind.GAUGE, "host_tokens"),
            "memory_price": round(self._total(Kind.GAUGE, "memory_price"), 3),
            **self._by_label(Kind.COUNTER, "decisions"),
            "resumes": self._total(Kind.COUNTER, "resumes"),
            "saved_tokens": self._total(Kind.COUNTER, "saved_tokens"),
            "recomputed_tokens": self._total(Kind.COUNTER, "recomputed_tokens"),
            **self._by_label(Kind.COUNTER, "swap_bytes"),
        }

    def _series(self, kind: Kind, name: str) -> dict[str, float | list[float]]:
        return self.data.get(kind.value, {}).get(name, {})

    def _total(self, kind: Kind, name: str) -> float:
        values = self._series(kind, name).values()
        return sum(value for value in values if not isinstance(value, list))

    def _by_label(self, kind: Kind, name: str) -> dict[str, float]:
        """Returns the totals by the first label."""
        totals: dict[str, float] = {}
        for labels, value in self._series(kind, name).items():
            if not isinstance(value, list):
                label = f"{name}_{labels.split(SEPARATOR)[0]}"
                totals[label] = totals.get(label, 0) + value
        return totals


class RetentionPromMetrics(KVConnectorPromMetrics):  # type: ignore[misc]
    """Registers every name of `METRICS` with vLLM's own registry."""

    # The arguments are vLLM's and go to its constructor as they come.
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        classes = {
            Kind.COUNTER: self._counter_cls,
            Kind.GAUGE: self._gauge_cls,
            Kind.HISTOGRAM: self._histogram_cls,
        }
        self._metrics: dict[str, Any] = {}
        for name, metric in METRICS.items():
            more = {"buckets": metric.buckets} if metric.kind is Kind.HISTOGRAM else {}
            self._metrics[name] = classes[metric.kind](
                name=PREFIX + name,
                documentation=metric.help,
                labelnames=[*self._labelnames, *metric.labels],
                **more,
            )

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        engine_labels = self.per_engine_labelvalues[engine_idx]
        for kind, metrics in transfer_stats_data.items():
            for name, series in metrics.items():
                for joined, value in series.items():
                    labels = joined.split(SEPARATOR) if METRICS[name].labels else []
                    _add(Kind(kind), self._metrics[name].labels(*engine_labels, *labels), value)


def _add(kind: Kind, metric: Any, value: Any) -> None:
    if kind is Kind.COUNTER:
        metric.inc(value)
    elif kind is Kind.GAUGE:
        metric.set(value)
    else:
        for observation in value:
            metric.observe(observation)
