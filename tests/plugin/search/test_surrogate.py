from __future__ import annotations

import numpy as np
from adaseek.search.coder import Coder
from adaseek.search.surrogate import MOST_CONFIGS, Surrogate
from adaseek.testing.landscapes import landscape, two_step_space
from hypothesis import given, settings
from hypothesis import strategies as st


def test_exact_values_are_kept():
    features = np.eye(5)
    values = np.asarray([0.1, 0.9, 0.4, 0.3, 0.6])
    means, errors = Surrogate().estimates(features, values, np.zeros(5))
    np.testing.assert_allclose(means, values, atol=1e-3)
    assert errors.max() < 0.01


def test_a_noisy_value_is_pulled_towards_configs_that_share_its_options():
    # Two options; ten configs of each, one of the first group was lucky.
    features = np.repeat(np.eye(2), 10, axis=0)
    values = np.asarray([0.2] * 9 + [0.9] + [0.6] * 10)
    means, errors = Surrogate().estimates(features, values, np.full(20, 0.05))
    assert means[9] < 0.6
    assert abs(means[0] - 0.2) < 0.12
    assert abs(means[10] - 0.6) < 0.12
    assert (errors > 0).all()


def test_fewer_wanted_gives_the_first_of_all():
    rng = np.random.default_rng(0)
    features = rng.integers(0, 2, (12, 6)).astype(float)
    values, variances = rng.random(12), np.full(12, 0.02)
    means, errors = Surrogate().estimates(features, values, variances)
    some = Surrogate().estimates(features, values, variances, num=4)
    np.testing.assert_allclose(some[0], means[:4])
    np.testing.assert_allclose(some[1], errors[:4])


def test_equal_values_are_no_trouble():
    means, _ = Surrogate().estimates(np.ones((3, 1)), np.full(3, 0.5), np.full(3, 0.01))
    np.testing.assert_allclose(means, 0.5)


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_estimates_stay_near_the_values_seen(seed):
    rng = np.random.default_rng(seed)
    features = rng.integers(0, 2, (15, 8)).astype(float)
    values = rng.random(15)
    means, errors = Surrogate().estimates(features, values, rng.random(15) * 0.1)
    assert np.isfinite(means).all() and np.isfinite(errors).all()
    assert means.min() > -0.5 and means.max() < 1.5


def test_estimates_are_nearer_to_the_truth_than_means_of_few_runs():
    gaps = []
    for seed in range(4):
        truth = landscape("additive", seed=seed, num_examples=200)
        coder = Coder(two_step_space())
        codes = coder.draw({}, 80, np.random.default_rng(seed))
        true = np.asarray([truth.truth(coder.decode(row)) for row in codes])
        rng = np.random.default_rng([seed, 1])
        seen = rng.binomial(8, true) / 8
        means, _ = Surrogate().estimates(coder.one_hot(codes), seen, np.full(80, 0.2 / 8))
        gaps.append(np.mean((seen - true) ** 2) / np.mean((means - true) ** 2))
    assert len(codes) < MOST_CONFIGS
    assert np.mean(gaps) > 2
