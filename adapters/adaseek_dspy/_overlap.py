"""Which requests of a run would have overlapped, had a memo not answered the first of them.

A memo answers at once, so requests that threads or tasks make side by side seem to come one after
the other. What else is known of them tells them apart from requests that really do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

from adaseek_dspy._frames import Frame, Request

__all__ = ["side_by_side"]


def side_by_side(
    requests: Iterable[Request], frames: Mapping[str, Frame]
) -> frozenset[tuple[str, str]]:
    """Returns pairs of ids of requests that do not follow each other, though their spans do."""
    ordered = sorted(requests, key=lambda request: (request.end_s, request.start_s))
    return frozenset(
        (earlier.id, later.id)
        for earlier, later in combinations(ordered, 2)
        if earlier.cached and earlier.end_s <= later.start_s and _overlap(earlier, later, frames)
    )


def _overlap(earlier: Request, later: Request, frames: Mapping[str, Frame]) -> bool:
    if earlier.run and earlier.run == later.run:
        # Both answers come from one earlier run, which saw what really happens.
        (start, end), (other_start, other_end) = _real_span(earlier), _real_span(later)
        return start < other_end and other_start < end
    around = _apart(_path(earlier, frames), _path(later, frames), next(iter(frames.values()), None))
    if around is None:
        return False
    one, two = around
    if one.is_member and two.is_member and one.parent == two.parent:
        return True  # an ensemble runs all of its members at once
    return one.start_s < _end(two) and two.start_s < _end(one)


def _apart(
    one: Sequence[Frame], two: Sequence[Frame], root: Frame | None
) -> tuple[Frame, Frame] | None:
    """Returns the two calls, around one request each, whose spans tell whether they overlapped.

    These are the outermost calls that enclose the one but not the other. A thread that the user's
    code started knows nothing of the calls around it; then what its calls are a part of is not
    known either, and of the other request only the innermost call is sure not to be around them.
    """
    if not one or not two:
        return None
    if one[0] is two[0]:
        return next(((a, b) for a, b in zip(one, two, strict=False) if a is not b), None)
    return (one[-1] if one[0] is root else one[0]), (two[-1] if two[0] is root else two[0])


def _path(request: Request, frames: Mapping[str, Frame]) -> list[Frame]:
    """Returns the calls around `request`, outermost first."""
    path: list[Frame] = []
    at = request.parent
    while at is not None and at in frames:
        path.append(frames[at])
        at = frames[at].parent
    return path[::-1]


def _real_span(request: Request) -> tuple[float, float]:
    return request.real_start_s, request.real_start_s + (request.duration_s or 0.0)


def _end(frame: Frame) -> float:
    return frame.end_s or math.inf
