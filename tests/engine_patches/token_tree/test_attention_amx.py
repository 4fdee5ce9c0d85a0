"""Tree attention over caches for Intel's matrix units, whose rounding is vLLM's own."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm._custom_ops")

from adaseek_vllm.token_tree.kernels import Kernel, best_kernel, compiled_kernel  # noqa: E402
from attention_cases import Case, attend, dense, kernel_of, random_tree  # noqa: E402

pytestmark = pytest.mark.skipif(
    not torch.cpu._is_amx_tile_supported(),
    reason="vLLM's kernels for matrix units need a CPU with AMX",
)


@pytest.fixture(params=["torch", "compiled"])
def kernel(request: pytest.FixtureRequest) -> Kernel:
    return kernel_of(request.param)


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


@pytest.mark.usefixtures("one_thread")
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


def test_best_kernel_reads_the_layout_of_matrix_units_on_a_cpu_that_has_them() -> None:
    compiled = compiled_kernel()
    assert compiled is not None
    assert compiled.reads_amx
    assert best_kernel("amx") is compiled


@pytest.mark.parametrize("window", [-1, 40])
def test_softcap_in_the_layout_of_matrix_units(kernel: Kernel, window: int) -> None:
    case = Case(50, random_tree(40, 5), dtype=torch.bfloat16, layout="amx")
    expected = case.along_branches(softcap=5.0, window=window)
    found = attend(case, kernel, softcap=5.0, window=window)
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
