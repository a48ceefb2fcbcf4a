"""Implements `Backend` for SQLite: databases in a local folder, or in memory.

Lives here: the `Backend` classes, the names of the database files, the creation of the stores with their connections,
and the `Schema` of each file. Not here: the stores (`../responses.py`, …), access to SQLite (`database.py`,
`writer.py`, `readers.py`), the `Schema` interface (`stores/compatibility.py`), running migrations (`migrate.py`).

A data folder contains `sessions.db` (responses, items, conversations, jobs, the metadata of files) and `files/` (the
contents of files). Vector stores have a separate database, `vectors.db`. SQLite has one write lock per database, and
the ingestion of documents must not delay responses.

Invariants: an open database has all migrations of this build. Any number of processes may open the same folder. Some
modules are only for an operator's command (backup, owner data). The command imports such a module on its first use, and
servers never import it.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TypeVar, Unpack

from antiphon.config.limits import TimeoutSettings
from antiphon.config.state import BlobSettings
from antiphon.engine.ports.files import BlobStore
from antiphon.engine.ports.jobs import Pace
from antiphon.engine.ports.state import OwnerData
from antiphon.errors import ConfigError
from antiphon.ids import Clock, now
from antiphon.stores.backend import (
    MATRIX_BYTES,
    Backend,
    BackupSummary,
    KeyFiles,
    Report,
    StateFinding,
    StateNeeds,
    StoreOptions,
    Stores,
    VectorDatabase,
    all_options,
    ignore_progress,
)
from antiphon.stores.blobs.disk import FILES_FOLDER, DiskBlobs
from antiphon.stores.blobs.memory import MemoryBlobs
from antiphon.stores.blobs.pending import PendingBlobs
from antiphon.stores.bodies import Bodies
from antiphon.stores.compatibility import AppliedStep, Schema, SchemaStep
from antiphon.stores.idempotency import KEEP_SECONDS, IdempotencyStore
from antiphon.stores.jobs import PollingSignals
from antiphon.stores.move_format import check_not_moved
from antiphon.stores.retention import SWEEPER
from antiphon.stores.sqlite.database import create_file, open_connection, place_in
from antiphon.stores.sqlite.files import SQL as FILE_SQL
from antiphon.stores.sqlite.files import SqlitePendingRows
from antiphon.stores.sqlite.jobs import SQL as JOB_SQL
from antiphon.stores.sqlite.jobs import SqliteJobWriter
from antiphon.stores.sqlite.migrate import applied_steps, check_triggers, migrate, missing_objects, packaged_steps, undo
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

T = TypeVar("T")


class SqliteBackend(Backend):
    """The backend that stores SQLite databases in the data folder, or in the folder that `state.url` names."""

    @property
    def _folder(self) -> Path:
        return self.state.databases(self.data)

    async def open(self, contents: BlobStore, options: StoreOptions) -> Stores:
        """See `Backend`."""
        return await open_sqlite(self._folder, blobs=contents, **options)

    def check_not_moved(self) -> None:
        """See `Backend`."""
        check_not_moved(self._folder)

    def check_there(self) -> None:
        """See `Backend`."""
        folder = self._folder
        if not (folder / SESSIONS_FILE).exists():
            raise ConfigError(f"data: there is no database in {folder}; name the data folder with --data or --config")

    async def open_owner_data(self, bodies: Bodies) -> OwnerData:
        """See `Backend`."""
        from antiphon.stores.sqlite.owner_data import SqliteOwnerData

        self.check_there()
        return SqliteOwnerData(self._folder, bodies)

    def has_rows(self, *, hashed: bool) -> bool:
        """See `Backend`."""
        from antiphon.stores.sqlite.owner_data import has_rows

        return has_rows(self._folder, hashed=hashed)

    def open_schemas(self, *, seconds: float, within: float = 0.0) -> AbstractAsyncContextManager[Sequence[Schema]]:
        """See `Backend`."""
        return nullcontext(sqlite_schemas(self._folder))

    async def examine(self, wanted: StateNeeds, shared: AsyncIterator[StateFinding]) -> AsyncIterator[StateFinding]:
        """See `Backend`."""
        self.check_not_moved()
        async for said in shared:
            yield said
        async for said in examine_schemas(self._folder):
            yield said

    def check_archives(self) -> None:
        """See `Backend`."""

    def make_archive(
        self, target: Path, keys: KeyFiles, *, with_keys: bool, with_contents: bool, report: Report = ignore_progress
    ) -> BackupSummary:
        """See `Backend`."""
        from antiphon.stores.sqlite.backup import make_archive

        return make_archive(
            self.data,
            target,
            keys,
            with_keys=with_keys,
            with_contents=with_contents,
            databases=self._folder,
            report=report,
        )

    def open_archive(self, source: Path, keys: KeyFiles, *, report: Report = ignore_progress) -> BackupSummary:
        """See `Backend`."""
        from antiphon.stores.sqlite.backup import open_archive

        if self._folder != self.data:
            raise ConfigError(
                "state.url: an archive is restored into one folder; remove 'state.url', and move the databases after "
                "the restore"
            )
        return open_archive(source, self.data, keys, report=report)


class MemoryBackend(Backend):
    """The backend that stores SQLite databases in memory, and file contents too unless `blobs.url` is set. All data is
    lost when the process ends."""

    async def open(self, contents: BlobStore, options: StoreOptions) -> Stores:
        """See `Backend`."""
        return await open_sqlite(None, blobs=contents, **options)

    async def open_contents(self, blobs: BlobSettings) -> BlobStore:
        """See `Backend`."""
        return MemoryBlobs() if blobs.url is None else await super().open_contents(blobs)

    def check_there(self) -> None:
        """See `Backend`."""
        raise _of_one_process()

    async def open_owner_data(self, bodies: Bodies) -> OwnerData:
        """See `Backend`."""
        raise _of_one_process()

    def open_schemas(self, *, seconds: float, within: float = 0.0) -> AbstractAsyncContextManager[Sequence[Schema]]:
        """See `Backend`."""
        raise ConfigError("state.url: a store in memory ('memory:') has no schema; name a database in state.url")

    async def examine(self, wanted: StateNeeds, shared: AsyncIterator[StateFinding]) -> AsyncIterator[StateFinding]:
        """See `Backend`."""
        yield StateFinding(
            "note",
            "all state is in memory",
            "the state is lost when the process stops; to keep the state, name a database in state.url",
        )


def _of_one_process() -> ConfigError:
    return ConfigError(
        "state.url: only the running process can see state in memory ('memory:'); name a database in state.url"
    )


@dataclass(frozen=True, slots=True)
class SqliteSchema(Schema):
    """The `Schema` of one database file."""

    path: Path

    async def applied(self) -> Sequence[AppliedStep]:
        """See `Schema`."""
        if not self.path.exists():
            return []
        return await asyncio.to_thread(self._on, applied_steps, writes=False)

    async def up(self) -> Sequence[SchemaStep]:
        """See `Schema`."""
        create_file(self.path)
        return await asyncio.to_thread(self._on, lambda connection: migrate(connection, self.steps))

    async def undo(self) -> SchemaStep:
        """See `Schema`."""
        create_file(self.path)
        return await asyncio.to_thread(self._on, lambda connection: undo(connection, self.steps))

    async def lacking(self) -> tuple[int, dict[str, str]]:
        """Return the number of expected tables and indexes, and the missing tables and indexes (see `missing_objects`).
        Returns `(0, {})` when the database file does not exist. Raises `StoreError`."""
        if not self.path.exists():
            return 0, {}
        return await asyncio.to_thread(
            self._on, lambda connection: missing_objects(connection, self.steps), writes=False
        )

    def _on(self, work: Callable[[sqlite3.Connection], T], *, writes: bool = True) -> T:
        with open_connection(
            self.path, "Changing the schema" if writes else "Reading the schema", writes=writes
        ) as connection:
            return work(connection)


def sqlite_schemas(folder: Path) -> tuple[SqliteSchema, ...]:
    """Return the schemas of `sessions.db` and `vectors.db` in this folder, even when the files do not exist."""
    package = Path(str(files("antiphon.stores.sqlite")))
    return (
        SqliteSchema(SESSIONS_FILE, packaged_steps(), package / "migrations", folder / SESSIONS_FILE),
        SqliteSchema(VECTORS_FILE, packaged_steps(VECTOR_STEPS), package / VECTOR_STEPS, folder / VECTORS_FILE),
    )


async def examine_schemas(folder: Path) -> AsyncIterator[StateFinding]:
    """Yield a finding for each missing table and index. A missing index makes queries slow. A missing table makes
    requests fail."""
    for schema in sqlite_schemas(folder):
        number, gone = await schema.lacking()
        for name, sql in gone.items():
            if name.startswith("table"):
                yield StateFinding(
                    "problem", f"{schema.name} lacks the {name}", "restore a backup (antiphon admin restore)"
                )
            else:
                made = f"create the index again with sqlite3: {' '.join(sql.split())}" if sql else "restore a backup"
                yield StateFinding(
                    "note", f"{schema.name}: the {name} is missing, so queries that need it are slow", made
                )
        if number and not gone:
            yield StateFinding("ok", f"{schema.name}: all {number} tables and indexes of the schema exist")


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
    """All stores of `sessions.db`. The stores share one writer and one pool of connections for reads."""

    def __init__(self, folder: Path | None, tables: SqliteTables, blobs: BlobStore, options: StoreOptions) -> None:
        """`folder`: the folder of the database file, or None for a database in memory."""
        writer, readers, leases = tables.writer, tables.readers, tables.lease_now
        keys = IdempotencyStore(tables, keep=options["keep_keys"], bodies=options["bodies"])
        # Only a folder on disk can contain blobs of an old version of Antiphon that had no pending rows.
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
            signals=PollingSignals(tables, _PACE),
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
    `files`, or memory. `leases`: the function that returns the time for leases. All processes of the machine use the
    same clock for leases. For `options` see `StoreOptions`. Raises `StoreError`.
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

    `leases`: the function that returns the time for leases. `keep_keys`: seconds for which an idempotency key is
    stored. `matrix_bytes`: the maximum memory for vectors of searches.
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
    """Prepare a new writer connection: apply the migrations in the package's subfolder `folder`, and define the SQL
    function `lease_now()`. `end_leases`: the statements that run after a reboot (see `prepare_lease_clock`)."""
    steps = packaged_steps(folder)
    migrate(connection, steps)
    check_triggers(connection, steps)
    prepare_lease_clock(connection, end_leases, clock=leases)
