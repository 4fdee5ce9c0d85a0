from __future__ import annotations

import pytest
from adaseek.search.base import Dimension, Outcome, Space
from adaseek.search.importance import importance
from adaseek.search.records import Archive, Record

SPACE = Space(tuple(Dimension(name, "step", ("off", "on")) for name in ("strong", "weak", "fixed")))


def archive(num: int) -> Archive:
    found = Archive(("quality",), ())
    for number in range(num):
        strong, weak = number % 2, number // 2 % 2
        config = {
            "strong": ("off", "on")[strong],
            "weak": ("off", "on")[weak],
            "fixed": "off",
        }
        score = 0.2 + 0.6 * strong + 0.1 * weak
        found.records.append(Record(number, config, outcomes=[Outcome(score)] * 10))
    return found


def test_shares_follow_the_effects_and_add_up_to_one():
    shares = importance(archive(8), SPACE)
    assert shares["strong"] > 0.9
    assert shares["strong"] > shares["weak"] > 0
    assert shares["fixed"] == pytest.approx(0)
    assert sum(shares.values()) == pytest.approx(1)


def test_too_few_trials_say_nothing():
    assert importance(archive(3), SPACE) == {}
