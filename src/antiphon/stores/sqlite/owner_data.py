"""Implements `OwnerData` for the databases of a data folder. Servers may use the databases at the same time.

Lives here: reading, moving and deleting an owner's data, and returning unused disk space. This module also has the
statements that keep foreign keys and byte counts correct when data moves to another owner. Not here: the SQL that all
backends share and the order of a move (`../owner_data.py`), the contents of files.

The foreign key from a response to its chain includes the owner. The foreign key from an item to its conversation
includes the owner too. So each transaction of a move defers the checks of foreign keys to its commit. No trigger
updates an owner's byte count when a row moves to another owner, so these transactions also move the byte counts.

Invariant: reading an owner's data never creates a database file.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from functools import partial
from pathlib import Path

from antiphon.engine.ports.state import ExportedRow, OwnerCounts, Shrunk
from antiphon.engine.ports.usage_sums import NUMBERS
from antiphon.stores.bodies import Bodies
from antiphon.stores.owner_data import (
    AT_ONCE,
    DELETE,
    USAGE_COLUMNS,
    MoveSql,
    OwnerMoves,
    count_query,
    delete_vector_stores,
    export_row,
    owned_rows,
    owned_vector_rows,
    owner_counts,
)
from antiphon.stores.owner_usage import MOST
from antiphon.stores.sqlite.backend import SESSIONS_FILE, VECTORS_FILE, open_sqlite, open_vector_database
from antiphon.stores.sqlite.database import open_connection, wait_for_lock
from antiphon.stores.sqlite.tables import sqlite_sql
from antiphon.stores.tables import Statement

OWNED = {kind: sqlite_sql(sql) for kind, sql in owned_rows("pos").items()}
OWNED_VECTORS = owned_vector_rows("no", "store_no")
_FORGET_KEYS = "DELETE FROM idempotency WHERE owner = :owner"

# Owners that are hashes of a token have names that begin with "b:" (`doors/owners.py`).
_ANY = "SELECT EXISTS (SELECT 1 FROM {table})"
_HASHED = "SELECT EXISTS (SELECT 1 FROM {table} WHERE owner >= 'b:' AND owner < 'b;')"
_TABLES = {SESSIONS_FILE: ("responses", "conversations", "prompts", "files"), VECTORS_FILE: ("vector_stores",)}


class SqliteOwnerData:
    """Implements `OwnerData` for the databases in a data folder."""

    def __init__(self, folder: Path, bodies: Bodies, *, at_once: int = AT_ONCE) -> None:
        """`folder`: the data folder. `bodies` decrypts the encrypted bodies of stored objects. `at_once`: the number of
        chains or conversations that one transaction moves."""
        self._at_once = at_once
        self._bodies = bodies
        self._folder = folder
        self._path = folder / SESSIONS_FILE
        self._vectors = folder / VECTORS_FILE

    async def owners(self) -> list[OwnerCounts]:
        """Return every owner that has data, with the number of objects of each kind."""
        return list_owners(self._folder)

    async def export(self, owner: str) -> AsyncIterator[ExportedRow]:
        """Yield all rows of an owner's data except files, with decrypted bodies."""
        for path, kinds in ((self._path, OWNED), (self._vectors, OWNED_VECTORS)):
            if path == self._path or path.exists():
                for kind, fields in export_owner(path, owner, kinds):
                    yield export_row(kind, fields, self._bodies)

    async def delete(self, owner: str) -> int:
        """Delete all data of an owner except files. This method deletes vector stores first, because they refer to
        files. Returns the number of deleted objects."""
        gone = 0
        if self._vectors.exists():
            async with aclosing(await open_vector_database(self._folder)) as vectors:
                gone += await delete_vector_stores(vectors, vectors.tables, owner)
                gone += sum(await vectors.tables.run([Statement(_FORGET_KEYS, {"owner": owner})]))
        return gone + delete_owner(self._path, owner)

    async def obstacles(self, old: str, new: str) -> list[str]:
        """See `OwnerData.obstacles`."""
        async with self._moves(old, new) as moves:
            return await moves.obstacles()

    async def move(self, old: str, new: str) -> AsyncGenerator[str]:
        """See `OwnerData.move`."""
        async with self._moves(old, new) as moves, aclosing(moves.run()) as done:
            async for kind in done:
                yield kind

    @asynccontextmanager
    async def _moves(self, old: str, new: str) -> AsyncIterator[OwnerMoves]:
        async with AsyncExitStack() as stack:
            tables = (await stack.enter_async_context(aclosing(await open_sqlite(self._folder, chain_items=1)))).tables
            vectors = None
            if self._vectors.exists():
                opened_vectors = await open_vector_database(self._folder)
                vectors = (await stack.enter_async_context(aclosing(opened_vectors))).tables
            yield OwnerMoves(tables, vectors, MOVE_SQL, old, new, at_once=self._at_once)

    async def vacuum(self) -> list[Shrunk]:
        """Return unused disk space of both databases to the file system. The disk needs free space for a copy of the
        larger database."""
        return [Shrunk(str(path), *vacuum(path)) for path in (self._path, self._vectors) if path.exists()]

    async def aclose(self) -> None:
        """Do nothing: every method closes the connections that it opens."""


def has_rows(folder: Path, *, hashed: bool) -> bool:
    """Return whether the databases in this folder contain data of any owner. With `hashed`, check only for owners whose
    id is the hash of a client's token. Raises `StoreError`."""
    question = _HASHED if hashed else _ANY
    for name, tables in _TABLES.items():
        path = folder / name
        if not path.exists():
            continue
        with open_connection(path, "Reading") as connection:
            there = {row[0] for row in connection.execute("SELECT name FROM sqlite_schema")}
            for table in tables:
                if table in there and connection.execute(question.format(table=table)).fetchone()[0]:
                    return True
    return False


def list_owners(folder: Path) -> list[OwnerCounts]:
    """Return every owner that has data in this folder, with the number of objects of each kind. Raises `StoreError`."""
    rows = []
    for name, kinds in _TABLES.items():
        if name == SESSIONS_FILE or (folder / name).exists():
            with open_connection(folder / name, "Reading") as connection:
                rows += connection.execute(count_query(*kinds)).fetchall()
    return owner_counts(rows)


def export_owner(path: Path, owner: str, kinds: Mapping[str, str] = OWNED) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield an owner's rows in this database, kind by kind, from one snapshot. Each element is the kind and a dict from
    column to value. Raises `StoreError`."""
    with open_connection(path, "Reading") as connection:
        connection.row_factory = sqlite3.Row
        connection.execute("BEGIN")
        for kind, sql in kinds.items():
            for row in connection.execute(sql, {"owner": owner}):
                yield kind, dict(row)


def delete_owner(path: Path, owner: str, at_once: int = AT_ONCE) -> int:
    """Delete all data of an owner except files and vector stores. Each statement deletes at most `at_once` objects, so
    that running requests can write between two statements.

    Returns the number of deleted chains, conversations, prompts, keys and days of usage. Raises `StoreError`.
    """
    gone = 0
    with open_connection(path, "Deleting", writes=True) as connection:
        for sql in map(sqlite_sql, DELETE):
            piece = partial(connection.execute, sql, {"owner": owner, "limit": at_once})
            while changed := wait_for_lock(piece).rowcount:
                gone += changed
    return gone


def vacuum(path: Path) -> tuple[int, int]:
    """Return unused disk space of a database to the file system. Returns the size in bytes before and after, including
    the write-ahead log. Raises `StoreError`.

    SQLite rewrites the whole file. Other writers wait until the rewrite ends, and the disk needs free space for a
    second copy of the file.
    """
    before = _size(path)
    with open_connection(path, "Rewriting", writes=True) as connection:
        wait_for_lock(lambda: connection.execute("VACUUM"))
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return before, _size(path)


def _size(path: Path) -> int:
    log = path.with_name(f"{path.name}-wal")
    return path.stat().st_size + (log.stat().st_size if log.exists() else 0)


_DEFER = "PRAGMA defer_foreign_keys = ON"
_CHAINS = """
SELECT id FROM chains WHERE owner = :old AND id IN (:ids...)
  AND NOT EXISTS (SELECT 1 FROM responses r JOIN jobs j ON j.response_id = r.id WHERE r.chain_id = chains.id)
"""
_CONVERSATIONS = """
SELECT id FROM conversations
WHERE owner = :old AND id IN (:ids...) AND (locked_by IS NULL OR locked_until <= lease_now())
"""
_NUMBERS = ", ".join(NUMBERS)


def _bytes(total: str) -> tuple[str, ...]:
    """Return the statements that move a number of bytes from the old owner's count to the new owner's count. `total`: a
    query of the number of bytes, with a WHERE clause."""
    return (
        f"""
INSERT INTO owner_bytes (owner, bytes) SELECT :new, total FROM ({total}) WHERE total > 0
ON CONFLICT (owner) DO UPDATE SET bytes = bytes + excluded.bytes
""",
        f"UPDATE owner_bytes SET bytes = bytes - ({total}) WHERE owner = :old",
        "DELETE FROM owner_bytes WHERE owner = :old AND bytes <= 0",
    )


MOVE_SQL = MoveSql(
    chains=(
        _DEFER,
        *_bytes(f"SELECT coalesce(sum(own_bytes), 0) AS total FROM responses WHERE chain_id IN ({_CHAINS})"),
        f"UPDATE responses SET owner = :new WHERE chain_id IN ({_CHAINS})",
        f"UPDATE chains SET owner = :new WHERE id IN ({_CHAINS})",
    ),
    conversations=(
        _DEFER,
        *_bytes(
            "SELECT coalesce(sum(bytes), 0) AS total FROM conversations "
            f"WHERE owner = :old AND id IN ({_CONVERSATIONS})"
        ),
        f"UPDATE conversation_items SET owner = :new WHERE owner = :old AND conversation_id IN ({_CONVERSATIONS})",
        f"UPDATE conversations SET owner = :new WHERE owner = :old AND id IN ({_CONVERSATIONS})",
    ),
    files=("UPDATE files SET owner = :new WHERE owner = :old",),
    usage=(
        f"""
INSERT INTO usage_days AS u ({", ".join(USAGE_COLUMNS)})
SELECT day, :new, model, upstream, {_NUMBERS} FROM usage_days WHERE owner = :old
ON CONFLICT (day, owner, model, upstream)
DO UPDATE SET {", ".join(f"{name} = least(u.{name} + excluded.{name}, {MOST})" for name in NUMBERS)}
""",
        "DELETE FROM usage_days WHERE owner = :old",
    ),
    rest=(),
    indexing="""
SELECT f.file_id FROM vector_files f JOIN vector_stores s ON s.no = f.store_no
WHERE s.owner = :old AND f.status = 'in_progress' AND f.claim IS NOT NULL AND f.lease_until > lease_now()
ORDER BY f.file_id
""",
    hold="""
UPDATE vector_files SET claim = NULL, lease_until = lease_in(:lease)
WHERE status = 'in_progress' AND (claim IS NULL OR lease_until <= lease_now())
  AND store_no IN (SELECT no FROM vector_stores WHERE owner = :old)
""",
    let_go="""
UPDATE vector_files SET lease_until = 0
WHERE status = 'in_progress' AND claim IS NULL
  AND store_no IN (SELECT no FROM vector_stores WHERE owner IN (:both...))
""",
)
