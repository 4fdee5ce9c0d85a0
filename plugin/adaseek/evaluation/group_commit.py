"""One transaction for all that several threads want committed at the same moment."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

__all__ = ["GroupCommit"]

Entry = TypeVar("Entry")


class GroupCommit(Generic[Entry]):
    """Lets threads share transactions. Thread-safe.

    While one thread commits, the others queue; the next one to come through commits for all that
    wait. Nobody goes on before its own entry is committed, so what a crash may lose is no more
    than with a transaction each: what the threads are just doing.

    Source: group commit (DeWitt et al., SIGMOD 1984, section 5.2).
    """

    def __init__(self, write: Callable[[Sequence[Entry]], None]) -> None:
        """Begins empty; `write` commits entries, all or none, and is called by one thread."""
        self._write = write
        self._queue: list[_Waiting[Entry]] = []
        self._queue_lock = threading.Lock()
        self._write_lock = threading.Lock()

    def commit(self, entry: Entry) -> None:
        """Returns when `entry` is committed; raises what `write` raised for it."""
        mine = _Waiting(entry)
        with self._queue_lock:
            self._queue.append(mine)
        with self._write_lock:
            if not mine.is_done:
                with self._queue_lock:
                    group, self._queue = self._queue, []
                self._write_group(group)
        if mine.error is not None:
            raise mine.error

    def _write_group(self, group: Sequence[_Waiting[Entry]]) -> None:
        try:
            self._write([waiting.entry for waiting in group])
        except Exception as error:  # belongs to the thread whose entry it was: it is raised there
            if len(group) > 1:
                for waiting in group:
                    self._write_group([waiting])
                return
            group[0].error = error
        except BaseException as error:  # this thread is being ended: none of them is committed
            for waiting in group:
                waiting.error = error
        for waiting in group:
            waiting.is_done = True


class _Waiting(Generic[Entry]):
    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.is_done = False
        self.error: BaseException | None = None
