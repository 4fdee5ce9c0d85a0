"""KV retention inside vLLM's scheduler."""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler

from adaseek_vllm.retention.settings import RetentionSettings

__all__ = ["RetentionMixin"]


# vLLM's types are not followed by every type checker.
class RetentionMixin(Scheduler):  # type: ignore[misc]
    """Goes before vLLM's scheduler class, synchronous or asynchronous."""

    # The arguments are the scheduler's own.
    def __init__(self, *args: Any, vllm_config: Any, **kwargs: Any) -> None:
        super().__init__(*args, vllm_config=vllm_config, **kwargs)
        self.retention_settings = RetentionSettings.read(
            vllm_config.additional_config["kv_retention"]
        )
