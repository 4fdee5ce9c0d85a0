"""Tells a stream that passes through from one that is collected first."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any  # Any: request bodies are the client's JSON

from adaseek.testing.loopback import Reply

__all__ = ["StreamGate"]

WAIT_S = 30.0
"""How long the end of a stream is kept back from a reader that has seen nothing yet."""


class StreamGate:
    """Keeps back the end of a run's last stream until its reader has seen a chunk.

    Not of every stream: what an early step streams, its framework may keep for itself.
    """

    def __init__(self, answer: Callable[[Mapping[str, Any]], Reply], num_requests: int) -> None:
        self._answer = answer
        self._left = num_requests
        self._seen = threading.Event()
        self.passed = False

    def answer(self, body: Mapping[str, Any]) -> Reply:
        reply = self._answer(body)
        self._left -= 1
        if self._left or not body.get("stream"):
            return reply
        last = max(1, len(reply.text.split()))

        def before(index: int) -> None:
            if index == last:
                self.passed = self._seen.wait(timeout=WAIT_S)

        return Reply(reply.text, reply.tool_calls, before_chunk=before)

    def read(self, chunks: Iterable[Any]) -> int:
        """Returns how many chunks there are, opening the gate at the first."""
        num_chunks = 0
        for _ in chunks:
            num_chunks += 1
            self._seen.set()
        return num_chunks
