"""Adds AdaSeek's HTTP routes to vLLM's server.

Patches one function, `vllm.plugins.load_endpoint_plugins` (vLLM 0.32), which calls the original and
adds our endpoint plugin. The entry point `vllm.endpoint_plugins` was not used: vLLM loads it only
if VLLM_PLUGINS names it, which turns off every other plugin that is not named, and it warns on
every start without. test_routes.py fails when the function moves.
"""

from __future__ import annotations

import functools
from typing import Any

__all__ = ["install"]

_MARK = "_adaseek_original"


def install() -> None:
    """Patches the function; does nothing if it is patched already."""
    from vllm import plugins

    if not hasattr(plugins.load_endpoint_plugins, _MARK):
        # The type is the function's own; it is replaced by one that takes and returns the same.
        plugins.load_endpoint_plugins = _adding(plugins.load_endpoint_plugins)


def _adding(original: Any) -> Any:
    @functools.wraps(original)
    def load_endpoint_plugins(supported_tasks: Any = None) -> Any:
        from adaseek_vllm.retention.endpoint import RetentionEndpoints

        loaded = list(original(supported_tasks))
        ours = RetentionEndpoints()
        return [*loaded, ours] if set(ours.required_tasks) & set(supported_tasks or ()) else loaded

    setattr(load_endpoint_plugins, _MARK, original)
    return load_endpoint_plugins
