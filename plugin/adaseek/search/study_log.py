"""Optuna's storage in memory that also keeps a file which optuna-dashboard can watch.

Optuna's own `JournalStorage` writes, syncs and reads back every single parameter: with thousands
of configs that is most of what a tuner costs. A tuning run needs none of it, as it is resumed
from its own journal.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any  # Any: attributes hold JSON values

from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

__all__ = ["StudyLog"]

# The operations of Optuna's journal files that are written here. Files of older versions must stay
# readable, so the numbers stay; a test reads a file back with Optuna's own `JournalStorage`.
_CREATE_STUDY = 0
_SET_STUDY_USER_ATTR = 2
_CREATE_TRIAL = 4


class StudyLog(InMemoryStorage):
    """An `InMemoryStorage` whose finished trials are appended to a file, a line each.

    The file is what Optuna's `JournalFileBackend` reads; trials are numbered in the order in which
    they ended. Not synced: it is for people who watch, nothing is ever read from it here.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Begins an empty file at `path`; what was there is lost."""
        super().__init__()
        self._path = Path(path)
        self._path.write_bytes(b"")
        self._open: dict[int, int] = {}  # trial id -> study id
        self._shared: dict[str, BaseDistribution] = {}

    def create_new_study(
        self, directions: Sequence[StudyDirection], study_name: str | None = None
    ) -> int:
        study_id = super().create_new_study(directions, study_name)
        name = self.get_study_name_from_id(study_id)
        body = {"study_name": name, "directions": [int(d) for d in directions]}
        self._append(_CREATE_STUDY, body)
        return study_id

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        super().set_study_user_attr(study_id, key, value)
        self._append(_SET_STUDY_USER_ATTR, {"study_id": study_id, "user_attr": {key: value}})

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        trial_id = super().create_new_trial(study_id, template_trial)
        self._open[trial_id] = study_id
        self._note(trial_id)
        return trial_id

    def set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
    ) -> None:
        # Every trial brings its own copy of each distribution; one of them is enough.
        shared = self._shared.setdefault(param_name, distribution)
        if shared == distribution:
            distribution = shared
        super().set_trial_param(trial_id, param_name, param_value_internal, distribution)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        is_set = super().set_trial_state_values(trial_id, state, values)
        self._note(trial_id)
        return is_set

    def _note(self, trial_id: int) -> None:
        """Writes the trial if it is over."""
        trial = self.get_trial(trial_id)
        if trial.state.is_finished():
            self._append(_CREATE_TRIAL, _trial_json(trial, self._open.pop(trial_id)))

    def _append(self, operation: int, body: dict[str, Any]) -> None:
        line = json.dumps({"op_code": operation, "worker_id": "adaseek", **body})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def _trial_json(trial: FrozenTrial, study_id: int) -> dict[str, Any]:
    distributions = trial.distributions
    return {
        "study_id": study_id,
        "state": int(trial.state),
        "value": None,
        "values": trial.values,
        "datetime_start": _time(trial.datetime_start),
        "datetime_complete": _time(trial.datetime_complete),
        "distributions": {name: distribution_to_json(d) for name, d in distributions.items()},
        "params": {n: distributions[n].to_internal_repr(p) for n, p in trial.params.items()},
        "user_attrs": trial.user_attrs,
        "system_attrs": trial.system_attrs,
        "intermediate_values": trial.intermediate_values,
    }


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone().isoformat(timespec="microseconds")
