"""What an owner may still store: the `OwnerRoom` over SQLite.

Lives here: the question. Not here: the counting, which the database does in the unit that changes rows (the triggers of
`migrations/0004_bytes.sql`).

It is asked before a model is, and not again when the response is saved: what was paid for is kept. So an owner may pass
the limit by what ran at that moment.
"""

from __future__ import annotations

from antiphon.errors import OwnerFull
from antiphon.stores.sqlite.readers import SqliteReaders

OWNER_BYTES = "SELECT bytes FROM owner_bytes WHERE owner = :owner"


class SqliteOwnerRoom:
    """`OwnerRoom` on readers that are somebody else's; `limit` bytes for each owner."""

    def __init__(self, readers: SqliteReaders, limit: int) -> None:
        self._readers = readers
        self._limit = limit

    async def check(self, owner: str) -> None:
        """Raises `OwnerFull`."""
        rows = await self._readers.fetch(OWNER_BYTES, {"owner": owner})
        if rows and rows[0][0] >= self._limit:
            raise OwnerFull(self._limit)
