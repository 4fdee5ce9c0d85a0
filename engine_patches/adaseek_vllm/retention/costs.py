"""What retention learns about the machine while it serves: step time and the price of memory."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

from adaseek_vllm.retention.waste import StepCost

__all__ = ["AdmissionWait", "ChurnRate", "MemoryPrice", "RecursiveLeastSquares", "StepCostModel"]


class RecursiveLeastSquares:
    """Linear least squares, one observation at a time, old observations fading.

    In plain numbers: for a handful of features that is several times as fast as arrays, and it is
    done between two steps of the engine.

    Args:
        initial: first coefficients, one a feature.
        confidence: how many unit observations the first coefficients are worth.
        forgetting: weight of an observation after the next one; 1 forgets nothing.
    """

    def __init__(self, initial: Sequence[float], *, confidence: float, forgetting: float) -> None:
        self.coefficients = list(initial)
        size = range(len(self.coefficients))
        self._covariance = [[(i == j) / confidence for j in size] for i in size]
        self._forgetting = forgetting
        # Without a bound, features that never vary would let the covariance grow for ever.
        self._max_trace = len(self.coefficients) * 1e3 / confidence

    def predict(self, features: Sequence[float]) -> float:
        """Returns the value that the coefficients give."""
        return _dot(self.coefficients, features)

    def observe(self, features: Sequence[float], value: float) -> None:
        """Moves the coefficients towards one observation."""
        projected = [_dot(row, features) for row in self._covariance]
        scale = 1 / (self._forgetting + _dot(features, projected))
        error = scale * (value - self.predict(features))
        self.coefficients = [
            c + error * p for c, p in zip(self.coefficients, projected, strict=True)
        ]
        # The covariance stays symmetric: each pair of numbers is computed alike.
        covariance = [
            [(c - scale * (p * q)) / self._forgetting for c, q in zip(row, projected, strict=True)]
            for row, p in zip(self._covariance, projected, strict=True)
        ]
        if sum(row[i] for i, row in enumerate(covariance)) < self._max_trace:
            self._covariance = covariance


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    total: float = sum(map(operator.mul, a, b))
    return total


class StepCostModel:
    """Learns the time of a step from the steps that run.

    Args:
        prior: used until steps have been seen, and where they say nothing.
        forgetting: see `RecursiveLeastSquares`; 0.999 looks back over about a thousand steps.
    """

    _MIN_SAMPLES = 30
    _MAX_RATIO = 8.0

    # Features are scaled to about one, so that one confidence suits them all.
    _SCALE = (1.0, 1e-2, 1e-6)

    def __init__(self, prior: StepCost, *, forgetting: float = 0.999) -> None:
        self._prior = prior
        initial = (prior.fixed_s, prior.per_token_s, prior.per_context_token_s)
        self._fit = RecursiveLeastSquares(
            list(map(operator.truediv, initial, self._SCALE)),
            confidence=1e-2,
            forgetting=forgetting,
        )
        self.num_samples = 0
        self._cost: StepCost | None = None

    def observe(self, num_tokens: int, context_pairs: float, seconds: float) -> None:
        """Learns from one step.

        Args:
            num_tokens: tokens that the step computed.
            context_pairs: sum over these tokens of the tokens they attended to.
            seconds: time of the step; a step that took many times what is expected (a compiler, a
                page fault) is left out once enough is known.
        """
        if num_tokens <= 0 or not seconds > 0 or not math.isfinite(seconds):
            return
        _, token_scale, pair_scale = self._SCALE
        features = (1.0, num_tokens * token_scale, context_pairs * pair_scale)
        expected = self._fit.predict(features)
        is_outlier = seconds > self._MAX_RATIO * max(expected, 1e-6)
        if self.num_samples >= self._MIN_SAMPLES and is_outlier:
            return
        self._fit.observe(features, seconds)
        self.num_samples += 1
        self._cost = None

    @property
    def is_ready(self) -> bool:
        """Whether enough steps were seen to trust the fit."""
        return self.num_samples >= self._MIN_SAMPLES

    @property
    def cost(self) -> StepCost:
        """The time of a step as it is known now; no coefficient is negative."""
        if not self.is_ready:
            return self._prior
        if self._cost is None:
            scaled = map(operator.mul, self._fit.coefficients, self._SCALE)
            self._cost = StepCost(*(max(0.0, number) for number in scaled))
        return self._cost


class MemoryPrice:
    """The share of recent steps in which somebody lacked memory, from 0 to 1.

    InferCept prices memory at 1 always; at 0 a held context costs nobody anything.

    Args:
        half_life_s: time after which a step counts half.
    """

    def __init__(self, *, half_life_s: float = 5.0) -> None:
        self._half_life_s = half_life_s
        self._last_s: float | None = None
        self.value = 0.0

    def observe(self, short_share: float, *, now_s: float) -> None:
        """Moves the price towards the share of steps in which memory was short since last time."""
        if self._last_s is None:
            self._last_s = now_s
            self.value = short_share
            return
        weight = 1 - 0.5 ** (max(0.0, now_s - self._last_s) / self._half_life_s)
        self._last_s = now_s
        self.value += weight * (short_share - self.value)


class ChurnRate:
    """How fast blocks are taken from the free queue, hence how long a free block keeps its data.

    Args:
        half_life_s: time after which an observation counts half.
    """

    def __init__(self, *, half_life_s: float = 10.0) -> None:
        self._half_life_s = half_life_s
        self._last_s: float | None = None
        self.blocks_per_s = 0.0

    def observe(self, num_blocks: int, *, now_s: float) -> None:
        """Learns that `num_blocks` were taken since the last call."""
        if self._last_s is None:
            self._last_s = now_s
            return
        elapsed_s = now_s - self._last_s
        if elapsed_s <= 0:
            return
        self._last_s = now_s
        weight = 1 - 0.5 ** (elapsed_s / self._half_life_s)
        self.blocks_per_s += weight * (num_blocks / elapsed_s - self.blocks_per_s)

    def horizon_s(self, num_free_blocks: int) -> float:
        """Returns the seconds until a block at the end of the free queue is taken."""
        if self.blocks_per_s <= 1e-9:
            return math.inf
        return num_free_blocks / self.blocks_per_s


class AdmissionWait:
    """How much longer a turn queues if its context was let go than if it was held.

    A context that was let go needs room for all of it before it can be computed again; until there
    is, what becomes free lies idle. Source: the out-of-order cost of Continuum (arXiv 2511.02230),
    here measured, and only as far as holding avoids it.

    Args:
        weight: of one observation against all before it.
    """

    def __init__(self, *, weight: float = 0.05) -> None:
        self._weight = weight
        self._mean_s: dict[bool, float] = {}

    def observe(self, wait_s: float, *, was_held: bool) -> None:
        """Learns how long a turn waited from its arrival to its first step."""
        mean_s = self._mean_s.setdefault(was_held, wait_s)
        self._mean_s[was_held] = mean_s + self._weight * (wait_s - mean_s)

    @property
    def extra_s(self) -> float:
        """Seconds that a turn waits longer without its context; 0 until one was seen to."""
        return max(0.0, self._mean_s.get(False, 0.0) - self._mean_s.get(True, 0.0))
