from __future__ import annotations

import itertools

import pytest
from adaseek.errors import ConfigurationError
from adaseek.search.halving import halve, num_rungs
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("num_arms", "eta", "expected"), [(1, 2, 1), (2, 2, 2), (4, 2, 3), (7, 2, 3), (9, 3, 3)]
)
def test_number_of_rungs(num_arms, eta, expected):
    assert num_rungs(num_arms, eta) == expected


def test_survivors_get_twice_as_much_at_each_rung():
    spent: dict[int, list[int]] = {arm: [] for arm in range(4)}

    def run(arm: int, budget: int) -> int:
        spent[arm].append(budget)
        return budget

    assert halve(range(4), 120, run=run, score=lambda arm: arm) == (3,)
    # m = 3 rungs of 40 runs each: 10 per arm, then 20, then 40.
    assert spent == {0: [10], 1: [10], 2: [10, 20], 3: [10, 20, 40]}


def test_what_an_arm_leaves_goes_to_the_others():
    given_: dict[int, int] = {}

    def run(arm: int, budget: int) -> int:
        used = 0 if arm == 0 else budget
        given_[arm] = given_.get(arm, 0) + used
        return used

    halve(range(4), 120, run=run, score=lambda arm: arm)
    assert sum(given_.values()) == 120


@given(
    st.integers(1, 12),
    st.integers(0, 500),
    st.integers(2, 4),
    st.randoms(use_true_random=False),
)
def test_budget_holds_and_survivors_are_nested(num_arms, budget, eta, random):
    rungs = []
    used = 0

    def run(arm: int, share: int) -> int:
        nonlocal used
        spent = random.randint(0, share)
        used += spent
        return spent

    last = halve(
        range(num_arms), budget, run=run, score=lambda arm: -arm, eta=eta, listen=rungs.append
    )
    assert used <= budget
    for before, after in itertools.pairwise(rungs):
        assert after.arms == before.kept
        assert set(before.kept) <= set(before.arms)
        assert len(before.kept) == max(1, len(before.arms) // eta)
    assert last == rungs[-1].kept


def test_eta_below_two_is_refused():
    with pytest.raises(ConfigurationError, match="`eta` is 1"):
        num_rungs(4, 1)
