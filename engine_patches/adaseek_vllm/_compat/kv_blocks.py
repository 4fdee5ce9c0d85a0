"""References to blocks of vLLM's prefix cache, and what a prompt would hit in it (vLLM 0.32).

Uses `KVCacheManager.coordinator.find_longest_cache_hit`, `BlockPool.touch`, `.free_blocks`,
`.get_new_blocks`, `.cache_full_blocks`, `.free_block_queue` and `.blocks`. test_contract.py fails
when one of them moves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["PrefixCacheBlocks", "allocate_or_else"]


class PrefixCacheBlocks:
    """The blocks of one `KVCacheManager`, by id.

    Args:
        manager: vLLM's KV cache manager; its class differs between vLLM's versions.
    """

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._pool = manager.block_pool
        self._null_id = self._pool.null_block.block_id

    @property
    def num_usable(self) -> int:
        """Blocks of the pool, without the null block."""
        return int(self._pool.num_gpu_blocks) - 1

    def hold(self, blocks: Sequence[int]) -> None:
        """Adds a reference to each block; a free one leaves the free queue."""
        self._pool.touch([self._pool.blocks[block] for block in blocks])

    def release(self, blocks: Sequence[int]) -> None:
        """Takes a reference off each block; the last of them is reused first."""
        self._pool.free_blocks([self._pool.blocks[block] for block in reversed(blocks)])

    def take_free(self, num_blocks: int) -> list[int]:
        """Takes blocks from the head of the free queue, each with one reference; they lose their
        data.

        Raises:
            ValueError: fewer are free.
        """
        return [block.block_id for block in self._pool.get_new_blocks(num_blocks)]

    def publish(self, request: Any, first: int, blocks: Sequence[int]) -> None:
        """Lets prompts hit blocks that hold part of a request's tokens, from its block `first` on.

        For models with one cache group, whose hashes are one a block.
        """
        before = [self._pool.null_block] * first
        self._pool.cache_full_blocks(
            request,
            [*before, *(self._pool.blocks[block] for block in blocks)],
            first,
            first + len(blocks),
            self._pool.hash_block_size,
            0,
        )

    def reuse_first(self, blocks: Sequence[int]) -> None:
        """Moves those of `blocks` that are free to the head of the free queue, last one first."""
        queue = self._pool.free_block_queue
        free = [b for i in reversed(blocks) if (b := self._pool.blocks[i]).ref_cnt == 0]
        for block in free:
            queue.remove(block)
        queue.prepend_n(free)

    def num_free(self) -> int:
        """Returns the number of blocks in the free queue."""
        return int(self._pool.get_num_free_blocks())

    def hits(self, request: Any, num_tokens: int) -> tuple[list[int], int]:
        """Returns the blocks that a prompt would hit, and how many tokens they hold.

        The blocks of all cache groups, ordered by where in the prompt they end, so that any start
        of the list serves the start of the prompt.

        Args:
            request: has the hashes of the prompt's blocks.
            num_tokens: of the prompt, hit at most these.
        """
        groups, num_hit, _ = self._manager.coordinator.find_longest_cache_hit(
            request.block_hashes, num_tokens
        )
        ends = [
            ((index + 1) / max(1, len(group)), block.block_id)
            for group in groups
            for index, block in enumerate(group)
            if block.block_id != self._null_id
        ]
        if len(groups) > 1:
            ends.sort(key=lambda end: end[0])
        # A block may stand in several groups of a hybrid model; one reference is enough.
        return list(dict.fromkeys(block for _, block in ends)), int(num_hit)


def allocate_or_else(
    stock: Callable[..., Any], otherwise: Callable[..., Any]
) -> Callable[..., Any]:
    """Returns a `KVCacheManager.allocate_slots` that asks `otherwise` if `stock` has no slots.

    vLLM calls it for each running request in each step, with these three: packing and unpacking
    them would cost twenty times as much, 60 us a step with 64 requests.
    """

    def allocate_slots(
        request: Any, num_new_tokens: int, num_lookahead_tokens: int = 0, **others: Any
    ) -> Any:
        if others:
            others["num_lookahead_tokens"] = num_lookahead_tokens
            slots = stock(request, num_new_tokens, **others)
        else:
            slots = stock(request, num_new_tokens, num_lookahead_tokens=num_lookahead_tokens)
        if slots is None:
            others["num_lookahead_tokens"] = num_lookahead_tokens
            return otherwise(request, num_new_tokens, **others)
        return slots

    return allocate_slots
