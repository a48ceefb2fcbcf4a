"""Implements `Backend` for PostgreSQL, where many machines share one database.

Lives here: the class `PostgresBackend`, and the creation of all stores over one connection pool. This module also has
the SQL of the recorded keys, and the SQL of files that differs from SQLite's. Not here: the rules for recorded keys
(`../compatibility.py`), the stores (`../responses.py`, …), the pool (`database.py`), the checks of the server and the
schema (`migrate.py`).

Vector stores share the connection pool of the other stores. Closing the vector stores leaves the pool open.

Invariants: the stores open only after the database has the schema of this build. Any number of processes may open the
same database concurrently. If only an operator's command needs a module, the process imports the module when the
command first uses it. If processes with different keys start concurrently, only the process that first records its keys
can start. The processes with other keys refuse to start.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Unpack

from antiphon.config.state import BlobSettings, StateSettings
from antiphon.engine.ports.files import BlobStore
from antiphon.engine.ports.state import OwnerData
from antiphon.stores.backend import (
    MATRIX_BYTES,
    Backend,
    StateFinding,
    StateNeeds,
    StoreOptions,
    Stores,
    VectorDatabase,
    all_options,
)
from antiphon.stores.blobs import open_blobs
from antiphon.stores.blobs.disk import FILES_FOLDER
from antiphon.stores.blobs.pending import PendingBlobs, PendingRows
from antiphon.stores.bodies import Bodies
from antiphon.stores.compatibility import MOVING, KeyFingerprints, Recorded, Schema, keys_to_record
from antiphon.stores.files import COLUMNS, FileSql
from antiphon.stores.idempotency import IdempotencyStore
from antiphon.stores.postgres.containers import PostgresContainerRows
from antiphon.stores.postgres.database import Connection, Database, DatabaseLimits
from antiphon.stores.postgres.group_commit import GroupCommit, WriteQueue, group_limits
from antiphon.stores.postgres.health import DatabaseReadiness, PostgresStatistics
from antiphon.stores.postgres.jobs import SQL as JOB_SQL
from antiphon.stores.postgres.jobs import AddedEvents, PostgresJobWriter, QueuedResponses
from antiphon.stores.postgres.migrate import migrate, open_postgres_schemas, packaged_steps, reach_server
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
_READ = "SELECT name, value FROM deployment"
_LOCK = "LOCK TABLE deployment IN SHARE ROW EXCLUSIVE MODE"
_WRITE = """
INSERT INTO deployment (name, value) SELECT * FROM unnest($1::text[], $2::text[])
ON CONFLICT (name) DO UPDATE SET value = excluded.value
"""
# The table `owner_files` has one row per owner with the bytes of the owner's files. The insert of a file updates the
# owner's row first, so concurrent uploads cannot exceed the limit together. A trigger subtracts the bytes of a deleted
# file. `owner_files.bytes` is the sum over the owner's files, each counted with at least `LEAST_ROOM` bytes. A file
# expires by the database's clock, even if the clock of the uploading machine was wrong.
FILE_SQL = FileSql(
    ends="coalesce(gone_at, expires_at)",
    used="SELECT bytes FROM owner_files WHERE owner = :owner",
    insert=(
        """
INSERT INTO owner_files AS o (owner, bytes)
SELECT :owner, :room WHERE CAST(:limit AS bigint) IS NULL OR :room <= :limit
ON CONFLICT (owner) DO UPDATE SET bytes = o.bytes + excluded.bytes
  WHERE CAST(:limit AS bigint) IS NULL OR o.bytes + excluded.bytes <= :limit
""",
        f"""
INSERT INTO files (owner, {COLUMNS}, gone_at)
VALUES (:owner, :id, :name, :purpose, :media_type, :size, :sha256, :created_at, :expires_at, :blob,
        now_ms() + CAST(:left AS bigint))
""",
    ),
)


class PostgresBackend(Backend):
    """The backend for the PostgreSQL database at `state.url`."""

    async def open(self, contents: BlobStore, options: StoreOptions) -> Stores:
        """See `Backend`."""
        return await open_postgres(self.state, blobs=contents, **options)

    async def open_contents(self, blobs: BlobSettings) -> BlobStore:
        """See `Backend`."""
        return await open_blobs(blobs, self.data / FILES_FOLDER, of_several=True)

    def check_there(self) -> None:
        """Do nothing, because opening a connection fails when the database does not exist."""

    async def open_owner_data(self, bodies: Bodies) -> OwnerData:
        """See `Backend`."""
        from antiphon.stores.postgres.owner_data import open_postgres_owners

        return await open_postgres_owners(self.state, bodies)

    def open_schemas(self, *, seconds: float, within: float = 0.0) -> AbstractAsyncContextManager[Sequence[Schema]]:
        """See `Backend`."""
        assert self.state.url is not None
        # Schema steps use the URL that bypasses a connection pooler, because a pooler may end a long transaction.
        url = self.state.direct_url or self.state.url
        setting = "state.url" if self.state.direct_url is None else "state.direct_url"
        return open_postgres_schemas(url.get_secret_value(), seconds, setting, within=within)

    async def recorded_keys(self) -> Recorded:
        """See `Backend`."""
        async with self._database() as database:
            return {row["name"]: row["value"] for row in await database.fetch(_READ)}

    async def check_keys(self, keys: KeyFingerprints) -> None:
        """See `Backend`."""

        async def work(connection: Connection) -> None:
            await connection.execute(_LOCK)
            recorded = {row["name"]: row["value"] for row in await connection.fetch(_READ)}
            await _write(connection, keys_to_record(recorded, keys))

        if keys_to_record(await self.recorded_keys(), keys):
            async with self._database() as database:
                await database.transaction(work)

    async def accept_keys(self, keys: KeyFingerprints) -> None:
        """See `Backend`."""

        async def work(connection: Connection) -> None:
            await connection.execute(_LOCK)
            await connection.execute("DELETE FROM deployment WHERE name <> $1", MOVING)
            await _write(connection, keys.recorded())

        async with self._database() as database:
            await database.transaction(work)

    async def examine(self, wanted: StateNeeds, shared: AsyncIterator[StateFinding]) -> AsyncIterator[StateFinding]:
        """See `Backend`."""
        from antiphon.stores.postgres.checks import examine

        async for said in examine(self.state, wanted):
            yield said
            if said.verdict == "problem":
                # If the server does not answer or is unsuitable, the shared checks of the schema would fail as well.
                return
        async for said in shared:
            yield said

    def _database(self) -> aclosing[Database]:
        """Return a pool with one connection. The caller uses the pool for one operation and closes it."""
        assert self.state.url is not None
        return aclosing(Database(self.state.url.get_secret_value(), DatabaseLimits(1, self.state.deadline)))


async def _write(connection: Connection, rows: dict[str, str]) -> None:
    await connection.fetch(_WRITE, list(rows), list(rows.values()))


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
        self._groups: tuple[WriteQueue, ...] = (finished, queued, added)
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
    """Open the stores of the database at `state.url`, and apply missing migrations.

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
    """Open the vector stores on this database. `direct_url`: a URL that bypasses connection poolers, for the creation
    of indexes, which takes minutes. `exact`: the maximum number of vectors that a search compares one by one."""
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
