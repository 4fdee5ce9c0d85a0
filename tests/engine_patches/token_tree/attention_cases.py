"""Trees over a paged KV cache, and vLLM's own kernel on each of their branches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from adaseek_vllm.token_tree import TreeTokens
from adaseek_vllm.token_tree.kernels import Kernel, TorchKernel, compiled_kernel
from adaseek_vllm.token_tree.step import RequestTree, TreeStep
from vllm import _custom_ops as ops

BLOCK = 32


@dataclass
class Case:
    """One request: `num_context` tokens, then a tree, in scattered blocks of a paged cache."""

    num_context: int
    tokens: TreeTokens
    num_kv_heads: int = 2
    groups: int = 3
    size: int = 64
    dtype: torch.dtype = torch.float32
    seed: int = 0
    layout: str = "vec"

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator).to(self.dtype)

        self.tree = RequestTree(0, 0, self.num_context, self.tokens)
        self.num_tokens = self.num_context + self.tree.num_rows
        self.key = normal(self.num_tokens, self.num_kv_heads, self.size)
        self.value = normal(self.num_tokens, self.num_kv_heads, self.size)
        self.query = normal(self.tree.num_rows, self.num_kv_heads * self.groups, self.size)
        self.scale = self.size**-0.5

    def cache(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns a cache that holds these rows, and its blocks in the request's order."""
        num_blocks = -(-len(key) // BLOCK)
        blocks = torch.arange(num_blocks, dtype=torch.int32).flip(0) * 2 + 1
        # What no row has written must not matter.
        shape = (2 * num_blocks + 1, self.num_kv_heads, BLOCK, 2 * self.size)
        cache = torch.full(shape, 1e3, dtype=self.dtype)
        slots = torch.arange(len(key))
        slots = blocks[slots // BLOCK].long() * BLOCK + slots % BLOCK
        ops.cpu_attn_reshape_and_cache(key, value, *halves(cache), slots, self.layout)
        return cache, blocks

    def along_branches(self, *, softcap: float = 0.0, window: int = -1) -> torch.Tensor:
        """vLLM's kernel, causal, on the chain from the context down to each row."""
        return torch.stack([self._branch(row, softcap, window) for row in range(len(self.query))])

    def _branch(self, row: int, softcap: float, window: int) -> torch.Tensor:
        path = np.flatnonzero(self.tree.mask[row])
        kept = torch.cat(
            [torch.arange(self.num_context), torch.from_numpy(path) + self.num_context]
        )
        cache, blocks = self.cache(self.key[kept], self.value[kept])
        query = self.query[row : row + 1]
        lengths = torch.tensor([len(kept)], dtype=torch.int32)
        starts = torch.tensor([0, 1], dtype=torch.int32)
        heads = self.num_kv_heads * self.groups
        plan = ops.cpu_attn_get_scheduler_metadata(
            num_reqs=1,
            num_heads=heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.size,
            seq_lens=lengths,
            dtype=self.dtype,
            query_start_loc=starts,
            causal=True,
            sliding_window_size=window,
            isa=self.layout,
            enable_kv_split=False,
        )
        output = torch.empty_like(query)
        ops.cpu_attention_with_kv_cache(
            query=query,
            key_cache=halves(cache)[0],
            value_cache=halves(cache)[1],
            output=output,
            query_start_loc=starts,
            seq_lens=lengths,
            scale=self.scale,
            causal=True,
            alibi_slopes=None,
            sliding_window=window,
            block_table=blocks[None],
            softcap=softcap,
            scheduler_metadata=plan,
            s_aux=None,
        )
        return output[0]


def halves(cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The cache as vLLM passes it to its kernels."""
    num_blocks, num_kv_heads, block, _ = cache.shape
    keys, values = cache.view(num_blocks, num_kv_heads, 2 * block, -1).chunk(2, dim=2)
    return keys, values


def random_tree(num_nodes: int, seed: int) -> TreeTokens:
    rng = np.random.default_rng(seed)
    return TreeTokens(range(num_nodes), [int(rng.integers(-1, node)) for node in range(num_nodes)])


def kernel_of(name: str) -> Kernel:
    """Plain torch, or the C++ kernel; a machine of ours without a compiler is broken."""
    if name == "torch":
        return TorchKernel()
    compiled = compiled_kernel()
    assert compiled is not None
    return compiled


def attend(
    case: Case,
    kernel: Kernel,
    *,
    tree: RequestTree | None = None,
    softcap: float = 0.0,
    window: int = -1,
) -> torch.Tensor:
    cache, blocks = case.cache(case.key, case.value)
    output = torch.full_like(case.query, 77.0)
    kernel.attend(
        case.query,
        cache,
        blocks[None],
        TreeStep((tree or case.tree,)),
        output,
        layout=case.layout,
        scale=case.scale,
        softcap=softcap,
        window=window,
    )
    return output


def dense(case: Case) -> torch.Tensor:
    """Attention in float64, written down as the formula has it."""
    mask = torch.cat(
        [
            torch.ones(case.tree.num_rows, case.num_context, dtype=torch.bool),
            torch.from_numpy(case.tree.mask),
        ],
        dim=1,
    )
    key = case.key.double().repeat_interleave(case.groups, dim=1)
    value = case.value.double().repeat_interleave(case.groups, dim=1)
    scores = torch.einsum("rhd,nhd->hrn", case.query.double(), key) * case.scale
    weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
    return torch.einsum("hrn,nhd->rhd", weights, value)
