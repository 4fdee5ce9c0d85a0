"""How often a draft is right about what the target said: the held-out report.

Everything follows from one table: the rank that the draft gives the token that did come, for every
place in the text as the root and every depth below it. For tokens that are not drawn, a static
tree accepts exactly while that rank is below the width of its level, greedily and at any
temperature.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adaseek_vllm.token_tree.drafts.corpus import Corpus
from adaseek_vllm.token_tree.drafts.fit import draft_logits
from adaseek_vllm.token_tree.drafts.model import DraftModel
from adaseek_vllm.token_tree.drafts.successors import ORDER, SuccessorsSource

__all__ = [
    "best_ranks",
    "hit_rates",
    "ranks",
    "successor_ranks",
    "tokens_per_step",
    "widths_at",
]

_UNRANKED = 1 << 20
_BATCH = 128
_WIDE_LEVEL = 2

Ranks = list[NDArray[np.int64]]
"""One table per document, [roots, depth + 1]."""


@torch.inference_mode()
def ranks(model: DraftModel, corpus: Corpus, documents: Sequence[int]) -> Ranks:
    """Returns the rank of what was said, 0 the draft's first choice, for each root and depth."""
    found: Ranks = []
    for index in documents:
        parts = [
            _ranks(model, corpus, some)
            for some in torch.split(corpus.roots_by_document[index], _BATCH)
        ]
        found.append(torch.cat(parts).numpy() if parts else np.empty((0, corpus.depth + 1), int))
    return found


def _ranks(model: DraftModel, corpus: Corpus, roots: Tensor) -> Tensor:
    batch = corpus.batch(roots)
    logits = draft_logits(model, batch).float()
    said = batch.said.clamp(0, logits.shape[-1] - 1)[..., None]
    better = (logits > logits.gather(-1, said)).sum(-1)
    is_known = (batch.said >= 0) & (batch.said < logits.shape[-1])
    return torch.where(is_known, better, _UNRANKED)


def successor_ranks(
    table: SuccessorsSource, corpus: Corpus, documents: Sequence[int], tokens: Tensor
) -> Ranks:
    """Returns the same of a table of successors.

    Args:
        tokens: the trimmed vocabulary in the target's ids, [V].
    """
    found: Ranks = []
    # What is -1 or V in trimmed ids is -1.
    ids = torch.cat([tokens, torch.tensor([-1])])
    contexts = ids[corpus.contexts(ORDER)].tolist()
    for index in documents:
        roots = corpus.roots_by_document[index]
        said = ids[corpus.batch(roots).said].tolist()
        of_document = np.full((len(roots), corpus.depth + 1), _UNRANKED)
        for row, (root, following) in enumerate(zip(roots.tolist(), said, strict=True)):
            for depth, token in enumerate(following):
                if token >= 0:
                    known = [one for one in contexts[root + depth] if one >= 0]
                    of_document[row, depth] = _place(token, table.after(known))
        found.append(of_document)
    return found


def _place(token: int, guesses: Iterable[tuple[int, float]]) -> int:
    places = (
        place for place, (guessed, chance) in enumerate(guesses) if guessed == token and chance
    )
    return next(places, _UNRANKED)


def best_ranks(by_draft: Sequence[Ranks]) -> Ranks:
    """Returns the ranks of the merged tree: a token is there as soon as one draft guesses it."""
    return [np.minimum.reduce(of_document) for of_document in zip(*by_draft, strict=True)]


def hit_rates(tables: Ranks, tops: Sequence[int]) -> dict[int, float]:
    """Returns top -> how often the first drafted token's right value is among the top ones."""
    first = np.concatenate([table[:, 0] for table in tables])
    return {top: float((first < top).mean()) for top in tops}


def widths_at(width: int, depth: int) -> tuple[int, ...]:
    """The paper's shape <1, 1, width, 1, ...> of `depth` levels."""
    return tuple(width if level == _WIDE_LEVEL else 1 for level in range(depth))


def tokens_per_step(tables: Ranks, widths: Sequence[int]) -> float:
    """Returns tokens per verification when each document is decoded with a static tree.

    The bonus token counts, as in the paper's table 2.
    """
    num_tokens = num_steps = 0
    for table in tables:
        place = 0
        while place < len(table):
            fits = table[place, : len(widths)] < np.asarray(widths)
            accepted = len(widths) if fits.all() else int(fits.argmin())
            step = min(accepted + 1, len(table) - place)
            num_tokens, num_steps, place = num_tokens + step, num_steps + 1, place + step
    return num_tokens / max(num_steps, 1)
