"""The kernel in plain torch, for any device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import torch

from adaseek_vllm.token_tree import layouts
from adaseek_vllm.token_tree.attention import tree_attention
from adaseek_vllm.token_tree.kernels.interface import Scoring
from adaseek_vllm.token_tree.step import TreeStep

__all__ = ["TorchKernel"]


class TorchKernel:
    """Runs anywhere."""

    takes_first_of_equals = False

    def attend(
        self,
        query: torch.Tensor,
        cache: torch.Tensor,
        block_table: torch.Tensor,
        step: TreeStep,
        output: torch.Tensor,
        **scoring: Unpack[Scoring],
    ) -> None:
        for tree in step.trees:
            rows = slice(tree.first_row, tree.first_row + tree.num_rows)
            blocks = block_table[tree.request]
            output[rows] = tree_attention(query[rows], cache, blocks, tree, **scoring)

    def move_rows(
        self,
        caches: Sequence[torch.Tensor],
        sources: torch.Tensor,
        targets: torch.Tensor,
        *,
        layout: str,
    ) -> None:
        for cache in caches:
            layouts.move_rows(cache, sources, targets, layout)

    def top_tokens(self, logits: torch.Tensor, count: int) -> torch.Tensor:
        return logits.topk(count).indices
