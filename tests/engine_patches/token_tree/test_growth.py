"""Growing the trees of a step out of several sources' guesses."""

from __future__ import annotations

from itertools import pairwise

import pytest
from adaseek_vllm.token_tree import ROOT
from adaseek_vllm.token_tree.growth import Grown, Kind, grown
from adaseek_vllm.token_tree.guesses import (
    Continue,
    Guesses,
    Path,
    TokensPerCost,
    continued,
    selected,
)
from hypothesis import given
from hypothesis import strategies as st


def source_of(*nodes: tuple[int, int, float]) -> Continue:
    guesses = Guesses()
    for parent, token, probability in nodes:
        guesses.add(parent, token, probability)
    return continued(guesses)


ONE = source_of((ROOT, 1, 0.6), (0, 2, 0.5), (ROOT, 3, 0.3))
OTHER = source_of((ROOT, 3, 0.4), (0, 4, 0.35), (ROOT, 1, 0.1))


def as_stated(_kind: Kind) -> float:
    return 1.0


def alone(max_nodes: int = 9, **sources: Continue) -> Grown:
    [found] = grown([sources], max_nodes=max_nodes, worth=as_stated)
    return found


def chances_of(found: Grown) -> dict[Path, float]:
    guesses = found.guesses
    return dict(zip(guesses.tree.paths(), guesses.probabilities, strict=True))


def test_merged_guess_keeps_the_highest_probability() -> None:
    union = alone(one=ONE, other=OTHER)
    expected = {(1,): 0.6, (1, 2): 0.5, (3,): 0.4, (3, 4): 0.35}
    assert chances_of(union) == pytest.approx(expected)


def test_who_guessed_a_text_is_known_as_far_as_it_was_guessed() -> None:
    union = alone(one=ONE, other=OTHER)
    assert union.sources_along([1, 2, 9]) == [{"one", "other"}, {"one"}]
    assert union.sources_along([3, 4]) == [{"one", "other"}, {"other"}]
    assert union.sources_along([9]) == []


def test_one_source_goes_on_where_another_one_led() -> None:
    counting = alone(one=ONE, next=lambda path: [(sum(path) + 7, 0.5)])
    assert {(1, 8), (1, 2, 10), (7, 14)} <= chances_of(counting).keys()


def test_the_likeliest_nodes_are_grown_first() -> None:
    assert list(chances_of(alone(3, one=ONE, other=OTHER))) == [(1,), (1, 2), (3,)]


def test_what_is_all_but_impossible_is_not_grown() -> None:
    assert list(chances_of(alone(one=lambda path: [(1, 0.1)]))) == [(1,)]


def test_guesses_are_worth_what_their_kind_is() -> None:
    def worth(kind: Kind) -> float:
        return 2.0 if kind.is_likeliest else 0.5

    [found] = grown([{"one": ONE}], max_nodes=9, worth=worth)
    # Each 0.6 and 0.5 of 0.6 doubled, which is at most certain; 0.3 halved.
    assert chances_of(found) == pytest.approx({(1,): 1.0, (1, 2): 1.0, (3,): 0.15})


def test_kinds_tell_who_agrees_and_who_is_likeliest() -> None:
    opinions = alone(one=ONE, other=OTHER).opinions[ROOT]
    assert [(one.token, one.chance) for one in opinions] == [(1, 0.6), (3, 0.4)]
    both = frozenset({"one", "other"})
    assert [one.kind[1:] for one in opinions] == [(both, True), (both, False)]
    assert opinions[0].kind.chance > opinions[1].kind.chance


def test_no_requests_grow_nothing() -> None:
    assert grown([], max_nodes=3, worth=as_stated) == []


CHANCES = st.lists(st.floats(0.02, 0.9), max_size=3)


@given(st.lists(CHANCES, min_size=1, max_size=4), st.sampled_from([0.01, 0.05, 0.2, 1.0]))
def test_ending_early_changes_nothing_that_is_selected(
    fans: list[list[float]], slope: float
) -> None:
    def fan(chances: list[float]) -> Continue:
        return lambda path: list(enumerate(chances)) if len(path) < 5 else []

    def cost(rows: int) -> float:
        # Rows are free up to the end of a tile.
        return 1.0 + slope * (rows // 8)

    sources = [{"fan": fan(chances)} for chances in fans]
    rate = TokensPerCost(len(fans), 12 * len(fans), cost)
    early = grown(sources, max_nodes=12, worth=as_stated, rate=rate)
    late = grown(sources, max_nodes=12, worth=as_stated)
    for one, other in zip(early, late, strict=True):
        assert len(one.guesses.tree) <= len(other.guesses.tree)
    trees = [
        selected([one.guesses for one in found], max_nodes=12, step_cost=cost)
        for found in (early, late)
    ]
    assert trees[0] == trees[1]


def test_growing_ends_where_no_more_guesses_pay() -> None:
    endless: Continue = lambda path: [(1, 0.7), (2, 0.2)]  # noqa: E731
    rate = TokensPerCost(1, 100, lambda rows: 1.0 + 0.2 * rows)
    [found] = grown([{"one": endless}], max_nodes=100, worth=as_stated, rate=rate)
    assert 2 < len(found.guesses.tree) < 12


@given(CHANCES, st.floats(0.0, 0.5))
def test_rate_may_rise_if_some_number_of_more_guesses_pays(
    chances: list[float], slope: float
) -> None:
    def cost(rows: int) -> float:
        return 1.0 + slope * rows * rows

    rate, likeliest_first = TokensPerCost(1, 9, cost), sorted(chances, reverse=True)
    for chance in likeliest_first:
        rate.take(chance)
    rates = [(1.0 + sum(likeliest_first[:num])) / cost(1 + num) for num in range(len(chances) + 1)]
    known, said = len(chances), 1.0 + sum(chances)
    later = [(said + 0.3 * more) / cost(1 + known + more) for more in range(1, 10 - known)]
    assert rate.may_rise(0.3) == (max(later) > max(rates))


def test_most_likely_come_first_over_all_requests() -> None:
    rate = TokensPerCost(2, 18, lambda rows: 1.0)
    found = grown([{"one": ONE}, {"other": OTHER}], max_nodes=9, worth=as_stated, rate=rate)
    for one in found:
        assert all(a >= b for a, b in pairwise(one.guesses.probabilities))
    assert [len(one.guesses.tree) for one in found] == [3, 3]
