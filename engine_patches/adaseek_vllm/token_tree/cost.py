"""What a step costs by its number of rows, learned from the steps that ran."""

from __future__ import annotations

__all__ = ["StepCost"]


class StepCost:
    """A straight line through recent steps: seconds = base + slope * rows, by least squares.

    Older steps count less and less, so the line follows a machine that gets busy. Until enough
    steps of different widths were seen, the ratio of slope and base is an assumption.
    """

    def __init__(self, *, slope: float = 0.06, memory_steps: float = 200.0) -> None:
        """Args:
        slope: assumed cost of one more row, as a share of the cost of none.
        memory_steps: after how many steps one counts 1/e of a new one.
        """
        self._assumed_slope = slope
        self._decay = 1.0 - 1.0 / memory_steps
        self._weight = self._rows = self._seconds = 0.0
        self._rows_rows = self._rows_seconds = 0.0

    @property
    def has_learned(self) -> bool:
        """Whether costs are in seconds."""
        return self._weight >= 1.0

    def observe(self, num_rows: int, seconds: float) -> None:
        """Learns from one step."""
        for name, value in (
            ("_weight", 1.0),
            ("_rows", num_rows),
            ("_seconds", seconds),
            ("_rows_rows", num_rows * num_rows),
            ("_rows_seconds", num_rows * seconds),
        ):
            setattr(self, name, getattr(self, name) * self._decay + value)

    def __call__(self, num_rows: int) -> float:
        """Returns the expected cost of a step; in seconds once it has learned any."""
        base, slope = self._line()
        return base + slope * num_rows

    def _line(self) -> tuple[float, float]:
        if not self.has_learned:
            return 1.0, self._assumed_slope
        rows, seconds = self._rows / self._weight, self._seconds / self._weight
        # Steps of the assumed line, so that a few steps of about one width do not tilt it.
        assumed = seconds / (1.0 + self._assumed_slope * rows) * self._assumed_slope
        spread = self._rows_rows - self._weight * rows * rows
        tilt = self._rows_seconds - self._weight * rows * seconds
        slope = (tilt + assumed * _PRIOR_SPREAD) / (spread + _PRIOR_SPREAD)
        slope = min(max(slope, 0.0), 0.9 * seconds / rows)
        return seconds - slope * rows, slope


_PRIOR_SPREAD = 40.0
"""Weight of the assumption, as a sum of squared deviations of rows."""
