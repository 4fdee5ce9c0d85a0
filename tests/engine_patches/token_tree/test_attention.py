"""Tree attention against vLLM's own kernel on every branch as a request of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
ops = pytest.importorskip("vllm._custom_ops")

from adaseek_vllm.token_tree import TreeTokens  # noqa: E402
from adaseek_vllm.token_tree.attention import allowed_keys  # noqa: E402
from adaseek_vllm.token_tree.kernels import compiled_kernel, tree_attention  # noqa: E402
from adaseek_vllm.token_tree.step import RequestTree  # noqa: E402

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
        ops.cpu_attn_reshape_and_cache(key, value, *halves(cache), slots, "vec")
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
            isa="vec",
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


@pytest.fixture(params=["torch", "compiled"])
def kernel(request: pytest.FixtureRequest) -> Any:
    """None for plain torch, or the C++ kernel; a machine of ours without a compiler is broken."""
    if request.param == "torch":
        return None
    compiled = compiled_kernel()
    assert compiled is not None
    return compiled


def attend(
    case: Case,
    kernel: Any,
    *,
    tree: RequestTree | None = None,
    softcap: float = 0.0,
    window: int = -1,
) -> torch.Tensor:
    cache, blocks = case.cache(case.key, case.value)
    output = torch.full_like(case.query, 77.0)
    tree_attention(
        case.query,
        cache,
        blocks,
        tree or case.tree,
        output,
        scale=case.scale,
        softcap=softcap,
        window=window,
        kernel=kernel,
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


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("num_context", [0, 1, 20, 31, 63, 100])
def test_every_row_attends_to_its_branch(kernel: Any, num_context: int, seed: int) -> None:
    case = Case(num_context, random_tree(3 + 7 * seed, seed), seed=seed)
    torch.testing.assert_close(attend(case, kernel), case.along_branches(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", range(30))
def test_random_cases_equal_float64(kernel: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    case = Case(
        int(rng.integers(0, 300)),
        random_tree(int(rng.integers(1, 127)), seed),
        num_kv_heads=int(rng.integers(1, 4)),
        groups=int(rng.integers(1, 9)),
        size=int(rng.choice([32, 64, 80, 96, 128, 256])),
        seed=seed,
    )
    found = attend(case, kernel).double()
    torch.testing.assert_close(found, dense(case), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(kernel: Any, dtype: torch.dtype) -> None:
    case = Case(70, random_tree(12, 5), dtype=dtype)
    torch.testing.assert_close(attend(case, kernel), case.along_branches(), rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(attend(case, kernel).double(), dense(case), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("softcap", [0.0, 5.0])
@pytest.mark.parametrize("window", [-1, 8, 40])
def test_window_counts_depths_and_softcap_bounds(kernel: Any, window: int, softcap: float) -> None:
    case = Case(50, random_tree(12, 5))
    expected = case.along_branches(softcap=softcap, window=window)
    found = attend(case, kernel, softcap=softcap, window=window)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_control_a_causal_mask_is_noticed(kernel: Any) -> None:
    tree = random_tree(12, 5)
    case = Case(50, tree)
    wrong = attend(case, kernel, tree=RequestTree(0, 0, 50, TreeTokens(tree)))
    assert (wrong - case.along_branches()).abs().max() > 0.1


def test_chain_is_causal() -> None:
    allowed = allowed_keys(RequestTree(0, 0, 2, TreeTokens([4, 5])))
    assert torch.equal(allowed, torch.ones(3, 5, dtype=torch.bool).tril(2))


def test_without_a_compiler_plain_torch_is_used_and_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def load(**_arguments: Any) -> None:
        raise RuntimeError("Ninja is required to load C++ extensions")

    monkeypatch.setattr("torch.utils.cpp_extension.load", load)
    assert compiled_kernel.__wrapped__() is None
    assert "could not be built" in caplog.text
