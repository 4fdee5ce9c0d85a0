"""What the sources guess, and what they learn and forget."""

from __future__ import annotations

import numpy as np
from adaseek_vllm.token_tree.growth import grown
from adaseek_vllm.token_tree.guesses import Guesses
from adaseek_vllm.token_tree.recycling import RecyclingSource
from adaseek_vllm.token_tree.sources import DraftRequest, PathSource, VerifiedRows
from adaseek_vllm.token_tree.suffix import PastSource, SuffixSource


def request(*tokens: int, name: str = "a", tenant: str = "") -> DraftRequest:
    return DraftRequest(name, np.array(tokens, dtype=np.int32), 1, tenant=tenant)


def drafted(source: PathSource, request: DraftRequest, max_nodes: int) -> Guesses:
    after = {"source": source.begin(request)}
    [found] = grown([after], max_nodes=max_nodes, worth=lambda _kind: 1.0)
    return found.guesses


def test_suffix_goes_on_as_the_text_did() -> None:
    guesses = drafted(SuffixSource(), request(1, 2, 3, 4, 5, 6, 1, 2, 3), 3)
    assert list(guesses.tree.paths()) == [(4,), (4, 5), (4, 5, 6)]
    assert guesses.probabilities == sorted(guesses.probabilities, reverse=True)


def test_suffix_branches_where_the_text_did() -> None:
    guesses = drafted(SuffixSource(), request(1, 2, 3, 9, 1, 2, 4, 9, 1, 2), 9)
    assert {(3,), (4,)} <= set(guesses.tree.paths())


def test_longer_match_is_guessed_first() -> None:
    guesses = drafted(SuffixSource(), request(7, 1, 2, 3, 9, 8, 1, 2, 4, 9, 7, 1, 2), 9)
    assert guesses.tree.tokens[0] == 3


def test_suffix_without_an_earlier_place_guesses_nothing() -> None:
    source = SuffixSource()
    assert len(drafted(source, request(1, 2, 3), 9).tree) == 0
    assert len(drafted(source, request(1, name="b"), 9).tree) == 0


def test_suffix_reads_only_what_is_new_of_a_request() -> None:
    source = SuffixSource()
    drafted(source, request(1, 2, 3), 9)
    grown = drafted(source, request(1, 2, 3, 1, 2), 9)
    assert grown.tree.tokens[0] == 3


def test_suffix_looks_at_no_other_request_and_forgets_ended_ones() -> None:
    source = SuffixSource()
    drafted(source, request(1, 2, 3, 4), 9)
    assert len(drafted(source, request(8, 1, 2, name="b"), 9).tree) == 0
    source.forget("a")
    source.forget("a")
    assert len(drafted(source, request(1, 2), 9).tree) == 0


def rows(
    token: int,
    successors: list[int],
    *,
    previous: int = 0,
    said: int = -1,
    tenant: str = "",
    chances: tuple[float, ...] = (0.7, 0.15),
) -> VerifiedRows:
    """One verified row, its successors filled up with others."""
    num_missing = RecyclingSource.num_successors - len(successors)
    padded = [*successors, *range(900, 900 + num_missing)]
    given = [*chances, *[0.0] * len(padded)][: len(padded)]
    fields = ([token], [previous], [padded], [given], [said])
    return VerifiedRows(*(np.array(field) for field in fields), tenants=[tenant])


def learned(*verified: tuple[int, list[int]]) -> RecyclingSource:
    """Learned from rows whose best successor was said."""
    source = RecyclingSource()
    for token, successors in verified:
        source.learn(rows(token, successors, said=successors[0]))
    return source


def test_recycling_follows_remembered_successors() -> None:
    source = learned((1, [2, 3]), (2, [4]))
    paths = list(drafted(source, request(7, 1), 4).tree.paths())
    assert paths[0] == (2,)
    assert {(3,), (2, 4)} <= set(paths)


def test_recycling_keeps_the_latest_answer() -> None:
    source = learned((1, [2]), (1, [5]))
    assert drafted(source, request(1), 1).tree.tokens == (5,)


def test_recycling_of_an_unknown_token_guesses_nothing() -> None:
    source = learned((1, [2]))
    assert len(drafted(source, request(5), 4).tree) == 0
    assert len(drafted(source, request(100_000), 4).tree) == 0


def test_recycling_is_as_sure_as_the_target_was() -> None:
    source = RecyclingSource()
    source.learn(rows(1, [2, 3], chances=(0.93, 0.07)))
    source.learn(rows(4, [5, 6], chances=(0.55, 0.45)))
    sure, unsure = (drafted(source, request(token), 2).probabilities for token in (1, 4))
    assert sure[0] > unsure[0] > unsure[1] > sure[1]


def test_recycling_learns_what_the_targets_chances_are_worth() -> None:
    def after(said: int) -> Guesses:
        source = RecyclingSource()
        for _ in range(300):
            source.learn(rows(1, [2, 3], said=said, chances=(0.6, 0.4)))
        return drafted(source, request(0, 1), 2)

    # Whatever the target thought: that the second one came each time is what counts.
    assert after(said=3).tree.tokens[0] == 3
    assert after(said=3).probabilities[0] > 0.9
    assert after(said=2).tree.tokens[0] == 2
    assert after(said=2).probabilities[0] > 0.9


def test_recycling_counts_a_repeated_successor_once() -> None:
    source, width = RecyclingSource(), RecyclingSource.num_successors
    chances = (1.0, *[0.0] * (width - 1))
    for _ in range(300):
        source.learn(rows(1, [2] * width, said=2, chances=chances))
    source.learn(rows(4, [5, 6], chances=(1.0, 0.0)))
    assert drafted(source, request(0, 1), 9).tree.tokens == (2,)
    # What the target thought impossible did not come true.
    assert drafted(source, request(0, 4), 9).tree.tokens == (5,)


def test_recycling_learns_nothing_from_no_rows() -> None:
    source = RecyclingSource()
    none = np.empty(0, dtype=np.int64)
    empty = none.reshape(0, source.num_successors)
    source.learn(VerifiedRows(none, none, empty, empty.astype(np.float32), none, ()))
    assert len(drafted(source, request(1), 4).tree) == 0


def test_recycling_tells_no_tenant_what_another_was_told() -> None:
    source = RecyclingSource()
    source.learn(rows(1, [2], tenant="salt"))
    assert len(drafted(source, request(1), 4).tree) == 0
    assert len(drafted(source, request(1, tenant="other"), 4).tree) == 0
    assert drafted(source, request(1, name="b", tenant="salt"), 1).tree.tokens == (2,)


def test_recycling_judges_its_guesses_for_each_tenant_alone() -> None:
    source = RecyclingSource()

    def chance() -> list[float]:
        return drafted(source, request(0, 1, tenant="a"), 1).probabilities

    source.learn(rows(1, [2], tenant="a"))
    before = chance()
    for _ in range(9):
        source.learn(rows(1, [2], said=2, tenant="b"))
    assert chance() == before


def test_recycling_parts_the_rows_of_a_step_by_tenant() -> None:
    source, width = RecyclingSource(), RecyclingSource.num_successors
    successors = np.array([[2] * width, [3] * width, [4] * width])
    chances = np.full(successors.shape, 1 / width, dtype=np.float32)
    fields = (np.array([1, 1, 5]), np.zeros(3, dtype=np.int64), successors, chances)
    source.learn(VerifiedRows(*fields, np.full(3, -1), tenants=["a", "b", "a"]))
    for tenant, token, successor in (("a", 1, 2), ("b", 1, 3), ("a", 5, 4)):
        assert drafted(source, request(token, tenant=tenant), 1).tree.tokens == (successor,)
    assert len(drafted(source, request(5, tenant="b"), 1).tree) == 0


def test_recycling_forgets_the_tenant_that_asked_longest_ago() -> None:
    source = RecyclingSource()
    for number in range(32):
        source.learn(rows(1, [2], tenant=str(number)))
    drafted(source, request(1, tenant="0"), 1)
    source.learn(rows(1, [2], tenant="new"))
    assert drafted(source, request(1, tenant="0"), 1).tree.tokens == (2,)
    assert len(drafted(source, request(1, tenant="1"), 1).tree) == 0


def test_recycling_prefers_what_followed_the_pair() -> None:
    source = RecyclingSource()
    for previous, successor in ((1, 3), (2, 4)):
        source.learn(rows(9, [successor], previous=previous))
    assert drafted(source, request(1, 9), 1).tree.tokens == (3,)
    assert drafted(source, request(2, 9), 1).tree.tokens == (4,)
    # A pair that was never seen: what followed the token last.
    assert drafted(source, request(5, 9), 1).tree.tokens == (4,)


def test_recycling_judges_no_row_off_the_path() -> None:
    source, chance = RecyclingSource(), lambda: drafted(source, request(0, 1), 1).probabilities[0]
    source.learn(rows(1, [2]))
    before = chance()
    source.learn(rows(1, [2]))
    assert chance() == before
    source.learn(rows(1, [2], said=2))
    assert chance() > before


def test_suffix_learns_how_often_a_match_goes_on() -> None:
    def chance_after(*said: int) -> float:
        source, text = SuffixSource(), [1, 2, 3, 4, 1, 2]
        for number in range(200):
            drafted(source, request(*text, name=str(number)), 1)
            drafted(source, request(*text, *said, name=str(number)), 1)
        return drafted(source, request(*text, name="new"), 1).probabilities[0]

    assert chance_after(3) > 0.9
    assert chance_after(9) < 0.2


def test_suffix_learns_how_well_one_request_repeats_itself() -> None:
    source, tokens = SuffixSource(), [1, 2, 3, 4, 1, 2]
    for new in (100, 101, 102):
        drafted(source, request(*tokens), 1)
        # What follows the pair is another token each time.
        tokens += [new, 1, 2]
    (own,) = drafted(source, request(*tokens), 1).probabilities
    (unjudged,) = drafted(source, request(*tokens, name="b"), 1).probabilities
    assert own < 0.8 * unjudged


def answered(source: PastSource, *tokens: int, name: str = "past", tenant: str = "") -> None:
    """A request that was answered with the last token, after the others."""
    drafted(source, request(*tokens, name=name, tenant=tenant), 9)
    source.forget(name)


def test_past_goes_on_as_an_earlier_answer_did() -> None:
    source = PastSource()
    drafted(source, request(1, 2, name="past"), 9)
    drafted(source, request(1, 2, 3, 4, 5, name="past"), 9)
    assert len(drafted(source, request(9, 1, 2), 9).tree) == 0
    source.forget("past")
    guesses = drafted(source, request(9, 1, 2), 9)
    assert list(guesses.tree.paths()) == [(3,), (3, 4), (3, 4, 5)]


def test_past_guesses_how_an_answer_begins() -> None:
    """A chat's template ends every prompt alike."""
    source = PastSource()
    answered(source, 50, 7, 8, 100)
    assert drafted(source, request(60, 7, 8), 1).tree.tokens == (100,)


def test_past_does_not_go_on_from_one_answer_to_the_next() -> None:
    source = PastSource()
    for name, token in (("a", 1), ("b", 2)):
        answered(source, token, name=name)
    assert len(drafted(source, request(9, 1, name="c"), 9).tree) == 0


def test_past_tells_no_tenant_what_another_was_told() -> None:
    source = PastSource()
    answered(source, 1, 2, 3, tenant="salt")
    assert len(drafted(source, request(9, 1, 2), 9).tree) == 0
    assert len(drafted(source, request(9, 1, 2, name="b", tenant="other"), 9).tree) == 0
    assert drafted(source, request(9, 1, 2, name="c", tenant="salt"), 1).tree.tokens == (3,)


def test_past_judges_its_guesses_for_each_tenant_alone() -> None:
    source = PastSource()

    def chance(name: str) -> float:
        guesses = drafted(source, request(9, 1, 2, name=name, tenant="a"), 1)
        return guesses.probabilities[0]

    for tenant in ("a", "b"):
        answered(source, 1, 2, 3, tenant=tenant)
    before = chance("before")
    for number in range(20):
        drafted(source, request(9, 1, 2, name=str(number), tenant="b"), 1)
        drafted(source, request(9, 1, 2, 77, name=str(number), tenant="b"), 1)
    assert chance("after") == before


def test_past_forgets_old_answers_and_the_tenant_that_asked_longest_ago() -> None:
    source = PastSource()
    answered(source, 1, 2, 3)
    long = list(range(10_000, 10_000 + (1 << 13)))
    for name in ("b", "c"):
        drafted(source, request(0, name=name), 9)
        answered(source, 0, *long, name=name)
    assert len(drafted(source, request(1, 2), 9).tree) == 0
    for number in range(32):
        answered(source, 1, 2, 3, tenant=str(number))
    assert len(drafted(source, request(15_000, 15_001), 9).tree) == 0
    assert drafted(source, request(1, 2, name="b", tenant="31"), 1).tree.tokens == (3,)


def test_number_of_guesses_is_bounded() -> None:
    source = learned(*[(token, list(range(6))) for token in range(6)])
    assert len(drafted(source, request(1), 5).tree) == 5
    text = drafted(SuffixSource(), request(*[1, 2] * 40), 5)
    assert len(text.tree) == 5
