"""Builds a file store over SQLite's rows, and makes statements of a SQLite database fail."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Unpack

from antiphon.engine.ports.files import BlobStore
from antiphon.ids import Clock, now
from antiphon.stores.backend import StoreOptions, all_options
from antiphon.stores.blobs.disk import FILES_FOLDER, DiskBlobs
from antiphon.stores.blobs.pending import UPLOAD_LEASE_SECONDS, PendingBlobs
from antiphon.stores.files import FileStore
from antiphon.stores.idempotency import IdempotencyStore
from antiphon.stores.leases import Leases
from antiphon.stores.sqlite.backend import SESSION_STEPS, SqliteStores, prepare
from antiphon.stores.sqlite.files import SQL, SqlitePendingRows
from antiphon.stores.sqlite.readers import SqliteReaders
from antiphon.stores.sqlite.tables import SqliteTables
from antiphon.stores.sqlite.writer import SqliteWriter


def files_of(
    stores: SqliteStores,
    blobs: BlobStore,
    *,
    owner_bytes: int | None = None,
    clock: Clock = now,
    leases: Leases | None = None,
) -> FileStore:
    """A file store in the database of these stores."""
    tables = stores.tables
    pending = PendingBlobs(SqlitePendingRows(tables, UPLOAD_LEASE_SECONDS), blobs, UPLOAD_LEASE_SECONDS, leases)
    return FileStore(tables, IdempotencyStore(tables), SQL, pending, blobs, owner_bytes=owner_bytes, clock=clock)


async def open_over(
    folder: Path, writer: SqliteWriter, readers: SqliteReaders, **options: Unpack[StoreOptions]
) -> SqliteStores:
    """Start this writer and these readers of `sessions.db`, and open the stores of the folder over them."""
    await writer.start()
    await readers.start()
    tables, blobs = SqliteTables(writer, readers), DiskBlobs(folder / FILES_FOLDER)
    return SqliteStores(folder, tables, blobs, all_options(options))


def prepare_sessions(connection: sqlite3.Connection) -> None:
    """Prepare the connection of a writer of `sessions.db`."""
    prepare(connection, SESSION_STEPS, ())


@contextmanager
def failing_statement(file: Path, which: str) -> Iterator[None]:
    """Make statements on this database file fail inside the `with` block. `which`: the event of a trigger, for example
    `UPDATE ON jobs`."""
    with closing(sqlite3.connect(file)) as database, database:
        database.execute(f"CREATE TRIGGER fails BEFORE {which} BEGIN SELECT RAISE(ABORT, 'a test'); END")
    try:
        yield
    finally:
        with closing(sqlite3.connect(file)) as database, database:
            database.execute("DROP TRIGGER fails")
