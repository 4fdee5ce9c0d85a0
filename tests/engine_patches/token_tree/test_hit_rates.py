"""Probabilities as they turn out to be."""

from __future__ import annotations

import pytest
from adaseek_vllm.token_tree import ROOT
from adaseek_vllm.token_tree.guesses import Grown
from adaseek_vllm.token_tree.hit_rates import HitRates


def guessed(*nodes: tuple[int, int, float], sources: tuple[str, ...] = ("a",)) -> Grown:
    """Guesses that all of `sources` had."""
    grown = Grown()
    for parent, token, probability in nodes:
        grown.guesses.add(parent, token, probability)
        grown.sources.append(list(sources))
    return grown


def test_at_first_the_sources_are_believed() -> None:
    grown = guessed((ROOT, 1, 0.6), (0, 2, 0.3))
    assert HitRates().corrected(grown).probabilities == pytest.approx([0.6, 0.3])


def test_boasting_guesses_lose_and_modest_ones_win() -> None:
    rates, grown = HitRates(), guessed((ROOT, 1, 0.65), (ROOT, 2, 0.25))
    for number in range(400):
        rates.learn(grown, [2 if number % 2 else 9])
    first, second = rates.corrected(grown).probabilities
    assert first < 0.05
    assert second == pytest.approx(0.5, abs=0.1)


def test_a_path_is_worth_what_its_guesses_are() -> None:
    rates, grown = HitRates(), guessed((ROOT, 1, 0.5), (0, 2, 0.4))
    for number in range(400):
        rates.learn(grown, [1, 2] if number % 4 else [1, 9])
    assert rates.corrected(grown).probabilities == pytest.approx([1.0, 0.75], abs=0.08)


def test_guesses_are_judged_below_what_was_said_only() -> None:
    rates, grown = HitRates(), guessed((ROOT, 1, 0.6), (0, 2, 0.3))
    for _ in range(100):
        # The parent was wrong, or right but nothing is known of what follows it.
        rates.learn(grown, [9])
        rates.learn(grown, [1])
    first, second = rates.corrected(grown).probabilities
    assert second / first == pytest.approx(0.5)


def test_what_several_sources_say_is_judged_apart() -> None:
    rates, node = HitRates(), (ROOT, 1, 0.5)
    alone, agreed = guessed(node), guessed(node, sources=("a", "b"))
    for number in range(400):
        rates.learn(alone, [1 if number % 4 == 0 else 9])
        rates.learn(agreed, [1 if number % 4 else 9])
    assert rates.corrected(alone).probabilities == pytest.approx([0.25], abs=0.08)
    assert rates.corrected(agreed).probabilities == pytest.approx([0.75], abs=0.08)


def test_the_likeliest_sibling_is_judged_apart() -> None:
    rates, grown = HitRates(), guessed((ROOT, 1, 0.5), (ROOT, 2, 0.5))
    for _ in range(100):
        rates.learn(grown, [1])
    first, second = rates.corrected(grown).probabilities
    assert first > 0.9
    assert second < 0.1
