"""Migrates a SQLite database to this build's schema and checks the schema of an existing database.

Lives here: applying the numbered migrations that a database lacks, undoing the last migration, and comparing a
database's schema with a newly created one. Not here: which migrations a build needs (`stores/compatibility.py`), the
meaning of the tables, opening a connection (`database.py`), SQLite's integrity check (`backup.py`).

SQLite runs a trigger's code when a statement writes to the table. SQLite runs the code of a view or an index when a
query reads it. So the code of a trigger, view or index that Antiphon did not create would run with Antiphon's rights on
the rows of all owners.

Invariants: the versions in `schema_migrations` are a prefix of the packaged migrations, with equal checksums. A newer
build may have added further migrations that this build can work with. This module rejects a database with any other
migrations before changing the database. One transaction under the write lock applies all missing migrations, so several
processes may start concurrently. Before `check_schema` has compared the schema, this module reads only the tables
`sqlite_schema` and `schema_migrations`.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from functools import cache
from importlib.resources import files

from antiphon.errors import StoreError
from antiphon.stores.compatibility import AppliedStep, SchemaStep, missing_steps, read_steps, step_to_undo
from antiphon.stores.sqlite.database import write_lock

_HAS_TABLE = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'schema_migrations'"
_CREATE_TABLE = "CREATE TABLE IF NOT EXISTS schema_migrations (version INTEGER PRIMARY KEY, sha256 TEXT NOT NULL)"
# Older databases have only the columns `version` and `sha256`. A later step added `name` and `serves`.
_READ = "SELECT * FROM schema_migrations ORDER BY version"
_COLUMNS = "SELECT count(*) FROM pragma_table_info('schema_migrations')"
_RECORD = "INSERT INTO schema_migrations (version, sha256) VALUES (?, ?)"
_DESCRIBE = "UPDATE schema_migrations SET name = ?, serves = ? WHERE version = ?"
_FORGET = "DELETE FROM schema_migrations WHERE version = ?"
_LIST = "SELECT type, name, tbl_name, sql FROM sqlite_schema"
_TRIGGERS = "SELECT name FROM sqlite_schema WHERE type = 'trigger'"
# SQLite's ANALYZE creates these tables. An operator may have run ANALYZE.
_STATISTICS = frozenset({"sqlite_stat1", "sqlite_stat4"})
_SHOWN = 64

_Entry = tuple[str, str, str, str | None]


def packaged_steps(folder: str = "migrations") -> tuple[SchemaStep, ...]:
    """Return the migrations of this build in order, numbered 1, 2, 3, … without a gap."""
    return read_steps(files("antiphon.stores.sqlite") / folder)


def migrate(connection: sqlite3.Connection, steps: Sequence[SchemaStep]) -> list[SchemaStep]:
    """Apply all missing migrations in one transaction. Returns the migrations that this call applied.

    Raises `StoreError` when this build cannot work with the database's schema.
    """
    # Check without the lock first. Usually no step is missing, and the start must not wait for a busy writer.
    if not missing_steps(applied_steps(connection), steps):
        return []

    with write_lock(connection):
        missing = list(missing_steps(applied_steps(connection), steps))  # another process may have applied them
        connection.execute(_CREATE_TABLE)
        for step in missing:
            _run(connection, step.name, step.sql)
            connection.execute(_RECORD, (step.version, step.sha256))
        if missing and connection.execute(_COLUMNS).fetchone()[0] > 2:
            connection.executemany(_DESCRIBE, [(step.name, step.serves, step.version) for step in steps])
    return missing


def undo(connection: sqlite3.Connection, steps: Sequence[SchemaStep]) -> SchemaStep:
    """Undo the last applied migration and return it. Raises `StoreError` when the migration cannot be undone."""
    with write_lock(connection):
        step = step_to_undo(applied_steps(connection), steps)
        _run(connection, step.name, step.down)
        connection.execute(_FORGET, (step.version,))
    return step


def applied_steps(connection: sqlite3.Connection) -> list[AppliedStep]:
    """Return the migrations recorded in `schema_migrations`. The result is empty for a new database."""
    if not connection.execute(_HAS_TABLE).fetchone():
        return []
    found = []
    for version, sha256, *more in connection.execute(_READ):
        name, serves = (*more, None, None)[:2]
        found.append(AppliedStep(version, name or f"{version:04}", sha256, version if serves is None else serves))
    return found


def _run(connection: sqlite3.Connection, name: str, sql: str) -> None:
    for statement in _statements(name, sql):
        connection.execute(statement)


def _statements(name: str, sql: str) -> Iterator[str]:
    # executescript() would commit the open transaction first, so this function splits the SQL into single statements.
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
    """Raise `StoreError` if a schema object is missing, differs, or was not created by Antiphon. The error names the
    first object that fails this comparison.

    The database may lack some of the last `steps`. `later` returns the CREATE statements that ran after the migrations,
    for example for full-text indexes. The tables that `later` creates have names that begin with `prefix`. `later`
    reads the database, so this function compares the objects of the migrations before it calls `later`.
    """
    connection.execute("PRAGMA trusted_schema=OFF")
    there = applied_steps(connection)
    missing = missing_steps(there, steps)
    if len(there) > len(steps):
        raise StoreError(
            f"a newer version of Antiphon wrote its schema {there[-1].version}; this version knows only schema "
            f"{len(steps)}, so it cannot check the database. Use the newer version"
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


def missing_objects(connection: sqlite3.Connection, steps: Sequence[SchemaStep]) -> tuple[int, dict[str, str]]:
    """Return the number of tables and indexes that the applied migrations create, and the missing ones
    (`index jobs_due`) with their CREATE statements. Returns `(0, {})` for the schema of a newer build, which may have
    dropped tables or indexes."""
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
    """Raise `StoreError` if the database has a trigger that no migration of this build creates. So an older build
    rejects a database to which a newer build added a trigger."""
    names = {name for (name,) in connection.execute(_TRIGGERS)}
    if foreign := sorted(names - _triggers_of(steps)) if names else ():
        raise StoreError(
            f"The database has the trigger {foreign[0][:_SHOWN]!r}, which Antiphon did not create and which would "
            "run when Antiphon writes. Drop the trigger, or restore a backup."
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
        raise StoreError(
            f"its schema has the {kind} {name[:_SHOWN]!r}, which differs from the {kind} that this version of "
            "Antiphon creates"
        )
    for kind, name, _, _ in sorted(made - found, key=lambda entry: entry[:3]):
        raise StoreError(f"its schema lacks the {kind} {name!r}")
