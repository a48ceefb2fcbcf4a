"""The database of vector stores, `vectors.db`: a file of its own, so that ingestion never holds up a turn.

Lives here: opening it, and the three views on it. Not here: what each of them does.

Invariant: an opened database has the schema of this build; any number of processes may open it.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path

from antiphon.ids import Clock, now
from antiphon.stores.chunk_index import SqliteChunkIndex
from antiphon.stores.ingestion import SqliteIngestion
from antiphon.stores.migrate import migrate, packaged_migrations
from antiphon.stores.sqlite_readers import SqliteReaders
from antiphon.stores.sqlite_writer import SqliteWriter
from antiphon.stores.vector_stores import SqliteVectorStores

__all__ = ["VECTORS_FILE", "KnowledgeStores", "open_knowledge"]

VECTORS_FILE = "vectors.db"


@dataclass(frozen=True)
class KnowledgeStores:
    """What clients see, the work, and what a search reads; one writer and its readers."""

    stores: SqliteVectorStores
    ingestion: SqliteIngestion
    index: SqliteChunkIndex
    writer: SqliteWriter
    readers: SqliteReaders

    async def aclose(self) -> None:
        """Finish what was accepted, then close the database."""
        await self.readers.aclose()
        await self.writer.aclose()


async def open_knowledge(data: Path, *, clock: Clock = now, readers: int = 2) -> KnowledgeStores:
    """Open `vectors.db` in the folder `data`, creating it where needed. Raises `StoreError`."""
    path = data / VECTORS_FILE
    writer = SqliteWriter(path, _prepare)
    await writer.start()
    pool = SqliteReaders(path, readers)
    try:
        await pool.start()
    except BaseException:
        await writer.aclose()
        raise
    stores = SqliteVectorStores(writer, pool, clock)
    return KnowledgeStores(stores, SqliteIngestion(writer, pool), SqliteChunkIndex(pool, stores), writer, pool)


def _prepare(connection: sqlite3.Connection) -> None:
    migrate(connection, packaged_migrations("vector_migrations"))
