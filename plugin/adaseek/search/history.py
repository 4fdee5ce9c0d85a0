"""A study's trials as arrays, read once each: what a sampler learns from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from adaseek.search.coder import Coder, Codes

__all__ = ["NUM_EXAMPLES", "VARIANCES", "VIOLATION", "History"]

VIOLATION = "adaseek:violation"
"""User attribute of a trial: how much it breaks the constraints (0: feasible)."""
NUM_EXAMPLES = "adaseek:num_examples"
"""User attribute of a trial: how many examples its values are a mean of."""

VARIANCES = "adaseek:variances"
"""User attribute of a trial: the variance of each value about its truth; absent: exact."""


class History:
    """The trials of one study. A finished trial never changes, so it is read once.

    Attributes:
        tried: the codes of every trial that has parameters, failed ones included, as bytes.
        codes: [num_complete, num_dimensions], the configs of the completed trials.
        points: [num_complete, num_objectives] float, to be minimised.
        variances: [num_complete, num_objectives] float, of the points about their truths.
        violations: [num_complete] float, 0 if feasible.
        num_examples: [num_complete] float, the examples that a trial saw.
        pending: [num_pending, num_dimensions], the configs that run now.
    """

    def __init__(self, study: Study, num_dimensions: int) -> None:
        self.study = study
        self.tried: set[bytes] = set()
        self.codes: Codes = np.zeros((0, num_dimensions), dtype=np.int64)
        self.pending: Codes = self.codes
        self.points = np.zeros((0, len(study.directions)))
        self.variances = self.points
        self.violations = np.zeros(0)
        self.num_examples = np.zeros(0)
        self._signs = [1.0 if d == StudyDirection.MINIMIZE else -1.0 for d in study.directions]
        self._num_read = 0
        self._open: list[int] = []

    @property
    def weights(self) -> NDArray[np.float64]:
        """Returns [num_complete] float: the examples a trial saw, relative to the most."""
        return np.asarray(self.num_examples / self.num_examples.max(initial=1.0))

    def update(self, coder: Coder, *, without: int) -> None:
        """Reads what is new; the trial numbered `without` is the one being sampled."""
        everything = self.study.get_trials(deepcopy=False)
        trials = [everything[i] for i in (*self._open, *range(self._num_read, len(everything)))]
        self._num_read = len(everything)
        self._open = [t.number for t in trials if not t.state.is_finished()]
        known = [t for t in trials if t.params and t.number != without]
        codes = coder.encode([t.params for t in known])
        self.tried.update(row.tobytes() for row in codes)
        running = np.asarray([t.state == TrialState.RUNNING for t in known], dtype=bool)
        complete = np.asarray([t.state == TrialState.COMPLETE for t in known], dtype=bool)
        self.pending = codes[running]
        if complete.any():
            self._add(codes[complete], [t for t in known if t.state == TrialState.COMPLETE])

    def _add(self, codes: Codes, trials: Sequence[FrozenTrial]) -> None:
        points = np.asarray([t.values for t in trials], dtype=np.float64) * self._signs
        exact = [0.0] * len(self._signs)
        variances = [t.user_attrs.get(VARIANCES) or exact for t in trials]
        violations = [float(t.user_attrs.get(VIOLATION, 0.0)) for t in trials]
        counts = [float(t.user_attrs.get(NUM_EXAMPLES, 1)) for t in trials]
        self.codes = np.concatenate([self.codes, codes])
        self.points = np.concatenate([self.points, points])
        self.variances = np.concatenate([self.variances, np.asarray(variances, dtype=np.float64)])
        self.violations = np.append(self.violations, violations)
        self.num_examples = np.append(self.num_examples, counts)
