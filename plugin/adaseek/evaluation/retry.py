"""When to ask a failing endpoint again: exponential back-off with jitter, or when it says so."""

from __future__ import annotations

import re
from dataclasses import dataclass

from adaseek._canonical import fingerprint
from adaseek.errors import require

__all__ = ["Retry", "retry_after_s"]

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_LONG_UNIT = r"milliseconds?|ms|minutes?|mins?|m|seconds?|secs?|s|hours?|h"
_AMOUNT = re.compile(rf"(\d+(?:\.\d+)?)\s*({_LONG_UNIT})?(?![a-z])", re.IGNORECASE)
_HINT = re.compile(
    rf"(?:retry[-_ ]after|try again in|retry in)['\"\s:=]*((?:{_AMOUNT.pattern}\s*)+)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Retry:
    """How often, and after which pause, a run that failed at the endpoint is tried again.

    Attributes:
        tries: how often it is tried in all.
        base_s: the first pause; each next one is twice as long.
        cap_s: the longest pause that back-off alone makes.
        max_hint_s: the longest pause that an endpoint may ask for.
    """

    tries: int = 5
    base_s: float = 1.0
    cap_s: float = 60.0
    max_hint_s: float = 300.0

    def __post_init__(self) -> None:
        require(self.tries >= 1, "tries", self.tries, "must be >= 1")
        for name in ("base_s", "cap_s", "max_hint_s"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "must be >= 0")

    def pause_s(self, attempt: int, *, seed: str, hint_s: float | None = None) -> float:
        """Returns the pause after the `attempt`-th try (from 1) failed.

        Jitter takes off up to half, by `seed`, so that many threads do not come back at once.
        A hint of the endpoint is kept to, with jitter on top.
        """
        back_off = min(self.cap_s, self.base_s * 2.0 ** (attempt - 1))
        jitter = int(fingerprint([seed, attempt]), 16) / 16**16
        if hint_s is not None:
            return min(hint_s, self.max_hint_s) + jitter * self.base_s
        return back_off * (1 - jitter / 2)


def retry_after_s(text: str) -> float | None:
    """Returns the pause in seconds that an error's text asks for, such as `1m30s`, or None."""
    match = _HINT.search(text)
    if match is None:
        return None
    return sum(float(number) * _unit_s(unit) for number, unit in _AMOUNT.findall(match[1]))


def _unit_s(unit: str) -> float:
    short = unit.lower()
    return _UNITS_S["ms"] if short.startswith(("ms", "milli")) else _UNITS_S[short[:1] or "s"]
