"""Retention's numbers: names, sums, bounded labels, and what vLLM makes of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import prometheus_client
import pytest
from adaseek_vllm.retention.metrics import METRICS, PREFIX, Kind, Meter, merge
from adaseek_vllm.retention.prometheus import RetentionPromMetrics, RetentionStats


def samples() -> dict[str, Any]:
    meter = Meter()
    meter.count("decisions", 1, "pin", "model")
    meter.count("decisions", 2, "pin", "model")
    meter.count("decisions", 1, "drop", "final")
    meter.count("saved_tokens", 64)
    meter.observe("tool_seconds", 0.2, "search")
    return dict(meter.take({("pinned_blocks",): 7, ("sessions", "pin"): 2}))


def test_reading_starts_again() -> None:
    meter = Meter()
    assert meter.is_empty
    meter.count("saved_tokens", 3)
    assert not meter.is_empty
    meter.take({})
    assert meter.is_empty


def test_tools_beyond_the_first_share_a_label() -> None:
    meter = Meter()
    labels = {meter.tool(f"tool-{index}") for index in range(100)}
    assert len(labels) == 33
    assert meter.tool("tool-0") == "tool-0"
    assert meter.tool("new") == "other"


def test_unread_observations_are_bounded() -> None:
    meter = Meter()
    for _ in range(5000):
        meter.observe("tool_seconds", 1.0, "t")
    (values,) = meter.take({})["histogram"]["tool_seconds"].values()
    assert isinstance(values, list)
    assert len(values) == 1024


def test_later_readings_add_up_and_gauges_are_the_last() -> None:
    total = samples()
    merge(total, samples() | {"gauge": {"pinned_blocks": {"": 3.0}}})
    assert total["counter"]["saved_tokens"] == {"": 128}
    assert total["gauge"]["pinned_blocks"] == {"": 3.0}
    assert total["histogram"]["tool_seconds"] == {"search": [0.2, 0.2]}


def test_numbers_survive_the_way_between_vllms_processes() -> None:
    sent = samples()
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(sent)) == sent


def test_log_line_is_short_and_readable() -> None:
    stats = RetentionStats(data=samples())
    stats.aggregate(RetentionStats(data=samples()))
    line = stats.reduce()
    assert line["decisions_pin"] == 6
    assert line["sessions_pin"] == 2
    assert line["saved_tokens"] == 128
    assert len(line) < 15
    stats.reset()
    assert stats.is_empty()


@pytest.fixture
def prometheus() -> tuple[RetentionPromMetrics, prometheus_client.CollectorRegistry]:
    registry = prometheus_client.CollectorRegistry()

    def register(cls: Any) -> Any:
        return lambda **arguments: cls(**arguments, registry=registry)

    types = {
        cls: register(cls)
        for cls in (
            prometheus_client.Gauge,
            prometheus_client.Counter,
            prometheus_client.Histogram,
        )
    }
    config = SimpleNamespace(kv_transfer_config=None)
    metrics = RetentionPromMetrics(config, types, ["model_name", "engine"], {0: ["m", "0"]})
    return metrics, registry


def test_every_name_is_registered_and_shows_what_it_was_fed(
    prometheus: tuple[RetentionPromMetrics, prometheus_client.CollectorRegistry],
) -> None:
    metrics, registry = prometheus
    for _ in range(2):
        metrics.observe(samples())
    text = prometheus_client.generate_latest(registry).decode()
    for name, metric in METRICS.items():
        shown = PREFIX + name + ("_total" if metric.kind is Kind.COUNTER else "")
        assert f"# TYPE {shown} " in text
    labels = 'action="pin",engine="0",model_name="m",reason="model"'
    assert f"{PREFIX}decisions_total{{{labels}}} 6.0" in text
    assert f'{PREFIX}sessions{{engine="0",model_name="m",state="pin"}} 2.0' in text
    assert f'{PREFIX}tool_seconds_count{{engine="0",model_name="m",tool="search"}} 2.0' in text
