"""Exports the rows of a data folder for a move to another backend.

Lives here: locking the folder, and its rows in the form of `stores/moved.py`. Not here: the target.

Invariant: no other process has the databases open during the export. SQLite's exclusive locks enforce this, and end
with the process.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

from antiphon.errors import StoreError
from antiphon.stores.moved import COLUMNS, EXTRA, VECTORS, Row
from antiphon.stores.retention import SWEEPER
from antiphon.stores.schema_steps import missing_steps
from antiphon.stores.sqlite.database import store_error
from antiphon.stores.sqlite.migrate import applied_steps, migrate, packaged_steps
from antiphon.stores.sqlite.opening import SESSIONS_FILE, VECTOR_STEPS, VECTORS_FILE

_STEP_BITS = 20
_PLACES = (1 << _STEP_BITS) - 1
_MOST_PLACES = 1 << 24

# Columns whose name or form differs here. The first column is the position.
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
    # Rows that belong to one object share its position.
    "file_attributes": """
        SELECT f.no, a.file_no, a.store_no, a.key, a.kind, CASE a.kind WHEN 's' THEN a.value END,
               CASE a.kind WHEN 's' THEN NULL ELSE a.value END
        FROM vector_files f CROSS JOIN file_attributes a ON a.file_no = f.no WHERE f.no > ? ORDER BY f.no, a.key
    """,
    "vector_batch_files": """
        SELECT b.rowid, f.batch_id, f.file_no FROM vector_batches b CROSS JOIN vector_batch_files f ON f.batch_id = b.id
        WHERE b.rowid > ? ORDER BY b.rowid, f.file_no
    """,
    # Chunks of an unfinished file are not moved, because the target ingests it again.
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
"""Offset of the positions in the second database, where both databases have rows of a kind."""


class FolderExport:
    """The two databases of a folder, locked for this process. `name`: the folder's absolute path, for messages."""

    def __init__(self, folder: Path) -> None:
        """Raises `StoreError` when the folder has no database, a process uses it, or another build wrote it."""
        self.name = str(folder.absolute())
        if not (folder / SESSIONS_FILE).exists():
            raise StoreError(f"There is no database in {folder}: nothing to move.")
        self._sessions = _taken(folder / SESSIONS_FILE, "migrations")
        self._vectors: sqlite3.Connection | None = None
        if (folder / VECTORS_FILE).exists():
            try:
                self._vectors = _taken(folder / VECTORS_FILE, VECTOR_STEPS)
            except BaseException:
                self._sessions.close()
                raise

    def rows(self, kind: str, after: int) -> Iterator[tuple[int, Row]]:
        """The rows of a kind after a position, each with its position; several rows may share one. The columns of
        `EXTRA` come last. Raises `StoreError`."""
        sql = _OTHERS.get(kind) or _select(kind)
        if kind in VECTORS:
            if self._vectors is not None:
                yield from _read(self._vectors, sql, after)
            return
        if after < _BEHIND:
            yield from _read(self._sessions, sql, after)
        if kind == "idempotency" and self._vectors is not None:
            # Each database here has its own keys. Where both have the same key, the row of the sessions wins.
            for position, row in _read(self._vectors, sql, max(after - _BEHIND, 0)):
                if self._sessions.execute(_KEY_THERE, row[:2]).fetchone() is None:
                    yield _BEHIND + position, row

    def has_vectors(self) -> bool:
        """Whether any chunk has a vector."""
        return next(self.rows("chunk_vectors", 0), None) is not None

    def numbers(self) -> int:
        """The highest number that any vector store or file of one has had."""
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
    """Open the database, locked for this process alone, with this build's schema."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=1.0)
    try:
        # Before any read, so that the connection takes the exclusive lock.
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
                f"The database {path} is in use. Stop every process on this data folder, then move it.", reason="locked"
            ) from error
        raise store_error("Opening", path, error) from error
    except BaseException:
        connection.close()
        raise
    return connection
