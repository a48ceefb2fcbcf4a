"""The rows of contents that are no file's, or not yet, over the tables of any backend.

Lives here: the SQL, with the statements for units in which a file is made of a content or goes. Not here: what is done
with these rows (`blobs/pending.py`), files (`files.py`).

Invariant: once a row is taken it is renewed no more, and no file is made of it: both look at the row as it is when they
have it.
"""

from __future__ import annotations

from collections.abc import Sequence

from antiphon.stores.tables import Statement, Tables, milliseconds, renewed

BEGIN = """
INSERT INTO pending_blobs AS p (key, lease_until) VALUES (:key, lease_in(:lease))
ON CONFLICT (key) DO UPDATE SET lease_until = excluded.lease_until WHERE p.lease_until > taken()
"""
RENEW = """
WITH held (id) AS MATERIALIZED (SELECT key FROM pending_blobs WHERE key IN (:holders...) ORDER BY key FOR UPDATE)
UPDATE pending_blobs AS p SET lease_until = lease_in(:lease) FROM held
WHERE p.key = held.id AND p.lease_until > taken() RETURNING key
"""
# For the unit that makes a file of it.
KEEP = "DELETE FROM pending_blobs WHERE key = :blob AND lease_until > taken()"
# For the unit in which a file goes.
LET_GO = """
INSERT INTO pending_blobs (key, lease_until) VALUES (:blob, taken())
ON CONFLICT (key) DO UPDATE SET lease_until = taken()
"""
IS_HELD = "SELECT 1 FROM pending_blobs WHERE key = :key AND lease_until > taken()"
# What is being renewed or kept at the moment is passed over.
TAKE_OVERDUE = """
UPDATE pending_blobs SET lease_until = taken() WHERE key IN (
  SELECT key FROM pending_blobs WHERE lease_until > taken() AND lease_until <= lease_now() FOR UPDATE SKIP LOCKED
)
"""
TAKEN = "SELECT key FROM pending_blobs WHERE lease_until = taken() AND key > :after ORDER BY key LIMIT :limit"
FORGET = "DELETE FROM pending_blobs WHERE key = :key"


class PendingRows:
    """The rows. Each has a lease by the clock of leases, or is *taken*, which it stays. Every method raises
    `StoreError`."""

    taking: tuple[Statement, ...] = (Statement(TAKE_OVERDUE, {}),)
    """The unit that takes all rows whose lease is over."""

    def __init__(self, tables: Tables) -> None:
        """`tables`: the caller's to close."""
        self.tables = tables

    async def begin(self, key: str, seconds: float) -> None:
        """Make a row with a lease."""
        await self.tables.run([Statement(BEGIN, {"key": key, "lease": milliseconds(seconds)})], again=True)

    async def renew(self, holders: Sequence[str], seconds: float) -> frozenset[str]:
        """Prolong the leases of the rows that are not taken, though they be over; which these are."""
        return await renewed(self.tables, RENEW, holders, seconds)

    async def is_held(self, key: str) -> bool:
        """Whether there is such a row that is not taken."""
        return bool(await self.tables.fetch(IS_HELD, {"key": key}))

    async def take_overdue(self) -> None:
        """Take all rows whose lease is over."""
        await self.tables.run(self.taking, again=True)

    async def taken(self, after: str, limit: int) -> Sequence[str]:
        """The keys of rows that are taken, in order, from behind this one."""
        return [row[0] for row in await self.tables.fetch(TAKEN, {"after": after, "limit": limit})]

    async def forget(self, key: str) -> None:
        """Delete the row, taken or not."""
        await self.tables.run([Statement(FORGET, {"key": key})], again=True)
