"""The hook in vLLM's allocation of blocks: asked only when there are none."""

from __future__ import annotations

import inspect
from typing import Any

from adaseek_vllm._compat.kv_blocks import allocate_or_else
from vllm.v1.core.kv_cache_manager import KVCacheManager


def test_names_are_vllms() -> None:
    names = list(inspect.signature(KVCacheManager.allocate_slots).parameters)
    assert names[:3] == ["self", "request", "num_new_tokens"]
    assert "num_lookahead_tokens" in names


def test_arguments_reach_both_as_they_were() -> None:
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def stock(*args: Any, **kwargs: Any) -> str | None:
        calls.append(("stock", args, kwargs))
        return None if kwargs.get("reserved_blocks") or args[1] > 10 else "slots"

    def otherwise(*args: Any, **kwargs: Any) -> str:
        calls.append(("otherwise", args, kwargs))
        return "reclaimed"

    allocate = allocate_or_else(stock, otherwise)
    assert allocate("r", 1, num_lookahead_tokens=2) == "slots"
    assert calls == [("stock", ("r", 1), {"num_lookahead_tokens": 2})]
    calls.clear()
    assert allocate("r", 11) == "reclaimed"
    assert [name for name, *_ in calls] == ["stock", "otherwise"]
    assert calls[1][1:] == (("r", 11), {"num_lookahead_tokens": 0})
    calls.clear()
    assert allocate("r", 1, reserved_blocks=3, num_lookahead_tokens=2) == "reclaimed"
    for _, args, kwargs in calls:
        assert (args, kwargs) == (("r", 1), {"reserved_blocks": 3, "num_lookahead_tokens": 2})
