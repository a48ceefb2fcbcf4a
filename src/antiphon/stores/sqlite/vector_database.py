"""The database of vector stores, `vectors.db`: a file of its own, so that ingestion never holds up a turn.

Lives here: opening it, and the views on it. Not here: what each of them does.

Invariant: an opened database has the schema of this build; any number of processes may open it.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path

from antiphon.config.limits import TimeoutSettings
from antiphon.ids import Clock, now
from antiphon.stores.backend import KEEP_SECONDS, MATRIX_BYTES, VectorDatabase
from antiphon.stores.idempotency import IdempotencyKeys
from antiphon.stores.sqlite import lease_clock
from antiphon.stores.sqlite.chunk_index import SqliteChunkIndex
from antiphon.stores.sqlite.database import place_in
from antiphon.stores.sqlite.ingestion import SqliteIngestion
from antiphon.stores.sqlite.migrate import check_triggers, migrate, packaged_steps
from antiphon.stores.sqlite.tables import SqliteTables
from antiphon.stores.sqlite.vector_sql import SqliteVectorSql
from antiphon.stores.vector_stores import SqlVectorStores

_TIMEOUTS = TimeoutSettings()
VECTORS_FILE = "vectors.db"
VECTOR_STEPS = "vector_migrations"

_END_LEASES = ("UPDATE vector_files SET lease_until = 0 WHERE status = 'in_progress'",)


@dataclass(frozen=True)
class SqliteVectorDatabase(VectorDatabase):
    """`VectorDatabase` in a file: one writer and its readers."""

    stores: SqlVectorStores
    ingestion: SqliteIngestion
    index: SqliteChunkIndex
    keys: IdempotencyKeys
    tables: SqliteTables

    @property
    def figures(self) -> tuple[SqliteTables, ...]:
        """Of the one database."""
        return (self.tables,)

    async def check_vectors(self) -> None:
        """They are columns like any other."""

    async def aclose(self) -> None:
        """Finish what was accepted, then close the database."""
        await self.tables.aclose()


async def open_vector_database(
    folder: Path | None,
    *,
    clock: Clock = now,
    readers: int = 2,
    timeouts: TimeoutSettings = _TIMEOUTS,
    keep_keys: float = KEEP_SECONDS,
    matrix_bytes: int = MATRIX_BYTES,
) -> SqliteVectorDatabase:
    """Open `vectors.db` in this folder, creating it where needed, or in memory. Raises `StoreError`.

    `keep_keys`: seconds for which an idempotency key is remembered; `matrix_bytes`: memory for vectors.
    """
    tables = await SqliteTables.open(place_in(folder, VECTORS_FILE), _prepare, timeouts, readers)
    keys = IdempotencyKeys(tables, keep=keep_keys, clock=clock)
    stores = SqlVectorStores(tables, keys, SqliteVectorSql(), clock=clock)
    index = SqliteChunkIndex(tables, stores, matrix_bytes=matrix_bytes, clock=clock)
    stores.on_deleted = index.forget
    return SqliteVectorDatabase(stores, SqliteIngestion(tables, clock), index, keys, tables)


def _prepare(connection: sqlite3.Connection) -> None:
    steps = packaged_steps(VECTOR_STEPS)
    migrate(connection, steps)
    check_triggers(connection, steps)
    lease_clock.prepare(connection, _END_LEASES)
