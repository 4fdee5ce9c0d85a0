"""`adaseek drafts`: trained drafts for vLLM's `--token-tree`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from adaseek.cli.command import Command
from adaseek.errors import ConfigurationError

__all__ = ["drafts"]

_T = TypeVar("_T")
_INPUT = click.Path(path_type=Path)


@click.group()
def drafts() -> None:
    """Train drafts for `vllm serve MODEL --token-tree`."""


@drafts.command(cls=Command)
@click.argument("target")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, metavar="DIR"
)
@click.option(
    "--prompts",
    type=_INPUT,
    required=True,
    metavar="FILE",
    help='One JSON object per line: {"messages": [...]} or {"text": "..."}, and maybe "group": '
    "about one group in ten is held out for the report.",
)
@click.option(
    "--text",
    "texts",
    type=_INPUT,
    multiple=True,
    metavar="PATH",
    help="A file or folder of plain text to learn first. May be given several times.  "
    "[default: the prompts' texts]",
)
@click.option(
    "--minutes", type=float, default=40.0, show_default=True, help="Of all runs together."
)
@click.option(
    "--num-drafts",
    type=int,
    default=1,
    show_default=True,
    help="Draft models beside the table. 0: all of the time for answers, for a larger table.",
)
@click.option("--max-tokens", type=int, default=256, show_default=True, help="Of an answer.")
@click.option(
    "--vocabulary", type=int, default=8192, show_default=True, help="Tokens that a draft can guess."
)
@click.option("--seed", type=int, default=0, show_default=True)
def train(
    target: str,
    *,
    out: Path,
    prompts: Path,
    texts: tuple[Path, ...],
    minutes: float,
    num_drafts: int,
    max_tokens: int,
    vocabulary: int,
    seed: int,
) -> int:
    """Train drafts for TARGET from what it says itself: a table of what it finds likely after a few
    tokens, which costs nothing to ask, and small draft models.

    TARGET is a model directory, or a name in the local cache of the hub. Killed, the same command
    goes on where it was. Prints how often the drafts are right on held-out answers.
    """
    from adaseek_vllm.token_tree.drafts.train import (  # brings torch: slow to import
        TrainSettings,
        draft_directories,
    )
    from adaseek_vllm.token_tree.drafts.train import train as train_drafts

    def run() -> str:
        settings = TrainSettings(
            minutes=minutes,
            num_drafts=num_drafts,
            max_tokens=max_tokens,
            num_tokens=vocabulary,
            seed=seed,
        )
        return train_drafts(target, out, settings, prompts=prompts, texts=texts, say=click.echo)

    click.echo(_as_our_error(run))
    directories = [str(path) for path in draft_directories(out, num_drafts)]
    click.echo(f"--token-tree '{json.dumps({'drafts': directories})}'")
    return 0


def _as_our_error(run: Callable[[], _T]) -> _T:
    from adaseek_vllm.token_tree.drafts.config import DraftError

    try:
        return run()
    except DraftError as error:
        raise ConfigurationError(str(error)) from error
