"""What the report reads from a run's events."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
from adaseek.report.history import budget_flow, convergence, leaf_trials
from adaseek.result import Spending, TuningResult

Make = Callable[..., TuningResult]


def started(*layers: tuple[str, ...]) -> dict[str, Any]:
    return {"type": "RunStarted", "layers": [list(layer) for layer in layers]}


def ended(trial: int, arm: tuple[int, ...] = (), **changes: Any) -> dict[str, Any]:
    return {
        "type": "TrialEnded",
        "trial": trial,
        "layer": len(arm),
        "arm": list(arm),
        "config": {"outer": f"o{arm[0]}" if arm else "", "inner": "i"},
        "quality": 0.5,
        "cost_usd": 1.0,
        "latency_s": None,
        "num_examples": 10,
        "state": "complete",
        "num_runs_so_far": 10 * trial,
        **changes,
    }


def spent(**phases: int) -> Spending:
    return Spending(budget=100, num_runs=sum(phases.values()), phases=phases)


def test_only_trials_of_the_innermost_layer_are_counted() -> None:
    events = [started(("outer",), ("inner",)), ended(1, (7,)), ended(7)]
    assert [trial.number for trial in leaf_trials(events)] == [1]


def test_events_of_an_unknown_type_are_skipped() -> None:
    assert leaf_trials([{"type": "FromTheFuture"}, ended(1)])[0].number == 1


def test_runs_are_conserved_at_every_inner_node(make_result: Make) -> None:
    flow = budget_flow(make_result())
    balance: dict[str, int] = defaultdict(int)
    for link in flow.links:
        balance[link.source] -= link.num_runs
        balance[link.target] += link.num_runs
    inner = {link.source for link in flow.links} & {link.target for link in flow.links}
    assert "search" in inner and "arm 3" in inner
    assert all(balance[name] == 0 for name in inner)
    assert -balance["budget"] == 1600


def test_runs_that_belong_to_no_trial_are_shown(make_result: Make) -> None:
    result = make_result(events=(started(("inner",)), ended(1)), spending=spent(search=25))
    links = {(link.source, link.target): link.num_runs for link in budget_flow(result).links}
    assert links == {
        ("budget", "search"): 25,
        ("budget", "not used"): 75,
        ("search", "complete"): 10,
        ("search", "repeated or unfinished"): 15,
    }


def test_the_original_program_stands_beside_the_arms(make_result: Make) -> None:
    nested = (started(("outer",), ("inner",)), ended(0, layer=1), ended(1, (7,)))
    flow = budget_flow(make_result(events=nested, spending=spent(search=20)))
    assert flow.nodes["original program"] == flow.nodes["arm 7"] == "arm"


def test_a_flat_search_goes_straight_to_the_states(make_result: Make) -> None:
    flat = (started(("inner",)), ended(0), ended(1))
    flow = budget_flow(make_result(events=flat, spending=spent(search=20)))
    assert [link.target for link in flow.links if link.source == "search"] == ["complete"]


def test_small_arms_share_a_node(make_result: Make) -> None:
    arms = [ended(100 + i, (i,), num_examples=20 - i) for i in range(1, 13)]
    result = make_result(
        events=(started(("outer",), ("inner",)), *arms), spending=spent(search=162)
    )
    flow = budget_flow(result)
    names = [name for name, kind in flow.nodes.items() if kind == "arm"]
    assert len(names) == 9 and "4 other arms of layer 1" in names
    runs = next(link.num_runs for link in flow.links if link.target == "4 other arms of layer 1")
    assert runs == 11 + 10 + 9 + 8


def test_an_arm_tells_the_outer_config_only(make_result: Make) -> None:
    events = (started(("outer",), ("inner",)), ended(1, (7,)))
    flow = budget_flow(make_result(events=events, spending=spent(search=10)))
    assert flow.arms == {"arm 7": {"outer": "o7"}}


def test_convergence_keeps_the_best_complete_trial(make_result: Make) -> None:
    events = (
        started(("inner",)),
        ended(1, quality=0.4),
        ended(2, quality=0.9, state="infeasible"),
        ended(3, quality=0.7, cost_usd=2.0),
        ended(4, quality=0.6, cost_usd=2.0),
    )
    data = convergence(make_result(events=events))
    assert data.num_runs == (10, 30, 40)
    assert data.quality == (0.4, 0.7, 0.7)


def test_hypervolume_is_that_of_the_boxes_by_hand(make_result: Make) -> None:
    events = (
        started(("inner",)),
        ended(1, quality=0.0, cost_usd=1.0),
        ended(2, quality=1.0, cost_usd=3.0),
        ended(3, quality=0.5, cost_usd=2.0),
    )
    data = convergence(make_result(events=events, objectives=("quality", "cost")))
    # Scaled to [0, 1] and bounded by 1.1: 0.11 alone, 0.21 with its opposite, 0.46 with the middle.
    assert data.volume == pytest.approx((0.11 / 0.46, 0.21 / 0.46, 1.0))


def test_an_objective_that_is_never_known_is_left_out(make_result: Make) -> None:
    events = (started(("inner",)), ended(1, cost_usd=None), ended(2, cost_usd=None))
    data = convergence(make_result(events=events))
    assert data.volume == ()
    assert data.quality == (0.5, 0.5)


def test_a_run_without_events_has_no_history(make_result: Make) -> None:
    result = make_result(events=(), spending=Spending(budget=0, num_runs=0))
    assert convergence(result).num_runs == ()
    assert budget_flow(result).links == ()
