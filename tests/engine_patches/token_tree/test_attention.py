"""Tree attention against vLLM's own kernel on every branch as a request of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
ops = pytest.importorskip("vllm._custom_ops")

from adaseek_vllm.token_tree import TreeTokens, layouts  # noqa: E402
from adaseek_vllm.token_tree.attention import allowed_keys  # noqa: E402
from adaseek_vllm.token_tree.kernels import Kernel, TorchKernel, compiled_kernel  # noqa: E402
from adaseek_vllm.token_tree.step import RequestTree, TreeStep  # noqa: E402
from attention_cases import (  # noqa: E402
    BLOCK,
    Case,
    attend,
    dense,
    halves,
    kernel_of,
    random_tree,
)


@pytest.fixture(params=["torch", "compiled"])
def kernel(request: pytest.FixtureRequest) -> Kernel:
    return kernel_of(request.param)


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
        # Many equally likely ones, wherever threads and vectors part the row.
        logits[2] = (logits[2] * 2).round() / 2
        logits[3] = 0.0
        top = kernel.top_tokens(logits, 6)
        assert torch.equal(logits.gather(1, top), logits.topk(6).values)
        if kernel.takes_first_of_equals:
            assert torch.equal(top[:, 0], logits.float().argmax(1))


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
