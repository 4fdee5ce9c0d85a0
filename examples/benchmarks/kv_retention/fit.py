"""The time of an engine's steps as a line, fitted to steps that ran."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from adaseek_vllm.retention.waste import StepCost

__all__ = ["FittedCost", "TimedStep", "fit_error", "fit_step_cost"]


class TimedStep(Protocol):
    """See `engine.Step`."""

    @property
    def num_tokens(self) -> int: ...
    @property
    def num_requests(self) -> int: ...
    @property
    def context_pairs(self) -> float: ...
    @property
    def seconds(self) -> float: ...


@dataclass(frozen=True)
class FittedCost:
    """Time of a step: what a policy knows, and what each request in it takes besides."""

    cost: StepCost
    per_request_s: float = 0.0

    def step_s(self, step: TimedStep) -> float:
        """Returns the seconds of a step."""
        seconds = self.cost.step_s(step.num_tokens, step.context_pairs)
        return seconds + self.per_request_s * step.num_requests

    def scaled(self, factor: float) -> FittedCost:
        """Returns the cost on a machine that takes that many times as long."""
        cost = self.cost
        line = (cost.fixed_s, cost.per_token_s, cost.per_context_token_s)
        return FittedCost(StepCost(*(factor * part for part in line)), factor * self.per_request_s)


def fit_step_cost(steps: Sequence[TimedStep]) -> FittedCost:
    """Returns the least squares fit; steps that took far longer than it says are left out.

    Raises:
        ValueError: there are too few steps to tell.
    """
    timed = [step for step in steps if step.num_tokens > 0]
    if len(timed) < 20:
        raise ValueError(f"{len(timed)} steps were timed, but a fit needs at least 20.")
    features = np.array([[1.0, s.num_tokens, s.context_pairs, s.num_requests] for s in timed])
    scale = features.max(axis=0)
    seconds = np.array([s.seconds for s in timed])
    keep = np.ones(len(timed), bool)
    fitted = np.zeros(4)
    for _ in range(3):
        fitted, *_ = np.linalg.lstsq(features[keep] / scale, seconds[keep], rcond=None)
        residual = np.abs(seconds - features / scale @ fitted)
        keep = residual <= 4 * np.median(residual) + 1e-9
    fixed_s, token_s, pair_s, request_s = np.maximum(fitted / scale, 0.0).tolist()
    return FittedCost(StepCost(fixed_s, token_s, pair_s), request_s)


def fit_error(steps: Sequence[TimedStep], cost: FittedCost) -> float:
    """Returns by how much the total time of the steps differs from what the fit says."""
    total = sum(step.seconds for step in steps if step.num_tokens > 0)
    said = sum(cost.step_s(step) for step in steps if step.num_tokens > 0)
    return said / total - 1
