"""Majority votes: normalisation, ties, several fields."""

from __future__ import annotations

import pytest
from adaseek.errors import ConfigurationError
from adaseek.voting import majority, majority_index, normalised
from hypothesis import given
from hypothesis import strategies as st

values = st.sampled_from(["yes", "no", "Yes.", " YES ", "maybe", "", None, 1, "1", 1.5, True])
answers = st.dictionaries(st.sampled_from(["answer", "label", "reasoning"]), values, max_size=3)


@given(st.lists(st.sampled_from("abc"), min_size=1))
def test_majority_is_the_first_of_the_most_frequent(letters: list[str]) -> None:
    index = majority(letters, key=str)
    most = max(letters.count(letter) for letter in letters)
    assert letters.count(letters[index]) == most
    assert all(letters.count(letter) < most for letter in letters[:index])


@given(st.lists(st.sampled_from("abc"), min_size=1))
def test_one_field_gives_the_plain_majority(letters: list[str]) -> None:
    assert majority_index([{"answer": letter} for letter in letters]) == majority(letters, key=str)


@given(st.lists(st.sampled_from("abc"), min_size=1), st.booleans())
def test_texts_that_never_repeat_change_no_vote(letters: list[str], reasons: bool) -> None:
    found = [
        {"why": f"text {i}", "answer": letter, **({"reasoning": "same"} if reasons else {})}
        for i, letter in enumerate(letters)
    ]
    assert majority_index(found) == majority(letters, key=str)


@given(st.lists(answers, min_size=1, max_size=7))
def test_order_of_fields_does_not_matter(found: list[dict[str, object]]) -> None:
    turned = [dict(reversed(answer.items())) for answer in found]
    assert majority_index(turned) == majority_index(found)


@given(answers, st.integers(1, 5))
def test_equal_answers_give_the_first(answer: dict[str, object], number: int) -> None:
    assert majority_index([answer] * number) == 0


def test_a_tie_goes_to_the_first() -> None:
    assert majority_index([{"a": "x"}, {"a": "y"}, {"a": "y"}, {"a": "x"}]) == 0


def test_reasoning_does_not_vote_beside_an_answer() -> None:
    same = {"reasoning": "because"}
    found = [{**same, "answer": "no"}, {**same, "answer": "yes"}, {"answer": "Yes."}]
    assert majority_index(found) == 1


def test_reasoning_votes_if_it_is_the_only_field() -> None:
    assert majority_index([{"reasoning": "a"}, {"reasoning": "b"}, {"reasoning": "b"}]) == 1


def test_an_empty_answer_does_not_win() -> None:
    assert majority_index([{"a": ""}, {"a": ""}, {"a": "x"}]) == 2
    assert majority_index([{"a": None}, {}, {"a": "x"}]) == 2


def test_no_answers_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least one"):
        majority_index([])
    with pytest.raises(ConfigurationError, match="at least one"):
        majority([], key=str)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("Paris", " paris. "),
        ('"Paris"', "Paris"),
        ('"Paris."', "PARIS!"),
        ("New   York\n", "new york"),
        ("1,000", 1000),
        ("1000.0", 1000),
        (1000.0, "1000"),
        ("007", 7),
        ("-0", 0),
        ("+3", 3),
        ("2.50", 2.5),
        (True, "true"),
        ("caf\u00e9", "cafe\u0301"),
        (["A", "b "], ("a", "B")),
        ({"x": "A", "y": 1}, {"y": "1", "x": "a"}),
        (None, "  "),
        ([], None),
    ],
)
def test_values_that_mean_the_same_are_equal(one: object, two: object) -> None:
    assert normalised(one) == normalised(two)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("Paris", "London"),
        ("1,00", "100"),
        ("10" * 20, "10" * 20 + "1"),
        (12345678901234567890, 12345678901234567891),
        ("-3", "3"),
        ("a b", "ab"),
        (1, True),
        (["a", "b"], ["b", "a"]),
        ("why?", "why"),
        ("0.1", "0.11"),
    ],
)
def test_values_that_mean_something_else_differ(one: object, two: object) -> None:
    assert normalised(one) != normalised(two)


@given(st.text())
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalised(normalised(text)) == normalised(text)


@given(st.integers())
def test_integers_of_any_size_keep_their_value(number: int) -> None:
    assert normalised(number) == str(number) == normalised(str(number)) == normalised(f"{number:,}")
