"""Probabilities as they turn out to be."""

from __future__ import annotations

import pytest
from adaseek_vllm.token_tree import ROOT
from adaseek_vllm.token_tree.growth import Grown, grown
from adaseek_vllm.token_tree.guesses import Guesses, continued
from adaseek_vllm.token_tree.hit_rates import HitRates


def guessed(
    rates: HitRates, *nodes: tuple[int, int, float], sources: tuple[str, ...] = ("a",)
) -> Grown:
    """Guesses that all of `sources` have, as they are worth now."""
    guesses = Guesses()
    for parent, token, probability in nodes:
        guesses.add(parent, token, probability)
    after = dict.fromkeys(sources, continued(guesses))
    [found] = grown([after], max_nodes=9, worth=rates.worth)
    return found


def test_at_first_every_guess_is_taken_to_be_said_too_likely() -> None:
    found = guessed(HitRates(), (ROOT, 1, 0.6), (0, 2, 0.3))
    assert found.guesses.probabilities == pytest.approx([0.7 * 0.6, 0.7**2 * 0.3])


def test_boasting_guesses_lose_and_modest_ones_win() -> None:
    rates, nodes = HitRates(), ((ROOT, 1, 0.65), (ROOT, 2, 0.25))
    for number in range(400):
        rates.learn(guessed(rates, *nodes), [2 if number % 2 else 9])
    found = guessed(rates, *nodes).guesses
    assert found.tree.tokens[0] == 2
    assert found.probabilities[0] == pytest.approx(0.5, abs=0.1)
    assert sum(found.probabilities[1:]) < 0.05


def test_a_path_is_worth_what_its_guesses_are() -> None:
    rates, nodes = HitRates(), ((ROOT, 1, 0.5), (0, 2, 0.4))
    for number in range(400):
        rates.learn(guessed(rates, *nodes), [1, 2] if number % 4 else [1, 9])
    found = guessed(rates, *nodes).guesses
    assert found.probabilities == pytest.approx([1.0, 0.75], abs=0.08)


def test_guesses_are_judged_below_what_was_said_only() -> None:
    rates, nodes = HitRates(), ((ROOT, 1, 0.6), (0, 2, 0.3))
    for _ in range(100):
        # The parent was wrong, or right but nothing is known of what follows it.
        rates.learn(guessed(rates, *nodes), [9])
        rates.learn(guessed(rates, *nodes), [1])
    first, second = guessed(rates, *nodes).guesses.probabilities
    assert second / first == pytest.approx(0.7 * 0.5)


def test_what_was_all_but_given_up_is_judged_on() -> None:
    rates, node = HitRates(), (ROOT, 1, 0.3)
    for _ in range(600):
        rates.learn(guessed(rates, node), [9])
    assert guessed(rates, node).guesses.probabilities == []
    for _ in range(600):
        rates.learn(guessed(rates, node), [1])
    assert guessed(rates, node).guesses.probabilities == pytest.approx([1.0], abs=0.3)


def test_what_several_sources_say_is_judged_apart() -> None:
    rates, node = HitRates(), (ROOT, 1, 0.5)
    for number in range(400):
        rates.learn(guessed(rates, node), [1 if number % 4 == 0 else 9])
        rates.learn(guessed(rates, node, sources=("a", "b")), [1 if number % 4 else 9])
    alone, agreed = guessed(rates, node), guessed(rates, node, sources=("a", "b"))
    assert alone.guesses.probabilities == pytest.approx([0.25], abs=0.08)
    assert agreed.guesses.probabilities == pytest.approx([0.75], abs=0.08)


def test_the_likeliest_sibling_is_judged_apart() -> None:
    rates, nodes = HitRates(), ((ROOT, 1, 0.5), (ROOT, 2, 0.5))
    for _ in range(100):
        rates.learn(guessed(rates, *nodes), [1])
    first, *others = guessed(rates, *nodes).guesses.probabilities
    assert first > 0.9
    assert sum(others) < 0.1
