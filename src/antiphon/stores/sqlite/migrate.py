"""Brings a SQLite database to the schema this build knows.

Lives here: applying the numbered steps that a database has not seen, undoing the last one. Not here: what a step is and
who can serve with it (`stores/schema_steps.py`), what the tables mean (`responses.py`), how a connection is opened
(`database.py`).

Invariant: the versions in `schema_migrations` are a prefix of the packaged steps, with the same checksums, or go on
beyond it with steps that serve this build; every other database is refused before anything is changed. All missing
steps are applied in one transaction under the write lock, so several processes may start at once.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from typing import TypeVar

from antiphon.errors import StoreError
from antiphon.stores.schema_steps import Applied, Step, missing_steps, read_steps, step_to_undo
from antiphon.stores.sqlite.database import wait_for_lock

T = TypeVar("T")

_HAS_TABLE = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'schema_migrations'"
_CREATE_TABLE = "CREATE TABLE IF NOT EXISTS schema_migrations (version INTEGER PRIMARY KEY, sha256 TEXT NOT NULL)"
# A step added the columns of names, and of the builds that are served.
_READ = "SELECT * FROM schema_migrations ORDER BY version"
_COLUMNS = "SELECT count(*) FROM pragma_table_info('schema_migrations')"
_RECORD = "INSERT INTO schema_migrations (version, sha256) VALUES (?, ?)"
_DESCRIBE = "UPDATE schema_migrations SET name = ?, serves = ? WHERE version = ?"
_FORGET = "DELETE FROM schema_migrations WHERE version = ?"


def packaged_steps(folder: str = "migrations") -> tuple[Step, ...]:
    """The steps shipped with this build, in order, numbered 1, 2, 3, … without a gap."""
    return read_steps(files("antiphon.stores.sqlite") / folder)


def migrate(connection: sqlite3.Connection, steps: Sequence[Step]) -> list[Step]:
    """Apply the steps that are missing, all or none; returns those that this call applied.

    Raises `StoreError` for a database this build cannot serve.
    """
    # Without the lock first: the common start finds nothing to do and must not wait for a busy writer.
    if not missing_steps(applied_steps(connection), steps):
        return []

    def work() -> list[Step]:
        missing = list(missing_steps(applied_steps(connection), steps))  # another process may have been faster
        connection.execute(_CREATE_TABLE)
        for step in missing:
            _run(connection, step.name, step.sql)
            connection.execute(_RECORD, (step.version, step.sha256))
        if missing and connection.execute(_COLUMNS).fetchone()[0] > 2:
            connection.executemany(_DESCRIBE, [(step.name, step.serves, step.version) for step in steps])
        return missing

    return _locked(connection, work)


def undo(connection: sqlite3.Connection, steps: Sequence[Step]) -> Step:
    """Undo the last step; raises `StoreError` where it cannot be undone."""

    def work() -> Step:
        step = step_to_undo(applied_steps(connection), steps)
        _run(connection, step.name, step.down)
        connection.execute(_FORGET, (step.version,))
        return step

    return _locked(connection, work)


def applied_steps(connection: sqlite3.Connection) -> list[Applied]:
    """What the database has; nothing when it is new."""
    if not connection.execute(_HAS_TABLE).fetchone():
        return []
    found = []
    for version, sha256, *more in connection.execute(_READ):
        name, serves = (*more, None, None)[:2]
        found.append(Applied(version, name or f"{version:04}", sha256, version if serves is None else serves))
    return found


def _locked(connection: sqlite3.Connection, work: Callable[[], T]) -> T:
    wait_for_lock(lambda: connection.execute("BEGIN IMMEDIATE"))
    try:
        result = work()
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return result


def _run(connection: sqlite3.Connection, name: str, sql: str) -> None:
    for statement in _statements(name, sql):
        connection.execute(statement)


def _statements(name: str, sql: str) -> Iterator[str]:
    # executescript() would commit the open transaction first, so the file is cut here.
    part = ""
    for line in sql.splitlines(keepends=True):
        part += line
        if sqlite3.complete_statement(part):
            yield part
            part = ""
    if re.sub(r"--[^\n]*", "", part).strip():
        raise StoreError(f"Schema step {name} ends in the middle of a statement.")
