"""Opens the stores of a data folder.

Lives here: the names of the database files, and the assembly of the stores with their connections. Not here: the stores
(`../responses.py`, …), access to SQLite (`database.py`, `writer.py`, `readers.py`, `migrate.py`).

A data folder contains `sessions.db` (responses, items, conversations, jobs, the metadata of files) and `files/` (the
contents of files). Vector stores have a separate database, `vectors.db`. SQLite has one write lock per database, and
the ingestion of documents must not delay responses.

Invariant: an open database has all schema steps of this build. Any number of processes may open the same folder.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Unpack

from antiphon.config.limits import TimeoutSettings
from antiphon.engine.ports.files import BlobStore
from antiphon.engine.ports.jobs import Pace
from antiphon.ids import Clock, now
from antiphon.stores.backend import MATRIX_BYTES, StoreOptions, Stores, VectorDatabase, all_options
from antiphon.stores.blobs.disk import FILES_FOLDER, DiskBlobs
from antiphon.stores.blobs.memory import MemoryBlobs
from antiphon.stores.blobs.pending import PendingBlobs
from antiphon.stores.idempotency import KEEP_SECONDS, IdempotencyStore
from antiphon.stores.jobs import AskingSignals
from antiphon.stores.retention import SWEEPER
from antiphon.stores.sqlite.database import place_in
from antiphon.stores.sqlite.files import SQL as FILE_SQL
from antiphon.stores.sqlite.files import SqlitePendingRows
from antiphon.stores.sqlite.jobs import SQL as JOB_SQL
from antiphon.stores.sqlite.jobs import SqliteJobWriter
from antiphon.stores.sqlite.migrate import check_triggers, migrate, packaged_steps
from antiphon.stores.sqlite.responses import LOAD_ITEMS, SqliteResponseWriter
from antiphon.stores.sqlite.retention import SqlitePieces
from antiphon.stores.sqlite.tables import LeaseClock, SqliteTables, lease_now, prepare_lease_clock
from antiphon.stores.sqlite.vectors.chunk_index import SqliteChunkIndex
from antiphon.stores.sqlite.vectors.ingestion import SqliteIngestion
from antiphon.stores.sqlite.vectors.sql import SqliteVectorSql
from antiphon.stores.vector_stores import VectorStores

# A poll for new jobs costs one query in this process and no network call, so the intervals are short.
_PACE = Pace(look=0.05, claim=0.05, claim_most=0.25)

_TIMEOUTS = TimeoutSettings()
SESSIONS_FILE, VECTORS_FILE = "sessions.db", "vectors.db"
SESSION_STEPS, VECTOR_STEPS = "migrations", "vector_migrations"

_END_LEASES = (
    "UPDATE jobs SET lease_until = 1 WHERE lease_until > 0",
    f"UPDATE conversations SET locked_until = 0 WHERE locked_by <> '{SWEEPER}'",
    "UPDATE pending_blobs SET lease_until = 1 WHERE lease_until > 0",
    "DELETE FROM sweeps",
    "UPDATE idempotency SET lease_until = 0 WHERE lease_until IS NOT NULL",
)
_END_VECTOR_LEASES = ("UPDATE vector_files SET lease_until = 0 WHERE status = 'in_progress'",)


@dataclass(frozen=True)
class SqliteVectorDatabase(VectorDatabase):
    """`VectorDatabase` of one SQLite database, with one writer and several readers."""

    ingestion: SqliteIngestion
    index: SqliteChunkIndex
    tables: SqliteTables

    async def check_vectors(self) -> None:
        """Do nothing: SQLite stores vectors as BLOB columns and needs no extension."""

    async def aclose(self) -> None:
        """Finish the accepted writes, then close the database."""
        await self.tables.aclose()


class SqliteStores(Stores):
    """All stores of `sessions.db`. The stores share one writer and its readers."""

    def __init__(self, folder: Path | None, tables: SqliteTables, blobs: BlobStore, options: StoreOptions) -> None:
        """`folder`: the folder of the database file, or None for a database in memory."""
        writer, readers, leases = tables.writer, tables.readers, tables.lease_now
        keys = IdempotencyStore(tables, keep=options["keep_keys"], bodies=options["bodies"])
        # Only a folder on disk may contain blobs of a version that had no pending rows.
        list_before = blobs.keys if isinstance(blobs, DiskBlobs) else None
        lease = options["upload_lease"]
        pending = PendingBlobs(SqlitePendingRows(tables, lease, list_before), blobs, lease)
        super().__init__(
            tables,
            keys,
            options,
            responses=(SqliteResponseWriter(writer, readers, keys), LOAD_ITEMS),
            jobs=(SqliteJobWriter(writer, readers, keys, leases), JOB_SQL),
            files=(FILE_SQL, pending, blobs),
            pieces=SqlitePieces(writer, readers, leases=leases),
            signals=AskingSignals(tables, _PACE),
        )
        self.folder = folder
        self.tables = tables
        self.statistics = (tables,)
        self._timeouts = options["timeouts"]

    def has_vectors(self) -> bool:
        """Return whether `vectors.db` exists. Returns False for a database in memory."""
        return self.folder is not None and (self.folder / VECTORS_FILE).exists()

    async def open_vectors(self, *, matrix_bytes: int = MATRIX_BYTES) -> SqliteVectorDatabase:
        """Open the vector database. Raises `StoreError`. `matrix_bytes`: the maximum memory for vectors of searches."""
        return await open_vector_database(
            self.folder, timeouts=self._timeouts, keep_keys=self.keys.keep, matrix_bytes=matrix_bytes
        )

    async def aclose(self) -> None:
        """Finish the accepted writes, then close the database."""
        await self.files.aclose()
        await self.tables.aclose()


async def open_sqlite(
    folder: Path | None,
    *,
    blobs: BlobStore | None = None,
    leases: LeaseClock = lease_now,
    **options: Unpack[StoreOptions],
) -> SqliteStores:
    """Open the stores in this folder, or in memory if `folder` is None. Create the folder (mode 0700), the database
    file (mode 0600) and the schema if they are missing.

    `blobs`: the storage for file contents, which the stores close. Without `blobs`, the stores use the subfolder
    `files`, or memory. `leases`: the lease clock, which all processes of the machine share. For `options` see
    `StoreOptions`. Raises `StoreError`.
    """
    given = all_options(options)
    preparing = partial(prepare, folder=SESSION_STEPS, end_leases=_END_LEASES, leases=leases)
    tables = await SqliteTables.open(place_in(folder, SESSIONS_FILE), preparing, given["timeouts"], leases=leases)
    contents = blobs
    if contents is None:
        contents = MemoryBlobs() if folder is None else DiskBlobs(folder / FILES_FOLDER)
    return SqliteStores(folder, tables, contents, given)


async def open_vector_database(
    folder: Path | None,
    *,
    clock: Clock = now,
    leases: LeaseClock = lease_now,
    readers: int = 2,
    timeouts: TimeoutSettings = _TIMEOUTS,
    keep_keys: float = KEEP_SECONDS,
    matrix_bytes: int = MATRIX_BYTES,
) -> SqliteVectorDatabase:
    """Open `vectors.db` in this folder, or a database in memory if `folder` is None. Create the database if it is
    missing. Raises `StoreError`.

    `leases`: the lease clock. `keep_keys`: seconds for which an idempotency key is stored. `matrix_bytes`: the maximum
    memory for vectors of searches.
    """
    preparing = partial(prepare, folder=VECTOR_STEPS, end_leases=_END_VECTOR_LEASES, leases=leases)
    tables = await SqliteTables.open(place_in(folder, VECTORS_FILE), preparing, timeouts, readers, leases)
    keys = IdempotencyStore(tables, keep=keep_keys, clock=clock)
    stores = VectorStores(tables, keys, SqliteVectorSql(), clock=clock)
    index = SqliteChunkIndex(tables, stores, matrix_bytes=matrix_bytes, clock=clock)
    stores.on_deleted = index.forget
    return SqliteVectorDatabase(stores, SqliteIngestion(tables, clock), index, keys, (tables,), tables)


def prepare(
    connection: sqlite3.Connection, folder: str, end_leases: Sequence[str], leases: LeaseClock = lease_now
) -> None:
    """Prepare a new writer connection: apply the schema steps in the package's subfolder `folder`, and define the SQL
    function `lease_now()`. `end_leases`: the statements that run after a reboot (see `prepare_lease_clock`)."""
    steps = packaged_steps(folder)
    migrate(connection, steps)
    check_triggers(connection, steps)
    prepare_lease_clock(connection, end_leases, clock=leases)
