"""Opening the stores of a data folder.

Lives here: which files there are, and who shares which connections. Not here: what a store means (`responses.py`)
and how SQLite is driven (`database.py`, `writer.py`, `readers.py`, `migrate.py`).

A data folder holds `sessions.db` (responses and their items, and what is known of files) and `files/` (the contents of
files). Vector stores have a database of their own, `vectors.db` (`vector_database.py`): each has one write
lock, and ingesting documents must not hold up turns.

Invariant: an opened store has the schema of this build, and any number of processes may open the same folder.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path

from antiphon.config.limits import TimeoutSettings
from antiphon.config.state import RetentionSettings
from antiphon.engine.ports.retention import SWEEPER
from antiphon.engine.ports.stored_bodies import with_status
from antiphon.stores.blobs.disk import DiskBlobs
from antiphon.stores.sqlite import lease_clock
from antiphon.stores.sqlite.conversations import SqliteConversationStore
from antiphon.stores.sqlite.files import UPLOAD_LEASE_SECONDS, SqliteFileStore
from antiphon.stores.sqlite.idempotency import KEEP_SECONDS, SqliteIdempotency
from antiphon.stores.sqlite.jobs import SqliteJobStore
from antiphon.stores.sqlite.migrate import migrate, packaged_migrations
from antiphon.stores.sqlite.owner_room import SqliteOwnerRoom
from antiphon.stores.sqlite.prompts import SqlitePromptStore
from antiphon.stores.sqlite.readers import SqliteReaders
from antiphon.stores.sqlite.responses import SqliteResponseStore
from antiphon.stores.sqlite.retention import Retention
from antiphon.stores.sqlite.schema_check import check_triggers
from antiphon.stores.sqlite.usage import SqliteUsageStore
from antiphon.stores.sqlite.writer import SqliteWriter, writer_limits

HISTORY_BYTES = 64 << 20
PAGE_BYTES = 16 << 20
_TIMEOUTS = TimeoutSettings()
_FOR_EVER = RetentionSettings(events=None)

__all__ = ["FILES_FOLDER", "SESSIONS_FILE", "Stores", "open_stores"]

SESSIONS_FILE = "sessions.db"
FILES_FOLDER = "files"

_END_LEASES = (
    "UPDATE jobs SET lease_until = 1 WHERE lease_until > 0",
    f"UPDATE conversations SET locked_until = 0 WHERE locked_by <> '{SWEEPER}'",
    "UPDATE pending_blobs SET lease_until = 1 WHERE lease_until > 0",
    "DELETE FROM sweeps",
    "UPDATE idempotency SET lease_until = 0 WHERE lease_until IS NOT NULL",
)


@dataclass(frozen=True, slots=True)
class Stores:
    """Everything that is kept in one database: one writer and its readers, shared by all stores."""

    writer: SqliteWriter
    readers: SqliteReaders
    responses: SqliteResponseStore
    conversations: SqliteConversationStore
    background: SqliteJobStore
    prompts: SqlitePromptStore
    files: SqliteFileStore
    retention: Retention
    keys: SqliteIdempotency
    usage: SqliteUsageStore
    owner_room: SqliteOwnerRoom | None = None

    async def aclose(self) -> None:
        """Finish what was accepted, then close the database. The writer goes last: it folds the log into the file."""
        await self.files.aclose()
        await self.readers.aclose()
        await self.writer.aclose()


async def open_stores(
    data: Path,
    *,
    chain_items: int,
    history_bytes: int = HISTORY_BYTES,
    page_bytes: int = PAGE_BYTES,
    owner_file_bytes: int | None = None,
    upload_lease: float = UPLOAD_LEASE_SECONDS,
    owner_bytes: int | None = None,
    kept: RetentionSettings = _FOR_EVER,
    timeouts: TimeoutSettings = _TIMEOUTS,
    keep_keys: float = KEEP_SECONDS,
) -> Stores:
    """Open the stores in the folder `data`, creating folder (0700), file (0600) and schema where needed.

    `chain_items`, `history_bytes`: the most items and bytes of history one request may bring. `page_bytes`: where a
    page of a list ends, whatever its rows. `owner_file_bytes`, `owner_bytes`: the most that one owner's files, and all
    else of his, may take. `upload_lease`: seconds after which an upload that was not heard of counts as broken off.
    `timeouts`: how long the disk is waited for. `keep_keys`: seconds for which an idempotency key is remembered. Raises
    `StoreError`.
    """
    path = data / SESSIONS_FILE
    writer = SqliteWriter(path, _prepare, writer_limits(timeouts))
    await writer.start()
    readers = SqliteReaders(path, seconds=timeouts.read)
    keys = SqliteIdempotency(writer, readers, keep=keep_keys)
    disk = DiskBlobs(data / FILES_FOLDER)
    files = SqliteFileStore(
        writer,
        readers,
        disk,
        owner_bytes=owner_file_bytes,
        keys=keys,
        upload_lease=upload_lease,
        list_before=disk.keys,
    )
    try:
        await readers.start()
    except BaseException:
        await writer.aclose()
        raise
    return Stores(
        writer,
        readers,
        SqliteResponseStore(
            writer, readers, chain_items=chain_items, history_bytes=history_bytes, page_bytes=page_bytes, keys=keys
        ),
        SqliteConversationStore(
            writer, readers, max_items=chain_items, history_bytes=history_bytes, page_bytes=page_bytes, keys=keys
        ),
        SqliteJobStore(writer, readers, keys),
        SqlitePromptStore(writer, readers, keys=keys, page_bytes=page_bytes),
        files,
        Retention(writer, readers, kept),
        keys,
        SqliteUsageStore(writer, readers),
        SqliteOwnerRoom(readers, owner_bytes) if owner_bytes is not None else None,
    )


def _prepare(connection: sqlite3.Connection) -> None:
    steps = packaged_migrations()
    migrate(connection, steps)
    check_triggers(connection, steps)
    lease_clock.prepare(connection, _END_LEASES)
    connection.create_function("with_status", 2, with_status, deterministic=True)
