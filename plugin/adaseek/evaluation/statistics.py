"""Honest numbers from few examples: means with intervals, paired differences, a paired test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, Literal  # Any: numpy's precision is left open

import numpy as np
from numpy.typing import NDArray

from adaseek.errors import require
from adaseek.result import Estimate

__all__ = ["mean_interval", "paired_difference", "sign_flip_p_value"]

_NUM_RESAMPLES = 4000
_NUM_FLIPS = 20_000
_MAX_EXACT = 16
_CHUNK_VALUES = 1_000_000

_Array = NDArray[np.floating[Any]]
_Values = Sequence[float] | _Array


def mean_interval(values: _Values, *, level: float = 0.95, seed: int = 0) -> Estimate:
    """Returns the mean of `values` with a confidence interval of the population's mean.

    Values that are all 0 or 1 get Wilson's score interval, which keeps a width when all agree.
    Others get the bias-corrected accelerated bootstrap (Efron, 1987) at a level that is widened
    for few values (Hesterberg, arXiv 1411.5279, section 4). One value has no spread to learn
    from: its bounds equal it, and `num` says so.

    Raises:
        ConfigurationError: if there are no values, one is not finite, or `level` is not in (0, 1).
    """
    array = _checked("values", values)
    _check_level(level)
    if _is_binary(array):
        return _wilson(array, level)
    return _bootstrap(array, level, seed)


def paired_difference(
    values: _Values, baseline: _Values, *, level: float = 0.95, seed: int = 0
) -> Estimate:
    """Returns the mean of `values - baseline`, paired by position, with its interval.

    If both are all 0 or 1, the interval is Agresti and Min's adjusted one (Statistics in Medicine
    24, 2005), which keeps a width when the pairs never differ; otherwise the bootstrap over pairs.

    Raises:
        ConfigurationError: as `mean_interval`, and if the lengths differ.
    """
    ours, theirs = _checked_pair(values, baseline)
    _check_level(level)
    if _is_binary(ours) and _is_binary(theirs):
        return _agresti_min(ours - theirs, level)
    return _bootstrap(ours - theirs, level, seed)


def sign_flip_p_value(
    values: _Values,
    baseline: _Values,
    *,
    alternative: Literal["two-sided", "greater"] = "two-sided",
    seed: int = 0,
) -> float:
    """Returns the p-value of a paired permutation test that `values` and `baseline` are alike.

    If they are, each pair's difference is as likely as its negative. Up to 16 pairs that differ
    are enumerated, which is exact; more are sampled, and counted so that the test stays valid.

    Raises:
        ConfigurationError: as `paired_difference`.
    """
    ours, theirs = _checked_pair(values, baseline)
    differences = ours - theirs
    differences = differences[differences != 0]
    if not differences.size:
        return 1.0
    two_sided = alternative == "two-sided"
    observed = abs(differences.sum()) if two_sided else differences.sum()
    # Sums that are equal on paper may differ in the last bits; both must count as extreme.
    threshold = observed - 1e-12 * np.abs(differences).sum()
    exact = differences.size <= _MAX_EXACT
    num_flips = 2**differences.size if exact else _NUM_FLIPS
    rng = np.random.default_rng(seed)
    extreme = 0
    chunk = max(1, _CHUNK_VALUES // differences.size)
    for start in range(0, num_flips, chunk):
        count = min(chunk, num_flips - start)
        if exact:
            signs = _all_signs(start, count, differences.size)
        else:
            signs = rng.integers(0, 2, size=(count, differences.size)) * 2.0 - 1.0
        sums = signs @ differences
        extreme += int(np.count_nonzero((np.abs(sums) if two_sided else sums) >= threshold))
    return extreme / num_flips if exact else (extreme + 1) / (num_flips + 1)


def _all_signs(start: int, count: int, size: int) -> _Array:
    codes = np.arange(start, start + count)[:, None]
    return ((codes >> np.arange(size)) & 1) * 2.0 - 1.0


def _wilson(values: _Array, level: float) -> Estimate:
    # Source: E. B. Wilson, "Probable inference, the law of succession", JASA 22 (1927).
    num, mean = values.size, float(values.mean())
    z = _normal_quantile((1 + level) / 2)
    center = (mean + z * z / (2 * num)) / (1 + z * z / num)
    half = z * math.sqrt(mean * (1 - mean) / num + z * z / (4 * num * num)) / (1 + z * z / num)
    # The bounds meet 0 and 1 exactly on paper only.
    low = 0.0 if mean == 0 else max(0.0, center - half)
    high = 1.0 if mean == 1 else min(1.0, center + half)
    return Estimate(mean, low, high, num)


def _agresti_min(differences: _Array, level: float) -> Estimate:
    # Half an observation is added to each of the four cells of the 2 x 2 table of pairs.
    num = differences.size + 2
    better = np.count_nonzero(differences > 0) + 0.5
    worse = np.count_nonzero(differences < 0) + 0.5
    center = (better - worse) / num
    half = _normal_quantile((1 + level) / 2) * math.sqrt(
        (better + worse - (better - worse) ** 2 / num) / num**2
    )
    low, high = max(-1.0, center - half), min(1.0, center + half)
    return Estimate(float(differences.mean()), low, high, differences.size)


def _bootstrap(values: _Array, level: float, seed: int) -> Estimate:
    mean = float(values.mean())
    if values.size == 1 or np.ptp(values) == 0:
        return Estimate(mean, mean, mean, values.size)
    means = np.sort(_resampled_means(values, seed))
    bias = _bias(means, mean)
    acceleration = _acceleration(values)
    z = _small_sample_z(values.size, level)
    bounds = [_adjusted(bias, acceleration, side) for side in (-z, z)]
    low, high = np.quantile(means, bounds)
    return Estimate(mean, min(float(low), mean), max(float(high), mean), values.size)


def _resampled_means(values: _Array, seed: int) -> _Array:
    # In chunks: 4000 resamples of 10,000 values at once would take 640 MB.
    rng = np.random.default_rng(seed)
    means = np.empty(_NUM_RESAMPLES)
    chunk = max(1, _CHUNK_VALUES // values.size)
    for start in range(0, _NUM_RESAMPLES, chunk):
        count = min(chunk, _NUM_RESAMPLES - start)
        picks = rng.integers(0, values.size, size=(count, values.size))
        means[start : start + count] = values[picks].mean(axis=1)
    return means


def _bias(means: _Array, mean: float) -> float:
    # Means equal to the observed one count half, as few distinct values give many of them.
    tolerance = 1e-12 * max(1.0, abs(mean))
    below = np.count_nonzero(means < mean - tolerance)
    equal = np.count_nonzero(np.abs(means - mean) <= tolerance)
    share = (below + equal / 2) / means.size
    return _normal_quantile(min(max(share, 1 / means.size), 1 - 1 / means.size))


def _acceleration(values: _Array) -> float:
    # The jackknife estimate; for a mean it is a sixth of the skewness over the root of n.
    centered = values - values.mean()
    spread = float((centered**2).sum())
    return float((centered**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0


def _small_sample_z(num: int, level: float) -> float:
    return math.sqrt(num / (num - 1)) * _student_quantile((1 + level) / 2, num - 1)


def _adjusted(bias: float, acceleration: float, z: float) -> float:
    shifted = bias + z
    return NormalDist().cdf(bias + shifted / max(1 - acceleration * shifted, 1e-9))


def _student_quantile(probability: float, freedom: int) -> float:
    # Cornish-Fisher expansion (Abramowitz and Stegun 26.7.5), within 1% from 3 degrees on.
    z = _normal_quantile(probability)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + (first + (second + third / freedom) / freedom) / freedom


def _normal_quantile(probability: float) -> float:
    return NormalDist().inv_cdf(probability)


def _is_binary(values: _Array) -> bool:
    return bool(((values == 0.0) | (values == 1.0)).all())


def _checked(name: str, values: _Values) -> _Array:
    array = np.asarray(values, dtype=np.float64)
    require(array.ndim == 1 and array.size > 0, name, values, "must hold at least one number")
    require(bool(np.isfinite(array).all()), name, values, "must hold finite numbers only")
    return array


def _checked_pair(values: _Values, baseline: _Values) -> tuple[_Array, _Array]:
    ours, theirs = _checked("values", values), _checked("baseline", baseline)
    rule = f"must have as many numbers as `values` ({ours.size})"
    require(theirs.size == ours.size, "len(baseline)", theirs.size, rule)
    return ours, theirs


def _check_level(level: float) -> None:
    require(0 < level < 1, "level", level, "must be between 0 and 1, e.g. 0.95")
