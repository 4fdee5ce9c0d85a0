"""How long a tool will still take: learned per tool, from what tools took before."""

from __future__ import annotations

import bisect
import math
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

__all__ = ["DurationModel", "ElapsedEstimate", "ReturnModel"]

_LOW_S, _HIGH_S, _PER_DECADE = 1e-5, 1e4, 8
_NUM_BUCKETS = round(math.log10(_HIGH_S / _LOW_S) * _PER_DECADE)
_EXPONENTS = (np.arange(_NUM_BUCKETS) + 0.5) / _PER_DECADE
_MIDDLES: NDArray[np.float64] = _LOW_S * 10.0**_EXPONENTS
_MIDDLES_S: list[float] = _MIDDLES.tolist()
# Before anything is seen: even in the logarithm over the tools of InferCept's table, from a
# calculator's 0.1 ms to a person's minute.
_PRIOR: NDArray[np.float64] = ((_MIDDLES >= 1e-4) & (_MIDDLES <= 60.0)).astype(np.float64)
_PRIOR /= _PRIOR.sum()


class ElapsedEstimate:
    """Expects a call to last as much longer as it has lasted already.

    Source: InferCept, its estimate of an unknown duration. It is the mean residual life of a
    Pareto law with exponent 2; holding until it exceeds the break-even pause is the ski-rental
    rule, which never wastes more than twice what a clairvoyant would.
    """

    def mean_remaining_s(
        self, tool: str, elapsed_s: float, *, hint_s: float | None = None
    ) -> float:
        return elapsed_s

    def survival(
        self, tool: str, elapsed_s: float, more_s: float, *, hint_s: float | None = None
    ) -> float:
        """Returns the chance that the call lasts `more_s` beyond `elapsed_s`."""
        if elapsed_s <= 0:
            return 0.0 if more_s > 0 else 1.0
        return (elapsed_s / (elapsed_s + more_s)) ** 2

    def observe(self, tool: str, duration_s: float) -> None:
        """Learns nothing."""


class _Histogram:
    """Decayed counts of durations, with the sums over all longer ones at hand.

    Args:
        counts: first counts, [_NUM_BUCKETS].
    """

    def __init__(self, counts: NDArray[np.float64]) -> None:
        self._counts = counts
        self.mass: list[float] = []
        self.moment: list[float] = []
        self._sum()

    @property
    def total(self) -> float:
        return float(self.mass[0])

    def observe(self, bucket: int, *, decay: float) -> None:
        self._counts *= decay
        self._counts[bucket] += 1
        self._sum()

    def _sum(self) -> None:
        # From each bucket to the last, and 0 after it: of counts, and of counts times seconds.
        self.mass = [*np.cumsum(self._counts[::-1])[::-1].tolist(), 0.0]
        self.moment = [*np.cumsum((self._counts * _MIDDLES)[::-1])[::-1].tolist(), 0.0]


class DurationModel:
    """Decayed log histograms of durations, one per tool, over one of all tools.

    Args:
        decay: weight of an observation after the next one of the same tool.
        hint_weight: how many observations a client's hint is worth.
        max_tools: tools remembered at most; the least recently used is forgotten.
    """

    # What all tools do counts as this many observations of an unknown tool, and fades fast: one
    # slow tool among many would otherwise dominate the mean of every quick one.
    _SHARED_WEIGHT = 2.0

    def __init__(
        self, *, decay: float = 0.98, hint_weight: float = 8.0, max_tools: int = 1024
    ) -> None:
        self._decay = decay
        self._hint_weight = hint_weight
        self._max_tools = max_tools
        self._tools: OrderedDict[str, _Histogram] = OrderedDict()
        self._all = _Histogram(_PRIOR.copy())

    def observe(self, tool: str, duration_s: float) -> None:
        """Learns that a call of `tool` took `duration_s`."""
        bucket = _bucket(duration_s)
        known = self._tools.pop(tool, None) or _Histogram(np.zeros(_NUM_BUCKETS))
        known.observe(bucket, decay=self._decay)
        self._tools[tool] = known
        while len(self._tools) > self._max_tools:
            self._tools.popitem(last=False)
        self._all.observe(bucket, decay=self._decay)

    def mean_remaining_s(
        self, tool: str, elapsed_s: float, *, hint_s: float | None = None
    ) -> float:
        """Returns how long a call that has lasted `elapsed_s` is expected to last from now on.

        The mean residual life of the tool's histogram; beyond everything seen, the time elapsed.

        Args:
            tool: the tool's name; "" for an unknown one.
            elapsed_s: seconds since the call began.
            hint_s: what the client expects the whole call to take.
        """
        mass, moment = self._longer(tool, elapsed_s, hint_s)
        if mass <= 1e-9:
            return elapsed_s
        return max(0.0, moment / mass - elapsed_s)

    def survival(
        self, tool: str, elapsed_s: float, more_s: float, *, hint_s: float | None = None
    ) -> float:
        """Returns the chance that the call lasts `more_s` beyond `elapsed_s`."""
        if math.isinf(more_s):
            return 0.0
        mass, _ = self._longer(tool, elapsed_s, hint_s)
        if mass <= 1e-9:
            return ElapsedEstimate().survival(tool, elapsed_s, more_s)
        return min(1.0, self._longer(tool, elapsed_s + more_s, hint_s)[0] / mass)

    def _longer(self, tool: str, elapsed_s: float, hint_s: float | None) -> tuple[float, float]:
        """Returns the weight of calls longer than `elapsed_s`, and its sum of weight times seconds.

        Called for every look at a session, several times: nothing here runs over the buckets.
        """
        first = bisect.bisect_right(_MIDDLES_S, elapsed_s)
        known = self._tools.get(tool)
        num_known = 0.0 if known is None else known.total
        shared = self._SHARED_WEIGHT / (1 + num_known) / self._all.total
        mass, moment = shared * self._all.mass[first], shared * self._all.moment[first]
        if known is not None:
            mass += known.mass[first]
            moment += known.moment[first]
        if hint_s is not None and hint_s >= 0 and (hinted := _bucket(hint_s)) >= first:
            mass += self._hint_weight
            moment += self._hint_weight * _MIDDLES_S[hinted]
        return mass, moment


# Turns that were followed by another one, and turns that were not.
_RETURNS_PRIOR = {"tool": (9.0, 1.0), "plain": (5.0, 5.0), "anonymous": (1.0, 9.0)}


class ReturnModel:
    """How often a session comes back after a turn, by how the turn ended.

    Counts are kept for turns that ended in a tool call, turns that did not, and requests without a
    session; each starts with an opinion worth a few turns.
    """

    def __init__(self, *, decay: float = 0.995) -> None:
        self._decay = decay
        self._counts = {kind: list(prior) for kind, prior in _RETURNS_PRIOR.items()}

    def observe(self, kind: str, *, returned: bool) -> None:
        """Learns whether a session came back after a turn of `kind`: tool, plain, anonymous."""
        counts = self._counts[kind]
        for index in range(2):
            counts[index] *= self._decay
        counts[0 if returned else 1] += 1

    def probability(self, kind: str, *, still_out: float = 1.0) -> float:
        """Returns the chance that a session comes back.

        Args:
            kind: how its turn ended.
            still_out: the chance that it would still be away if it came back for certain; small
                values make a return unlikely.
        """
        returned, gone = self._counts[kind]
        return returned * still_out / (returned * still_out + gone)


def _bucket(duration_s: float) -> int:
    if not duration_s > _LOW_S:
        return 0
    index = int(math.log10(duration_s / _LOW_S) * _PER_DECADE)
    return min(index, _NUM_BUCKETS - 1)
