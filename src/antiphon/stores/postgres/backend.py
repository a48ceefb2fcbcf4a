"""Implements `Backend` for PostgreSQL, where many machines share one database.

Lives here: the assembly of `Backend` from the modules of this package, and the SQL of the recorded keys. Not here: the
rules for recorded keys (`../compatibility.py`), the stores and commands themselves (the other modules of this package).

Invariants: a method imports modules that only an operator's command needs on their first use. When processes with
different keys start concurrently, only the processes with one of the key sets start.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing

from antiphon.config.state import BlobSettings
from antiphon.engine.ports.files import BlobStore
from antiphon.engine.ports.state import OwnerData
from antiphon.stores.backend import Backend, StateFinding, StateNeeds, StoreOptions, Stores
from antiphon.stores.blobs import open_blobs
from antiphon.stores.blobs.disk import FILES_FOLDER
from antiphon.stores.bodies import Bodies
from antiphon.stores.compatibility import MOVING, KeyFingerprints, Recorded, Schema, keys_to_record
from antiphon.stores.postgres.database import Connection, Database, DatabaseLimits
from antiphon.stores.postgres.migrate import open_postgres_schemas
from antiphon.stores.postgres.opening import open_postgres

_READ = "SELECT name, value FROM deployment"
_LOCK = "LOCK TABLE deployment IN SHARE ROW EXCLUSIVE MODE"
_WRITE = """
INSERT INTO deployment (name, value) SELECT * FROM unnest($1::text[], $2::text[])
ON CONFLICT (name) DO UPDATE SET value = excluded.value
"""


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
