"""The journal: every outcome that was paid for, committed before anybody uses it.

One set of SQL tables is checkpoint (a killed run goes on where it was), cache (no task and no
model request is paid twice), replay table and audit. SQLite by default, PostgreSQL by URL.

Durability: SQLite runs in WAL mode with `synchronous=FULL`, so that a committed outcome survives
`kill -9` and a power cut alike. The sync costs about 0.3 ms on a local disk, where the model calls
that it keeps took a hundred times as long; NORMAL would lose the last seconds in a power cut.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any  # Any: JSON values of the identity, rows, and DBAPI connections

from sqlalchemy import Connection, Engine, String, bindparam, func, select
from sqlalchemy import delete as sql_delete
from sqlalchemy import insert as sql_insert
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql import Executable

from adaseek._canonical import canonical_json
from adaseek.cogs.base import Completion
from adaseek.errors import JournalError
from adaseek.evaluation._database import display_name, errors_named, open_engine
from adaseek.evaluation._tables import (
    CALLS,
    COMPLETIONS,
    EVALUATIONS,
    EXPENSES,
    RECIPES,
    RUNS,
    SCHEMA_VERSION,
    evaluation_from_row,
    evaluation_row,
    record_from_json,
    record_json,
    usage_from_json,
    usage_json,
)
from adaseek.evaluation.base import CallRecord, Evaluation, Task
from adaseek.evaluation.group_commit import GroupCommit
from adaseek.recipe import Recipe
from adaseek.workflow import Usage

__all__ = ["Journal"]

_DEFAULT_RUN = "default"

_MOST_KEYS = 500
"""Keys in one question: databases bound the number of parameters of a statement."""


class Journal:
    """The outcomes of one run. Thread-safe; one process at a time may have it open.

    Also the run's `CallMemo`. Close it, or use it as a context manager.
    """

    def __init__(self, engine: Engine, *, run_id: str, resources: ExitStack) -> None:
        """Use `Journal.open`. `resources` is closed with the journal."""
        self._engine = engine
        self._run_id = run_id
        self._resources = resources
        self._stored_recipes: set[str] = set()
        # One SQLite connection serves all threads: SQLite has one writer at a time anyway, and a
        # lock is cheaper than its busy waiting. PostgreSQL has a pool and needs no lock.
        self._lock = threading.RLock() if engine.dialect.name == "sqlite" else None
        self._statements = _Statements(engine.dialect.name)
        self._recording = GroupCommit(self._write)

    @classmethod
    def open(
        cls,
        location: str | os.PathLike[str],
        *,
        identity: Mapping[str, Any] | None,
        run_id: str = _DEFAULT_RUN,
    ) -> Journal:
        """Returns the journal at `location`, made if it does not exist.

        Args:
            location: path of an SQLite file, or a database URL such as
                `postgresql+psycopg://user@host/name`.
            identity: JSON values that must be equal for a run to go on: program, data, seed ...
                None takes whatever run is there, and refuses to make one.
            run_id: tells runs in one database apart.

        Raises:
            JournalError: if it was made for another identity or by another schema version, if
                another process has it open, or if it cannot be read or written.
        """
        with ExitStack() as resources:
            engine = open_engine(location, run_id=run_id, resources=resources)
            journal = cls(engine, run_id=run_id, resources=resources)
            journal._begin_or_resume(identity)
            # Only now does the journal own them; after an error above they are closed here.
            journal._resources = resources.pop_all()
            return journal

    def close(self) -> None:
        """Closes the database and lets other processes open it."""
        self._resources.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def location(self) -> str:
        """The file, or the URL without its password."""
        return display_name(self._engine.url)

    @property
    def identity(self) -> dict[str, Any]:
        """What the run in this journal was made for."""
        row = self._first(select(RUNS.c.identity).where(RUNS.c.run_id == self._run_id))
        return {} if row is None else dict(json.loads(row["identity"]))

    def record(
        self, evaluation: Evaluation, task: Task, *, sequence: int | None = None
    ) -> Evaluation:
        """Commits `evaluation` and returns it exactly as a later `find` gives it.

        Inputs and outputs of calls become JSON values, long ones cut; so a resumed run sees what
        the first run saw.

        Args:
            evaluation: the outcome of `task`.
            task: what was run; its recipe is stored once.
            sequence: place in the order of `evaluations`; None: after all there are.

        Raises:
            JournalError: if the task is journalled already, or the database cannot be written.
        """
        row = evaluation_row(evaluation, task)
        self._recording.commit(_Entry(row, task.recipe, sequence))
        return evaluation_from_row(row, replayed=evaluation.replayed)

    def find(self, task_key: str) -> Evaluation | None:
        """Returns the journalled outcome of the task, marked as replayed, or None."""
        return self.find_all([task_key]).get(task_key)

    def find_all(self, task_keys: Sequence[str]) -> dict[str, Evaluation]:
        """Returns the journalled outcomes of those tasks that have one, as `find` does."""
        rows: list[Mapping[str, Any]] = []
        for start in range(0, len(task_keys), _MOST_KEYS):
            keys = list(task_keys[start : start + _MOST_KEYS])
            with self._transaction() as connection:
                values = {"run": self._run_id, "keys": keys}
                rows += map(dict, connection.execute(self._statements.find, values).mappings())
        return {row["task_key"]: evaluation_from_row(row) for row in rows}

    def evaluations(self) -> Iterator[Evaluation]:
        """Yields every journalled outcome in the order of the run, one page in memory at a time."""
        after = (-1, "")
        while page := self._page(after):
            yield from (evaluation_from_row(row) for row in page)
            after = (page[-1]["sequence"], page[-1]["task_key"])

    def recipe(self, fingerprint: str) -> Recipe | None:
        """Returns the recipe of a journalled task by its fingerprint, or None."""
        where = (RECIPES.c.run_id == self._run_id) & (RECIPES.c.fingerprint == fingerprint)
        row = self._first(select(RECIPES.c.body).where(where))
        return None if row is None else Recipe.from_json(json.loads(row["body"]))

    def get(self, key: str) -> CallRecord | None:
        """Returns the journalled answer of a model request, or None."""
        row = self._first(self._statements.get_call, key=key)
        return None if row is None else record_from_json(row["record"])

    def put(self, key: str, record: CallRecord) -> None:
        """Commits the answer of a model request; the first answer of a request stays.

        Raises:
            JournalError: if the outputs are not JSON, or the database cannot be written.
        """
        try:
            text = record_json(record)
        except (TypeError, ValueError) as error:
            raise JournalError(
                f"The answer of {record.model.key} cannot be journalled as JSON: {error}. "
                "The adapter must put JSON values into the memo."
            ) from error
        with self._transaction() as connection:
            values = {"run_id": self._run_id, "request_key": key, "record": text}
            connection.execute(self._statements.put_call, values)

    def complete(self, key: str, make: Callable[[], Completion]) -> Completion:
        """Returns the journalled completion for `key`; if there is none, makes and commits one."""
        found = self._first(self._statements.find_completion, key=key)
        if found is None:
            made = make()
            usage = json.dumps(usage_json(made.usage))
            with self._transaction() as connection:
                values = {"run_id": self._run_id, "request_key": key, "usage": usage}
                text = json.dumps(made.text)
                connection.execute(self._statements.put_completion, {**values, "text": text})
            # Read back: of two threads that asked the same, both must get the same answer.
            found = self._first(self._statements.find_completion, key=key)
            assert found is not None, f"completion {key} was committed but is not there"
        return Completion(json.loads(found["text"]), usage_from_json(json.loads(found["usage"])))

    def expense(self, task_key: str, paid: Usage) -> None:
        """Commits what was paid for a run that left no outcome, so that money caps stay true."""
        if paid == Usage():
            return
        with self._transaction() as connection:
            body = json.dumps(usage_json(paid))
            values = {"run_id": self._run_id, "task_key": task_key, "paid": body}
            connection.execute(sql_insert(EXPENSES), values)

    def forget(self, error_kind: str) -> int:
        """Removes the failed outcomes of one kind, keeps what they cost, returns their number.

        The next run does those tasks again.
        """
        where = (EVALUATIONS.c.run_id == self._run_id) & (EVALUATIONS.c.error_kind == error_kind)
        copied = select(EVALUATIONS.c.run_id, EVALUATIONS.c.task_key, EVALUATIONS.c.paid)
        with self._transaction() as connection:
            names = ["run_id", "task_key", "paid"]
            connection.execute(sql_insert(EXPENSES).from_select(names, copied.where(where)))
            return connection.execute(sql_delete(EVALUATIONS).where(where)).rowcount

    def paid(self) -> Usage:
        """Returns all that the run has paid: outcomes, lost runs and the tuner's own proposals."""
        total = Usage()
        columns = (EVALUATIONS.c.paid, EXPENSES.c.paid, COMPLETIONS.c.usage)
        with self._transaction() as connection:
            for column in columns:
                rows = connection.execute(
                    select(column).where(column.table.c.run_id == self._run_id)
                )
                for (body,) in rows.yield_per(1000):
                    total += usage_from_json(json.loads(body))
        return total

    # Not `__len__`: an empty memo would then be false, and an adapter that tests it would skip it.
    def count(self) -> int:
        """Returns the number of journalled outcomes."""
        with self._transaction() as connection:
            return self._count(connection)

    def _count(self, connection: Connection) -> int:
        where = EVALUATIONS.c.run_id == self._run_id
        return connection.execute(select(func.count()).where(where)).scalar_one()

    def _write(self, entries: Sequence[_Entry]) -> None:
        """Commits `entries` in one transaction."""
        recipes = {e.row["recipe"]: e.recipe for e in entries}
        fresh = recipes.keys() - self._stored_recipes
        bodies = [
            {"run_id": self._run_id, "fingerprint": key, "body": json.dumps(recipes[key].to_json())}
            for key in sorted(fresh)
        ]
        with self._transaction() as connection:
            if bodies:
                connection.execute(self._statements.put_recipe, bodies)
            rows = [{**e.row, "run_id": self._run_id, "sequence": e.sequence} for e in entries]
            if any(e.sequence is None for e in entries):
                after = self._count(connection)
                for index, row in enumerate(rows):
                    row["sequence"] = after + index if row["sequence"] is None else row["sequence"]
            connection.execute(self._statements.record, rows)
        self._stored_recipes |= fresh

    def _page(self, after: tuple[int, str], size: int = 500) -> list[Mapping[str, Any]]:
        sequence, key = EVALUATIONS.c.sequence, EVALUATIONS.c.task_key
        later = (sequence > after[0]) | ((sequence == after[0]) & (key > after[1]))
        query = select(EVALUATIONS).where((EVALUATIONS.c.run_id == self._run_id) & later)
        with self._transaction() as connection:
            rows = connection.execute(query.order_by(sequence, key).limit(size))
            return [dict(row._mapping) for row in rows]

    def _first(self, statement: Executable, **values: object) -> Mapping[str, Any] | None:
        with self._transaction() as connection:
            row = connection.execute(statement, {"run": self._run_id, **values}).first()
        return None if row is None else dict(row._mapping)

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with ExitStack() as stack:
            if self._lock is not None:
                stack.enter_context(self._lock)
            stack.enter_context(errors_named(self._engine.url))
            yield stack.enter_context(self._engine.begin())

    def _begin_or_resume(self, identity: Mapping[str, Any] | None) -> None:
        row = self._first(select(RUNS).where(RUNS.c.run_id == self._run_id))
        if row is None:
            if identity is None:
                raise JournalError(
                    f"{self.location} holds no run '{self._run_id}'. Name the journal of a run "
                    "that has been started, or give an identity to start one."
                )
            self._begin(identity)
            return
        if row["schema_version"] != SCHEMA_VERSION:
            raise JournalError(
                f"The run in {self.location} has schema {row['schema_version']}, but this adaseek "
                f"reads {SCHEMA_VERSION}. Use the adaseek version that wrote it, or {self._cure}."
            )
        if identity is not None:
            self._check(json.loads(row["identity"]), identity)

    def _begin(self, identity: Mapping[str, Any]) -> None:
        with self._transaction() as connection:
            values = {
                "run_id": self._run_id,
                "schema_version": SCHEMA_VERSION,
                "identity": canonical_json(dict(identity)),
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            connection.execute(sql_insert(RUNS), values)

    def _check(self, theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
        lines = [
            f"  {key}: {_short(theirs, key)} in the journal, {_short(mine, key)} now"
            for key in sorted(theirs.keys() | mine.keys())
            if _short(theirs, key, limit=None) != _short(mine, key, limit=None)
        ]
        if lines:
            raise JournalError(
                f"{self.location} holds another run:\n" + "\n".join(lines) + "\n"
                f"To go on with that run, restore these; to start anew, {self._cure}."
            )

    @property
    def _cure(self) -> str:
        if self._engine.dialect.name == "sqlite":
            return f"choose another `run_dir`, or delete {self.location}"
        return "choose another `run_id`"


@dataclass(frozen=True)
class _Entry:
    """An outcome to commit; `sequence` None: after all there are."""

    row: Mapping[str, Any]
    recipe: Recipe
    sequence: int | None


class _Statements:
    """The statements of the hot path, built once: building one costs as much as running it."""

    def __init__(self, dialect: str) -> None:
        insert = sqlite.insert if dialect == "sqlite" else postgresql.insert
        run = bindparam("run", type_=String)
        key = bindparam("key", type_=String)
        self.record = sql_insert(EVALUATIONS)
        self.put_call = insert(CALLS).on_conflict_do_nothing()
        self.put_completion = insert(COMPLETIONS).on_conflict_do_nothing()
        self.put_recipe = insert(RECIPES).on_conflict_do_nothing()
        keys = bindparam("keys", type_=String, expanding=True)
        self.find = select(EVALUATIONS).where(
            (EVALUATIONS.c.run_id == run) & EVALUATIONS.c.task_key.in_(keys)
        )
        self.get_call = select(CALLS.c.record).where(
            (CALLS.c.run_id == run) & (CALLS.c.request_key == key)
        )
        self.find_completion = select(COMPLETIONS.c.text, COMPLETIONS.c.usage).where(
            (COMPLETIONS.c.run_id == run) & (COMPLETIONS.c.request_key == key)
        )


def _short(values: Mapping[str, Any], key: str, *, limit: int | None = 80) -> str:
    if key not in values:
        return "absent"
    text = canonical_json(values[key])
    return text if limit is None or len(text) <= limit else text[: limit - 3] + "..."
