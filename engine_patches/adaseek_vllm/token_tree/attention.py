"""Attention of tree rows over a paged KV cache, in plain torch on any device.

Shape legend: r tree rows, h KV heads, g query heads per KV head, d head size, b blocks,
n tokens of the sequence (context, root, nodes).
"""

from __future__ import annotations

import torch

from adaseek_vllm.token_tree.layouts import read_blocks
from adaseek_vllm.token_tree.step import RequestTree

__all__ = ["allowed_keys", "tree_attention"]


def tree_attention(
    query_rhgd: torch.Tensor,
    kv_cache: torch.Tensor,
    block_ids_b: torch.Tensor,
    tree: RequestTree,
    *,
    layout: str,
    scale: float,
    softcap: float = 0.0,
    window: int = -1,
) -> torch.Tensor:
    """Returns the attention output of one request's tree rows, [r, h * g, d].

    Args:
        query_rhgd: queries of the rows, [r, h * g, d].
        kv_cache: one layer's cache, [blocks, h, s, 2 * d]; holds the rows' own keys and values.
        block_ids_b: the request's blocks.
        tree: the tree.
        layout: one of `layouts.LAYOUTS`.
        scale: factor of the dot products.
        softcap: bound c of c * tanh(x / c); 0 means none.
        window: keys at this distance or further are not seen; negative means none.
    """
    num_rows, num_heads, size = query_rhgd.shape
    num_kv_heads, block_size = kv_cache.shape[1], kv_cache.shape[2]
    num_tokens = tree.num_context_tokens + tree.num_rows
    num_blocks = -(-num_tokens // block_size)
    keys_hnd, values_hnd = (
        rows[:, :num_tokens] for rows in read_blocks(kv_cache, block_ids_b[:num_blocks], layout)
    )
    query_hqd = query_rhgd.view(num_rows, num_kv_heads, -1, size).transpose(0, 1)
    query_hqd = query_hqd.reshape(num_kv_heads, -1, size).float() * scale
    scores_hqn = query_hqd @ keys_hnd.float().transpose(1, 2)
    if softcap > 0:
        scores_hqn = softcap * torch.tanh(scores_hqn / softcap)
    groups = num_heads // num_kv_heads
    seen_qn = allowed_keys(tree, window=window).repeat_interleave(groups, dim=0)
    scores_hqn.masked_fill_(~seen_qn.to(scores_hqn.device), float("-inf"))
    output_hqd = torch.softmax(scores_hqn, dim=-1) @ values_hnd.float()
    output_rhgd = output_hqd.view(num_kv_heads, num_rows, groups, size).transpose(0, 1)
    return output_rhgd.reshape(num_rows, num_heads, size).to(query_rhgd.dtype)


def allowed_keys(tree: RequestTree, *, window: int = -1) -> torch.Tensor:
    """Which tokens of the sequence each row sees, [r, n] bool."""
    num_context = tree.num_context_tokens
    context = torch.ones(tree.num_rows, num_context, dtype=torch.bool)
    allowed = torch.cat([context, torch.from_numpy(tree.mask)], dim=1)
    if window > 0:
        depth = torch.from_numpy(tree.depths).long()
        positions = torch.cat([torch.arange(num_context), num_context + depth])
        allowed &= (num_context + depth)[:, None] - positions[None, :] < window
    return allowed
