from __future__ import annotations

import math
from dataclasses import replace

import pytest
from adaseek.errors import ConfigurationError
from adaseek.search.base import Dimension, Space
from adaseek.search.layers import SMALL_SPACE, plan_layers, split_budget
from hypothesis import given
from hypothesis import strategies as st


def space(structure: int, step: int, weight: int) -> Space:
    counts = {"structure": structure, "step": step, "weight": weight}
    return Space(
        tuple(
            Dimension(f"{family}{i}", family, ("a", "b", "c", "d"))
            for family, count in counts.items()
            for i in range(count)
        )
    )


@pytest.mark.parametrize(
    ("num_trials", "expected"),
    # C = (2, 3, 4): E_1 = 9, E_2 = 2 * 7 = 14, E_3 = 2 * 3 * 4 = 24.
    [(1, 1), (13, 1), (14, 2), (23, 2), (24, 3), (1000, 3)],
)
def test_the_deepest_layering_that_the_budget_covers_is_taken(num_trials, expected):
    assert plan_layers(space(2, 3, 4), num_trials).num_layers == expected


def test_a_space_that_is_small_against_the_budget_needs_no_layers():
    # 4**9 = 262,144 configs; 8 per trial need 32,768 trials.
    large = space(2, 3, 4)
    assert large.size() == SMALL_SPACE * 32_768
    assert plan_layers(large, 32_767).num_layers == 3
    assert plan_layers(large, 32_768).num_layers == 1


def test_more_options_make_layers_where_few_do_not():
    # The same dimensions, hence the same expected sizes: only the size of the space differs.
    few = Space(tuple(replace(d, options=("a", "b")) for d in space(2, 3, 4).dimensions))
    assert plan_layers(few, 100).num_layers == 1
    assert plan_layers(space(2, 3, 4), 100).num_layers == 3


def test_dimensions_that_the_original_leaves_inactive_count():
    reasoning = Dimension("r", "weight", ("off", "on"), 0, "m", frozenset({"small"}))
    model = Dimension("m", "step", ("large", "small"))
    shots = Dimension("d", "weight", ("0", "4"))
    assert plan_layers(Space((model, reasoning, shots)), 1).complexities == (3,)


def test_alternatives_that_are_never_active_together_count_once():
    votes = Dimension("v", "structure", ("off", "three"))
    alone = Dimension("a", "weight", ("0", "4"), 0, "v", frozenset({"off"}))
    copies = Dimension("c", "weight", ("0", "4"), 0, "v", frozenset({"three"}))
    assert plan_layers(Space((votes, alone, copies)), 1).complexities == (2,)


def test_a_layering_that_does_not_grow_is_left_out():
    # One structure dimension: E_2 = 1 * 7 < E_1 = 8.
    assert plan_layers(space(1, 3, 4), 8).num_layers == 1
    assert plan_layers(space(1, 3, 4), 12).num_layers == 3


def test_empty_families_make_no_layer():
    plan = plan_layers(space(0, 3, 4), 100)
    assert plan.families == (("step",), ("weight",))
    assert plan_layers(space(0, 0, 4), 100).num_layers == 1


def test_no_dimension_at_all_is_one_empty_layer():
    assert plan_layers(Space(()), 10).complexities == (0,)


def test_budget_follows_complexity():
    # s = sqrt(96 / (2 * 12)) = 2, so b = (4, 24).
    assert split_budget((2, 12), 96) == (4, 24)


def test_alpha_gives_complex_layers_more():
    flat, steep = split_budget((2, 8), 256, alpha=1.0), split_budget((2, 8), 256, alpha=1.5)
    assert steep[1] / steep[0] > flat[1] / flat[0]


@given(st.lists(st.integers(1, 20), min_size=1, max_size=3), st.integers(1, 5000))
def test_product_of_the_budgets_never_exceeds_the_trials(complexities, num_trials):
    budgets = split_budget(complexities, num_trials)
    assert math.prod(budgets) <= num_trials
    assert min(budgets) >= 1


@pytest.mark.parametrize("alpha", [0.5, 1.6])
def test_alpha_out_of_range_is_refused(alpha):
    with pytest.raises(ConfigurationError, match="`alpha` is"):
        plan_layers(space(1, 1, 1), 10, alpha=alpha)
