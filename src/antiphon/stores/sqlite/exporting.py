"""Exports the rows of a data folder for a move to another backend.

Lives here: locking the folder, and reading its rows in the column order of `stores/move_format.py`. Not here: writing
to the target (`stores/postgres/importing.py`).

Invariant: no other process has the databases open during the export. SQLite's exclusive locks keep other processes out.
The operating system releases the locks when the process ends.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

from antiphon.errors import StoreError
from antiphon.stores.compatibility import missing_steps
from antiphon.stores.move_format import COLUMNS, EXTRA, VECTORS, Row
from antiphon.stores.retention import SWEEPER
from antiphon.stores.sqlite.backend import SESSIONS_FILE, VECTOR_STEPS, VECTORS_FILE
from antiphon.stores.sqlite.database import store_error
from antiphon.stores.sqlite.migrate import applied_steps, migrate, packaged_steps

_STEP_BITS = 20
_PLACES = (1 << _STEP_BITS) - 1
_MOST_PLACES = 1 << 24

# SQL expressions for columns whose name or format in SQLite differs from `stores/move_format.py`.
_NAMED = {
    "conversations": {
        # Positions start at the microsecond of the conversation's creation.
        "first_pos": f"max(created_at * 1000, next_pos - {_MOST_PLACES})",
        "locked_by": f"nullif(locked_by, '{SWEEPER}')",
    },
    "idempotency": {"leased": "lease_until IS NOT NULL"},
    "vector_stores": {"number": "no"},
    "vector_files": {"number": "no", "store_number": "store_no"},
    "vector_batches": {"store_number": "store_no"},
}
_OTHERS = {
    "pending_blobs": "SELECT rowid, key FROM pending_blobs WHERE rowid > ? AND lease_until >= 0 ORDER BY rowid",
    # All rows of one file (or of one batch) share the position of this file (or batch) in the export.
    "file_attributes": """
        SELECT f.no, a.file_no, a.store_no, a.key, a.kind, CASE a.kind WHEN 's' THEN a.value END,
               CASE a.kind WHEN 's' THEN NULL ELSE a.value END
        FROM vector_files f CROSS JOIN file_attributes a ON a.file_no = f.no WHERE f.no > ? ORDER BY f.no, a.key
    """,
    "vector_batch_files": """
        SELECT b.rowid, f.batch_id, f.file_no FROM vector_batches b CROSS JOIN vector_batch_files f ON f.batch_id = b.id
        WHERE b.rowid > ? ORDER BY b.rowid, f.file_no
    """,
    # The export skips chunks of unfinished files, because the target ingests these files again.
    "chunks": f"""
        SELECT c.id, f.no, c.id & {_PLACES}, c.tokens, c.text, f.title, f.store_no
        FROM chunks c CROSS JOIN vector_files f ON f.no = c.id >> {_STEP_BITS}
        WHERE c.id > ? AND f.status = 'completed' ORDER BY c.id
    """,
    "chunk_vectors": f"""
        SELECT c.id, f.no, c.id & {_PLACES}, f.store_no, c.vector
        FROM chunks c CROSS JOIN vector_files f ON f.no = c.id >> {_STEP_BITS}
        WHERE c.id > ? AND f.status = 'completed' AND c.vector IS NOT NULL ORDER BY c.id
    """,
}
_KEY_THERE = "SELECT 1 FROM idempotency WHERE owner = ? AND key = ?"
_BEHIND = 1 << 60
"""The export adds this offset to the positions of `idempotency` rows in `vectors.db`. Both databases have `idempotency`
rows, and the export yields the rows of `sessions.db` first."""


class FolderExport:
    """The two databases of a data folder, locked for this process. `name`: the folder's absolute path, for messages."""

    def __init__(self, folder: Path) -> None:
        """Open and lock `sessions.db` and `vectors.db`. Raises `StoreError` when the folder has no database, another
        process uses the database, or the schema belongs to another build."""
        self.name = str(folder.absolute())
        if not (folder / SESSIONS_FILE).exists():
            raise StoreError(f"There is no database in {folder}. Name the data folder to move.")
        self._sessions = _taken(folder / SESSIONS_FILE, "migrations")
        self._vectors: sqlite3.Connection | None = None
        if (folder / VECTORS_FILE).exists():
            try:
                self._vectors = _taken(folder / VECTORS_FILE, VECTOR_STEPS)
            except BaseException:
                self._sessions.close()
                raise

    def rows(self, kind: str, after: int) -> Iterator[tuple[int, Row]]:
        """Yield the rows of a table whose position is greater than `after`, each with its position, sorted by position.
        Several rows may share a position. The `EXTRA` columns of `stores/move_format.py` come last. Raises
        `StoreError`."""
        sql = _OTHERS.get(kind) or _select(kind)
        if kind in VECTORS:
            if self._vectors is not None:
                yield from _read(self._vectors, sql, after)
            return
        if after < _BEHIND:
            yield from _read(self._sessions, sql, after)
        if kind == "idempotency" and self._vectors is not None:
            # Each SQLite database has a separate `idempotency` table. If both tables have the same key, the export
            # yields only the row of `sessions.db`.
            for position, row in _read(self._vectors, sql, max(after - _BEHIND, 0)):
                if self._sessions.execute(_KEY_THERE, row[:2]).fetchone() is None:
                    yield _BEHIND + position, row

    def has_vectors(self) -> bool:
        """Return whether any chunk of a completed file has an embedding vector."""
        return next(self.rows("chunk_vectors", 0), None) is not None

    def numbers(self) -> int:
        """Return the highest integer key that a vector store or a vector store file ever had. The target assigns only
        larger keys, because keys are never reused."""
        if self._vectors is None:
            return 0
        (last,) = self._vectors.execute(
            "SELECT max(last, ifnull((SELECT max(no) FROM vector_stores), 0), "
            "ifnull((SELECT max(no) FROM vector_files), 0)) FROM file_numbers"
        ).fetchone()
        return int(last)

    def close(self) -> None:
        """Close the databases."""
        for connection in (self._sessions, self._vectors):
            if connection is not None:
                connection.close()


def _select(kind: str) -> str:
    named = _NAMED.get(kind, {})
    columns = ", ".join(named.get(one, one) for one in (*COLUMNS[kind], *EXTRA.get(kind, ())))
    return f"SELECT rowid, {columns} FROM {kind} WHERE rowid > ? ORDER BY rowid"


def _read(connection: sqlite3.Connection, sql: str, after: int) -> Iterator[tuple[int, Row]]:
    for position, *row in connection.execute(sql, (after,)):
        yield position, tuple(row)


def _taken(path: Path, folder: str) -> sqlite3.Connection:
    """Open the database with an exclusive lock, and apply missing migrations. Raises `StoreError`."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=1.0)
    try:
        # This PRAGMA must precede any read, so that the connection takes the exclusive lock.
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("COMMIT")
        migrate(connection, packaged_steps(folder))
        if missing_steps(applied_steps(connection), packaged_steps(folder)):
            raise StoreError(f"The database {path} lacks schema steps.")
    except sqlite3.OperationalError as error:
        connection.close()
        if "locked" in str(error):
            raise StoreError(
                f"The database {path} is in use. Stop every process that uses this data folder, then start the move "
                "again.",
                reason="locked",
            ) from error
        raise store_error("Opening", path, error) from error
    except BaseException:
        connection.close()
        raise
    return connection
