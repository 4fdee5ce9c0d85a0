from __future__ import annotations

from adaseek.search.stopping import Patience


def test_converges_after_the_given_trials_without_improvement():
    patience = Patience(3)
    for values in ([0.0, 5.0], [0.0, 5.0], [0.0, 6.0], [1.0, 5.0]):
        assert not patience.converged
        patience.tell(values)
    assert patience.converged


def test_an_improvement_of_one_objective_starts_the_count_again():
    patience = Patience(2)
    for values in ([0.0, 5.0], [0.0, 9.0], [0.0, 4.0], [0.0, 8.0]):
        patience.tell(values)
    assert not patience.converged


def test_a_free_model_does_not_count_as_improving():
    patience = Patience(2)
    for _ in range(3):
        patience.tell([-0.5, 0.0])
    assert patience.converged


def test_tiny_improvements_do_not_count():
    patience = Patience(2, threshold=0.1)
    for value in (-1.0, -2.0, -2.01, -2.02):
        patience.tell([value])
    assert patience.converged


def test_infeasible_trials_count_as_idle():
    patience = Patience(2)
    patience.tell([0.0])
    patience.tell_infeasible()
    patience.tell_infeasible()
    assert patience.converged


def test_a_trial_that_was_cut_short_counts_in_part():
    patience = Patience(2)
    patience.tell([0.0])
    for _ in range(7):
        patience.tell([1.0], weight=0.25)
    assert not patience.converged
    patience.tell_infeasible(weight=0.25)
    assert patience.converged
