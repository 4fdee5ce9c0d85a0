"""The time of an engine's steps as a line, fitted to steps that ran."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from adaseek_vllm.retention.waste import StepCost

__all__ = ["TimedStep", "fit_error", "fit_step_cost"]


class TimedStep(Protocol):
    """See `engine.Step`."""

    @property
    def num_tokens(self) -> int: ...
    @property
    def context_pairs(self) -> float: ...
    @property
    def seconds(self) -> float: ...


def fit_step_cost(steps: Sequence[TimedStep]) -> StepCost:
    """Returns the least squares fit; steps that took far longer than it says are left out.

    Raises:
        ValueError: there are too few steps to tell.
    """
    timed = [step for step in steps if step.num_tokens > 0]
    if len(timed) < 20:
        raise ValueError(f"{len(timed)} steps were timed, but a fit needs at least 20.")
    features = np.array([[1.0, s.num_tokens, s.context_pairs] for s in timed])
    scale = features.max(axis=0)
    seconds = np.array([s.seconds for s in timed])
    keep = np.ones(len(timed), bool)
    fitted = np.zeros(3)
    for _ in range(3):
        fitted, *_ = np.linalg.lstsq(features[keep] / scale, seconds[keep], rcond=None)
        residual = np.abs(seconds - features / scale @ fitted)
        keep = residual <= 4 * np.median(residual) + 1e-9
    fixed_s, token_s, pair_s = np.maximum(fitted / scale, 0.0)
    return StepCost(float(fixed_s), float(token_s), float(pair_s))


def fit_error(steps: Sequence[TimedStep], cost: StepCost) -> float:
    """Returns by how much the total time of the steps differs from what the fit says."""
    total = sum(step.seconds for step in steps if step.num_tokens > 0)
    said = sum(cost.step_s(s.num_tokens, s.context_pairs) for s in steps if s.num_tokens > 0)
    return said / total - 1
