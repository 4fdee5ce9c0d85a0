from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from adaseek.search.race import evidence_of_loss, rungs, stratified_order
from hypothesis import given
from hypothesis import strategies as st


def test_rungs_double_and_end_with_all_examples():
    assert rungs(40) == (4, 8, 16, 32, 40)
    assert rungs(4) == (4,)
    assert rungs(3) == (3,)


def test_no_data_is_no_evidence():
    assert evidence_of_loss([], []) == 1.0


def test_evidence_grows_with_consistent_losses():
    values = [evidence_of_loss([0.0] * n, [1.0] * n) for n in range(1, 10)]
    assert values == sorted(values)
    assert values[-1] > 20


def test_equal_scores_give_no_evidence():
    assert evidence_of_loss([1, 0, 1, 0], [1, 0, 1, 0]) == pytest.approx(1.0)


def test_a_loss_within_the_margin_is_no_evidence():
    assert evidence_of_loss([0.8] * 30, [0.9] * 30, margin=0.1) <= 1.0 + 1e-9


@pytest.mark.parametrize("shift", [0.0, 0.15])
def test_equal_or_better_configs_are_rarely_dropped_at_any_time(shift):
    # Ville's inequality: looking after every example, at most 10% ever reach evidence 10.
    rng = np.random.default_rng(0)
    reached = 0
    for _ in range(2000):
        difficulty = rng.beta(2, 2, 100)
        mine = rng.random(100) < np.clip(difficulty + shift, 0, 1)
        theirs = rng.random(100) < difficulty
        reached += evidence_of_loss(mine.astype(float), theirs.astype(float)) >= 10
    assert reached / 2000 <= 0.1


def test_clearly_worse_configs_are_usually_dropped():
    rng = np.random.default_rng(1)
    dropped = 0
    for _ in range(300):
        theirs = rng.random(40) < 0.8
        mine = rng.random(40) < 0.4
        dropped += evidence_of_loss(mine.astype(float), theirs.astype(float)) >= 10
    assert dropped / 300 >= 0.8


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=60), st.integers(0, 100))
def test_order_is_a_permutation_balanced_in_every_prefix(labels, seed):
    order = stratified_order(labels, seed=seed)
    assert sorted(order) == list(range(len(labels)))
    total = Counter(labels)
    seen: Counter[str] = Counter()
    for position, index in enumerate(order, start=1):
        seen[labels[index]] += 1
        for label, count in total.items():
            expected = position * count / len(labels)
            assert abs(seen[label] - expected) <= len(total)


def test_order_depends_on_the_seed_alone():
    labels = [0] * 50
    assert stratified_order(labels, seed=1) == stratified_order(labels, seed=1)
    assert stratified_order(labels, seed=1) != stratified_order(labels, seed=2)
