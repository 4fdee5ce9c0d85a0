"""The arithmetic of the report, on tables small enough to walk by hand."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from adaseek_vllm.token_tree.drafts.acceptance import (
    best_ranks,
    hit_rates,
    ranks,
    tokens_per_step,
    widths_at,
)
from adaseek_vllm.token_tree.drafts.fit import draft_logits

TABLE = np.array([[0, 0, 2], [1, 0, 0], [0, 3, 0], [5, 0, 0], [0, 0, 0]])


def test_hit_rates_look_at_the_first_level() -> None:
    assert hit_rates([TABLE], [1, 2, 6]) == {1: 0.6, 2: 0.8, 6: 1.0}


@pytest.mark.parametrize(
    ("widths", "expected"),
    [
        # Root 0 accepts two and emits three; root 3 emits one; root 4 emits what is left.
        ((1, 1, 1), 5 / 3),
        # The third level is wide enough: root 0 emits four, root 4 the last.
        ((1, 1, 3), 5 / 2),
        ((1,), 5 / 3),
    ],
)
def test_tokens_per_step_walks_the_document(widths: tuple[int, ...], expected: float) -> None:
    assert tokens_per_step([TABLE], widths) == pytest.approx(expected)


def test_paper_s_shape_widens_the_third_level() -> None:
    assert widths_at(4, 6) == (1, 1, 4, 1, 1, 1)
    assert widths_at(4, 2) == (1, 1)


def test_merged_drafts_have_the_better_rank() -> None:
    (best,) = best_ranks([[TABLE], [np.zeros_like(TABLE)]])
    assert best.max() == 0


def test_ranks_are_those_of_the_draft_and_unknown_tokens_have_none(toy: ModuleType) -> None:
    model, held_out = toy.model(is_random=True), toy.corpus(toy.documents(2, 50))
    first, _second = ranks(model, held_out, [0, 1])
    roots = held_out.roots_by_document[0]
    batch = held_out.batch(roots)
    order = draft_logits(model, batch).argsort(-1, descending=True)
    for row in range(len(roots)):
        for depth in range(held_out.depth + 1):
            said = int(batch.said[row, depth])
            if 0 <= said < len(toy.vocabulary()):
                assert int(order[row, depth, first[row, depth]]) == said
            else:
                assert first[row, depth] > 1000
