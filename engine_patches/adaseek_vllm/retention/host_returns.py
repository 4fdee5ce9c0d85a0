"""Copies paused contexts from host memory into free blocks of vLLM's pool (vLLM 0.32)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from adaseek_vllm._compat.kv_blocks import PrefixCacheBlocks
from adaseek_vllm.retention.host_scheduler import HostScheduler
from adaseek_vllm.retention.sessions import SessionKey

__all__ = ["PooledReturns"]


# A context is vLLM's finished `Request`, which is passed as it is.
class PooledReturns:
    """See `prefetch.HostReturns`.

    Args:
        host: says what to copy.
        blocks: the pool's blocks.
    """

    def __init__(self, host: HostScheduler, blocks: PrefixCacheBlocks) -> None:
        self._host = host
        self._blocks = blocks

    def lacking(self, context: Any) -> tuple[list[int], int]:
        there, _ = self._blocks.hits(context, context.num_tokens)
        keys = self._host.keys_of(context, len(there))
        return there, self._host.swap.pool.num_ready(keys)

    def begin(self, session: SessionKey, context: Any, first: int, num_blocks: int) -> list[int]:
        keys = list(itertools.islice(self._host.keys_of(context, first), num_blocks))
        blocks = self._blocks.take_free(len(keys))
        self._host.swap.bring_back(session, keys, blocks)
        return blocks

    def take_ended(self) -> list[tuple[SessionKey, bool]]:
        return self._host.swap.take_brought()

    def publish(self, context: Any, first: int, blocks: Sequence[int]) -> None:
        self._blocks.publish(context, first, blocks)

    def give_back(self, blocks: Sequence[int]) -> None:
        self._blocks.release(blocks)
