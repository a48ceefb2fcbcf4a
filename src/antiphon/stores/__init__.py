"""Durable state: the stores behind the engine's ports.

Lives here: the one way to open them. Not here: what a store means (`responses.py`) and how SQLite is driven
(`sqlite_database.py`, `sqlite_writer.py`, `sqlite_readers.py`, `migrate.py`).

A data folder holds `sessions.db` (responses and their items, and what is known of files) and `files/` (the contents of
files). Chunks and search indexes will get a file of their
own, `vectors.db`: each file has one write lock, and ingesting documents must not hold up turns.

Invariant: an opened store has the schema of this build, and any number of processes may open the same folder.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path

from antiphon.stores.background import SqliteJobStore
from antiphon.stores.blobs import DiskBlobs
from antiphon.stores.conversations import SqliteConversationStore
from antiphon.stores.files import SqliteFileStore
from antiphon.stores.migrate import migrate, packaged_migrations
from antiphon.stores.prompts import SqlitePromptStore
from antiphon.stores.responses import SqliteResponseStore
from antiphon.stores.retention import KeptFor, Retention
from antiphon.stores.sqlite_readers import SqliteReaders
from antiphon.stores.sqlite_writer import SqliteWriter

__all__ = ["FILES_FOLDER", "SESSIONS_FILE", "Stores", "open_store", "open_stores"]

SESSIONS_FILE = "sessions.db"
FILES_FOLDER = "files"


@dataclass(frozen=True, slots=True)
class Stores:
    """Everything that is kept in one database: one writer and its readers, shared by all stores."""

    responses: SqliteResponseStore
    conversations: SqliteConversationStore
    background: SqliteJobStore
    prompts: SqlitePromptStore
    files: SqliteFileStore
    retention: Retention

    async def aclose(self) -> None:
        """Finish what was accepted, then close the database."""
        await self.files.aclose()
        await self.responses.aclose()


async def open_store(data: Path, *, chain_items: int) -> SqliteResponseStore:
    """The responses alone; see `open_stores`."""
    return (await open_stores(data, chain_items=chain_items)).responses


async def open_stores(
    data: Path, *, chain_items: int, owner_file_bytes: int | None = None, kept: KeptFor | None = None
) -> Stores:
    """Open the stores in the folder `data`, creating folder (0700), file (0600) and schema where needed.

    `chain_items`: the most items of history one `previous_response_id` or conversation may bring. `owner_file_bytes`:
    the most that one owner's files may take. Raises `StoreError`.
    """
    path = data / SESSIONS_FILE
    writer = SqliteWriter(path, _prepare)
    await writer.start()
    readers = SqliteReaders(path)
    files = SqliteFileStore(writer, readers, DiskBlobs(data / FILES_FOLDER), owner_bytes=owner_file_bytes)
    try:
        await readers.start()
    except BaseException:
        await writer.aclose()
        raise
    return Stores(
        SqliteResponseStore(writer, readers, chain_items=chain_items),
        SqliteConversationStore(writer, readers, most_items=chain_items),
        SqliteJobStore(writer, readers),
        SqlitePromptStore(writer, readers),
        files,
        Retention(writer, kept or KeptFor()),
    )


def _prepare(connection: sqlite3.Connection) -> None:
    migrate(connection, packaged_migrations())
