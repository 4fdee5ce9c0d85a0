"""The held-out report of a training, as JSON and as markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from adaseek_vllm.token_tree.drafts.acceptance import (
    Ranks,
    best_ranks,
    hit_rates,
    ranks,
    successor_ranks,
    tokens_per_step,
    widths_at,
)
from adaseek_vllm.token_tree.drafts.corpus import Corpus, Document
from adaseek_vllm.token_tree.drafts.model import DraftModel
from adaseek_vllm.token_tree.drafts.successors import SuccessorsSource

__all__ = ["Row", "acceptance_report", "as_markdown", "save_report"]

_TOPS = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Row:
    """What one draft, or all merged, does on one kind of answer."""

    draft: str
    answers: str
    """`greedy` or `sampled`."""
    num_tokens: int
    hit_rates: dict[int, float]
    """Top k -> how often the next token is among them, given everything before it."""
    tokens_per_step: dict[int, float]
    """Width w -> tokens per verification with the static tree <1, 1, w, 1, 1, ...>."""


def acceptance_report(
    table: SuccessorsSource,
    models: Sequence[DraftModel],
    held_out: Corpus,
    documents: Sequence[Document],
    tokens: Tensor,
) -> list[Row]:
    """Returns the rows for the table and each draft alone, and for the merged trees of all.

    Args:
        table: of successors.
        models: the drafts.
        held_out: the corpus of `documents`.
        documents: answers that none was trained on.
        tokens: the trimmed vocabulary in the target's ids, [V].
    """
    rows = list[Row]()
    kept = [one for one in documents if len(one.tokens) > held_out.window + 1]
    for answers, is_sampled in (("greedy", False), ("sampled", True)):
        chosen = [index for index, one in enumerate(kept) if (one.temperature > 0) is is_sampled]
        named = {"successors": successor_ranks(table, held_out, chosen, tokens)}
        for number, model in enumerate(models, start=1):
            named[f"draft {number}"] = ranks(model, held_out, chosen)
        if models:
            named["merged"] = best_ranks(list(named.values()))
        rows += [
            _row(name, answers, found, held_out.depth) for name, found in named.items() if found
        ]
    return rows


def _row(name: str, answers: str, tables: Ranks, depth: int) -> Row:
    return Row(
        name,
        answers,
        sum(map(len, tables)),
        hit_rates(tables, _TOPS),
        {top: tokens_per_step(tables, widths_at(top, depth)) for top in _TOPS},
    )


def as_markdown(rows: Sequence[Row]) -> str:
    """Returns the report's two tables."""
    tops = " | ".join(map(str, _TOPS))
    line = "|---|---|---|" + "---|" * len(_TOPS)
    hits = [
        f"| {row.draft} | {row.answers} | {row.num_tokens} | "
        + " | ".join(f"{row.hit_rates[top]:.1%}" for top in _TOPS)
        + " |"
        for row in rows
    ]
    steps = [
        f"| {row.draft} | {row.answers} | {row.num_tokens} | "
        + " | ".join(f"{row.tokens_per_step[top]:.2f}" for top in _TOPS)
        + " |"
        for row in rows
    ]
    return "\n".join(
        [
            "How often the target's next token is among the draft's top k (held-out answers):",
            "",
            f"| draft | answers | tokens | {tops} |",
            line,
            *hits,
            "",
            "Tokens per verification with the static tree <1, 1, w, 1, 1, ...>, by w:",
            "",
            f"| draft | answers | tokens | {tops} |",
            line,
            *steps,
            "",
        ]
    )


def save_report(rows: Sequence[Row], directory: Path) -> str:
    """Writes acceptance.json and acceptance.md; returns the latter."""
    (directory / "acceptance.json").write_text(json.dumps([asdict(row) for row in rows], indent=2))
    text = as_markdown(rows)
    (directory / "acceptance.md").write_text(text)
    return text
