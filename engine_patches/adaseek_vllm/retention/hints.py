"""What a client may tell about a request, read with distrust.

Hints come from anyone who can send a request: a wrong one is left out, never an error, and no
hint lets a session hold more memory than the settings allow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Hints"]

_MAX_NAME = 128
_MAX_SECONDS = 86400.0
_MAX_STOPS = 64


@dataclass(frozen=True)
class Hints:
    """Hints of one request; in the OpenAI API they stand in `vllm_xargs`, under these keys.

    Args:
        session: `session_id`, where the field and header of vLLM are not used.
        tool: `kvret_tool`, the tool that is called after this turn.
        expect_s: `kvret_expect_s`, how long it takes.
        ttl_s: `kvret_ttl_s`, hold no longer than this.
        is_final: `kvret_final`, no turn follows this one.
        pause_at: `kvret_pause_at`, the stop tokens and texts of an intercept: a turn that ends at
            one of them, or in a tool call, is not final. None if the request is no intercept.
    """

    session: str | None = None
    tool: str | None = None
    expect_s: float | None = None
    ttl_s: float | None = None
    is_final: bool = False
    pause_at: tuple[int | str, ...] | None = None

    @classmethod
    def read(cls, extra_args: Mapping[str, object] | None) -> Hints:
        """Returns the hints among a request's extra arguments."""
        given = extra_args or {}
        return cls(
            session=_name(given.get("session_id")),
            tool=_name(given.get("kvret_tool")),
            expect_s=_seconds(given.get("kvret_expect_s")),
            ttl_s=_seconds(given.get("kvret_ttl_s")),
            is_final=given.get("kvret_final") in (1, True, "1", "true"),
            pause_at=_stops(given.get("kvret_pause_at")),
        )


def _name(value: object) -> str | None:
    return value[:_MAX_NAME] if isinstance(value, str) and value else None


def _stops(value: object) -> tuple[int | str, ...] | None:
    if not isinstance(value, list):
        return None
    return tuple(stop for stop in value[:_MAX_STOPS] if isinstance(stop, (int, str)))


def _seconds(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if not math.isfinite(value) or value < 0:
        return None
    return min(float(value), _MAX_SECONDS)
