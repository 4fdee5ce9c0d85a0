from __future__ import annotations

import itertools

import numpy as np
import pytest
from adaseek.errors import ConfigurationError
from adaseek.evaluation.statistics import mean_interval, paired_difference, sign_flip_p_value
from hypothesis import given, settings
from hypothesis import strategies as st

values = st.lists(st.floats(-10, 10), min_size=1, max_size=30)


def test_share_of_successes_has_wilsons_interval() -> None:
    estimate = mean_interval([1.0] * 8 + [0.0] * 2)
    # Wilson's score interval for 8 of 10, by hand.
    assert estimate.mean == pytest.approx(0.8)
    assert (estimate.low, estimate.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert estimate.num == 10


def test_interval_keeps_a_width_when_all_succeed_or_fail() -> None:
    always = mean_interval([1.0] * 10)
    assert (always.mean, always.high) == (1.0, 1.0)
    assert always.low == pytest.approx(0.7225, abs=1e-4)
    never = mean_interval([0.0] * 10)
    assert (never.mean, never.low) == (0.0, 0.0)
    assert never.high == pytest.approx(0.2775, abs=1e-4)


def test_one_value_or_equal_values_have_no_width() -> None:
    one = mean_interval([0.3])
    assert (one.mean, one.low, one.high, one.num) == (0.3, 0.3, 0.3, 1)
    same = mean_interval([0.3] * 5)
    assert (same.low, same.high) == (pytest.approx(0.3), pytest.approx(0.3))


def test_higher_level_is_wider() -> None:
    sample = np.random.default_rng(0).normal(size=30)
    narrow, wide = mean_interval(sample, level=0.8), mean_interval(sample, level=0.99)
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high


def test_same_seed_gives_the_same_interval() -> None:
    sample = np.random.default_rng(0).normal(size=30)
    assert mean_interval(sample, seed=3) == mean_interval(sample, seed=3)
    assert mean_interval(sample, seed=3) != mean_interval(sample, seed=4)


def test_interval_of_a_large_normal_sample_is_the_textbook_one() -> None:
    sample = np.random.default_rng(1).normal(5.0, 2.0, size=3000)
    half = 1.96 * sample.std(ddof=1) / np.sqrt(sample.size)
    estimate = mean_interval(sample)
    assert estimate.low == pytest.approx(sample.mean() - half, abs=0.1 * half)
    assert estimate.high == pytest.approx(sample.mean() + half, abs=0.1 * half)


@pytest.mark.parametrize("name", ["beta", "exponential", "binary"])
@pytest.mark.parametrize("num", [10, 20, 60])
def test_interval_covers_the_true_mean_about_as_often_as_it_says(name: str, num: int) -> None:
    rng = np.random.default_rng(num)
    draw, mean = {
        "beta": (lambda: rng.beta(2, 2, size=num), 0.5),
        "exponential": (lambda: rng.exponential(size=num), 1.0),
        "binary": (lambda: (rng.random(num) < 0.7).astype(float), 0.7),
    }[name]
    estimates = [mean_interval(draw()) for _ in range(300)]
    coverage = np.mean([e.low <= mean <= e.high for e in estimates])
    assert coverage >= 0.9


@given(values)
@settings(max_examples=50, deadline=None)
def test_mean_lies_within_its_bounds_and_they_within_the_values(sample: list[float]) -> None:
    estimate = mean_interval(sample)
    assert estimate.low <= estimate.mean <= estimate.high
    assert min(sample) - 1e-9 <= estimate.mean <= max(sample) + 1e-9
    assert estimate.num == len(sample)


def test_paired_difference_of_answers_right_or_wrong() -> None:
    ours = [1.0] * 9 + [0.0] * 11
    theirs = [1.0] * 4 + [0.0] * 5 + [0.0] * 11
    estimate = paired_difference(ours, theirs)
    # Five pairs better, none worse, of 20: (5.5 - 0.5) / 22 -+ 1.96 sqrt(6 - 25 / 22) / 22.
    assert estimate.mean == pytest.approx(0.25)
    assert (estimate.low, estimate.high) == pytest.approx((0.0308, 0.4238), abs=1e-4)


def test_pairs_that_never_differ_still_leave_doubt() -> None:
    estimate = paired_difference([1.0, 0.0] * 10, [1.0, 0.0] * 10)
    assert estimate.mean == 0.0
    assert estimate.low == pytest.approx(-estimate.high)
    assert 0.05 < estimate.high < 0.15


def test_pairing_removes_what_both_share() -> None:
    rng = np.random.default_rng(0)
    hardness = rng.normal(0, 5, size=40)
    estimate = paired_difference(hardness + 0.5 + rng.normal(0, 0.1, size=40), hardness)
    assert 0.4 < estimate.low < 0.5 < estimate.high < 0.6


@given(values)
@settings(max_examples=30, deadline=None)
def test_difference_to_itself_is_zero(sample: list[float]) -> None:
    assert paired_difference(sample, sample).mean == 0.0
    assert sign_flip_p_value(sample, sample) == 1.0


def test_exact_p_value_by_hand() -> None:
    # Five differences of one sign: 2 of 2 ** 5 sign patterns are as extreme, 1 of them upwards.
    ours, theirs = [1.0, 2.0, 3.0, 4.0, 5.0], [0.0] * 5
    assert sign_flip_p_value(ours, theirs) == 2 / 32
    assert sign_flip_p_value(ours, theirs, alternative="greater") == 1 / 32
    assert sign_flip_p_value(theirs, ours, alternative="greater") == 1.0


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=9))
def test_exact_p_value_equals_enumeration(differences: list[int]) -> None:
    observed = abs(sum(differences))
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((-1, 1), repeat=len(differences))
    ]
    expected = sum(s >= observed for s in sums) / len(sums)
    actual = sign_flip_p_value([float(d) for d in differences], [0.0] * len(differences))
    assert actual == pytest.approx(expected)


def test_ties_of_sums_are_found_in_spite_of_rounding() -> None:
    ours = [0.1, 0.2, 0.3, -0.6]  # sums to zero on paper: every pattern is as extreme
    assert sign_flip_p_value(ours, [0.0] * 4) == 1.0


def test_sampled_p_value_is_near_the_exact_one_and_never_zero() -> None:
    rng = np.random.default_rng(0)
    differences = rng.normal(0.5, 1.0, size=17)
    sampled = sign_flip_p_value(differences, np.zeros(17))
    exact = np.mean(
        np.abs(((np.arange(2**17)[:, None] >> np.arange(17)) & 1) * 2.0 @ differences
               - differences.sum())
        >= abs(differences.sum()) - 1e-12
    )  # fmt: skip
    assert sampled == pytest.approx(float(exact), abs=0.01)
    assert sign_flip_p_value(np.ones(200), np.zeros(200)) == 1 / 20_001


def test_test_of_alike_programs_is_rarely_significant() -> None:
    rng = np.random.default_rng(5)
    p_values = [
        sign_flip_p_value(
            (rng.random(40) < 0.6).astype(float), (rng.random(40) < 0.6).astype(float), seed=i
        )
        for i in range(200)
    ]
    assert np.mean(np.array(p_values) <= 0.05) <= 0.09


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least one"):
        mean_interval([])
    with pytest.raises(ConfigurationError, match="finite"):
        mean_interval([1.0, float("nan")])
    with pytest.raises(ConfigurationError, match="as many numbers"):
        paired_difference([1.0], [1.0, 2.0])
    with pytest.raises(ConfigurationError, match="`level` is 1"):
        mean_interval([1.0], level=1)
