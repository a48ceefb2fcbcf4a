"""Tracks pending blobs for every backend. A pending blob is a file content without a file row, during an upload or
after a deletion (`engine/ports/files.py`).

Lives here: the table `pending_blobs`, the leases of uploads, and the sweep that deletes abandoned blobs. A row of a
file or of a code container owns its blob. The stores of these rows run the SQL statements `KEEP` and `LET_GO` when they
add or delete such a row. Not here: file rows (`../files.py`), the storage of blobs (the other modules of this folder).

Invariants: after a sweep has reserved a row ("taken"), no process renews its lease or adds a file row for its blob.
Renewing a lease and adding a file row both check the pending row in their transaction. A sweep first reserves the row,
then deletes the blob, then the row.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import structlog

from antiphon.engine.ports.files import Blob, BlobReader, BlobStore, BlobWriter, new_blob_key
from antiphon.engine.waiting import to_the_end
from antiphon.errors import StoreError
from antiphon.stores.leases import Leases
from antiphon.stores.tables import Statement, Tables, milliseconds, renew_leases

_log = structlog.get_logger(__name__)

UPLOAD_LEASE_SECONDS = 900.0

_BATCH = 200
# After this many consecutive failures, the sweep stops, because the storage is failing rather than a single blob.
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
# Runs in the transaction that adds the file row of an uploaded blob.
KEEP = "DELETE FROM pending_blobs WHERE key = :blob AND lease_until > taken()"
# Runs in the transaction that deletes a file row.
LET_GO = """
INSERT INTO pending_blobs (key, lease_until) VALUES (:blob, taken())
ON CONFLICT (key) DO UPDATE SET lease_until = taken()
"""
IS_HELD = "SELECT 1 FROM pending_blobs WHERE key = :key AND lease_until > taken()"
# Skips a row that another transaction has locked, because that transaction renews the lease or adds the file row.
TAKE_OVERDUE = """
UPDATE pending_blobs SET lease_until = taken() WHERE key IN (
  SELECT key FROM pending_blobs WHERE lease_until > taken() AND lease_until <= lease_now() FOR UPDATE SKIP LOCKED
)
"""
TAKEN = "SELECT key FROM pending_blobs WHERE lease_until = taken() AND key > :after ORDER BY key LIMIT :limit"
FORGET = "DELETE FROM pending_blobs WHERE key = :key"


class PendingRows:
    """The rows of the table `pending_blobs`. Each row has a lease, or is *taken*. A sweep has reserved a taken row for
    deletion, and no process can undo the reservation. On PostgreSQL the database's clock decides when a lease expires,
    and on SQLite this machine's clock. Every method raises `StoreError` when the database fails."""

    taking: tuple[Statement, ...] = (Statement(TAKE_OVERDUE, {}),)
    """The transaction that reserves all rows with an expired lease."""

    def __init__(self, tables: Tables) -> None:
        """`tables`: the database, which the caller closes."""
        self.tables = tables

    async def begin(self, key: str, seconds: float) -> None:
        """Insert the pending row of a new blob, with a lease of `seconds`."""
        await self.tables.run([Statement(BEGIN, {"key": key, "lease": milliseconds(seconds)})], again=True)

    async def renew(self, holders: Sequence[str], seconds: float) -> frozenset[str]:
        """Renew the leases of the blobs with these keys for `seconds`. This method also renews an expired lease, unless
        a sweep has already reserved its row for deletion. Returns the keys of the blobs whose leases were renewed."""
        return await renew_leases(self.tables, RENEW, holders, seconds)

    async def is_held(self, key: str) -> bool:
        """Return whether the row of the blob with this key exists and no sweep has reserved it for deletion."""
        return bool(await self.tables.fetch(IS_HELD, {"key": key}))

    async def take_overdue(self) -> None:
        """Reserve all rows with an expired lease for deletion."""
        await self.tables.run(self.taking, again=True)

    async def taken(self, after: str, limit: int) -> Sequence[str]:
        """Return the keys of rows that a sweep has reserved for deletion, in order, starting after the key `after`.
        Returns at most `limit` keys."""
        return [row[0] for row in await self.tables.fetch(TAKEN, {"after": after, "limit": limit})]

    async def forget(self, key: str) -> None:
        """Delete the row of the blob with this key, whether or not a sweep has reserved the row."""
        await self.tables.run([Statement(FORGET, {"key": key})], again=True)


class PendingBlobs:
    """Uploads, renews, deletes and sweeps pending blobs. The file store adds the file rows (`../files.py`)."""

    def __init__(self, rows: PendingRows, blobs: BlobStore, lease: float, leases: Leases | None = None) -> None:
        """`lease`: seconds without renewal after which an upload counts as abandoned. `leases` renews the leases of
        running uploads."""
        self.rows = rows
        self._blobs = blobs
        self._leases = leases or Leases(lease)

    @asynccontextmanager
    async def uploading(self) -> AsyncIterator[PendingBlob]:
        """Begin the upload of a blob under a new key. On exit, delete the blob unless the caller has set the attribute
        `settled` of the blob."""
        key = new_blob_key()
        # If the caller is cancelled during this write, a row without a blob remains, and a sweep deletes the row.
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
        """Return whether this process still renews the lease of the blob with this key."""
        return self._leases.holds(self.rows, key)

    async def open(self, key: str) -> BlobReader:
        """Open a stored blob for reading. Raises `StoreError`."""
        return await self._blobs.open(key)

    async def forget(self, key: str) -> None:
        """Delete a blob that no file needs, then its row in `pending_blobs`. If the deletion fails, log a warning. A
        later sweep deletes the blob and the row."""
        self._leases.drop(self.rows, key)
        try:
            await self._delete(key)
        except StoreError as error:
            _log.warning("blob_not_deleted", key=key, error=str(error))

    async def sweep(self) -> int:
        """Delete all blobs whose row has an expired lease, or is already reserved for deletion. Returns the number of
        deleted blobs. Raises `StoreError` at the end if a blob could not be deleted."""
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
        """Stop renewing leases, and wait for running operations on blobs."""
        await self._leases.aclose()
        await self._blobs.aclose()

    async def _delete(self, key: str) -> None:
        await self._blobs.delete(key)
        await self.rows.forget(key)


class PendingBlob:
    """A blob during its upload."""

    content: BlobWriter

    def __init__(self, pending: PendingBlobs, key: str) -> None:
        self._pending = pending
        self.key = key
        self.settled = False
        """Whether a file row refers to the blob, or may refer to it after a write with an unknown outcome. If True,
        `uploading` does not delete the blob on exit."""

    @property
    def size(self) -> int:
        """The number of bytes written so far."""
        return self.content.size

    async def write(self, data: bytes) -> None:
        """Append `data`. Raises `StoreError` when the storage fails, or when this process has lost the lease of the
        upload."""
        if not self._pending.is_renewed(self.key):
            raise self.lost()
        await self.content.write(data)

    async def seal(self) -> Blob:
        """Make the blob durable. Raises `StoreError` when the storage fails, or when a sweep has reserved the blob for
        deletion."""
        if not await self._pending.rows.is_held(self.key):
            raise self.lost()
        return await self.content.seal()

    def lost(self) -> StoreError:
        """Return the error for an upload that a sweep has reserved for deletion."""
        return StoreError("The upload paused for so long that the server deleted it. Send the file again.")
