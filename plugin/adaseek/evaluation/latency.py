"""How long a workflow takes when nothing is cached: the longest chain of its calls."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from adaseek.workflow import Call

__all__ = ["critical_path"]


def critical_path(
    calls: Iterable[Call], *, parallel: Iterable[tuple[str, str]] = ()
) -> float | None:
    """Returns the seconds along the longest chain of calls that ran one after the other.

    A call follows another if it started when that one had ended; calls that overlapped ran side
    by side. Spans give the order only: a call that a memo answered in no time counts with the
    duration of the real call. A call with calls inside counts as their longest chain plus the
    time in which none of them ran, so that nothing is counted twice.

    Args:
        parallel: pairs of call ids that do not follow each other whatever their spans say: a memo
            answers at once, so calls that would have overlapped seem to come one by one.

    Returns:
        Seconds, 0 for no calls, or None if a cached call kept no duration.
    """
    given = tuple(calls)
    if any(call.cached and call.kind == "lm" and call.duration_s <= 0 for call in given):
        return None
    tree = _Tree.of(given, parallel)
    return _longest_chain(tree.children.get(None, []), tree)


@dataclass(frozen=True)
class _Tree:
    """Calls by the call around them, and which siblings ran side by side."""

    children: dict[str | None, list[Call]]
    parallel: frozenset[tuple[str, str]]

    @classmethod
    def of(cls, calls: Sequence[Call], parallel: Iterable[tuple[str, str]]) -> _Tree:
        known = {call.id for call in calls}
        parents = {
            c.id: c.parent if c.parent in known and c.parent != c.id else None for c in calls
        }
        children: dict[str | None, list[Call]] = {}
        for call in calls:
            children.setdefault(parents[call.id], []).append(call)
        apart: set[tuple[str, str]] = set()
        for one, two in parallel:
            # If two calls ran side by side, so did what encloses the one but not the other.
            paths = zip(_path(one, parents), _path(two, parents), strict=False)
            fork = next(((a, b) for a, b in paths if a != b), None)
            if fork:
                apart |= {fork, (fork[1], fork[0])}
        return cls(children, frozenset(apart))

    def follows(self, later: Call, earlier: Call) -> bool:
        return earlier.end_s <= later.start_s and (earlier.id, later.id) not in self.parallel


def _path(call: str, parents: dict[str, str | None]) -> list[str]:
    """Returns `call` and what encloses it, outermost first; nothing if it is not in the trace."""
    path: list[str] = []
    at: str | None = call
    while at is not None and at in parents and at not in path:
        path.append(at)
        at = parents[at]
    return path[::-1]


def _longest_chain(calls: Sequence[Call], tree: _Tree) -> float:
    ordered = sorted(calls, key=lambda call: (call.end_s, call.start_s))
    inside = {call.id for call in calls}
    if any(pair[0] in inside for pair in tree.parallel):
        return _longest_of_chains(ordered, tree)
    # Weighted interval scheduling: by end, each call adds to the best chain that had ended when
    # it started. Calls of no length at one instant keep the given order.
    ends = [call.end_s for call in ordered]
    best = [0.0]
    for index, call in enumerate(ordered):
        before = min(bisect_right(ends, call.start_s), index)
        best.append(max(best[-1], best[before] + _length(call, tree)))
    return best[-1]


def _longest_of_chains(ordered: Sequence[Call], tree: _Tree) -> float:
    """As above, in quadratic time: with exceptions, what a call follows is no range any more."""
    ends: list[float] = []
    for index, call in enumerate(ordered):
        before = (
            end
            for end, earlier in zip(ends, ordered[:index], strict=True)
            if tree.follows(call, earlier)
        )
        ends.append(max(before, default=0.0) + _length(call, tree))
    return max(ends, default=0.0)


def _length(call: Call, tree: _Tree) -> float:
    inner = tree.children.get(call.id)
    if not inner or call.cached:
        return call.duration_s
    return _longest_chain(inner, tree) + _idle(call, inner)


def _idle(call: Call, inner: Sequence[Call]) -> float:
    """Returns the seconds of `call` in which none of the calls inside it ran."""
    idle, reached = 0.0, call.start_s
    for start, end in sorted((c.start_s, c.end_s) for c in inner):
        idle += max(0.0, min(start, call.end_s) - reached)
        reached = max(reached, end)
    return idle + max(0.0, call.end_s - reached)
