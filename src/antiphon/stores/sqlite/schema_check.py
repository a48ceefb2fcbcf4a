"""Whether a database holds what this build makes, and nothing that runs by itself beside it.

Lives here: comparing a database's own list of what is in it with that of one which is made anew. Not here: making it
(`migrate.py`), whether its pages are whole (`backup.py`).

A trigger runs with whatever statement touches its table, a view or an index whenever it is read: what somebody else put
into a database acts with our rights, and on all owners' rows.

Invariant: nothing but the list itself is read of a database before that was compared.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from functools import cache

from antiphon.errors import StoreError
from antiphon.stores.schema_steps import Step, missing_steps
from antiphon.stores.sqlite.migrate import applied_steps, migrate

_LIST = "SELECT type, name, tbl_name, sql FROM sqlite_schema"
_TRIGGERS = "SELECT name FROM sqlite_schema WHERE type = 'trigger'"
# What ANALYZE makes, which an operator may have run.
_STATISTICS = frozenset({"sqlite_stat1", "sqlite_stat4"})
_SHOWN = 64

_Entry = tuple[str, str, str, str | None]


def check_schema(
    connection: sqlite3.Connection,
    steps: Sequence[Step],
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


def lacking(connection: sqlite3.Connection, steps: Sequence[Step]) -> tuple[int, dict[str, str]]:
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


def check_triggers(connection: sqlite3.Connection, steps: tuple[Step, ...]) -> None:
    """Raises `StoreError` for a trigger that none of the steps makes (a newer one that does serves no older build)."""
    names = {name for (name,) in connection.execute(_TRIGGERS)}
    if foreign := sorted(names - _triggers_of(steps)) if names else ():
        raise StoreError(
            f"The database holds the trigger {foreign[0][:_SHOWN]!r}, which Antiphon did not make and which would run "
            "with what it writes. Drop it, or restore a backup."
        )


@cache
def _triggers_of(steps: tuple[Step, ...]) -> frozenset[str]:
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
