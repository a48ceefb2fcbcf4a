"""`OwnerData` over the databases of a folder, while they are in use or not.

Lives here: reading everything that belongs to an owner in `sessions.db`, deleting it, and giving unused space back. Not
here: the SQL of that (`../owner_data.py`), vector stores (`vector_admin.py`), files' contents.

Invariant: nothing is made by being looked at.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from antiphon.engine.ports.owner_data import ExportedRow, OwnerCounts, Shrunk
from antiphon.stores.bodies import Bodies
from antiphon.stores.owner_data import AT_ONCE, DELETE, exported, owned
from antiphon.stores.sqlite.database import connect_writer, reader_uri, store_error, wait_for_lock
from antiphon.stores.sqlite.opening import SESSIONS_FILE
from antiphon.stores.sqlite.tables import sqlite_sql
from antiphon.stores.sqlite.vector_admin import count_stores, delete_stores, export_stores
from antiphon.stores.sqlite.vector_database import VECTORS_FILE

OWNED = {kind: sqlite_sql(sql) for kind, sql in owned("pos").items()}
_OWNERS = """
SELECT owner, sum(responses), sum(conversations), sum(prompts), sum(files) FROM (
  SELECT owner, 1 AS responses, 0 AS conversations, 0 AS prompts, 0 AS files FROM responses
  UNION ALL SELECT owner, 0, 1, 0, 0 FROM conversations
  UNION ALL SELECT owner, 0, 0, 1, 0 FROM prompts
  UNION ALL SELECT owner, 0, 0, 0, 1 FROM files
) GROUP BY owner ORDER BY owner
"""

# Owners that a key tells apart have names that begin with "b:" (`doors/owners.py`).
_ANY = "SELECT EXISTS (SELECT 1 FROM {table})"
_HASHED = "SELECT EXISTS (SELECT 1 FROM {table} WHERE owner >= 'b:' AND owner < 'b;')"
_TABLES = {SESSIONS_FILE: ("responses", "conversations", "prompts", "files"), VECTORS_FILE: ("vector_stores",)}


class SqliteOwnerData:
    """`OwnerData` of the databases in this folder."""

    def __init__(self, folder: Path, bodies: Bodies) -> None:
        """`bodies` opens what is sealed."""
        self._bodies = bodies
        self._folder = folder
        self._path = folder / SESSIONS_FILE

    async def owners(self) -> list[OwnerCounts]:
        """Every owner of anything."""
        stores = await count_stores(self._folder)
        found = {one.owner: one for one in list_owners(self._path)}
        return [
            replace(found.get(owner, OwnerCounts(owner)), vector_stores=stores.get(owner, 0))
            for owner in sorted({*found, *stores})
        ]

    async def export(self, owner: str) -> AsyncIterator[ExportedRow]:
        """Everything of an owner but files."""
        for kind, fields in export_owner(self._path, owner):
            yield exported(kind, fields, self._bodies)
        for row in await export_stores(self._folder, owner):
            yield ExportedRow(*row)

    async def delete(self, owner: str) -> int:
        """Everything of an owner but files: vector stores first, which refer to the rest."""
        return await delete_stores(self._folder, owner) + delete_owner(self._path, owner)

    async def vacuum(self) -> list[Shrunk]:
        """Give unused space back; there must be room for a database twice."""
        paths = [path for path in (self._path, self._folder / VECTORS_FILE) if path.exists()]
        return [Shrunk(str(path), *vacuum(path)) for path in paths]

    async def aclose(self) -> None:
        """Nothing stays open."""


def has_rows(folder: Path, *, hashed: bool) -> bool:
    """Whether the databases in this folder hold anything; with `hashed`, anything of an owner who is known by the hash
    of a token. Raises `StoreError`."""
    question = _HASHED if hashed else _ANY
    for name, tables in _TABLES.items():
        path = folder / name
        if not path.exists():
            continue
        with closing(_reader(path)) as connection:
            there = {row[0] for row in _read(connection, path, "SELECT name FROM sqlite_schema", {})}
            for table in tables:
                if table in there and next(_read(connection, path, question.format(table=table), {}))[0]:
                    return True
    return False


def list_owners(path: Path) -> list[OwnerCounts]:
    """Every owner of anything. Raises `StoreError`."""
    with closing(_reader(path)) as connection:
        return [OwnerCounts(*row) for row in _read(connection, path, _OWNERS, {})]


def export_owner(path: Path, owner: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Everything of an owner, kind by kind, each row with its columns by name, as it was at one moment. Raises
    `StoreError`."""
    with closing(_reader(path)) as connection:
        connection.row_factory = sqlite3.Row
        connection.execute("BEGIN")
        for kind, sql in OWNED.items():
            for row in _read(connection, path, sql, {"owner": owner}):
                yield kind, dict(row)


def delete_owner(path: Path, owner: str) -> int:
    """Delete everything of an owner but files and vector stores, in pieces that let requests through.

    Returns how many chains, conversations, prompts, keys and days of usage went. Raises `StoreError`.
    """
    gone = 0
    with closing(_writer(path)) as connection:
        for sql in map(sqlite_sql, DELETE):
            while True:
                try:
                    changed = wait_for_lock(
                        lambda sql=sql: connection.execute(sql, {"owner": owner, "limit": AT_ONCE})  # type: ignore[misc]
                    ).rowcount
                except sqlite3.Error as error:
                    raise store_error("Deleting", path, error) from error
                gone += changed
                if not changed:
                    break
    return gone


def vacuum(path: Path) -> tuple[int, int]:
    """Give unused space back to the file system; the size before and after, in bytes, each with what
    waits in the log of writes. Raises `StoreError`.

    Writers wait while it runs, and the file is rewritten: there must be room for it twice.
    """
    before = _size(path)
    with closing(_writer(path)) as connection:
        try:
            wait_for_lock(lambda: connection.execute("VACUUM"))
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            raise store_error("Rewriting", path, error) from error
    return before, _size(path)


def _size(path: Path) -> int:
    log = path.with_name(f"{path.name}-wal")
    return path.stat().st_size + (log.stat().st_size if log.exists() else 0)


def _reader(path: Path) -> sqlite3.Connection:
    try:
        return sqlite3.connect(reader_uri(path), uri=True, isolation_level=None, timeout=5.0)
    except sqlite3.Error as error:
        raise store_error("Opening", path, error) from error


def _writer(path: Path) -> sqlite3.Connection:
    try:
        return connect_writer(path)
    except sqlite3.Error as error:
        raise store_error("Opening", path, error) from error


def _read(connection: sqlite3.Connection, path: Path, sql: str, named: dict[str, str]) -> Iterator[Any]:
    try:
        yield from connection.execute(sql, named)
    except sqlite3.Error as error:
        raise store_error("Reading", path, error) from error
