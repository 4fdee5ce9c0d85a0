"""Tree attention against vLLM's own kernel on every branch as a request of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
ops = pytest.importorskip("vllm._custom_ops")

from adaseek_vllm.token_tree import TreeTokens, layouts  # noqa: E402
from adaseek_vllm.token_tree.attention import allowed_keys  # noqa: E402
from adaseek_vllm.token_tree.kernels import (  # noqa: E402
    Kernel,
    TorchKernel,
    best_kernel,
    compiled_kernel,
)
from adaseek_vllm.token_tree.step import RequestTree, TreeStep  # noqa: E402

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


@pytest.fixture(params=["torch", "compiled"])
def kernel(request: pytest.FixtureRequest) -> Kernel:
    """Plain torch, or the C++ kernel; a machine of ours without a compiler is broken."""
    if request.param == "torch":
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


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("num_context", [0, 1, 20, 31, 63, 100])
def test_every_row_attends_to_its_branch(kernel: Kernel, num_context: int, seed: int) -> None:
    case = Case(num_context, random_tree(3 + 7 * seed, seed), seed=seed)
    torch.testing.assert_close(attend(case, kernel), case.along_branches(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", range(30))
def test_random_cases_equal_float64(kernel: Kernel, seed: int) -> None:
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
def test_half_precision(kernel: Kernel, dtype: torch.dtype) -> None:
    case = Case(70, random_tree(12, 5), dtype=dtype)
    torch.testing.assert_close(attend(case, kernel), case.along_branches(), rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(attend(case, kernel).double(), dense(case), rtol=2e-2, atol=2e-2)


@pytest.fixture
def needs_amx() -> None:
    if not torch.cpu._is_amx_tile_supported():
        pytest.skip("vLLM's kernels for matrix units need a CPU with AMX")


@pytest.mark.usefixtures("needs_amx")
@pytest.mark.parametrize("seed", range(12))
def test_layout_of_matrix_units(kernel: Kernel, seed: int) -> None:
    rng = np.random.default_rng(seed)
    case = Case(
        int(rng.integers(0, 700)),
        random_tree(int(rng.integers(1, 90)), seed),
        num_kv_heads=int(rng.integers(1, 4)),
        groups=int(rng.integers(1, 8)),
        size=int(rng.choice([32, 64, 96, 128])),
        dtype=torch.bfloat16,
        layout="amx",
        seed=seed,
    )
    found = attend(case, kernel)
    torch.testing.assert_close(found.double(), dense(case), rtol=2e-2, atol=2e-2)


@pytest.mark.usefixtures("needs_amx")
@pytest.mark.parametrize("num_context", [4090, 8200])
def test_matrix_units_over_several_tiles_of_a_long_text(num_context: int) -> None:
    case = Case(num_context, random_tree(20, 1), dtype=torch.bfloat16, layout="amx", num_kv_heads=1)
    compiled = compiled_kernel()
    assert compiled is not None
    found = attend(case, compiled)
    torch.testing.assert_close(found.double(), dense(case), rtol=2e-2, atol=2e-2)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Both kernels give the parts of a long text to several threads, and add them up after."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.mark.usefixtures("needs_amx", "one_thread")
@pytest.mark.parametrize("seed", range(20))
def test_matrix_units_give_each_row_the_bits_of_plain_decoding(seed: int) -> None:
    """Else answers in bfloat16 part from plain decoding more often than with linear drafts."""
    rng = np.random.default_rng(seed)
    case = Case(
        int(rng.integers(0, 700)),
        random_tree(int(rng.integers(1, 90)), seed),
        num_kv_heads=int(rng.integers(1, 4)),
        groups=int(rng.choice([1, 2, 3, 4, 6, 7, 8, 20])),
        size=int(rng.choice([32, 64, 96, 128, 256])),
        dtype=torch.bfloat16,
        layout="amx",
        seed=seed,
    )
    window = int(rng.choice([-1, 8, 40, 300]))
    compiled = compiled_kernel()
    assert compiled is not None
    found = attend(case, compiled, window=window)
    assert torch.equal(found, case.along_branches(window=window))


@pytest.mark.usefixtures("needs_amx")
def test_best_kernel_reads_the_layout_of_matrix_units_on_a_cpu_that_has_them() -> None:
    compiled = compiled_kernel()
    assert compiled is not None
    assert compiled.reads_amx
    assert best_kernel("amx") is compiled


def test_rows_of_other_requests_are_left_alone(kernel: Kernel) -> None:
    """Two trees between rows that are none, queries with gaps between rows."""
    cases = [Case(40, random_tree(5, 1)), Case(170, random_tree(70, 2), seed=1)]
    parts = [case.cache(case.key, case.value) for case in cases]
    cache = torch.cat([part for part, _ in parts])
    table = torch.zeros(3, 9, dtype=torch.int32)
    table[0, : len(parts[0][1])] = parts[0][1]
    table[2, : len(parts[1][1])] = parts[1][1] + len(parts[0][0])
    query = torch.zeros(90, cases[0].query.shape[1] + 2, 64)[:, :-2]
    trees, first_row = [], 3
    for request, case in zip((0, 2), cases, strict=True):
        query[first_row : first_row + case.tree.num_rows] = case.query
        trees.append(RequestTree(request, first_row, case.num_context, case.tokens))
        first_row += case.tree.num_rows + 2
    output = torch.full(query.shape, 77.0)
    kernel.attend(
        query,
        cache,
        table,
        TreeStep(tuple(trees)),
        output,
        layout="vec",
        scale=cases[0].scale,
        softcap=0.0,
        window=-1,
    )
    for tree, case in zip(trees, cases, strict=True):
        rows = slice(tree.first_row, tree.first_row + tree.num_rows)
        torch.testing.assert_close(output[rows].double(), dense(case), rtol=1e-4, atol=1e-5)
        output[rows] = 77.0
    assert (output == 77.0).all()


@pytest.mark.parametrize(
    ("layout", "dtype"), [("vec", torch.float32), ("vec", torch.bfloat16), ("amx", torch.bfloat16)]
)
def test_moved_rows_are_what_vllm_would_have_written(
    kernel: Kernel, layout: str, dtype: torch.dtype
) -> None:
    shape = (3, 2, BLOCK, 128)
    rows = torch.randn(3 * BLOCK, 2, 64).to(dtype)
    before, expected = (torch.zeros(shape, dtype=dtype) for _ in range(2))
    slots = torch.arange(len(rows))
    ops.cpu_attn_reshape_and_cache(rows, rows * 2, *halves(before), slots, layout)
    # The columns of a matrix, as a step's moves come.
    sources, targets = torch.tensor([[9, 8], [40, 9], [95, 33]]).T
    wanted = rows.clone()
    wanted[targets] = rows[sources]
    ops.cpu_attn_reshape_and_cache(wanted, wanted * 2, *halves(expected), slots, layout)
    kernel.move_rows([before], sources, targets, layout=layout)
    assert torch.equal(before, expected)


def test_plain_torch_reads_the_layout_of_gpus() -> None:
    case = Case(70, random_tree(12, 5), size=80)
    cache, blocks = case.cache(case.key, case.value)
    output = torch.empty_like(case.query)
    TorchKernel().attend(
        case.query,
        torch.cat(layouts.by_slot(cache, "vec"), dim=-1),
        blocks[None],
        TreeStep((case.tree,)),
        output,
        layout=layouts.GPU_LAYOUT,
        scale=case.scale,
        softcap=0.0,
        window=-1,
    )
    torch.testing.assert_close(output.double(), dense(case), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("heads_first", [True, False])
def test_moved_rows_in_the_layout_of_gpus(heads_first: bool) -> None:
    rows = torch.randn(3, BLOCK, 2, 160)
    cache = rows.transpose(1, 2)
    if heads_first:
        cache = cache.contiguous()
    expected = rows.flatten(0, 1).clone()
    sources, targets = torch.tensor([[9, 8], [40, 9], [95, 33]]).T
    expected[targets] = expected[sources]
    TorchKernel().move_rows([cache], sources, targets, layout=layouts.GPU_LAYOUT)
    assert torch.equal(cache.transpose(1, 2).flatten(0, 1), expected)


@pytest.mark.parametrize("softcap", [0.0, 5.0])
@pytest.mark.parametrize("window", [-1, 8, 40])
def test_window_counts_depths_and_softcap_bounds(
    kernel: Kernel, window: int, softcap: float
) -> None:
    case = Case(50, random_tree(12, 5))
    expected = case.along_branches(softcap=softcap, window=window)
    found = attend(case, kernel, softcap=softcap, window=window)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("needs_amx")
@pytest.mark.parametrize("window", [-1, 40])
def test_softcap_in_the_layout_of_matrix_units(kernel: Kernel, window: int) -> None:
    case = Case(50, random_tree(40, 5), dtype=torch.bfloat16, layout="amx")
    expected = case.along_branches(softcap=5.0, window=window)
    found = attend(case, kernel, softcap=5.0, window=window)
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


def test_control_a_causal_mask_is_noticed(kernel: Kernel) -> None:
    tree = random_tree(12, 5)
    case = Case(50, tree)
    wrong = attend(case, kernel, tree=RequestTree(0, 0, 50, TreeTokens(tree)))
    assert (wrong - case.along_branches()).abs().max() > 0.1


def test_chain_is_causal() -> None:
    allowed = allowed_keys(RequestTree(0, 0, 2, TreeTokens([4, 5])))
    assert torch.equal(allowed, torch.ones(3, 5, dtype=torch.bool).tril(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_top_tokens_are_the_likeliest(kernel: Kernel, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    for vocabulary in (7, 128, 1000, 5003):
        logits = torch.randn(5, vocabulary + 3, generator=generator).to(dtype)[:, :-3]
        logits[1] = torch.linspace(-1, 1, vocabulary).to(dtype)
        scores = logits.gather(1, kernel.top_tokens(logits, 6))
        assert torch.equal(scores, logits.topk(6).values)


def test_top_tokens_of_a_masked_row_start_with_what_is_left(kernel: Kernel) -> None:
    logits = torch.full((2, 300), float("-inf"))
    logits[:, 200] = 1.0
    logits[1, 7] = 2.0
    top = kernel.top_tokens(logits, 4).tolist()
    assert top[0][0] == 200
    assert top[1][:2] == [7, 200]


def test_without_a_compiler_plain_torch_is_used_and_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def load(**_arguments: Any) -> None:
        raise RuntimeError("Ninja is required to load C++ extensions")

    monkeypatch.setattr("torch.utils.cpp_extension.load", load)
    assert compiled_kernel.__wrapped__() is None
    assert "could not be built" in caplog.text
