"""Contents that are no file's, or not yet: the pending blobs of `engine/ports/files.py`, in SQLite.

Lives here: the rows, their leases, and the sweep that takes contents away. Not here: files (`files.py`), where contents
lie (`stores/blobs/`).

Invariant: a content is deleted only once its row is taken (`lease_until` 0), from when on no file can be made of it;
the row goes after the content.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence

import structlog

from antiphon.engine.ports.files import BlobStore
from antiphon.engine.running.leases import Leases
from antiphon.errors import StoreError
from antiphon.stores.sqlite.database import milliseconds
from antiphon.stores.sqlite.readers import SqliteReaders
from antiphon.stores.sqlite.writer import SqliteWriter, Statement

_log = structlog.get_logger(__name__)

ListBlobs = Callable[[], AsyncIterator[Sequence[str]]]
"""All contents of a storage by key, some at a time."""

_BATCH = 200
# So many in a row are the storage's failure, not a content's.
_FAILURES = 3

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


class SqlitePendingBlobs:
    """The rows of pending blobs, on a writer and readers that are somebody else's to close."""

    def __init__(
        self,
        writer: SqliteWriter,
        readers: SqliteReaders,
        blobs: BlobStore,
        *,
        lease: float,
        list_before: ListBlobs | None = None,
    ) -> None:
        """`lease`: seconds after which an upload that was not heard of counts as gone. `list_before`: lists where
        contents from before these rows may lie."""
        self._writer = writer
        self._readers = readers
        self._blobs = blobs
        self._leases = Leases(lease)
        self._list_before = list_before

    async def begin(self, key: str) -> None:
        """Note a content before anything of it lies anywhere, and renew its lease from now on."""
        await self._writer.run([Statement(BEGIN, {"key": key, "lease": milliseconds(self._leases.seconds)})])
        self._leases.hold(self, key)

    async def renew(self, holders: Sequence[str], seconds: float) -> frozenset[str]:
        """Prolong the leases of these keys; which were held still."""
        rows: list[tuple[str]] = []
        named = {"keys": json.dumps(list(holders)), "lease": milliseconds(seconds)}
        await self._writer.run([Statement(RENEW, named, into=rows)])
        return frozenset(row[0] for row in rows)

    def is_renewed(self, key: str) -> bool:
        """Whether this process holds it, as far as it knows."""
        return self._leases.holds(self, key)

    async def is_held(self, key: str) -> bool:
        """Whether a file can still be made of it."""
        return bool(await self._readers.fetch(IS_HELD, {"key": key}))

    def end(self, key: str) -> None:
        """Renew it no longer: it is a file's, or its row is for a sweep."""
        self._leases.drop(self, key)

    async def forget(self, key: str) -> None:
        """Delete a content that will be no file's, then its row. Where that fails it is for the next sweep."""
        self.end(key)
        try:
            await self._delete(key)
        except StoreError as error:
            _log.warning("blob_not_deleted", key=key, error=str(error))

    async def sweep(self) -> int:
        """Delete the contents that are taken or overdue; how many."""
        await self._look_for_those_of_before()
        await self._writer.run([Statement(TAKE_OVERDUE), Statement(SPARE_FILES)])
        gone, failed, after = 0, 0, ""
        failure: StoreError | None = None
        while rows := await self._readers.fetch(TAKEN, {"after": after, "limit": _BATCH}):
            for (after,) in rows:
                try:
                    await self._delete(after)
                except StoreError as error:
                    failure = error
                    failed += 1
                    if failed == _FAILURES:
                        raise
                else:
                    gone += 1
                    failed = 0
        if failure is not None:
            raise failure
        return gone

    async def aclose(self) -> None:
        """Renew nothing any more."""
        await self._leases.aclose()

    async def _delete(self, key: str) -> None:
        await self._blobs.delete(key)
        await self._writer.run([Statement(FORGET, {"key": key})])

    async def _look_for_those_of_before(self) -> None:
        """Note, once for a database, every content that no row names. Each has a lease's time to become a file, since a
        process of an older version may be at it."""
        if self._list_before is None or not await self._readers.fetch(IS_UNLISTED, {}):
            return
        async for keys in self._list_before():
            named = {"keys": json.dumps(keys), "lease": milliseconds(self._leases.seconds)}
            await self._writer.run([Statement(NOTE_UNKNOWN, named)])
        await self._writer.run([Statement(WAS_LISTED)])
