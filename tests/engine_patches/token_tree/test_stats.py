"""The line that tells what trees did."""

from __future__ import annotations

import pytest
from adaseek_vllm.token_tree import TreeTokens, Verified
from adaseek_vllm.token_tree.stats import TreeStats


def test_line_holds_tokens_nodes_branching_sources_and_times() -> None:
    stats = TreeStats()
    chain, tree = TreeTokens([4, 5]), TreeTokens([4, 5, 6, 7], [-1, -1, 0, 1])
    stats.add([chain, tree], [Verified((9,), ()), Verified((4, 6, 8), (1, 3))])
    stats.credit({"suffix": 2, "recycling": 1})
    stats.seconds["walk"] += 0.004
    stats.compare(predicted_s=1.1, actual_s=1.0)
    stats.compare(predicted_s=0.7, actual_s=1.0)
    assert stats.describe() == (
        "Token trees: 2.00 tokens per step and request, 3.0 nodes, 50% branching; "
        "accepted 2 tokens (guessed by: recycling 1, suffix 2); per request: walk 2.00 ms; "
        "step cost off by 20%"
    )


def test_parts_of_a_step_are_timed() -> None:
    stats = TreeStats()
    for _ in range(2):
        with stats.timed("draft"):
            pass
    assert stats.seconds["draft"] > 0
    assert list(stats.seconds) == ["draft"]


def one_step() -> TreeStats:
    stats = TreeStats()
    stats.add([TreeTokens([4, 5, 6], [-1, -1, 0])], [Verified((4, 6, 8), (1, 3))])
    stats.credit({"suffix": 2})
    stats.seconds["walk"] += 0.25
    return stats


def test_merged_steps_add_up() -> None:
    total = TreeStats()
    for _ in range(2):
        total.merge(one_step())
    assert (total.num_requests, total.num_nodes, total.num_tokens) == (2, 6, 6)
    assert total.num_branching == 2
    assert total.accepted_depths == {2: 2}
    assert total.accepted_by_source == {"suffix": 4}
    assert total.seconds == {"walk": 0.5}


def test_counters_hold_all_steps() -> None:
    metrics = pytest.importorskip("adaseek_vllm.token_tree.metrics").TreeMetrics()
    for _ in range(2):
        metrics.add(one_step())
    values = {
        sample.name + "".join(sample.labels.values()): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if "_bucket" not in sample.name and "_created" not in sample.name
    }
    assert values == {
        "adaseek:token_tree_verified_requests_total": 2,
        "adaseek:token_tree_branching_requests_total": 2,
        "adaseek:token_tree_nodes_total": 6,
        "adaseek:token_tree_tokens_total": 6,
        "adaseek:token_tree_accepted_tokens_totalsuffix": 4,
        "adaseek:token_tree_seconds_totalwalk": 0.5,
        "adaseek:token_tree_accepted_depth_count": 2,
        "adaseek:token_tree_accepted_depth_sum": 4,
    }
