"""Runs the Triton kernel in Triton's interpreter on random batches and prints errors as JSON.

A program of its own, because Triton must know that it interprets before it is imported.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
from adaseek_vllm.token_tree import TreeTokens
from adaseek_vllm.token_tree.kernels import gpu
from adaseek_vllm.token_tree.step import RequestTree, TreeStep
from interpreted_bfloat16 import multiply_bfloat16

UNTOUCHED = 77.0
LIMITS = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
# Around the borders of blocks and of tiles.
BORDERS = (0, 1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128)


@dataclass
class Batch:
    """A random batch: trees of many shapes among rows of prompts and of plain decoding."""

    seed: int
    dtype: torch.dtype = field(init=False)

    def __post_init__(self) -> None:
        self.rng = rng = np.random.default_rng(self.seed)
        self.dtype = list(LIMITS)[self.seed % 3]
        self.size = int(rng.choice([64, 64, 80, 96, 128, 256]))
        self.num_kv_heads = int(rng.choice([1, 1, 1, 2]))
        self.groups = int(rng.choice([1, 1, 2, 2, 3, 4, 6, 7, 8]))
        self.block_size = int(rng.choice([16, 32, 64]))
        self.heads_first = bool(rng.integers(2))
        self.softcap = float(rng.choice([0.0, 0.0, 5.0]))
        self.window = int(rng.choice([-1, -1, 5, 40]))
        self.num_parts = int(rng.choice([1, 1, 2, 4]))
        self.scale = self.size**-0.5
        self.trees = self._trees()
        self.num_rows = self.trees[-1].first_row + self.trees[-1].num_rows + 3
        self.num_requests = self.trees[-1].request + 2
        self._fill()

    def _trees(self) -> tuple[RequestTree, ...]:
        rng, trees = self.rng, list[RequestTree]()
        request, first_row = int(rng.integers(2)), int(rng.integers(0, 5))
        for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
            context = int(rng.choice(BORDERS) if rng.random() < 0.5 else rng.integers(0, 60))
            trees.append(RequestTree(request, first_row, context, self._tokens()))
            # Between two trees: a prompt's rows, a row of plain decoding, or none.
            first_row += trees[-1].num_rows + int(rng.choice([0, 1, 7]))
            request += int(rng.integers(1, 3))
        return tuple(trees)

    def _tokens(self) -> TreeTokens:
        rng = self.rng
        # The last has several words; with many heads it would take long.
        kinds = ["root", "chain", "wide", "random", "cut", "large"]
        kind = rng.choice(kinds[: 6 if self.groups == 1 else 5])
        num_nodes = int(rng.integers(64, 128) if kind == "large" else rng.integers(1, 9))
        parents = [int(rng.integers(-1, node)) for node in range(num_nodes)]
        if kind == "root":
            return TreeTokens()
        if kind == "chain":
            return TreeTokens(range(num_nodes))
        if kind == "wide":
            return TreeTokens(range(num_nodes), [-1] * num_nodes)
        tree = TreeTokens(range(num_nodes), parents)
        return tree[: num_nodes // 2] if kind == "cut" else tree

    def _fill(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator).to(self.dtype)

        lengths = {tree.request: tree.num_context_tokens + tree.num_rows for tree in self.trees}
        most_blocks = max(-(-length // self.block_size) for length in lengths.values())
        num_blocks = self.num_requests * most_blocks + 1
        shuffled = torch.randperm(num_blocks, generator=generator).int()
        self.table = shuffled[1:].view(self.num_requests, most_blocks)
        self.query = normal(self.num_rows, self.num_kv_heads * self.groups, self.size)
        # What no row has written must not matter.
        shape = (num_blocks, self.num_kv_heads, self.block_size, 2 * self.size)
        self.cache = torch.full(shape, float("nan"), dtype=self.dtype)
        self.rows = dict[int, torch.Tensor]()
        for request, length in lengths.items():
            self.rows[request] = normal(length, self.num_kv_heads, 2 * self.size)
            slots = torch.arange(length)
            blocks = self.table[request, slots // self.block_size].long()
            self.cache[blocks, :, slots % self.block_size] = self.rows[request]
        if not self.heads_first:
            self.cache = self.cache.transpose(1, 2).contiguous().transpose(1, 2)

    def expected(self) -> torch.Tensor:
        """Attention in float64, written down as the formula has it."""
        output = torch.full(self.query.shape, UNTOUCHED, dtype=torch.float64)
        for tree in self.trees:
            rows = slice(tree.first_row, tree.first_row + tree.num_rows)
            output[rows] = self._expected(tree, self.query[rows].double())
        return output

    def _expected(self, tree: RequestTree, query: torch.Tensor) -> torch.Tensor:
        key, value = self.rows[tree.request].double().split(self.size, dim=-1)
        key, value = (part.repeat_interleave(self.groups, dim=1) for part in (key, value))
        scores = torch.einsum("rhd,nhd->hrn", query, key) * self.scale
        if self.softcap:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        weights = scores.masked_fill(~self._seen(tree), float("-inf")).softmax(dim=-1)
        return torch.einsum("hrn,nhd->rhd", weights, value)

    def _seen(self, tree: RequestTree) -> torch.Tensor:
        """Which tokens each row sees, by walking from each row up to the root."""
        context = tree.num_context_tokens
        seen = torch.zeros(tree.num_rows, context + tree.num_rows, dtype=torch.bool)
        for row in range(tree.num_rows):
            path = [row]
            while path[-1]:
                path.append(tree.tokens.parents[path[-1] - 1] + 1)
            # The path as a chain: the window counts its tokens and the context's.
            chain = [*range(context), *(context + node for node in reversed(path))]
            seen[row, chain[-self.window :] if self.window > 0 else chain] = True
        return seen

    def attend(self, table: torch.Tensor, step: TreeStep) -> torch.Tensor:
        gpu.num_parts = lambda *_: self.num_parts
        output = torch.full_like(self.query, UNTOUCHED)
        gpu.TritonKernel(num_processors=1).attend(
            self.query,
            self.cache,
            table,
            step,
            output,
            layout="slots",
            scale=self.scale,
            softcap=self.softcap,
            window=self.window,
        )
        return output

    def result(self) -> dict[str, Any]:
        """The error of the kernel, its limit, and what the batch covers."""
        found, expected = self.attend(self.table, TreeStep(self.trees)), self.expected()
        return {
            "error": error(found, expected),
            "limit": LIMITS[self.dtype],
            "dtype": str(self.dtype),
            "size": self.size,
            "groups": self.groups,
            "trees": len(self.trees),
            "words": max(tree.words.shape[1] for tree in self.trees),
            "parts": self.num_parts,
            "softcap": self.softcap > 0,
            "window": self.window > 0,
            "root only": any(tree.num_rows == 1 for tree in self.trees),
            "no context": any(tree.num_context_tokens == 0 for tree in self.trees),
        }

    def with_wrong_bit(self) -> dict[str, Any] | None:
        """The error if one row sees one node that is no ancestor; None without such a node."""
        step, offset = TreeStep(self.trees), 0
        places, words, depths = step.tensors
        words = words.clone()
        for tree in self.trees:
            unseen = np.argwhere(~tree.mask & np.tri(tree.num_rows, dtype=bool))
            # Not the sign, which takes more than a shift to set.
            unseen = unseen[unseen[:, 1] % 32 < 31]
            if len(unseen) and self.window < 0:
                row, node = self.rng.choice(unseen)
                words.view(torch.int32)[offset + row, node // 32] ^= 1 << int(node % 32)
                vars(step)["tensors"] = places, words, depths
                return {"error": error(self.attend(self.table, step), self.expected())}
            offset += tree.num_rows
        return None

    def with_shifted_blocks(self) -> dict[str, Any] | None:
        """The error if block tables are off by one; None where each sequence has one block."""
        if self.table.shape[1] == 1 or self.window > 0:
            return None
        # So that it is wrong keys and values that are noticed, not unwritten ones.
        self.cache.nan_to_num_(nan=0.0)
        found = self.attend(self.table.roll(1, dims=1), TreeStep(self.trees))
        return {"error": error(found, self.expected())}


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference; infinite if there is a NaN, or a row that is none was written."""
    difference = (found.double() - expected).abs()
    return float(difference.nan_to_num(nan=float("inf")).max())


def controls(name: str, count: int) -> list[dict[str, Any]]:
    found = list[dict[str, Any]]()
    for seed in range(10_000):
        if len(found) == count:
            break
        batch = Batch(seed)
        if batch.dtype == torch.float32 and (result := getattr(batch, name)()) is not None:
            found.append(result | {"limit": LIMITS[batch.dtype]})
    return found


if __name__ == "__main__":
    multiply_bfloat16()
    results = {
        "cases": [Batch(seed).result() for seed in range(int(sys.argv[1]))],
        "wrong bit": controls("with_wrong_bit", 15),
        "shifted blocks": controls("with_shifted_blocks", 15),
    }
    print("RESULTS " + json.dumps(results))
