"""How texts become examples."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import torch
from adaseek_vllm.token_tree.drafts.corpus import Document, trimmed, vocabulary
from adaseek_vllm.token_tree.drafts.fit import loss_of


def test_vocabulary_prefers_what_the_target_said() -> None:
    asked = Document(np.array([1, 1, 1, 2, 2, 3], dtype=np.int32), 5, torch.zeros(6, 4))
    assert vocabulary([asked], 2, 9).tolist() == [1, 3]
    plain = Document(np.array([5, 5, 5, 5, 7], dtype=np.int32))
    assert vocabulary([plain], 3, 9).tolist() == [0, 5, 7]


def test_trimmed_ids_turn_other_tokens_into_one() -> None:
    assert trimmed(torch.tensor([1, 4]), 6).tolist() == [2, 0, 2, 2, 1, 2]


def test_example_holds_the_states_that_chose_its_window(toy: ModuleType) -> None:
    document = toy.document(3)
    corpus = toy.corpus([document])
    root = int(corpus.roots[0])
    assert root == document.first_answer - 1
    batch = corpus.batch(torch.tensor([root]))
    ids = trimmed(toy.vocabulary(), toy.VOCABULARY)
    size = toy.CONFIG.window
    window = document.tokens[root - size + 1 : root + 1]
    assert batch.tokens[0, :size].tolist() == ids[torch.from_numpy(window).long()].tolist()
    assert torch.equal(batch.hidden[0, :size], document.hidden[root - size : root])
    said = document.tokens[root + 1 : root + 6]
    assert batch.said[0].tolist() == ids[torch.from_numpy(said).long()].tolist()


def test_teacher_finds_likely_what_its_state_says(toy: ModuleType) -> None:
    corpus = toy.corpus(toy.documents(3, 0))
    batch = corpus.batch(corpus.roots)
    known = (batch.said >= 0) & (batch.said < len(toy.vocabulary()))
    best = batch.wanted.gather(-1, batch.chances.argmax(-1, keepdim=True))[..., 0]
    assert (best[known] == batch.said[known]).all()
    assert (batch.chances[~known] == 0).all()


def test_nothing_is_learned_across_the_end_of_a_text(toy: ModuleType) -> None:
    first, second = toy.document(0), toy.document(1)
    corpus = toy.corpus([first, second])
    last = int(corpus.roots_by_document[0][-1])
    batch = corpus.batch(torch.tensor([last]))
    assert batch.said[0, 1:].tolist() == [-1] * corpus.depth
    assert batch.chances[0, 1:].abs().sum() == 0


def test_short_texts_are_left_out(toy: ModuleType) -> None:
    short = Document(np.arange(4, dtype=np.int32), 1, torch.zeros(4, toy.WIDTH))
    assert len(toy.corpus([short, toy.document(0)]).roots_by_document) == 1


def test_loss_is_the_cross_entropy_where_something_is_known(toy: ModuleType) -> None:
    corpus = toy.corpus([toy.document(0)])
    batch = corpus.batch(corpus.roots[:3])
    logits = torch.randn(3, corpus.depth + 1, len(toy.vocabulary()))
    dense = torch.zeros_like(logits).scatter_add(-1, batch.wanted, batch.chances)
    losses = -(dense * logits.log_softmax(-1)).sum(-1)
    weights = 0.85 ** torch.arange(corpus.depth + 1) * batch.chances.sum(-1)
    expected = (losses * 0.85 ** torch.arange(corpus.depth + 1)).sum() / weights.sum()
    assert torch.allclose(loss_of(logits, batch), expected, atol=1e-5)
