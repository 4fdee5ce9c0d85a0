"""Cost of copies, by hand."""

from __future__ import annotations

import pytest
from adaseek_vllm.retention.host_costs import CopyRate, HostCost, host_waste


def test_waste_is_memory_held_while_copies_are_made() -> None:
    cost = HostCost(out_s=1e-3, in_s=2e-3)
    # Out: 100 tokens for 0.1 s at half price; back: 200 tokens for 0.4 s, if it has to be.
    waste = host_waste(200, 100, cost, memory_price=0.5, load_probability=0.25)
    assert waste == pytest.approx(0.5 * 100 * 0.1 + 0.25 * 200 * 0.4)


def test_queue_makes_a_context_wait_for_its_turn() -> None:
    alone, behind = (HostCost(1e-3, 0.0, queued_tokens=queued) for queued in (0, 900))
    wastes = [
        host_waste(100, 100, cost, memory_price=1.0, load_probability=1.0)
        for cost in (alone, behind)
    ]
    assert wastes[1] == pytest.approx(10 * wastes[0])


def test_idle_memory_makes_copying_out_free() -> None:
    cost = HostCost(1.0, 0.0)
    assert host_waste(100, 100, cost, memory_price=0.0, load_probability=1.0) == 0.0


def test_rate_takes_the_first_copy_for_true_and_follows_the_others() -> None:
    rate = CopyRate()
    rate.observe(0, 1.0)
    rate.observe(5, 0.0)
    assert rate.num_samples == 0
    rate.observe(1000, 1.0)
    assert rate.bytes_per_s == 1000
    rate.observe(2000, 1.0)
    assert rate.bytes_per_s == pytest.approx(1200)
