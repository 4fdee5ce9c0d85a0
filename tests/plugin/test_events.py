"""The log of a run's events, as the report and `result.json` read it."""

from __future__ import annotations

import json
import pickle

from adaseek.events import EventLog, PhaseStarted, TrialStarted


def filled() -> EventLog:
    log = EventLog()
    log.add(PhaseStarted("search", 40), num_runs=0)
    log.add(TrialStarted(1, 2, (0, 3), {"a:model": "small"}), num_runs=6)
    return log


def test_an_event_reads_as_json_values_with_the_runs_before_it():
    log = filled()
    assert len(log) == 2
    assert log[1] == {
        "type": "TrialStarted",
        "trial": 1,
        "layer": 2,
        "arm": [0, 3],
        "config": {"a:model": "small"},
        "num_runs_so_far": 6,
    }
    assert [event["type"] for event in log[:1]] == ["PhaseStarted"]


def test_a_log_equals_the_json_that_it_was_written_as():
    log = filled()
    assert log == json.loads(json.dumps(list(log)))
    assert log == pickle.loads(pickle.dumps(log))
    assert log != list(log)[:1]
    assert tuple(log) == log
