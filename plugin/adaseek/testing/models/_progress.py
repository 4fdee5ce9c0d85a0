"""How the preparation of a model is shown: a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO


class ModelProgress(Protocol):
    """Told how far one stage of the preparation of a model is."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Shows that `done` of `total` units of `stage` are finished; may do nothing."""


class _PlainLines:
    """Writes a line when a stage starts and at each further quarter of it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown: dict[str, int] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        quarter = 4 * done // max(total, 1)
        if self._shown.get(stage) == quarter:
            return
        self._shown[stage] = quarter
        print(f"{stage}: {done} of {total}", file=self._stream, flush=True)


@contextmanager
def terminal_progress(stream: TextIO | None = None) -> Iterator[ModelProgress]:
    """Yields a progress for `stream` (default: stderr): rich bars when it is a terminal."""
    output: TextIO = stream or sys.stderr
    if not output.isatty():
        yield _PlainLines(output)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=Console(file=output)) as bars:

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield show
