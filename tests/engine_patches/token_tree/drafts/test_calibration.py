"""What stated probabilities are found to be worth."""

from __future__ import annotations

import pytest
from adaseek_vllm.token_tree.drafts.calibration import Calibration, DraftedTree
from adaseek_vllm.token_tree.guesses import Guesses
from adaseek_vllm.token_tree.tree import ROOT


def tree(*children: tuple[int, float]) -> DraftedTree:
    drafted = DraftedTree()
    for token, stated in children:
        drafted.add(ROOT, token, stated, stated)
    return drafted


def learn(
    calibration: Calibration, drafted: DraftedTree, said: list[int], *known: tuple[int, float]
) -> None:
    others = Guesses()
    for token, chance in known:
        others.add(ROOT, token, chance)
    calibration.learn(drafted, said, others, [sum(chance for _, chance in known)])


def test_draft_is_believed_at_first() -> None:
    for stated in (0.15, 0.45, 0.75, 0.99):
        assert Calibration().chance(0, stated) == pytest.approx(stated, abs=0.06)


def test_too_sure_draft_is_believed_less() -> None:
    calibration = Calibration()
    for number in range(400):
        learn(calibration, tree((1, 0.85)), [1 if number % 4 == 0 else 2])
    assert calibration.chance(0, 0.85) == pytest.approx(0.25, abs=0.05)
    assert calibration.chance(1, 0.85) == pytest.approx(0.85, abs=0.06)  # not asked about
    assert calibration.added_chance(0, []) == pytest.approx(0.25, abs=0.05)


def test_guesses_below_a_wrong_one_are_not_judged() -> None:
    calibration, drafted = Calibration(), tree((1, 0.5), (2, 0.3))
    drafted.add(0, 7, 0.85, 0.85)
    before = calibration.chance(1, 0.85)
    learn(calibration, drafted, [2, 7])
    assert calibration.chance(1, 0.85) == before
    learn(calibration, drafted, [1, 7])
    assert calibration.chance(1, 0.85) > before


def test_siblings_share_one_truth() -> None:
    calibration = Calibration()
    for _ in range(300):
        learn(calibration, tree((1, 0.55), (2, 0.25)), [2])
    assert calibration.chance(0, 0.55) < 0.1
    assert calibration.chance(0, 0.25) > 0.9
    assert calibration.added_chance(0, []) > 0.9


def test_path_is_no_likelier_than_its_parts() -> None:
    drafted = tree((1, 0.5))
    node = drafted.add(0, 3, 0.9, 0.8)
    assert drafted.guesses.probabilities[node] == pytest.approx(0.5 * 0.8)


def test_hit_of_another_source_is_nothing_added() -> None:
    calibration = Calibration()
    for number in range(400):
        # Of what others are half sure of, they have each second token; the draft has all.
        learn(calibration, tree((1, 0.85)), [1], (1 if number % 2 else 2, 0.5))
    assert calibration.added_chance(0, [0.5]) == pytest.approx(0.5, abs=0.05)
    assert calibration.added_chance(0, [0.95]) < 0.1  # not asked about
    assert calibration.chance(0, 0.85) > 0.9
