"""What the sources guess, and what they learn and forget."""

from __future__ import annotations

import numpy as np
from adaseek_vllm.token_tree.recycling import RecyclingSource
from adaseek_vllm.token_tree.sources import DraftRequest
from adaseek_vllm.token_tree.suffix import SuffixSource


def request(*tokens: int, name: str = "a") -> DraftRequest:
    return DraftRequest(name, np.array(tokens, dtype=np.int32), 1)


def test_suffix_goes_on_as_the_text_did() -> None:
    guesses = SuffixSource().draft(request(1, 2, 3, 4, 5, 6, 1, 2, 3), 3)
    assert list(guesses.tree.paths()) == [(4,), (4, 5), (4, 5, 6)]
    assert guesses.probabilities == sorted(guesses.probabilities, reverse=True)


def test_suffix_branches_where_the_text_did() -> None:
    guesses = SuffixSource().draft(request(1, 2, 3, 9, 1, 2, 4, 9, 1, 2), 9)
    assert {(3,), (4,)} <= set(guesses.tree.paths())


def test_longer_match_is_guessed_first() -> None:
    guesses = SuffixSource().draft(request(7, 1, 2, 3, 9, 8, 1, 2, 4, 9, 7, 1, 2), 9)
    assert guesses.tree.tokens[0] == 3


def test_suffix_without_an_earlier_place_guesses_nothing() -> None:
    source = SuffixSource()
    assert len(source.draft(request(1, 2, 3), 9).tree) == 0
    assert len(source.draft(request(1, name="b"), 9).tree) == 0


def test_suffix_reads_only_what_is_new_of_a_request() -> None:
    source = SuffixSource()
    source.draft(request(1, 2, 3), 9)
    grown = source.draft(request(1, 2, 3, 1, 2), 9)
    assert grown.tree.tokens[0] == 3


def test_suffix_looks_at_no_other_request_and_forgets_ended_ones() -> None:
    source = SuffixSource()
    source.draft(request(1, 2, 3, 4), 9)
    assert len(source.draft(request(8, 1, 2, name="b"), 9).tree) == 0
    source.forget("a")
    source.forget("a")
    assert len(source.draft(request(1, 2), 9).tree) == 0


def learned(*rows: tuple[int, list[int]]) -> RecyclingSource:
    source = RecyclingSource()
    width = source.num_successors
    for token, successors in rows:
        padded = [*successors, *range(900, 900 + width - len(successors))]
        source.learn(np.array([token]), np.array([padded]))
    return source


def test_recycling_follows_remembered_successors() -> None:
    source = learned((1, [2, 3]), (2, [4]))
    paths = list(source.draft(request(7, 1), 4).tree.paths())
    assert paths[0] == (2,)
    assert {(3,), (2, 4)} <= set(paths)


def test_recycling_keeps_the_latest_answer() -> None:
    source = learned((1, [2]), (1, [5]))
    assert source.draft(request(1), 1).tree.tokens == (5,)


def test_recycling_of_an_unknown_token_guesses_nothing() -> None:
    source = learned((1, [2]))
    assert len(source.draft(request(5), 4).tree) == 0
    assert len(source.draft(request(100_000), 4).tree) == 0


def test_recycling_learns_which_ranks_come_true() -> None:
    always_second = learned((1, [2, 3]), *[(1, [3, 2]), (1, [2, 3])] * 300)
    (first, *_rest) = always_second.draft(request(1), 2).probabilities
    never_changing = learned(*[(1, [2, 3])] * 300)
    assert never_changing.draft(request(1), 1).probabilities[0] > 0.5
    # The remembered second rank came true each time, and is guessed first.
    assert always_second.draft(request(1), 1).tree.tokens == (3,)
    assert first > 0.5


def test_recycling_learns_nothing_from_no_rows() -> None:
    source = RecyclingSource()
    source.learn(np.empty(0, dtype=np.int64), np.empty((0, source.num_successors), dtype=np.int64))
    assert len(source.draft(request(1), 4).tree) == 0


def test_number_of_guesses_is_bounded() -> None:
    source = learned(*[(token, list(range(6))) for token in range(6)])
    assert len(source.draft(request(1), 5).tree) == 5
    text = SuffixSource().draft(request(*[1, 2] * 40), 5)
    assert len(text.tree) == 5
