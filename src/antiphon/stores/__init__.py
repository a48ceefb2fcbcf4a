"""Durable state: the stores behind the engine's ports.

Lives here: the one way to open them. Not here: what a store means (`responses.py`) and how SQLite is driven
(`sqlite_database.py`, `sqlite_writer.py`, `sqlite_readers.py`, `migrate.py`).

A data folder holds `sessions.db` (responses and their items). Chunks and search indexes will get a file of their
own, `vectors.db`: each file has one write lock, and ingesting documents must not hold up turns.

Invariant: an opened store has the schema of this build, and any number of processes may open the same folder.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from antiphon.stores.migrate import migrate, packaged_migrations
from antiphon.stores.responses import SqliteResponseStore
from antiphon.stores.sqlite_readers import SqliteReaders
from antiphon.stores.sqlite_writer import SqliteWriter

__all__ = ["SESSIONS_FILE", "open_store"]

SESSIONS_FILE = "sessions.db"


async def open_store(data: Path, *, chain_items: int) -> SqliteResponseStore:
    """Open the responses in the folder `data`, creating folder (0700), file (0600) and schema where needed.

    `chain_items`: the most items of history one `previous_response_id` may bring. Raises `StoreError`.
    """
    path = data / SESSIONS_FILE
    writer = SqliteWriter(path, _prepare)
    await writer.start()
    readers = SqliteReaders(path)
    try:
        await readers.start()
    except BaseException:
        await writer.aclose()
        raise
    return SqliteResponseStore(writer, readers, chain_items=chain_items)


def _prepare(connection: sqlite3.Connection) -> None:
    migrate(connection, packaged_migrations())
