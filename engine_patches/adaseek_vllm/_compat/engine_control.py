"""Questions and orders to the scheduler in the engine's process, from the server's (vLLM 0.32).

vLLM calls methods of `EngineCore` by name across processes (`call_utility_async`). One is added,
`adaseek_retention`, when a scheduler with retention is made; nothing of vLLM's is replaced.
"""

from __future__ import annotations

from typing import Any

__all__ = ["METHOD", "call_retention", "install"]

METHOD = "adaseek_retention"


def install() -> None:
    """Adds the method to `EngineCore`, in the process where the scheduler lives."""
    from vllm.v1.engine.core import EngineCore

    setattr(EngineCore, METHOD, _adaseek_retention)


async def call_retention(client: Any, order: str, *arguments: Any) -> list[Any]:
    """Returns what each engine behind `client` answered.

    Args:
        client: vLLM's engine client.
        order: see `RetentionMixin.retention_order`.
        arguments: what it takes; plain values.
    """
    # As one list: vLLM counts the method's parameters, and knows no *arguments.
    return list(await client.engine_core.call_utility_all_async(METHOD, order, list(arguments)))


def _adaseek_retention(self: Any, order: str, arguments: list[Any]) -> Any:
    return self.scheduler.retention_order(order, *arguments)
