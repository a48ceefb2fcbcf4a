"""Tracks pending blobs, in every backend: contents that no file owns yet, or no longer owns (`engine/ports/files.py`).

Lives here: their rows, leases, the order of row and content, and the sweep that deletes contents. The statements for
transactions that turn a content into a file, or delete a file, are here too. Not here: files (`../files.py`), the
storages for contents (the other modules here).

Invariants: once a sweep has reserved a row ("taken"), no process renews the row or makes a file of its content. Both
check the row in their transaction. A sweep deletes a content only after it has reserved the row, and deletes the row
after the content.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import structlog

from antiphon.engine.ports.files import Blob, BlobReader, BlobStore, BlobWriter, new_blob_key
from antiphon.engine.waiting import to_the_end
from antiphon.errors import StoreError
from antiphon.stores.leases import Leases
from antiphon.stores.tables import Statement, Tables, milliseconds, renewed

_log = structlog.get_logger(__name__)

UPLOAD_LEASE_SECONDS = 900.0

_BATCH = 200
# So many failures in a row mean that the storage fails, not one content.
_FAILURES = 3

BEGIN = """
INSERT INTO pending_blobs AS p (key, lease_until) VALUES (:key, lease_in(:lease))
ON CONFLICT (key) DO UPDATE SET lease_until = excluded.lease_until WHERE p.lease_until > taken()
"""
RENEW = """
WITH held (id) AS MATERIALIZED (SELECT key FROM pending_blobs WHERE key IN (:holders...) ORDER BY key FOR UPDATE)
UPDATE pending_blobs AS p SET lease_until = lease_in(:lease) FROM held
WHERE p.key = held.id AND p.lease_until > taken() RETURNING key
"""
# For the transaction that turns the content into a file.
KEEP = "DELETE FROM pending_blobs WHERE key = :blob AND lease_until > taken()"
# For the transaction that deletes a file.
LET_GO = """
INSERT INTO pending_blobs (key, lease_until) VALUES (:blob, taken())
ON CONFLICT (key) DO UPDATE SET lease_until = taken()
"""
IS_HELD = "SELECT 1 FROM pending_blobs WHERE key = :key AND lease_until > taken()"
# Skips rows that another transaction is renewing or keeping.
TAKE_OVERDUE = """
UPDATE pending_blobs SET lease_until = taken() WHERE key IN (
  SELECT key FROM pending_blobs WHERE lease_until > taken() AND lease_until <= lease_now() FOR UPDATE SKIP LOCKED
)
"""
TAKEN = "SELECT key FROM pending_blobs WHERE lease_until = taken() AND key > :after ORDER BY key LIMIT :limit"
FORGET = "DELETE FROM pending_blobs WHERE key = :key"


class PendingRows:
    """The rows. Each has a lease by the lease clock, or is *taken* (reserved for deletion) for good. Every method
    raises `StoreError`."""

    taking: tuple[Statement, ...] = (Statement(TAKE_OVERDUE, {}),)
    """The transaction that reserves all rows with an expired lease."""

    def __init__(self, tables: Tables) -> None:
        """`tables`: the caller closes them."""
        self.tables = tables

    async def begin(self, key: str, seconds: float) -> None:
        """Insert a row with a lease."""
        await self.tables.run([Statement(BEGIN, {"key": key, "lease": milliseconds(seconds)})], again=True)

    async def renew(self, holders: Sequence[str], seconds: float) -> frozenset[str]:
        """Extend the leases of these rows unless they are taken, even if they are expired. Returns the renewed keys."""
        return await renewed(self.tables, RENEW, holders, seconds)

    async def is_held(self, key: str) -> bool:
        """Whether this row exists and is not taken."""
        return bool(await self.tables.fetch(IS_HELD, {"key": key}))

    async def take_overdue(self) -> None:
        """Reserve all rows with an expired lease."""
        await self.tables.run(self.taking, again=True)

    async def taken(self, after: str, limit: int) -> Sequence[str]:
        """The keys of taken rows after this key, in order."""
        return [row[0] for row in await self.tables.fetch(TAKEN, {"after": after, "limit": limit})]

    async def forget(self, key: str) -> None:
        """Delete the row, taken or not."""
        await self.tables.run([Statement(FORGET, {"key": key})], again=True)


class PendingBlobs:
    """All operations on pending blobs, except turning them into files."""

    def __init__(self, rows: PendingRows, blobs: BlobStore, lease: float, leases: Leases | None = None) -> None:
        """`lease`: seconds without renewal after which an upload counts as abandoned. `leases` renews them."""
        self.rows = rows
        self._blobs = blobs
        self._leases = leases or Leases(lease)

    @asynccontextmanager
    async def uploading(self) -> AsyncIterator[PendingBlob]:
        """Begin a content. On exit, a content that is not settled is deleted."""
        key = new_blob_key()
        # A caller that is cancelled during this write leaves a row without a content; a sweep deletes it.
        await self.rows.begin(key, self._leases.seconds)
        self._leases.hold(self.rows, key)
        blob = PendingBlob(self, key)
        try:
            async with self._blobs.writing(key) as content:
                blob.content = content
                yield blob
        finally:
            if blob.settled:
                self._leases.drop(self.rows, key)
            else:
                await to_the_end(self.forget(key))

    def is_renewed(self, key: str) -> bool:
        """Whether this process still renews the lease."""
        return self._leases.holds(self.rows, key)

    async def open(self, key: str) -> BlobReader:
        """Open a content. Raises `StoreError`."""
        return await self._blobs.open(key)

    async def forget(self, key: str) -> None:
        """Delete a content that becomes no file, then its row. If that fails, the next sweep does it."""
        self._leases.drop(self.rows, key)
        try:
            await self._delete(key)
        except StoreError as error:
            _log.warning("blob_not_deleted", key=key, error=str(error))

    async def sweep(self) -> int:
        """Delete the contents that are taken or have an expired lease. Returns their number."""
        await self.rows.take_overdue()
        gone, failed, after = 0, 0, ""
        failure: StoreError | None = None
        while keys := await self.rows.taken(after, _BATCH):
            for after in keys:
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
        """Stop renewing, and wait for running operations on contents."""
        await self._leases.aclose()
        await self._blobs.aclose()

    async def _delete(self, key: str) -> None:
        await self._blobs.delete(key)
        await self.rows.forget(key)


class PendingBlob:
    """A content that is to become a file."""

    content: BlobWriter

    def __init__(self, pending: PendingBlobs, key: str) -> None:
        self._pending = pending
        self.key = key
        self.settled = False
        """Whether it belongs to a file, or may belong to one. Then only the rows decide about it."""

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self.content.size

    async def write(self, data: bytes) -> None:
        """Append. Raises `StoreError`, also when a sweep has reserved it."""
        if not self._pending.is_renewed(self.key):
            raise self.lost()
        await self.content.write(data)

    async def seal(self) -> Blob:
        """Make the content durable. Raises `StoreError`, also when a sweep has reserved it."""
        if not await self._pending.rows.is_held(self.key):
            raise self.lost()
        return await self.content.seal()

    def lost(self) -> StoreError:
        """The error of an upload that a sweep has reserved."""
        return StoreError("The upload paused for so long that the server deleted it. Send the file again.")
