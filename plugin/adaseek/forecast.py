"""What follows a turn of a session, learned from the runs before it.

A request is sent before anyone knows whether its answer calls a tool. What can be said with it is
what happened after the same turn of earlier runs. Pure: no clock and no framework; an adapter tells
what it saw and asks before it sends.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from adaseek.hints import MAX_SECONDS, Hint, is_name

__all__ = ["Forecast"]

_FEWEST_RUNS = 3
"""As many runs must have shown a turn before anything is said about it."""

_LEAST_SHARE = 0.8
"""A server acts on what it is told, so a guess is not worth telling: this share of the (recent)
runs must have gone on in the same way."""

_KEPT = 0.9
"""What each run counts for when the next one is in, so that a program may change its ways."""

_MAX_TURNS = 4096
_LAST_VISIT = 31
"""Later turns of the same step in one run are taken for one."""


class _Next(Enum):
    """What follows a turn that calls no tool."""

    OTHER_TURN = "another model call"
    END = "the end of the run"


@dataclass
class _Turn:
    """How often each thing followed one turn: the tool of that name, or none."""

    num_runs: int = 0
    weights: dict[str | _Next, float] = field(default_factory=dict)

    def saw(self, what: str | _Next) -> None:
        self.num_runs += 1
        self.weights = {name: weight * _KEPT for name, weight in self.weights.items()}
        self.weights[what] = self.weights.get(what, 0.0) + 1.0

    def usual(self) -> str | _Next | None:
        """Returns what nearly always follows; None if that varies, or too little is known."""
        if self.num_runs < _FEWEST_RUNS:
            return None
        what, weight = max(self.weights.items(), key=lambda item: item[1])
        return what if weight >= _LEAST_SHARE * sum(self.weights.values()) else None


class Forecast:
    """Learns from finished runs what their turns end with, and how long tools take. Thread-safe."""

    def __init__(self) -> None:
        self._turns: OrderedDict[tuple[str, int], _Turn] = OrderedDict()
        self._seconds: dict[str, float] = {}
        self._lock = threading.Lock()

    def learn(
        self,
        turns: Sequence[tuple[str, Sequence[str]]],
        tools: Iterable[tuple[str, float]],
        *,
        ends: bool = True,
    ) -> None:
        """Takes in one finished run.

        Args:
            turns: step id, and the names of the tools that the answer called, of each model call
                in the order of their beginnings.
            tools: name and seconds of each tool call that came to its end.
            ends: whether the last turn was the last to be answered, too; with turns side by side
                it need not be.
        """
        with self._lock:
            for name, seconds in tools:
                before = self._seconds.get(name, seconds)
                self._seconds[name] = _KEPT * before + (1 - _KEPT) * seconds
            visits: Counter[str] = Counter()
            for index, (step, called) in enumerate(turns):
                turn = self._turn(step, visits[step])
                visits[step] += 1
                if called:
                    turn.saw(self._slowest(called))
                else:
                    is_end = ends and index == len(turns) - 1
                    turn.saw(_Next.END if is_end else _Next.OTHER_TURN)

    def hint(self, session: str, step: str, visit: int, *, may_end: bool) -> Hint:
        """Returns what to tell a server with a request of `step`; at least the session.

        Args:
            visit: how many requests of the step this run has made before.
            may_end: whether the session ends with the run.
        """
        with self._lock:
            turn = self._turns.get((step, min(visit, _LAST_VISIT)))
            usual = turn.usual() if turn is not None else None
            if isinstance(usual, str) and is_name(usual):
                seconds = self._seconds.get(usual)
                expected_s = None if seconds is None else min(seconds, MAX_SECONDS)
                return Hint(session=session, tool=usual, expected_s=expected_s)
            return Hint(session=session, final=may_end and usual is _Next.END)

    def _slowest(self, names: Sequence[str]) -> str:
        """Returns the tool that a turn waits for: tools that are called together run together."""
        return max(names, key=lambda name: self._seconds.get(name, 0.0))

    def _turn(self, step: str, visit: int) -> _Turn:
        key = (step, min(visit, _LAST_VISIT))
        turn = self._turns.setdefault(key, _Turn())
        self._turns.move_to_end(key)
        if len(self._turns) > _MAX_TURNS:
            self._turns.popitem(last=False)
        return turn
