"""What an owner may still store: the `OwnerRoom` over the tables of any backend.

Lives here: the question. Not here: the counting, which the database does in the unit that changes rows (the triggers of
each backend's migrations).

It is asked before a model is, and not again when the response is saved: what was paid for is kept. So an owner may pass
the limit by what ran at that moment.
"""

from __future__ import annotations

from antiphon.errors import OwnerFull
from antiphon.stores.tables import Tables

OWNER_BYTES = "SELECT CAST(coalesce(sum(bytes), 0) AS bigint) FROM owner_bytes WHERE owner = :owner"


class SqlOwnerRoom:
    """`OwnerRoom` on tables that the caller closes; `limit` bytes for each owner."""

    def __init__(self, tables: Tables, limit: int) -> None:
        self._tables = tables
        self._limit = limit

    async def check(self, owner: str) -> None:
        """Raises `OwnerFull`."""
        if (await self._tables.fetch(OWNER_BYTES, {"owner": owner}))[0][0] >= self._limit:
            raise OwnerFull(self._limit)
