"""The scheduler that vLLM is told to use when a feature needs one of its own."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from adaseek_vllm._compat.version import unsupported_reason
from adaseek_vllm.flags import FEATURES

__all__ = ["make_scheduler", "scheduler_class"]

_logger = logging.getLogger(__name__)


def scheduler_class(additional_config: Mapping[str, object], *, async_scheduling: bool) -> type:
    """Returns vLLM's scheduler class with the mixin of each feature that is configured.

    Args:
        additional_config: vLLM's; holds the settings of a feature under its key.
        async_scheduling: whether vLLM schedules a step before the last one's output is there.
    """
    from adaseek_vllm._compat.schedulers import base_scheduler

    base = base_scheduler(async_scheduling=async_scheduling)
    mixins = [
        mixin
        for feature in FEATURES
        if feature.key in additional_config
        and (mixin := feature.load().scheduler_mixin()) is not None
    ]
    if not mixins:
        return base
    return type("Adaseek" + base.__name__, (*mixins, base), {})


def make_scheduler(*, vllm_config: Any, **arguments: Any) -> Any:
    """Returns a scheduler; called by vLLM in place of a class, with a class's arguments.

    A function, because only now is it known whether vLLM schedules asynchronously, and the two
    ways have different base classes. The types are vLLM's.
    """
    configured = vllm_config.additional_config
    if (reason := unsupported_reason()) is not None:
        _logger.warning("AdaSeek's scheduler is left out, vLLM's own runs: %s", reason)
        configured = {}
    cls = scheduler_class(
        configured,
        async_scheduling=bool(vllm_config.scheduler_config.async_scheduling),
    )
    return cls(vllm_config=vllm_config, **arguments)
