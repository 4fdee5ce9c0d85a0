"""Turns of a simulated engine's sessions, one after the other."""

from __future__ import annotations

from typing import Any

from adaseek_vllm.retention.simulator import SimulatedEngine, SimulatedRequest

__all__ = ["follow", "tokens", "turn"]


def tokens(count: int, *, start: int = 0) -> list[int]:
    """Returns `count` tokens; another `start` below 900 gives others at every place."""
    return [10 + (start * 97 + index) % 900 for index in range(count)]


def turn(
    engine: SimulatedEngine, session: str | None, prompt: list[int], **options: Any
) -> SimulatedRequest:
    """Returns the session's next request, run to its end."""
    name = f"{session}-{len(engine.requests)}"
    request = engine.submit(name, prompt, max_tokens=20, session=session, **options)
    assert engine.drain(max_steps=2000)
    return request


def follow(last: SimulatedRequest, more: int = 30) -> list[int]:
    """Returns the prompt of the turn after `last`: all that was said, and `more` tokens."""
    return [*last.prompt, *last.output, *tokens(more, start=5)]
