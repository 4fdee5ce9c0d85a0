"""The journal's database: opened, locked against a second writer, and its errors made readable."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sqlalchemy import Engine, create_engine, inspect
from sqlalchemy import text as sql_text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import StaticPool

from adaseek.errors import JournalError
from adaseek.evaluation._tables import METADATA, PREFIX

__all__ = ["display_name", "errors_named", "open_engine"]


def open_engine(location: str | os.PathLike[str], *, run_id: str, resources: ExitStack) -> Engine:
    """Returns an engine on the journal at `location`, its tables made, locked for this process.

    `resources` holds engine and lock until it is closed.

    Raises:
        JournalError: if it is open already, belongs to another program, or cannot be opened.
    """
    url = _url(location)
    engine = _engine(url)
    resources.callback(engine.dispose)
    if engine.dialect.name == "postgresql":
        _lock_postgresql(engine, run_id, resources)
    elif url.database not in (None, "", ":memory:"):
        _lock_file(Path(f"{url.database}.lock"), resources)
    with errors_named(url):
        _prepare(engine)
    return engine


def _url(location: str | os.PathLike[str]) -> URL:
    text = os.fspath(location)
    if "://" not in text:
        try:
            Path(text).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise JournalError(f"The journal {text} cannot be made: {error}.") from error
        return URL.create("sqlite", database=text)
    try:
        url = make_url(text)
    except ArgumentError as error:
        raise JournalError(f"The journal's URL cannot be read: {error}.") from None
    # SQLAlchemy's default driver for `postgresql` is psycopg2; the extra installs its successor.
    return url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url


def _engine(url: URL) -> Engine:
    try:
        if url.get_backend_name() == "sqlite":
            options = {"check_same_thread": False}
            return create_engine(url, poolclass=StaticPool, connect_args=options)
        if url.get_backend_name() == "postgresql":
            return create_engine(url, pool_size=8, max_overflow=24, pool_pre_ping=True)
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        raise JournalError(
            f"The journal {display_name(url)} needs a driver that is missing ({error}): "
            "pip install 'adaseek[postgresql]'."
        ) from error
    raise JournalError(
        f"The journal {display_name(url)} is a {url.get_backend_name()} database, but must be "
        "'sqlite' or 'postgresql'."
    )


def _prepare(engine: Engine) -> None:
    tables = inspect(engine).get_table_names()
    is_foreign = bool(tables) and not any(name.startswith(PREFIX) for name in tables)
    if is_foreign and engine.dialect.name == "sqlite":
        raise JournalError(
            f"{display_name(engine.url)} is a database of another program (it holds "
            f"{', '.join(sorted(tables)[:5])}). Choose another path for the journal."
        )
    if engine.dialect.name == "sqlite":
        with engine.connect() as connection:  # the only one, so its settings stay
            for setting in ("busy_timeout = 10000", "journal_mode = WAL", "synchronous = FULL"):
                connection.exec_driver_sql(f"PRAGMA {setting}")
    METADATA.create_all(engine)


def _lock_file(path: Path, resources: ExitStack) -> None:
    # A lock beside the file, not SQLite's exclusive mode: that one would also shut out readers,
    # and people want to look at a run while it goes on. The kernel frees it if we are killed.
    try:
        file = resources.enter_context(path.open("a+", encoding="utf-8"))
    except OSError as error:
        raise JournalError(f"The journal's lock {path} cannot be written: {error}.") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = f"{path}, {file.read().strip()}"
        raise JournalError(_is_open_message(holder, cure="`run_dir`")) from None
    except OSError as error:
        raise JournalError(
            f"{path} cannot be locked ({error}). Choose a `run_dir` on a local disk."
        ) from error
    file.truncate(0)
    file.write(f"process {os.getpid()}")
    file.flush()


def _lock_postgresql(engine: Engine, run_id: str, resources: ExitStack) -> None:
    digest = hashlib.sha256(f"adaseek/{run_id}".encode()).digest()
    key = int.from_bytes(digest[:8], "big", signed=True)
    with errors_named(engine.url):
        # The lock lives as long as this connection, so it is freed when the process dies.
        connection = resources.enter_context(engine.connect())
        connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        locked = connection.execute(sql_text("SELECT pg_try_advisory_lock(:key)"), {"key": key})
        if not locked.scalar_one():
            name = f"run '{run_id}' in {display_name(engine.url)}"
            raise JournalError(_is_open_message(name, cure="`run_id`"))


def _is_open_message(what: str, *, cure: str) -> str:
    return (
        f"The journal is open already ({what}); two writers would pay for the same runs twice. "
        f"Wait for the other run to end, or choose another {cure}."
    )


@contextmanager
def errors_named(url: URL) -> Iterator[None]:
    """Turns the database's errors into `JournalError` with the journal's name and a cure."""
    try:
        yield
    except DBAPIError as error:
        cure = (
            "If the disk is full or read-only, cure that and start again; if the file is damaged, "
            "restore a copy, or delete it to start anew."
            if url.get_backend_name() == "sqlite"
            else "See to the database server and the rights of its user, and start again."
        )
        reason = str(error.orig).strip().rstrip(".")
        raise JournalError(
            f"The journal {display_name(url)} cannot be read or written: {reason}. {cure}"
        ) from error
    except SQLAlchemyError as error:
        raise JournalError(f"The journal {display_name(url)} cannot be used: {error}.") from error


def display_name(url: URL) -> str:
    """Returns the file, or the URL without its password."""
    is_file = url.get_backend_name() == "sqlite" and url.database
    return str(url.database) if is_file else url.render_as_string(hide_password=True)
