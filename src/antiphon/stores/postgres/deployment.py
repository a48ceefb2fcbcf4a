"""What all processes on one PostgreSQL database must have in common.

Lives here: its rows. Not here: what they mean (`deployment.py` above).

Invariant: of processes that start at the same moment with different keys one kind starts.
"""

from __future__ import annotations

from antiphon.stores.deployment import MOVING, Keys, Recorded, to_note
from antiphon.stores.postgres.database import Connection, Database, DatabaseLimits

_READ = "SELECT name, value FROM deployment"
_LOCK = "LOCK TABLE deployment IN SHARE ROW EXCLUSIVE MODE"
_WRITE = """
INSERT INTO deployment (name, value) SELECT * FROM unnest($1::text[], $2::text[])
ON CONFLICT (name) DO UPDATE SET value = excluded.value
"""


class PostgresDeployment:
    """`Deployment` on a connection of its own."""

    def __init__(self, url: str, seconds: float) -> None:
        self._database = Database(url, DatabaseLimits(size=1, deadline=seconds))

    async def read(self) -> Recorded:
        """See `Deployment`."""
        return {row["name"]: row["value"] for row in await self._database.fetch(_READ)}

    async def check(self, keys: Keys) -> None:
        """See `Deployment`."""
        if not to_note(await self.read(), keys):
            return

        async def work(connection: Connection) -> None:
            await connection.execute(_LOCK)
            recorded = {row["name"]: row["value"] for row in await connection.fetch(_READ)}
            await _write(connection, to_note(recorded, keys))

        await self._database.transaction(work)

    async def accept(self, keys: Keys) -> None:
        """See `Deployment`."""

        async def work(connection: Connection) -> None:
            await connection.execute(_LOCK)
            await connection.execute("DELETE FROM deployment WHERE name <> $1", MOVING)
            await _write(connection, keys.recorded())

        await self._database.transaction(work)

    async def aclose(self) -> None:
        """Close the connection."""
        await self._database.aclose()


async def _write(connection: Connection, rows: dict[str, str]) -> None:
    await connection.fetch(_WRITE, list(rows), list(rows.values()))
