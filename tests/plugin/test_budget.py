from __future__ import annotations

import pytest
from adaseek.budget import SIZES, automatic_budget, plan_budget
from adaseek.errors import ConfigurationError
from adaseek.testing.landscapes import two_step_space
from hypothesis import given
from hypothesis import strategies as st


@given(st.integers(36, 5000), st.integers(2, 500), st.integers(2, 500), st.booleans())
def test_phases_never_add_up_to_more_than_the_budget(budget, num_train, num_val, times_latency):
    plan = plan_budget(budget, num_train, num_val, times_latency=times_latency)
    timing = (1 + plan.num_finalists) * plan.num_latency
    assert plan.search + plan.validation + timing <= budget
    assert plan.search >= 2 * plan.num_train
    assert 1 <= plan.num_train <= num_train
    assert 1 <= plan.num_val <= num_val
    assert times_latency or plan.num_latency == 0


def test_split_by_hand():
    plan = plan_budget(400, 40, 50, times_latency=True)
    # 30% of 400 is 120 runs: 30 examples for each of 3 finalists and the original.
    assert (plan.num_finalists, plan.num_val) == (3, 30)
    assert plan.num_latency == 6
    assert plan.search == 400 - 4 * 30 - 4 * 6
    assert plan.num_train == 256 // 16


def test_few_runs_validate_fewer_finalists():
    assert plan_budget(100, 40, 50, times_latency=False).num_finalists == 1


def test_a_budget_that_cannot_tell_two_configs_apart_is_refused():
    with pytest.raises(ConfigurationError, match="`budget` is 35, but must be at least 36"):
        plan_budget(35, 40, 50, times_latency=False)
    assert plan_budget(12, 2, 2, times_latency=False).num_train == 2


def test_automatic_budgets_grow_and_are_usable():
    space = two_step_space()
    sizes = [automatic_budget(a, space, 40, 50, times_latency=True) for a in SIZES]
    assert sizes == sorted(sizes)
    for size in sizes:
        plan_budget(size, 40, 50, times_latency=True)


def test_unknown_size_is_refused():
    with pytest.raises(ConfigurationError, match="'light', 'medium', 'heavy'"):
        automatic_budget("huge", two_step_space(), 40, 50, times_latency=True)
