"""Probabilities as they turn out to be."""

from __future__ import annotations

import pytest
from adaseek_vllm.token_tree import ROOT
from adaseek_vllm.token_tree.guesses import Guesses
from adaseek_vllm.token_tree.hit_rates import HitRates


def guesses_of(*nodes: tuple[int, int, float]) -> Guesses:
    guesses = Guesses()
    for parent, token, probability in nodes:
        guesses.add(parent, token, probability)
    return guesses


def test_at_first_the_sources_are_believed() -> None:
    guesses = guesses_of((ROOT, 1, 0.6), (0, 2, 0.3))
    assert HitRates().corrected(guesses).probabilities == guesses.probabilities


def test_boasting_guesses_lose_and_modest_ones_win() -> None:
    rates, guesses = HitRates(), guesses_of((ROOT, 1, 0.6), (ROOT, 2, 0.25))
    for number in range(400):
        rates.learn(guesses, [2 if number % 2 else 9])
    first, second = rates.corrected(guesses).probabilities
    assert first < 0.05
    assert second == pytest.approx(0.5, abs=0.1)


def test_a_child_stays_below_its_parent() -> None:
    rates, guesses = HitRates(), guesses_of((ROOT, 1, 0.6), (0, 2, 0.25))
    for _ in range(200):
        rates.learn(guesses_of((ROOT, 5, 0.25)), [5])
    assert rates.corrected(guesses).probabilities[1] <= 0.6


def test_what_goes_on_beyond_the_said_is_not_judged() -> None:
    rates, guesses = HitRates(), guesses_of((ROOT, 1, 0.6), (0, 2, 0.25), (1, 3, 0.12))
    for _ in range(100):
        rates.learn(guesses, [1])
    assert rates.corrected(guesses).probabilities[1:] == [0.25, 0.12]
    for _ in range(100):
        rates.learn(guesses, [1, 9])
    assert rates.corrected(guesses).probabilities[1] < 0.02
    # Below a wrong guess everything is wrong.
    assert rates.corrected(guesses).probabilities[2] < 0.02
