"""What the runs of all configs together say about each: a Gaussian process over options.

A mean of few noisy runs is a poor estimate of one config, but configs share options. The value of
a config is taken as a sum of effects of its options, of its pairs of options, and of a deviation of
its own; all are normal, and how strong each kind is, is chosen by the likelihood of what was seen.
So an estimate is pulled towards what configs alike have shown, the more the fewer runs it has: this
is the shrinkage that keeps a lucky config from winning (the winner's curse).

Source: Gaussian process regression (Rasmussen and Williams, 2006, chapters 2 and 5) with the
polynomial kernel of one-hot options.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adaseek.search._threads import single_threaded

__all__ = ["MOST_CONFIGS", "Strengths", "Surrogate"]

Floats = NDArray[np.float64]

MOST_CONFIGS = 192
"""Configs looked at together at most: the time of a fit grows with their third power."""


@dataclass(frozen=True)
class Strengths:
    """Variances relative to the variance seen: of single options, of pairs, and of each config."""

    single: float
    pairs: float
    own: float

    def covariance(self, alike: Floats) -> Floats:
        """Returns the truths' prior covariance, given the share of options that pairs share."""
        own = self.own * np.eye(len(alike))
        # The 1 is the prior of the common level, as uncertain as the values are spread.
        return np.asarray(self.single * alike + self.pairs * alike**2 + own + 1.0)


_STRENGTHS = tuple(
    Strengths(scale * single, scale * pairs, scale * own)
    for scale, (single, pairs, own) in itertools.product(
        (0.1, 0.4, 1.0, 2.5), ((0.85, 0.10, 0.05), (0.55, 0.35, 0.10), (0.25, 0.45, 0.30))
    )
)


class Surrogate:
    """Estimates values of configs. Keeps the strengths that fitted best while little is new."""

    def __init__(self) -> None:
        self._strengths = _STRENGTHS[0]
        self._chosen_at = 0

    @single_threaded
    def estimates(
        self, features: Floats, values: Floats, variances: Floats, *, num: int | None = None
    ) -> tuple[Floats, Floats]:
        """Returns ([num], [num]): mean and standard deviation of the truths of the first `num`.

        Args:
            features: [num_configs, num_options] float, 1 where a config has an option.
            values: [num_configs] float, finite.
            variances: [num_configs] float, the variance of each value about its truth.
            num: None: all.
        """
        weights = 1 / (variances + values.var() + 1e-12)
        centre = float((weights * values).sum() / weights.sum())
        unit = float(values.std()) or 1.0
        noise = np.diag(variances / unit**2 + 1e-6)
        targets = (values - centre) / unit
        alike = features @ features.T / max(1.0, float(features.sum(axis=1).max()))
        if len(values) > 1.25 * self._chosen_at or len(values) < self._chosen_at / 2:
            self._chosen_at = len(values)
            self._strengths = max(_STRENGTHS, key=lambda s: _likelihood(s, alike, noise, targets))
        prior = self._strengths.covariance(alike)
        wanted = prior[:, :num]
        gain = np.linalg.solve(prior + noise, wanted)
        left = np.diag(prior)[:num] - np.einsum("ij,ij->j", wanted, gain)
        return targets @ gain * unit + centre, np.sqrt(left.clip(min=0.0)) * unit


def _likelihood(strengths: Strengths, alike: Floats, noise: Floats, targets: Floats) -> float:
    """Returns the log likelihood of `targets`, up to a constant."""
    covariance = strengths.covariance(alike) + noise
    _, log_determinant = np.linalg.slogdet(covariance)
    return float(-0.5 * (targets @ np.linalg.solve(covariance, targets) + log_determinant))
