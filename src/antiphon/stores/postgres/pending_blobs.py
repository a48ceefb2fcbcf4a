"""The rows of contents that are no file's: `PendingRows` over PostgreSQL.

Lives here: the SQL. Not here: what is done with them (`stores/blobs/pending.py`).

Invariant: once a row is taken (`lease_until` is -infinity) it is renewed no more, and no file is made of it: both look
at the row as it is when they have it.
"""

from __future__ import annotations

from collections.abc import Sequence

from antiphon.stores.postgres.database import Database

BEGIN = """
INSERT INTO pending_blobs (key, lease_until) VALUES ($1, clock_timestamp() + make_interval(secs => $2))
ON CONFLICT (key) DO UPDATE SET lease_until = excluded.lease_until WHERE pending_blobs.lease_until > '-infinity'
"""
RENEW = """
WITH held AS MATERIALIZED (SELECT key FROM pending_blobs WHERE key = ANY($1::text[]) ORDER BY key FOR UPDATE)
UPDATE pending_blobs p SET lease_until = clock_timestamp() + make_interval(secs => $2) FROM held
WHERE p.key = held.key AND p.lease_until > '-infinity' RETURNING p.key
"""
# For the transaction that makes a file of it.
KEEP = "DELETE FROM pending_blobs WHERE key = $1 AND lease_until > '-infinity' RETURNING 1"
# For the statement in which files go, whose contents are in the table `gone (blob)`.
LET_GO = """
INSERT INTO pending_blobs (key, lease_until) SELECT blob, '-infinity' FROM gone
ON CONFLICT (key) DO UPDATE SET lease_until = '-infinity'
"""
IS_HELD = "SELECT 1 FROM pending_blobs WHERE key = $1 AND lease_until > '-infinity'"
# What is being renewed or kept at the moment is passed over.
TAKE_OVERDUE = """
UPDATE pending_blobs SET lease_until = '-infinity' WHERE key IN (
  SELECT key FROM pending_blobs WHERE lease_until > '-infinity' AND lease_until <= clock_timestamp()
  FOR UPDATE SKIP LOCKED
)
"""
TAKEN = "SELECT key FROM pending_blobs WHERE lease_until = '-infinity' AND key > $1 ORDER BY key LIMIT $2"
FORGET = "DELETE FROM pending_blobs WHERE key = $1"


class PostgresPendingRows:
    """`PendingRows` on connections that are somebody else's to close."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def begin(self, key: str, seconds: float) -> None:
        """See `PendingRows.begin`."""
        await self._database.write(BEGIN, key, seconds, again=True)

    async def renew(self, holders: Sequence[str], seconds: float) -> frozenset[str]:
        """Prolong the leases of these keys; which were held still."""
        rows = await self._database.write(RENEW, list(holders), seconds, again=True)
        return frozenset(row[0] for row in rows)

    async def is_held(self, key: str) -> bool:
        """See `PendingRows.is_held`."""
        return bool(await self._database.fetch(IS_HELD, key))

    async def take_overdue(self) -> None:
        """See `PendingRows.take_overdue`."""
        await self._database.write(TAKE_OVERDUE, again=True)

    async def taken(self, after: str, limit: int) -> Sequence[str]:
        """See `PendingRows.taken`."""
        return [row[0] for row in await self._database.fetch(TAKEN, after, limit)]

    async def forget(self, key: str) -> None:
        """See `PendingRows.forget`."""
        await self._database.write(FORGET, key, again=True)
