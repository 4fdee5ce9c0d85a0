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
    assert HitRates().corrected(guesses).probabilities == pytest.approx(guesses.probabilities)


def test_boasting_guesses_lose_and_modest_ones_win() -> None:
    rates, guesses = HitRates(), guesses_of((ROOT, 1, 0.65), (ROOT, 2, 0.25))
    for number in range(400):
        rates.learn(guesses, [2 if number % 2 else 9])
    first, second = rates.corrected(guesses).probabilities
    assert first < 0.05
    assert second == pytest.approx(0.5, abs=0.1)


def test_a_path_is_worth_what_its_guesses_are() -> None:
    rates, guesses = HitRates(), guesses_of((ROOT, 1, 0.5), (0, 2, 0.4))
    for number in range(400):
        rates.learn(guesses, [1, 2] if number % 4 else [1, 9])
    assert rates.corrected(guesses).probabilities == pytest.approx([1.0, 0.75], abs=0.08)


def test_guesses_are_judged_below_what_was_said_only() -> None:
    rates, guesses = HitRates(), guesses_of((ROOT, 1, 0.6), (0, 2, 0.3))
    for _ in range(100):
        # The parent was wrong, or right but nothing is known of what follows it.
        rates.learn(guesses, [9])
        rates.learn(guesses, [1])
    first, second = rates.corrected(guesses).probabilities
    assert second / first == pytest.approx(0.5)
