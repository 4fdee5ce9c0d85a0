"""Ctrl-C and SIGTERM end a run in good order: what is in flight is finished and journalled."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["graceful_signals"]


@contextmanager
def graceful_signals() -> Iterator[threading.Event]:
    """Yields a flag that SIGTERM or the first Ctrl-C sets; a second one interrupts at once.

    Give the flag to `Runner(stop=...)`. The earlier handlers come back at the end. Outside the
    main thread signals cannot be handled: then nothing is installed.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            # None: installed by C code, so Python cannot put it back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
