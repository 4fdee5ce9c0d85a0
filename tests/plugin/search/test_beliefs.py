from __future__ import annotations

import numpy as np
import pytest
from adaseek.search.base import Constraint, Dimension, Outcome, Space
from adaseek.search.beliefs import Beliefs
from adaseek.search.coder import Coder
from adaseek.search.elimination import Judge
from adaseek.search.records import Archive, Record

SPACE = Space(
    (
        Dimension("x", "step", ("a", "b")),
        Dimension("y", "weight", tuple(str(i) for i in range(12))),
    )
)
KEEP = (Constraint("quality", 1.0, relative=True),)


def archive_of(*rows: tuple[str, str, list[float], float, str], constraints=()) -> Archive:
    archive = Archive(("quality", "cost"), constraints)
    for number, (x, y, scores, cost, state) in enumerate(rows):
        outcomes = [Outcome(score, cost, 1.0) for score in scores]
        record = Record(number, {"x": x, "y": y}, outcomes=outcomes, state=state)  # type: ignore[arg-type]
        archive.records.append(record)
    return archive


def beliefs(archive: Archive) -> Beliefs:
    return Beliefs(archive, lambda: Coder(SPACE))


def alternating(num_right: int, num: int) -> list[float]:
    """Returns scores of which `num_right` are 1, spread evenly."""
    return [float((i * num_right) // num != ((i + 1) * num_right) // num) for i in range(num)]


def test_the_best_belief_is_not_always_the_best_mean():
    # All with x=a do badly, all with x=b well; one of x=a was lucky and has the best mean of all.
    bad = [("a", str(i), alternating(6, 20), 1.0, "complete") for i in range(11)]
    good = [("b", str(i), alternating(15, 20), 1.0, "complete") for i in range(11)]
    archive = archive_of(*bad, ("a", "11", alternating(16, 20), 1.0, "complete"), *good)
    best_mean = max(archive.records, key=lambda r: archive.mean(r, "quality"))
    assert best_mean.config == {"x": "a", "y": "11"}
    assert beliefs(archive).best().config["x"] == "b"


def test_the_original_is_best_when_nothing_keeps_the_constraints():
    archive = archive_of(
        ("a", "0", [1.0] * 8, 1.0, "complete"),
        ("b", "0", [0.0] * 8, 1.0, "complete"),
        constraints=KEEP,
    )
    assert beliefs(archive).best() is archive.original


def test_cost_is_believed_as_measured():
    archive = archive_of(
        ("a", "0", alternating(4, 8), 1.0, "complete"),
        ("b", "1", alternating(6, 8), 2.5, "complete"),
    )
    belief = beliefs(archive).about(archive.records)
    np.testing.assert_allclose(belief.points[:, 1], [1.0, 2.5])
    assert belief.points.shape == belief.hopes.shape == (2, 2)
    assert (belief.hopes[:, 0] <= belief.points[:, 0]).all()


def test_no_records_have_no_beliefs():
    archive = archive_of(("a", "0", [1.0] * 8, 1.0, "complete"))
    assert beliefs(archive).about([]).scaled().shape == (0, 2)


@pytest.mark.parametrize(("num_racing", "num_left"), [(4, 2), (5, 3), (1, 1)])
def test_a_race_keeps_the_most_hopeful_half(num_racing, num_left):
    # Cheaper and better with every number, all of them better than what is complete.
    complete = [("a", str(i), alternating(8, 24), 9.0, "complete") for i in range(4)]
    racing = [("b", str(i), alternating(4 + i, 8), 8.0 - i, "running") for i in range(num_racing)]
    archive = archive_of(*complete, *racing)
    cohort = archive.records[4:]
    judge = Judge(
        archive, delta=0.01, first_rung=4, score_span=1.0, eta=2, beliefs=beliefs(archive)
    )
    judge.judge(cohort)
    left = [r for r in cohort if r.state == "running"]
    assert left == cohort[num_racing - num_left :]


def test_a_config_without_hope_leaves_even_if_it_races_alone():
    complete = [("a", str(i), alternating(20, 24), 1.0, "complete") for i in range(6)]
    archive = archive_of(*complete, ("b", "0", [0.0] * 8, 2.0, "running"))
    judge = Judge(
        archive, delta=1e-9, first_rung=4, score_span=1.0, eta=2, beliefs=beliefs(archive)
    )
    judge.judge(archive.records[-1:])
    assert archive.records[-1].state == "eliminated"


def test_what_is_validated_first_is_the_best_of_each_objective_then_who_comes_close_for_less():
    # One success more in ten is within a standard error; eight more in ten are not.
    archive = archive_of(
        ("a", "0", alternating(1, 10), 1.0, "complete"),
        ("b", "1", alternating(8, 10), 1.3, "complete"),
        ("b", "2", alternating(9, 10), 4.0, "complete"),
    )
    belief = beliefs(archive).about(archive.records)
    assert belief.points[:, 0].argmin() == 2
    assert belief.frugal(0) == 1
    assert belief.order() == [2, 0, 1]
    assert beliefs(archive).about([]).order() == []
