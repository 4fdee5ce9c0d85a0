"""Prints tokens per verification by tree width 1 to 5, the paper's table 2, for trained drafts.

    python widths.py prompts.jsonl drafts/ [drafts/2 ...]

The first folder is the `--out` of `adaseek drafts train`: its held-out answers, half of them
greedy and half sampled at temperature 1, are walked through with static trees <1, 1, w, 1, ...>.
Nothing is generated, so the numbers depend on no clock.
"""

from __future__ import annotations

from pathlib import Path

import click
from adaseek_vllm.token_tree.drafts.corpus import Corpus, trimmed
from adaseek_vllm.token_tree.drafts.files import load_draft
from adaseek_vllm.token_tree.drafts.prompts import read_prompts
from adaseek_vllm.token_tree.drafts.report import acceptance_report, as_markdown
from adaseek_vllm.token_tree.drafts.train import answers

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.argument("prompts", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("drafts", nargs=-1, required=True, type=_FOLDER)
@click.option("--depth", default=8, show_default=True, help="Levels of the trees.")
def main(prompts: Path, drafts: tuple[Path, ...], depth: int) -> None:
    """Walks through the held-out answers of a training."""
    _, held_out = answers(drafts[0] / "training" / "continuations", read_prompts(prompts))
    models = [load_draft(directory) for directory in drafts]
    first = models[0]
    corpus = Corpus(
        held_out,
        ids=trimmed(first.tokens, first.config.target.vocab_size),
        output_rows=first.output_rows.float(),
        window=first.config.window,
        depth=depth,
    )
    click.echo(as_markdown(acceptance_report(models, corpus, held_out)))


if __name__ == "__main__":
    main()
