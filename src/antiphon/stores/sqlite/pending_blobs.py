"""The rows of contents that are no file's, or not yet, in SQLite.

Lives here: their SQL. Not here: what is done with them (`stores/blobs/pending.py`).

A row is taken when its `lease_until` is 0. The row of the key '*' stands for what lies in the data folder from before
there were rows.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence

from antiphon.stores.sqlite.readers import SqliteReaders
from antiphon.stores.sqlite.writer import SqliteWriter
from antiphon.stores.tables import Statement, milliseconds

ListBlobs = Callable[[], AsyncIterator[Sequence[str]]]
"""All contents of a storage by key, some at a time."""

BEGIN = "INSERT INTO pending_blobs (key, lease_until) VALUES (:key, lease_now() + :lease)"
RENEW = """
UPDATE pending_blobs SET lease_until = lease_now() + :lease
WHERE key IN (SELECT value FROM json_each(:keys)) AND lease_until > 0 RETURNING key
"""
# For the unit that makes a file of it.
KEEP = "DELETE FROM pending_blobs WHERE key = :blob AND lease_until > 0"
# For the unit in which a file goes.
LET_GO = (
    "INSERT INTO pending_blobs (key, lease_until) VALUES (:blob, 0) ON CONFLICT (key) DO UPDATE SET lease_until = 0"
)
IS_HELD = "SELECT 1 FROM pending_blobs WHERE key = :key AND lease_until > 0"
TAKE_OVERDUE = "UPDATE pending_blobs SET lease_until = 0 WHERE lease_until > 0 AND lease_until <= lease_now()"
# What was noted by a look through the folder, and became the file of a process that notes nothing itself.
SPARE_FILES = """
DELETE FROM pending_blobs WHERE lease_until = 0 AND EXISTS (SELECT 1 FROM files WHERE files.blob = pending_blobs.key)
"""
TAKEN = "SELECT key FROM pending_blobs WHERE lease_until = 0 AND key > :after ORDER BY key LIMIT :limit"
FORGET = "DELETE FROM pending_blobs WHERE key = :key"

IS_UNLISTED = "SELECT 1 FROM pending_blobs WHERE key = '*'"
NOTE_UNKNOWN = """
INSERT INTO pending_blobs (key, lease_until)
SELECT value, lease_now() + :lease FROM json_each(:keys)
WHERE NOT EXISTS (SELECT 1 FROM files WHERE files.blob = value)
ON CONFLICT DO NOTHING
"""
WAS_LISTED = "DELETE FROM pending_blobs WHERE key = '*'"


class SqlitePendingRows:
    """`PendingRows` on a writer and readers that the caller closes."""

    def __init__(
        self, writer: SqliteWriter, readers: SqliteReaders, lease: float, list_before: ListBlobs | None = None
    ) -> None:
        """`list_before`: lists where contents from before there were rows may lie; each has a `lease` in seconds to
        become a file, since a process of an older version may be at it."""
        self._writer = writer
        self._readers = readers
        self._lease = milliseconds(lease)
        self._list_before = list_before

    async def begin(self, key: str, seconds: float) -> None:
        """Make a row with a lease."""
        await self._writer.run([Statement(BEGIN, {"key": key, "lease": milliseconds(seconds)})])

    async def renew(self, holders: Sequence[str], seconds: float) -> frozenset[str]:
        """Prolong the leases of these keys; which were not taken."""
        rows: list[tuple[str]] = []
        named = {"keys": json.dumps(list(holders)), "lease": milliseconds(seconds)}
        await self._writer.run([Statement(RENEW, named, into=rows)])
        return frozenset(row[0] for row in rows)

    async def is_held(self, key: str) -> bool:
        """Whether there is such a row that is not taken."""
        return bool(await self._readers.fetch(IS_HELD, {"key": key}))

    async def take_overdue(self) -> None:
        """Take all rows whose lease is over."""
        if self._list_before is not None:
            await self._note(self._list_before)
        await self._writer.run([Statement(TAKE_OVERDUE), Statement(SPARE_FILES)])

    async def taken(self, after: str, limit: int) -> list[str]:
        """The keys of rows that are taken, in order, from behind this one."""
        return [row[0] for row in await self._readers.fetch(TAKEN, {"after": after, "limit": limit})]

    async def forget(self, key: str) -> None:
        """Delete the row."""
        await self._writer.run([Statement(FORGET, {"key": key})])

    async def _note(self, listed: ListBlobs) -> None:
        """Note, once for a database, every content that no row names."""
        if not await self._readers.fetch(IS_UNLISTED, {}):
            return
        async for keys in listed():
            await self._writer.run([Statement(NOTE_UNKNOWN, {"keys": json.dumps(keys), "lease": self._lease})])
        await self._writer.run([Statement(WAS_LISTED)])
