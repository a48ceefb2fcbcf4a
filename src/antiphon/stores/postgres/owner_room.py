"""What an owner may still store: the `OwnerRoom` over PostgreSQL.

Lives here: the question. Not here: the counting, which the database does in the statement that changes rows (the
triggers of `migrations/0001_state.sql`).

It is asked before a model is, and not again when the response is saved: what was paid for is kept. So an owner may pass
the limit by what ran at that moment.
"""

from __future__ import annotations

from antiphon.errors import OwnerFull
from antiphon.stores.postgres.database import Database

OWNER_BYTES = "SELECT coalesce(sum(bytes), 0)::bigint FROM owner_bytes WHERE owner = $1"


class PostgresOwnerRoom:
    """`OwnerRoom` on connections that are somebody else's; `limit` bytes for each owner."""

    def __init__(self, database: Database, limit: int) -> None:
        self._database = database
        self._limit = limit

    async def check(self, owner: str) -> None:
        """Raises `OwnerFull`."""
        if (await self._database.fetch(OWNER_BYTES, owner))[0][0] >= self._limit:
            raise OwnerFull(self._limit)
