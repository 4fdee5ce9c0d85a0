"""The file beside a run that Optuna's own tools read."""

from __future__ import annotations

import math
from pathlib import Path

import optuna
from adaseek.search.study_log import StudyLog
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState


def read(path: Path, name: str) -> optuna.Study:
    storage = JournalStorage(JournalFileBackend(str(path)))
    return optuna.load_study(study_name=name, storage=storage)


def filled(path: Path) -> optuna.Study:
    """A study with an enqueued trial, a failed one, and one that still runs."""
    study = optuna.create_study(
        study_name="layer-1", storage=StudyLog(path), directions=["maximize", "minimize"]
    )
    study.set_user_attr("objectives", ["quality", "cost"])
    study.enqueue_trial({"a:model": "small"})
    trial = study.ask()
    assert trial.suggest_categorical("a:model", ["large", "small"]) == "small"
    trial.suggest_categorical("b:model", ["large", "small"])
    trial.set_user_attr("adaseek:num_examples", 6)
    study.tell(trial, [0.5, math.inf])
    study.tell(study.ask(), state=TrialState.FAIL)
    study.ask()
    return study


def test_optuna_reads_from_the_file_what_the_study_had(tmp_path):
    study = filled(tmp_path / "optuna.log")
    copy = read(tmp_path / "optuna.log", "layer-1")
    assert copy.directions == study.directions
    assert copy.user_attrs == study.user_attrs
    finished = [t for t in study.get_trials() if t.state.is_finished()]
    assert len(copy.trials) == len(finished) == 2
    for mine, theirs in zip(finished, copy.trials, strict=True):
        for name in ("state", "params", "distributions", "values", "user_attrs", "system_attrs"):
            assert getattr(mine, name) == getattr(theirs, name), name
        assert mine.datetime_complete == theirs.datetime_complete


def test_a_new_run_begins_a_new_file(tmp_path):
    filled(tmp_path / "optuna.log")
    filled(tmp_path / "optuna.log")
    assert len(read(tmp_path / "optuna.log", "layer-1").trials) == 2


def test_trials_of_two_studies_stay_apart(tmp_path):
    storage = StudyLog(tmp_path / "optuna.log")
    for number in range(2):
        study = optuna.create_study(study_name=f"layer-{number}", storage=storage)
        for _ in range(number + 1):
            study.tell(study.ask(), 1.0)
    assert [len(read(tmp_path / "optuna.log", f"layer-{n}").trials) for n in range(2)] == [1, 2]


def test_a_trial_that_is_added_finished_is_written(tmp_path):
    study = optuna.create_study(study_name="s", storage=StudyLog(tmp_path / "optuna.log"))
    study.add_trial(optuna.trial.create_trial(value=2.0))
    assert [t.value for t in read(tmp_path / "optuna.log", "s").trials] == [2.0]
