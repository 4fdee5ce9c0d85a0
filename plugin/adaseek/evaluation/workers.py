"""Threads that stay: named, and never in the way of the end of the process."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

__all__ = ["WorkerPool"]


class WorkerPool:
    """Runs jobs in up to `num_threads` threads, started when first needed.

    The threads are daemons. Those of `concurrent.futures` are joined when the interpreter ends,
    so that one request that hangs would keep an interrupted process alive.
    """

    def __init__(self, num_threads: int, *, name: str) -> None:
        self._num_threads = num_threads
        self._name = name
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def submit(self, job: Callable[[], None]) -> None:
        """Puts `job` in the queue; it must not raise."""
        self._jobs.put(job)
        if len(self._threads) < self._num_threads:
            name = f"{self._name}-{len(self._threads)}"
            thread = threading.Thread(target=self._work, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def close(self) -> None:
        """Lets each thread end after the jobs that are in the queue; does not wait."""
        for _ in self._threads:
            self._jobs.put(None)
        self._threads.clear()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
