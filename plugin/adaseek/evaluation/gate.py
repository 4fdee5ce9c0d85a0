"""How many requests an endpoint gets at once, and when it is left alone: shared by all threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from adaseek.errors import require
from adaseek.evaluation.retry import Retry, retry_after_s

__all__ = ["EndpointGate"]

_REFUSED = frozenset({429, 503, 529})


class EndpointGate:
    """Per endpoint, a number of slots and a common pause after it refused a request.

    Implements `Gate`. When one thread's request is refused (HTTP 429, 503 or 529), no thread
    sends that endpoint another one until the pause is over; other endpoints go on.
    """

    def __init__(
        self,
        concurrency: Mapping[str, int] | None = None,
        *,
        default: int | None = None,
        retry: Retry | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Makes a gate with every endpoint open.

        Args:
            concurrency: endpoint (`ModelRef.endpoint`) -> most requests at once.
            default: the same for endpoints that are not named; None: no limit.
            retry: back-off after refusals that bring no hint of their own.
            clock, sleep: seconds; replaced by tests.

        Raises:
            ConfigurationError: if a number is below 1.
        """
        for endpoint, slots in (concurrency or {}).items():
            require(slots >= 1, f"concurrency[{endpoint!r}]", slots, "must be >= 1")
        require(default is None or default >= 1, "concurrency", default, "must be >= 1")
        self._concurrency = dict(concurrency or {})
        self._default = default
        self._retry = retry or Retry()
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._doors: dict[str, _Door] = {}

    @contextmanager
    def slot(self, endpoint: str) -> Iterator[None]:
        """Waits until `endpoint` may be asked, holds one of its slots, and notes a refusal.

        The exception of a refused request passes through.
        """
        door = self._door(endpoint)
        with door.slots:
            self._wait(door)
            # Looks at whatever a client library raises, and lets it go on.
            try:
                yield
            except Exception as error:
                self._note(endpoint, door, error)
                raise
            with self._lock:
                door.num_refusals = 0

    def _door(self, endpoint: str) -> _Door:
        with self._lock:
            if endpoint not in self._doors:
                self._doors[endpoint] = _Door(self._concurrency.get(endpoint, self._default))
            return self._doors[endpoint]

    def _wait(self, door: _Door) -> None:
        # In a loop: while this thread slept another one may have been refused.
        while (rest_s := door.open_at_s - self._clock()) > 0:
            self._sleep(rest_s)

    def _note(self, endpoint: str, door: _Door, error: Exception) -> None:
        if _status(error) not in _REFUSED:
            return
        with self._lock:
            # Requests that were under way together are refused together: that is one refusal.
            if self._clock() >= door.open_at_s:
                door.num_refusals += 1
            pause_s = self._retry.pause_s(
                max(1, door.num_refusals), seed=endpoint, hint_s=_hint_s(error)
            )
            door.open_at_s = max(door.open_at_s, self._clock() + pause_s)


class _Door:
    def __init__(self, num_slots: int | None) -> None:
        self.slots: threading.BoundedSemaphore | _Open = (
            _Open() if num_slots is None else threading.BoundedSemaphore(num_slots)
        )
        self.open_at_s = float("-inf")
        self.num_refusals = 0


class _Open:
    def __enter__(self) -> None: ...

    def __exit__(self, *exception: object) -> None: ...


def _status(error: Exception) -> int | None:
    # openai, litellm and anthropic put `status_code` on the error; httpx puts it on the response.
    for holder in (error, getattr(error, "response", None)):
        status = getattr(holder, "status_code", None)
        if isinstance(status, int):
            return status
    return None


def _hint_s(error: Exception) -> float | None:
    headers = getattr(getattr(error, "response", None), "headers", None)
    header = headers.get("retry-after") if isinstance(headers, Mapping) else None
    return retry_after_s(f"retry-after: {header}" if header else str(error))
