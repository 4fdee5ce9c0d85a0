"""A command line's command whose AdaSeek errors are one line."""

from __future__ import annotations

from typing import IO, Any  # Any: click's arguments

import click

from adaseek.errors import AdaseekError, RunInterrupted

__all__ = ["INTERRUPTED", "Command"]

INTERRUPTED = 130
"""Exit code of a command that was asked to end before it had anything to write."""


class _Failure(click.ClickException):
    """An AdaSeek error as one line on standard error."""

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"error: {self.message}", file=file, err=file is None)


class _Interrupted(_Failure):
    """The same for a command that was asked to end."""

    exit_code = INTERRUPTED


class Command(click.Command):
    """A command whose AdaSeek errors are one line, unless `--debug` asks for the traceback."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        words = "Show the traceback of an error."
        self.params.append(click.Option(["--debug"], is_flag=True, help=words))

    def invoke(self, ctx: click.Context) -> Any:
        wants_traceback = ctx.params.pop("debug")
        try:
            return super().invoke(ctx)
        except AdaseekError as error:
            if wants_traceback:
                raise
            failure = _Interrupted if isinstance(error, RunInterrupted) else _Failure
            raise failure(str(error)) from error
