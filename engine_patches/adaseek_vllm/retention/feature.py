"""What `--kv-retention` changes in vLLM's engine arguments. Imports nothing of vLLM."""

from __future__ import annotations

from collections.abc import Mapping

from adaseek_vllm.config import FeatureSettingsError
from adaseek_vllm.flags import METRICS_CONNECTOR, SCHEDULER
from adaseek_vllm.retention.settings import FLAG, RetentionSettings

__all__ = ["connector_config", "engine_args", "read_settings", "scheduler_mixin"]


def read_settings(value: object) -> dict[str, object]:
    """Returns the complete settings in JSON form.

    Raises:
        FeatureSettingsError: an unknown key, or a value out of its range.
    """
    return RetentionSettings.read(value).as_mapping()


def engine_args(settings: Mapping[str, object], current: Mapping[str, object]) -> dict[str, object]:
    """Returns the scheduler, and the scheduling policy that keeps a session's place in the queue.

    Raises:
        FeatureSettingsError: vLLM's other arguments leave nothing to retain, or contradict.
    """
    if current.get("enable_prefix_caching") is False:
        raise FeatureSettingsError(
            f"{FLAG} keeps blocks of vLLM's prefix cache, but `enable_prefix_caching` is False: "
            "leave out --no-enable-prefix-caching."
        )
    if (other := current.get("scheduler_cls")) not in (None, SCHEDULER):
        raise FeatureSettingsError(
            f"{FLAG} brings its own scheduler, but `scheduler_cls` is {other!r}: leave one out."
        )
    for name in ("kv_transfer_config", "kv_offloading_size"):
        if (other := current.get(name)) is not None:
            raise FeatureSettingsError(
                f"{FLAG} does not work beside another KV connector, but `{name}` is {other!r}: "
                "leave one out; for host memory set `host_bytes`."
            )
    changed: dict[str, object] = {"scheduler_cls": SCHEDULER}
    if settings["host_bytes"] or settings["metrics"]:
        changed["kv_transfer_config"] = connector_config(settings)
    if settings["order"] != "fcfs":
        changed["scheduling_policy"] = "priority"
    return changed


def connector_config(settings: Mapping[str, object]) -> dict[str, object]:
    """Returns vLLM's description of our connector.

    Without host memory it is a producer that produces nothing: vLLM delays the reuse of blocks,
    and lets requests leave out images, only where a connector may load KV.
    """
    if not settings["host_bytes"]:
        return dict(METRICS_CONNECTOR)
    return {
        **METRICS_CONNECTOR,
        "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "cpu_bytes_to_use": settings["host_bytes"],
            "inflight_fraction": settings["inflight_fraction"],
            "tenant_fraction": settings["tenant_fraction"],
            "emulate_gbps": settings["emulate_gbps"],
        },
    }


def scheduler_mixin() -> type | None:
    """Returns the class that goes before vLLM's scheduler."""
    from adaseek_vllm.retention.scheduler import RetentionMixin

    return RetentionMixin
