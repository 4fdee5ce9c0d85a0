from __future__ import annotations

import numpy as np
import pytest
from adaseek.recommend import compare, recommend

OBJECTIVES = ("quality", "cost", "latency")


def series(quality: float, cost: float, latency: float, *, num: int = 60, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "quality": (rng.random(num) < quality).astype(float),
        "cost": cost * rng.uniform(0.9, 1.1, num),
        "latency": latency * rng.uniform(0.9, 1.1, num),
    }


ORIGINAL = series(0.5, 1.0, 1.0)


def verdict(finalists: dict, objectives=OBJECTIVES, **options):
    return recommend(compare(finalists, ORIGINAL, objectives), objectives, **options)


def test_a_clear_gain_in_quality_is_recommended_with_its_interval():
    found = verdict({"trial 1": series(0.95, 1.0, 1.0, seed=1)})
    assert found.name == "trial 1"
    assert found.sentence.startswith("trial 1 gains +0.4")


def test_the_same_quality_for_less_money_is_a_gain():
    cheap = {**ORIGINAL, "cost": ORIGINAL["cost"] * 0.5}
    found = verdict({"trial 1": cheap})
    assert found.name == "trial 1"
    assert "-50% cost" in found.sentence


def test_less_money_for_less_quality_is_not_recommended():
    bad = {**series(0.2, 0.1, 0.1, seed=3)}
    assert verdict({"trial 1": bad}).name == "original"


def test_a_gain_in_what_is_no_objective_does_not_count():
    cheap = {**ORIGINAL, "cost": ORIGINAL["cost"] * 0.5}
    assert verdict({"trial 1": cheap}, ("quality",)).name == "original"


def test_of_two_gains_in_quality_the_larger_wins():
    found = verdict(
        {"small": series(0.8, 1.0, 1.0, seed=1), "large": series(1.0, 1.0, 1.0, seed=2)}
    )
    assert found.name == "large"


def test_quality_comes_before_savings():
    cheap = {**ORIGINAL, "cost": ORIGINAL["cost"] * 0.1}
    found = verdict({"cheap": cheap, "good": series(0.95, 2.0, 2.0, seed=1)})
    assert found.name == "good"


def test_no_finalist_keeps_the_original():
    found = verdict({})
    assert found.name == "original"
    assert "No significant gain" in found.sentence


def test_unknown_cost_is_left_out_and_not_taken_for_zero():
    unknown = {**series(0.5, 1.0, 1.0), "cost": np.full(60, np.nan)}
    found = verdict({"trial 1": unknown})
    assert found.name == "original"


@pytest.mark.parametrize("num_finalists", [1, 3])
def test_luck_is_declared_a_gain_at_most_five_times_in_a_hundred(num_finalists):
    rng = np.random.default_rng(0)
    declared = 0
    for _ in range(300):
        original = {"quality": (rng.random(40) < 0.6).astype(float)}
        finalists = {
            str(i): {"quality": (rng.random(40) < 0.6).astype(float)} for i in range(num_finalists)
        }
        found = recommend(compare(finalists, original, ("quality",)), ("quality",))
        declared += found.name != "original"
    # 300 draws at 5%: 15 expected, 26 would be three standard errors above.
    assert declared <= 26
