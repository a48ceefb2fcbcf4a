"""Brings a database to the schema this build knows.

Lives here: reading the numbered `.sql` files, and applying those a database has not seen. Not here: what the
tables mean (`responses.py`) and how a connection is opened (`database.py`).

Invariant: the versions in `schema_migrations` are a prefix of the packaged files, with the same checksums; a
database that is newer, or whose history was edited, is refused before anything is changed. All missing files are
applied in one transaction under the write lock, so several processes may start at once.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files

from antiphon.errors import StoreError
from antiphon.stores.sqlite.database import wait_for_lock

_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")

_HAS_TABLE = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'schema_migrations'"
_CREATE_TABLE = "CREATE TABLE IF NOT EXISTS schema_migrations (version INTEGER PRIMARY KEY, sha256 TEXT NOT NULL)"
_READ = "SELECT version, sha256 FROM schema_migrations ORDER BY version"
_RECORD = "INSERT INTO schema_migrations (version, sha256) VALUES (?, ?)"


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered step of the schema."""

    version: int
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        """The checksum recorded when the step is applied."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def packaged_migrations(folder: str = "migrations") -> tuple[Migration, ...]:
    """The steps shipped with this build, in order, numbered 1, 2, 3, … without a gap."""
    entries = (files("antiphon.stores.sqlite") / folder).iterdir()
    steps = sorted(
        (
            Migration(int(match[1]), entry.name, entry.read_text(encoding="utf-8"))
            for entry in entries
            if (match := _NAME.fullmatch(entry.name))
        ),
        key=lambda step: step.version,
    )
    if [step.version for step in steps] != list(range(1, len(steps) + 1)) or not steps:
        raise StoreError("This installation is incomplete: its schema files are missing or misnumbered.")
    return tuple(steps)


def migrate(connection: sqlite3.Connection, steps: Sequence[Migration]) -> None:
    """Apply the steps that are missing, all or none; raises `StoreError` for a database this build cannot serve."""
    # Without the lock first: the common start finds nothing to do and must not wait for a busy writer.
    if not missing_steps(connection, steps):
        return
    wait_for_lock(lambda: connection.execute("BEGIN IMMEDIATE"))
    try:
        missing = missing_steps(connection, steps)  # again: another process may have been faster
        connection.execute(_CREATE_TABLE)
        for step in missing:
            for statement in _statements(step):
                connection.execute(statement)
            connection.execute(_RECORD, (step.version, step.sha256))
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def missing_steps(connection: sqlite3.Connection, steps: Sequence[Migration]) -> Sequence[Migration]:
    """The steps that this database has not seen; raises `StoreError` for one this build cannot serve."""
    applied = connection.execute(_READ).fetchall() if connection.execute(_HAS_TABLE).fetchone() else []
    if len(applied) > len(steps):
        raise StoreError(
            f"The database has schema {applied[-1][0]} and was written by a newer Antiphon; "
            f"this one knows schema {len(steps)}. Install the newer version again."
        )
    for (version, sha256), step in zip(applied, steps, strict=False):
        if version != step.version or sha256 != step.sha256:
            raise StoreError(
                f"The database was made with another text of schema step {step.name} than this build has. "
                "Use the build that wrote it, or start with an empty data folder."
            )
    return steps[len(applied) :]


def _statements(step: Migration) -> Iterator[str]:
    # executescript() would commit the open transaction first, so the file is cut here.
    part = ""
    for line in step.sql.splitlines(keepends=True):
        part += line
        if sqlite3.complete_statement(part):
            yield part
            part = ""
    if re.sub(r"--[^\n]*", "", part).strip():
        raise StoreError(f"Schema step {step.name} ends in the middle of a statement.")
