"""What kernels compute beside the model, whatever they run on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypedDict, Unpack

import torch

from adaseek_vllm.token_tree.step import TreeStep

__all__ = ["Kernel", "Scoring"]


class Scoring(TypedDict):
    """How a layer attends."""

    layout: str
    """Where the cache holds what; one of `layouts.LAYOUTS`."""
    scale: float
    """Factor of the dot products."""
    softcap: float
    """Bound c of c * tanh(x / c); 0 means none."""
    window: int
    """Keys at this distance or further are not seen; 0 or less: all are seen."""


class Kernel(Protocol):
    """What a step with trees computes beside the model."""

    takes_first_of_equals: bool
    """Whether the first of `top_tokens` is the one with the lowest number of the likeliest ones,
    as vLLM's greedy choice is."""

    def attend(
        self,
        query: torch.Tensor,
        cache: torch.Tensor,
        block_table: torch.Tensor,
        step: TreeStep,
        output: torch.Tensor,
        **scoring: Unpack[Scoring],
    ) -> None:
        """Writes the attention output of the rows of the step's trees, and no others.

        Args:
            query: queries of the step's tokens, [tokens, heads, d].
            cache: one layer's KV cache, [blocks, KV heads, s, 2 * d]; holds the rows already.
            block_table: [requests, blocks] int32.
            step: the trees.
            output: written, [tokens, heads, d].
            scoring: how the layer attends.
        """
        ...

    def move_rows(
        self,
        caches: Sequence[torch.Tensor],
        sources: torch.Tensor,
        targets: torch.Tensor,
        *,
        layout: str,
    ) -> None:
        """Copies keys and values from slots to slots, [moves] int64, in every cache.

        No source may come after a move that has it as target.
        """
        ...

    def top_tokens(self, logits: torch.Tensor, count: int) -> torch.Tensor:
        """Returns the likeliest tokens of each row, best first, [rows, count] int64.

        Where fewer are possible at all, the others are arbitrary.
        """
        ...
