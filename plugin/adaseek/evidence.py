"""Which finished runs dynamic cogs may learn from: the best of each example, and recent failures.

Bounded, so that a long run does not hold every trace in memory.
"""

from __future__ import annotations

from collections import deque

from adaseek.cogs.base import Run

__all__ = ["Evidence"]


class Evidence:
    """Keeps the highest-scoring runs per example and the latest low-scoring ones, in order."""

    def __init__(self, *, num_best: int = 3, num_recent: int = 2) -> None:
        self._num_best = num_best
        self._num_recent = num_recent
        self._best: dict[str, list[tuple[float, int, Run]]] = {}
        self._recent: dict[str, deque[tuple[int, Run]]] = {}
        self._count = 0

    def add(self, run: Run) -> None:
        """Counts one finished run."""
        self._count += 1
        best = self._best.setdefault(run.example.id, [])
        best.append((-run.score.value, self._count, run))
        best.sort(key=lambda item: item[:2])
        del best[self._num_best :]
        recent = self._recent.setdefault(run.example.id, deque(maxlen=self._num_recent))
        recent.append((self._count, run))

    def runs(self) -> list[Run]:
        """Returns the kept runs, each once, in the order in which they were added."""
        kept = {number: run for best in self._best.values() for _, number, run in best}
        kept.update(item for recent in self._recent.values() for item in recent)
        return [kept[number] for number in sorted(kept)]
