"""What is learned about step times, memory and churn."""

from __future__ import annotations

import numpy as np
import pytest
from adaseek_vllm.retention.costs import AdmissionWait, ChurnRate, MemoryPrice, StepCostModel
from adaseek_vllm.retention.waste import StepCost

PRIOR = StepCost(fixed_s=0.010, per_token_s=1e-4)


def feed(model: StepCostModel, true: StepCost, *, num_steps: int, noise: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(num_steps):
        prefill = int(rng.choice([0, 64, 256, 512]))
        decodes = int(rng.integers(1, 32))
        tokens, pairs = prefill + decodes, decodes * 1000.0 + prefill * prefill / 2
        seconds = true.fixed_s + true.per_token_s * tokens + true.per_context_token_s * pairs
        model.observe(tokens, pairs, seconds * (1 + noise * rng.standard_normal()))


def test_prior_is_used_until_thirty_steps_are_seen() -> None:
    model = StepCostModel(PRIOR)
    feed(model, StepCost(0.02, 4e-4), num_steps=29, noise=0.0, seed=0)
    assert model.cost == PRIOR
    feed(model, StepCost(0.02, 4e-4), num_steps=1, noise=0.0, seed=1)
    assert model.cost != PRIOR


def test_two_hundred_noisy_steps_give_the_cost_within_a_tenth() -> None:
    true = StepCost(0.02, 4e-4, 1e-7)
    model = StepCostModel(PRIOR)
    feed(model, true, num_steps=200, noise=0.1, seed=2)
    for tokens in (64, 256, 1024):
        assert model.cost.forward_s(tokens) == pytest.approx(true.forward_s(tokens), rel=0.1)


def test_fit_follows_a_machine_that_changes() -> None:
    model = StepCostModel(PRIOR, forgetting=0.99)
    feed(model, StepCost(0.02, 4e-4), num_steps=500, noise=0.05, seed=3)
    feed(model, StepCost(0.02, 8e-4), num_steps=500, noise=0.05, seed=4)
    assert model.cost.per_token_s == pytest.approx(8e-4, rel=0.15)


def test_a_step_that_compiles_is_left_out() -> None:
    model, twin = StepCostModel(PRIOR), StepCostModel(PRIOR)
    for each in (model, twin):
        feed(each, StepCost(0.02, 4e-4), num_steps=100, noise=0.0, seed=5)
    model.observe(16, 0.0, 30.0)
    assert model.cost == twin.cost


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_times_are_left_out(seconds: float) -> None:
    model = StepCostModel(PRIOR)
    model.observe(16, 0.0, seconds)
    model.observe(0, 0.0, 0.1)
    assert model.num_samples == 0


def test_coefficients_are_never_negative_and_survive_constant_steps() -> None:
    model = StepCostModel(PRIOR)
    for _ in range(20_000):
        model.observe(1, 0.0, 0.005)
    cost = model.cost
    assert min(cost.fixed_s, cost.per_token_s, cost.per_context_token_s) >= 0
    assert cost.forward_s(1) == pytest.approx(0.005, rel=0.01)


def test_price_of_memory_is_zero_idle_one_when_always_short_and_halves() -> None:
    price = MemoryPrice(half_life_s=2.0)
    price.observe(0.0, now_s=0.0)
    assert price.value == 0
    for step in range(1, 200):
        price.observe(1.0, now_s=step * 0.5)
    assert price.value == pytest.approx(1.0)
    last_s = 199 * 0.5
    price.observe(0.0, now_s=last_s + 2.0)
    assert price.value == pytest.approx(0.5)


def test_horizon_is_the_queue_over_the_rate() -> None:
    churn = ChurnRate(half_life_s=1.0)
    assert churn.horizon_s(100) == float("inf")
    for second in range(60):
        churn.observe(10, now_s=float(second))
    assert churn.horizon_s(100) == pytest.approx(10.0)
    churn.observe(10, now_s=59.0)  # no time has passed
    assert churn.horizon_s(100) == pytest.approx(10.0)


def test_only_what_holding_spares_counts_as_admission_wait() -> None:
    wait = AdmissionWait(weight=0.5)
    assert wait.extra_s == 0
    wait.observe(0.4, was_held=False)
    assert wait.extra_s == pytest.approx(0.4)
    wait.observe(0.1, was_held=True)
    assert wait.extra_s == pytest.approx(0.3)
    wait.observe(0.8, was_held=False)
    assert wait.extra_s == pytest.approx(0.6 - 0.1)
    wait.observe(9.0, was_held=True)
    assert wait.extra_s == 0
