"""How long a workflow takes when nothing is cached: the longest chain of its calls."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

from adaseek.workflow import Call

__all__ = ["critical_path"]


def critical_path(calls: Iterable[Call]) -> float | None:
    """Returns the seconds along the longest chain of calls that ran one after the other.

    A call follows another if it started when that one had ended; calls that overlapped ran side
    by side. Spans give the order only: a call that a memo answered in no time counts with the
    duration of the real call. A call with calls inside counts as their longest chain plus the
    time in which none of them ran, so that nothing is counted twice.

    Returns:
        Seconds, 0 for no calls, or None if a cached call kept no duration.
    """
    given = tuple(calls)
    if any(call.cached and call.kind == "lm" and call.duration_s <= 0 for call in given):
        return None
    known = {call.id for call in given}
    children: dict[str | None, list[Call]] = {}
    for call in given:
        parent = call.parent if call.parent in known and call.parent != call.id else None
        children.setdefault(parent, []).append(call)
    return _longest_chain(children.get(None, []), children)


def _longest_chain(calls: Sequence[Call], children: dict[str | None, list[Call]]) -> float:
    # Weighted interval scheduling: by end, each call adds to the best chain that had ended when
    # it started. Calls of no length at one instant keep the given order.
    ordered = sorted(calls, key=lambda call: (call.end_s, call.start_s))
    ends = [call.end_s for call in ordered]
    best = [0.0]
    for index, call in enumerate(ordered):
        before = min(bisect_right(ends, call.start_s), index)
        best.append(max(best[-1], best[before] + _length(call, children)))
    return best[-1]


def _length(call: Call, children: dict[str | None, list[Call]]) -> float:
    inner = children.get(call.id)
    if not inner or call.cached:
        return call.duration_s
    return _longest_chain(inner, children) + _idle(call, inner)


def _idle(call: Call, inner: Sequence[Call]) -> float:
    """Returns the seconds of `call` in which none of the calls inside it ran."""
    idle, reached = 0.0, call.start_s
    for start, end in sorted((c.start_s, c.end_s) for c in inner):
        idle += max(0.0, min(start, call.end_s) - reached)
        reached = max(reached, end)
    return idle + max(0.0, call.end_s - reached)
