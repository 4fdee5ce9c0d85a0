from __future__ import annotations

from adaseek.cogs.base import Run
from adaseek.evidence import Evidence
from adaseek.recipe import Recipe
from adaseek.workflow import Example, Score, Trace


def run(example: str, score: float, mark: str = "") -> Run:
    return Run(Recipe(), Example(example, {}), Trace(id=mark), Score(score))


def marks(evidence: Evidence) -> list[str]:
    return [r.trace.id for r in evidence.runs()]


def test_keeps_the_best_and_the_latest_of_each_example_in_order():
    evidence = Evidence(num_best=1, num_recent=1)
    for score, mark in [(0.1, "a"), (0.9, "b"), (0.5, "c"), (0.2, "d")]:
        evidence.add(run("x", score, mark))
    assert marks(evidence) == ["b", "d"]


def test_of_equal_scores_the_earlier_is_kept():
    evidence = Evidence(num_best=1, num_recent=1)
    for mark in "abc":
        evidence.add(run("x", 1.0, mark))
    assert marks(evidence) == ["a", "c"]


def test_is_bounded_however_long_the_run():
    evidence = Evidence(num_best=3, num_recent=2)
    for i in range(1000):
        evidence.add(run(str(i % 4), i % 7))
    assert len(evidence.runs()) <= 4 * 5
