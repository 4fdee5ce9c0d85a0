"""What a step costs by its number of rows: measured at start, then corrected by what ran."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping

__all__ = ["StepCost", "measured_widths"]

_ASSUMED_WIDTHS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
_MEMORY_OF_SPEED = 40.0
"""Steps after which an older one counts 1/e for how fast the machine is now."""
_MEMORY_OF_SHAPE = 400.0
"""The same for a width's own cost."""
_PRIOR_OF_SHAPE = 12.0
"""Steps of its own that the measurement of a width counts as."""
_MAX_FACTOR = 3.0
"""A step so much slower than foreseen was disturbed, and counts as that much slower only."""


class StepCost:
    """Seconds of a step, by straight lines between the widths that are known.

    Two things are learned from the steps that run: how fast the machine is now, which moves all
    widths, and how a width differs from what was measured, say because contexts have grown. More
    rows may cost less: kernels take them in blocks, and on a CPU with AVX512 but without AMX four
    rows of Qwen2.5-Coder take five sixths of the time of one. Until something was measured, one
    more row is assumed to cost a share of the cost of none.
    """

    def __init__(self, *, slope: float = 0.06) -> None:
        """Args:
        slope: assumed cost of one more row, as a share of the cost of none.
        """
        self._widths = list(_ASSUMED_WIDTHS)
        self._costs = [1.0 + slope * width for width in self._widths]
        self._reset()

    def _reset(self) -> None:
        self._speed, self._num_steps = 1.0, 0.0
        # Of each width, the sum of its steps' cost over what was foreseen, and their number.
        self._factors = [_PRIOR_OF_SHAPE for _ in self._widths]
        self._weights = [_PRIOR_OF_SHAPE for _ in self._widths]
        self._current: list[float] | None = None

    @property
    def has_learned(self) -> bool:
        """Whether costs are in seconds."""
        return self._num_steps >= 1.0

    def measure(self, seconds: Mapping[int, float]) -> None:
        """Takes over measured seconds by the number of rows, and forgets what was learned.

        Raises:
            ValueError: fewer than two widths.
        """
        if len(seconds) < 2:
            raise ValueError(f"`seconds` has {len(seconds)} widths, but a line needs two")
        self._widths = sorted(seconds)
        self._costs = [seconds[width] for width in self._widths]
        self._reset()

    def observe(self, num_rows: int, seconds: float) -> None:
        """Learns from one step."""
        base = self._between(self._costs, num_rows)
        if not self.has_learned:
            self._speed, self._num_steps = seconds / base, 1.0
            self._current = None
            return
        foreseen = self(num_rows)
        seconds = min(seconds, _MAX_FACTOR * foreseen)
        at = self._nearest(num_rows)
        keep = 1.0 - 1.0 / _MEMORY_OF_SHAPE
        self._factors[at] = self._factors[at] * keep + seconds / (self._speed * base)
        self._weights[at] = self._weights[at] * keep + 1.0
        # The first steps count more, so that a wrong first one is soon forgotten.
        share = max(1.0 / _MEMORY_OF_SPEED, 1.0 / (self._num_steps + 1.0))
        self._speed *= 1.0 + share * (seconds / foreseen - 1.0)
        self._num_steps += 1.0
        self._current = None

    def __call__(self, num_rows: int) -> float:
        """Returns the expected cost of a step; in seconds once it has learned any."""
        if self._current is None:
            own = zip(self._costs, self._factors, self._weights, strict=True)
            self._current = [cost * factors / weight for cost, factors, weight in own]
        return self._speed * self._between(self._current, num_rows)

    def _between(self, costs: list[float], num_rows: int) -> float:
        """A width's cost by the line through its neighbours, which goes on beyond the last two."""
        at = min(max(bisect_left(self._widths, num_rows), 1), len(self._widths) - 1)
        low, high = self._widths[at - 1], self._widths[at]
        slope = (costs[at] - costs[at - 1]) / (high - low)
        return max(costs[at - 1] + slope * (num_rows - low), 0.1 * costs[0])

    def _nearest(self, num_rows: int) -> int:
        return min(range(len(self._widths)), key=lambda at: abs(self._widths[at] - num_rows))


def measured_widths(max_rows: int, seconds: Callable[[int], float]) -> dict[int, float]:
    """Returns the seconds of some widths from 1 to `max_rows`, close where kernels change.

    All widths are measured in rounds, of which the fastest counts for each, as the others were
    disturbed, until two rounds in a row have found none faster.

    Args:
        max_rows: rows of the widest step, at least 2.
        seconds: measures one width.
    """
    widths = sorted({*(width for width in _MEASURED_WIDTHS if width < max_rows), max_rows})
    fastest, num_settled = dict.fromkeys(widths, math.inf), 0
    for _ in range(_MAX_ROUNDS):
        found = {width: seconds(width) for width in widths}
        is_settled = all(found[width] > _SETTLED * fastest[width] for width in widths)
        fastest = {width: min(fastest[width], found[width]) for width in widths}
        num_settled = num_settled + 1 if is_settled else 0
        if num_settled == 2:
            break
    return fastest


_MEASURED_WIDTHS = (1, 2, 4, 6, 8, 12, 16, 17, 24, 32, 33, 48, 64, 96, 128)
_MAX_ROUNDS = 10
_SETTLED = 0.98
"""A round in which no width was faster than this share of its fastest found nothing new."""
