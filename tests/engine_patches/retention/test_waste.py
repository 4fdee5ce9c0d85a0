"""The waste formulas against numbers computed by hand, and their limits."""

from __future__ import annotations

import pytest
from adaseek_vllm.retention import waste
from hypothesis import given
from hypothesis import strategies as st

# Seconds a token and a step, of the two models that InferCept's code has constants for.
GPT_J_6B = waste.StepCost(fixed_s=0.010, per_token_s=0.0463e-3)
VICUNA_13B_TP2 = waste.StepCost(fixed_s=0.0154, per_token_s=0.0279e-3)
COST = waste.StepCost(fixed_s=0.01, per_token_s=0.001)


def test_preserve_is_memory_times_pause() -> None:
    assert waste.preserve_waste(1500, 0.7) == pytest.approx(1050)


def test_discard_pays_its_own_memory_and_everybody_elses() -> None:
    # One step of 100 tokens takes 0.01 + 0.1 = 0.11 s; 100 own and 900 other tokens wait for it.
    assert waste.discard_waste(100, 900, COST) == pytest.approx(0.11 * 1000)


def test_chunked_discard_by_hand() -> None:
    # Own: 0.11 s over 100 tokens that grow from nothing, 5.5. Others: four steps of 0.035 s.
    assert waste.chunked_discard_waste(100, 900, 25, COST) == pytest.approx(5.5 + 0.14 * 900)


def test_swap_pays_both_directions_for_the_whole_batch() -> None:
    assert waste.swap_waste(5000, 0.02) == pytest.approx(200)


def test_recompute_beside_others_charges_them_only_what_it_adds() -> None:
    # Four chunks: own (4 * 0.01 + 0.1) * 100 / 2 = 7; others 0.1 s * 900 = 90.
    assert waste.recompute_waste(100, 900, 25, COST) == pytest.approx(97)


def test_recompute_of_a_long_context_pays_for_its_attention() -> None:
    cost = waste.StepCost(0.0, 0.0, per_context_token_s=1e-6)
    # 1000 tokens attend to 500 on average: 0.5 s.
    assert cost.added_s(1000) == pytest.approx(0.5)
    assert waste.recompute_waste(1000, 100, 1000, cost) == pytest.approx(0.25 * 1000 + 50)


@pytest.mark.parametrize("context", [763, 1418, 2001])
@pytest.mark.parametrize(
    ("cost", "running", "low", "high"),
    [
        (GPT_J_6B, 5_000, 0.25, 0.31),
        (GPT_J_6B, 20_000, 0.94, 1.00),
        (GPT_J_6B, 50_000, 2.3, 2.4),
        (VICUNA_13B_TP2, 5_000, 0.15, 0.21),
        (VICUNA_13B_TP2, 20_000, 0.57, 0.63),
        (VICUNA_13B_TP2, 50_000, 1.40, 1.46),
    ],
)
def test_break_even_pause_is_set_by_the_load_not_by_the_context(
    cost: waste.StepCost, running: int, low: float, high: float, context: int
) -> None:
    theirs = waste.infercept_discard_waste(context, running, 0, cost) / context
    ours = waste.break_even_s(context, running, 384, cost)
    for value in (theirs, ours):
        assert low - 0.02 <= value <= high + 0.02
    assert ours == pytest.approx(cost.per_token_s * running, abs=0.1)


def test_released_rule_by_hand() -> None:
    # Chunks of 100 beside 284 tokens in flight: two full ones and a last one of 50.
    cost = waste.StepCost(fixed_s=0.0, per_token_s=1e-3)
    own, stalled, last = 0.384 * 3 * 2 / 2 * 100, 0.1 * 2 * 1000, 1e-3 * 50 * 1050
    expected = own + stalled + last
    assert waste.infercept_discard_waste(250, 1000, 284, cost) == pytest.approx(expected)


def test_nothing_costs_nothing() -> None:
    assert waste.recompute_waste(0, 1000, 100, COST) == 0
    assert waste.chunked_discard_waste(0, 1000, 100, COST) == 0
    assert waste.break_even_s(0, 1000, 100, COST) == 0
    assert waste.infercept_discard_waste(0, 1000, 0, COST) == 0


@given(
    context=st.integers(1, 20_000),
    more=st.integers(1, 20_000),
    running=st.integers(0, 100_000),
    chunk=st.integers(1, 4096),
)
def test_waste_grows_with_context_and_load_and_chunks_never_hurt(
    context: int, more: int, running: int, chunk: int
) -> None:
    base = waste.recompute_waste(context, running, chunk, COST)
    assert 0 < base <= waste.recompute_waste(context + more, running, chunk, COST)
    assert base <= waste.recompute_waste(context, running + more, chunk, COST)
    assert waste.recompute_waste(context, running, chunk + more, COST) <= base
