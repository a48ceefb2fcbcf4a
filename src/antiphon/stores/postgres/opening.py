"""Opens the stores of a PostgreSQL database.

Lives here: the assembly of the stores over one connection pool. Not here: the stores (`../responses.py`), the pool
(`database.py`), the checks of the server and the schema (`migrate.py`).

Vector stores share the connection pool of the other stores. Closing the vector stores leaves the pool open.

Invariant: the database of opened stores has the schema of this build. Any number of processes may open the same
database concurrently.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Unpack

from antiphon.config.state import StateSettings
from antiphon.engine.ports.files import BlobStore
from antiphon.stores.backend import MATRIX_BYTES, StoreOptions, Stores, VectorDatabase, all_options
from antiphon.stores.blobs.pending import PendingBlobs, PendingRows
from antiphon.stores.idempotency import IdempotencyStore
from antiphon.stores.postgres.containers import PostgresContainerRows
from antiphon.stores.postgres.database import Database, DatabaseLimits
from antiphon.stores.postgres.files import SQL as FILE_SQL
from antiphon.stores.postgres.group_commit import GroupCommit, group_limits
from antiphon.stores.postgres.health import DatabaseReadiness, PostgresStatistics
from antiphon.stores.postgres.jobs import SQL as JOB_SQL
from antiphon.stores.postgres.jobs import AddedEvents, PostgresJobWriter, QueuedResponses
from antiphon.stores.postgres.migrate import migrate, packaged_steps, reach_server
from antiphon.stores.postgres.responses import (
    LOAD_ITEMS,
    FinishedResponses,
    LateSaves,
    PostgresResponseWriter,
)
from antiphon.stores.postgres.retention import PostgresPieces
from antiphon.stores.postgres.signals import PostgresSignals
from antiphon.stores.postgres.tables import PostgresTables
from antiphon.stores.postgres.vectors.chunk_index import PostgresChunkIndex
from antiphon.stores.postgres.vectors.ingestion import PostgresIngestion
from antiphon.stores.postgres.vectors.sql import PostgresVectorSql
from antiphon.stores.postgres.vectors.table import EXACT_VECTORS, VectorIndexes, VectorTable
from antiphon.stores.vector_stores import VectorStores

_CONNECT_SECONDS = 3.0


@dataclass(frozen=True)
class PostgresVectorDatabase(VectorDatabase):
    """Implements `VectorDatabase` for PostgreSQL."""

    table: VectorTable
    indexes: VectorIndexes

    async def check_vectors(self) -> None:
        """Create the table of vectors and the pgvector extension, unless they exist. Raises `StoreError` with
        advice."""
        await self.table.there()

    async def aclose(self) -> None:
        """Stop the background task that creates and drops vector indexes."""
        await self.indexes.aclose()


class PostgresStores(Stores):
    """Holds all stores of one process, which share one connection pool."""

    signals: PostgresSignals

    def __init__(self, database: Database, state: StateSettings, blobs: BlobStore, options: StoreOptions) -> None:
        tables = PostgresTables(database)
        keys = IdempotencyStore(tables, keep=options["keep_keys"], bodies=options["bodies"])
        self._late_saves = LateSaves(database)
        saved = FinishedResponses(database, self._late_saves, keep=timedelta(seconds=keys.keep))
        limits = group_limits(options["timeouts"], connections=state.pool)
        _, self._direct_url = urls(state)
        signals = PostgresSignals(database, None if state.direct_url is None else self._direct_url)
        finished, added = GroupCommit(saved, limits), GroupCommit(AddedEvents(database, signals.changed), limits)
        queued = GroupCommit(QueuedResponses(database, saved), replace(limits, group=1))
        pending = PendingBlobs(PendingRows(tables), blobs, options["upload_lease"])
        # `unready_after` of 0 means that the database never makes the process unready.
        readiness = DatabaseReadiness(database, state.unready_after or math.inf)
        super().__init__(
            tables,
            keys,
            options,
            responses=(PostgresResponseWriter(finished, readiness), LOAD_ITEMS),
            jobs=(PostgresJobWriter(database, queued, added, signals.changed), JOB_SQL),
            files=(FILE_SQL, pending, blobs),
            pieces=PostgresPieces(database),
            signals=signals,
            ended=signals.changed,
        )
        self.database = database
        self._groups: tuple[GroupCommit[Any], ...] = (finished, queued, added)
        self.statistics = (PostgresStatistics(database, self._groups),)
        self.containers = PostgresContainerRows(tables, pending)

    def has_vectors(self) -> bool:
        """Return True, because the tables of vector stores always exist."""
        return True

    async def open_vectors(self, *, matrix_bytes: int = MATRIX_BYTES) -> PostgresVectorDatabase:
        """Open the vector stores. This method ignores `matrix_bytes`, because the server compares the vectors."""
        return open_vectors(self.database, self.keys, direct_url=self._direct_url)

    async def aclose(self) -> None:
        """Finish the accepted writes, then close the connections."""
        await self.files.aclose()
        for groups in self._groups:
            await groups.aclose()
        await self.signals.aclose()
        await self._late_saves.aclose()
        await self.database.aclose()


async def open_postgres(
    state: StateSettings,
    *,
    blobs: BlobStore,
    **options: Unpack[StoreOptions],
) -> PostgresStores:
    """Open the stores of the database at `state.url`, and apply missing schema steps.

    `blobs`: the storage for file contents, which the stores close. `options`: see `StoreOptions`. Raises `StoreError`.
    """
    given = all_options(options)
    url, _ = urls(state)
    connect = min(_CONNECT_SECONDS, state.deadline)
    database = Database(url, DatabaseLimits(size=state.pool, deadline=state.deadline, connect=connect))
    try:
        await reach_server(database, state.start_within)
        await migrate(database, packaged_steps())
    except BaseException:
        await database.aclose()
        raise
    return PostgresStores(database, state, blobs, given)


def open_vectors(
    database: Database, keys: IdempotencyStore, *, direct_url: str, exact: int = EXACT_VECTORS
) -> PostgresVectorDatabase:
    """Open the vector stores on this database. `direct_url`: a URL that bypasses poolers, for indexes whose creation
    takes minutes. `exact`: the maximum number of vectors that a search compares one by one."""
    table = VectorTable(database)
    indexes = VectorIndexes(database, direct_url, exact=exact)
    tables = PostgresTables(database)
    stores = VectorStores(tables, keys, PostgresVectorSql())
    return PostgresVectorDatabase(
        stores,
        PostgresIngestion(tables, database, table, indexes),
        PostgresChunkIndex(tables, stores, table, indexes),
        keys,
        (),
        table,
        indexes,
    )


def urls(state: StateSettings) -> tuple[str, str]:
    """Return the URL of the database, and the URL that bypasses poolers. Both URLs are equal without
    `state.direct_url`."""
    assert state.url is not None
    url = state.url.get_secret_value()
    return url, url if state.direct_url is None else state.direct_url.get_secret_value()
