"""Migrates a SQLite database to this build's schema and checks the schema of an existing one.

Lives here: applying the numbered steps that a database has not seen, undoing the last one, and comparing a database's
own list of what is in it with that of one which is made anew. Not here: what a step is and who can serve with it
(`stores/schema_steps.py`), what the tables mean, how a connection is opened (`database.py`), whether pages are whole
(`backup.py`).

A trigger runs with whatever statement touches its table, a view or an index whenever it is read: what somebody else put
into a database acts with our rights, and on all owners' rows.

Invariants: the versions in `schema_migrations` are a prefix of the packaged steps, with the same checksums, or go on
beyond it with steps that serve this build; every other database is refused before anything is changed. All missing
steps are applied in one transaction under the write lock, so several processes may start at once. Nothing but the list
itself is read of a foreign database before that was compared.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from functools import cache
from importlib.resources import files

from antiphon.errors import StoreError
from antiphon.stores.schema_steps import Applied, SchemaStep, missing_steps, read_steps, step_to_undo
from antiphon.stores.sqlite.database import locked

_HAS_TABLE = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'schema_migrations'"
_CREATE_TABLE = "CREATE TABLE IF NOT EXISTS schema_migrations (version INTEGER PRIMARY KEY, sha256 TEXT NOT NULL)"
# A step added the columns of names, and of the builds that are served.
_READ = "SELECT * FROM schema_migrations ORDER BY version"
_COLUMNS = "SELECT count(*) FROM pragma_table_info('schema_migrations')"
_RECORD = "INSERT INTO schema_migrations (version, sha256) VALUES (?, ?)"
_DESCRIBE = "UPDATE schema_migrations SET name = ?, serves = ? WHERE version = ?"
_FORGET = "DELETE FROM schema_migrations WHERE version = ?"
_LIST = "SELECT type, name, tbl_name, sql FROM sqlite_schema"
_TRIGGERS = "SELECT name FROM sqlite_schema WHERE type = 'trigger'"
# What ANALYZE makes, which an operator may have run.
_STATISTICS = frozenset({"sqlite_stat1", "sqlite_stat4"})
_SHOWN = 64

_Entry = tuple[str, str, str, str | None]


def packaged_steps(folder: str = "migrations") -> tuple[SchemaStep, ...]:
    """The steps shipped with this build, in order, numbered 1, 2, 3, … without a gap."""
    return read_steps(files("antiphon.stores.sqlite") / folder)


def migrate(connection: sqlite3.Connection, steps: Sequence[SchemaStep]) -> list[SchemaStep]:
    """Apply the steps that are missing, all or none; returns those that this call applied.

    Raises `StoreError` for a database this build cannot serve.
    """
    # Without the lock first: the common start finds nothing to do and must not wait for a busy writer.
    if not missing_steps(applied_steps(connection), steps):
        return []

    with locked(connection):
        missing = list(missing_steps(applied_steps(connection), steps))  # another process may have been faster
        connection.execute(_CREATE_TABLE)
        for step in missing:
            _run(connection, step.name, step.sql)
            connection.execute(_RECORD, (step.version, step.sha256))
        if missing and connection.execute(_COLUMNS).fetchone()[0] > 2:
            connection.executemany(_DESCRIBE, [(step.name, step.serves, step.version) for step in steps])
    return missing


def undo(connection: sqlite3.Connection, steps: Sequence[SchemaStep]) -> SchemaStep:
    """Undo the last step; raises `StoreError` where it cannot be undone."""
    with locked(connection):
        step = step_to_undo(applied_steps(connection), steps)
        _run(connection, step.name, step.down)
        connection.execute(_FORGET, (step.version,))
    return step


def applied_steps(connection: sqlite3.Connection) -> list[Applied]:
    """What the database has; nothing when it is new."""
    if not connection.execute(_HAS_TABLE).fetchone():
        return []
    found = []
    for version, sha256, *more in connection.execute(_READ):
        name, serves = (*more, None, None)[:2]
        found.append(Applied(version, name or f"{version:04}", sha256, version if serves is None else serves))
    return found


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


def check_schema(
    connection: sqlite3.Connection,
    steps: Sequence[SchemaStep],
    later: Callable[[sqlite3.Connection], Iterable[str]] | None = None,
    prefix: str = "\0",
) -> None:
    """Raises `StoreError` naming the first thing that is too much, is missing or reads otherwise.

    The database may have fewer steps than these. `later` says, once all else was compared, which statements were run on
    it since: what they make are tables whose names begin with `prefix`.
    """
    connection.execute("PRAGMA trusted_schema=OFF")
    there = applied_steps(connection)
    missing = missing_steps(there, steps)
    if len(there) > len(steps):
        raise StoreError(
            f"it has schema {there[-1].version} and was written by a newer Antiphon; this one knows schema "
            f"{len(steps)} and cannot compare what is in it. Use the newer version"
        )
    applied = steps[: len(steps) - len(missing)]
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as ours:
        migrate(ours, applied)
        found, made = _entries(connection), _entries(ours)
        _compare({entry for entry in found if not _is_later(entry, prefix)}, made)
        if later is not None:
            for statement in later(connection):
                ours.execute(statement)
            _compare(found, _entries(ours))


def lacking(connection: sqlite3.Connection, steps: Sequence[SchemaStep]) -> tuple[int, dict[str, str]]:
    """How many tables and indexes the applied ones of these steps made, and those that are not there any more (`index
    jobs_due`), each with the statement that makes it. A newer build's steps may have taken some away: of those nothing
    is said."""
    there = applied_steps(connection)
    if len(there) > len(steps):
        return 0, {}
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as ours:
        migrate(ours, steps[: len(there)])
        made = {(kind, name): sql for kind, name, _, sql in _entries(ours) if kind in ("table", "index")}
    found = {(kind, name) for kind, name, _, _ in _entries(connection)}
    gone = {f"{kind} {name}": sql or "" for (kind, name), sql in sorted(made.items()) if (kind, name) not in found}
    return len(made), gone


def check_triggers(connection: sqlite3.Connection, steps: tuple[SchemaStep, ...]) -> None:
    """Raises `StoreError` for a trigger that none of the steps makes (a newer one that does serves no older build)."""
    names = {name for (name,) in connection.execute(_TRIGGERS)}
    if foreign := sorted(names - _triggers_of(steps)) if names else ():
        raise StoreError(
            f"The database holds the trigger {foreign[0][:_SHOWN]!r}, which Antiphon did not make and which would run "
            "with what it writes. Drop it, or restore a backup."
        )


@cache
def _triggers_of(steps: tuple[SchemaStep, ...]) -> frozenset[str]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as ours:
        migrate(ours, steps)
        return frozenset(name for (name,) in ours.execute(_TRIGGERS))


def _entries(connection: sqlite3.Connection) -> set[_Entry]:
    return {entry for entry in connection.execute(_LIST) if entry[1] not in _STATISTICS}


def _is_later(entry: _Entry, prefix: str) -> bool:
    kind, _, table, _ = entry
    return kind in ("table", "index") and table.startswith(prefix)


def _compare(found: set[_Entry], made: set[_Entry]) -> None:
    for kind, name, _, _ in sorted(found - made, key=lambda entry: entry[:3]):
        raise StoreError(f"it holds the {kind} {name[:_SHOWN]!r}, which this Antiphon does not make like that")
    for kind, name, _, _ in sorted(made - found, key=lambda entry: entry[:3]):
        raise StoreError(f"it lacks the {kind} {name!r}")
