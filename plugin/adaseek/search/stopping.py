"""When a layer has converged: no objective improved over the last trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

__all__ = ["Patience"]


@dataclass
class Patience:
    """Counts trials since any objective last improved by more than `threshold` of its range.

    The range is that of the values seen so far, so an objective at zero, negative scores and a
    free model need no special case.

    Attributes:
        num_trials: trials without improvement after which the layer has converged.
        threshold: smallest improvement that counts, relative to the range seen.
    """

    num_trials: int
    threshold: float = 0.01
    _best: list[float] = field(default_factory=list)
    _worst: list[float] = field(default_factory=list)
    _idle: float = 0.0

    def tell(self, values: Sequence[float], *, weight: float = 1.0) -> None:
        """Counts one feasible trial with these objective values, smaller is better.

        Args:
            weight: what part of a trial it is: one that was cut short says less.
        """
        if not self._best:
            self._best, self._worst = list(values), list(values)
            return
        self._worst = [max(w, v) for w, v in zip(self._worst, values, strict=True)]
        spans = np.subtract(self._worst, self._best)
        gains = np.subtract(self._best, values)
        self._idle = (
            0.0
            if bool(((gains > self.threshold * spans) & (gains > 0)).any())
            else self._idle + weight
        )
        self._best = [min(b, v) for b, v in zip(self._best, values, strict=True)]

    def tell_infeasible(self, *, weight: float = 1.0) -> None:
        """Counts one trial that cannot improve anything."""
        self._idle += weight

    @property
    def converged(self) -> bool:
        return self._idle >= self.num_trials - 1e-9
