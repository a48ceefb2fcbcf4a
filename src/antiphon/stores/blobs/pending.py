"""Contents that are no file's, or not yet: the pending blobs of `engine/ports/files.py`, in every backend.

Lives here: the order of row and content, leases, and the sweep that takes contents away. Not here: the rows
(`../pending_rows.py`), files, where contents lie (beside this).

Invariant: a content is deleted by a sweep only once its row is taken, from when on no file can be made of it; the row
goes after the content.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from antiphon.engine.ports.files import Blob, BlobReader, BlobStore, BlobWriter, new_blob_key
from antiphon.engine.running.leases import Leases
from antiphon.engine.running.waiting import to_the_end
from antiphon.errors import StoreError
from antiphon.stores.pending_rows import PendingRows

_log = structlog.get_logger(__name__)

UPLOAD_LEASE_SECONDS = 900.0

_BATCH = 200
# So many in a row are the storage's failure, not a content's.
_FAILURES = 3


class PendingBlobs:
    """Everything that is done with pending blobs but making files of them."""

    def __init__(self, rows: PendingRows, blobs: BlobStore, lease: float) -> None:
        """`lease`: seconds after which an upload that was not heard of counts as gone."""
        self.rows = rows
        self._blobs = blobs
        self._leases = Leases(lease)

    @asynccontextmanager
    async def uploading(self) -> AsyncIterator[PendingBlob]:
        """Begin a content. What is not settled when this ends is deleted."""
        key = new_blob_key()
        # Whoever leaves while the row is written leaves a row without a content, which a sweep takes.
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
        """Whether this process holds it, as far as it knows."""
        return self._leases.holds(self.rows, key)

    async def is_held(self, key: str) -> bool:
        """Whether a file can still be made of it."""
        return await self.rows.is_held(key)

    async def open(self, key: str) -> BlobReader:
        """Open a content. Raises `StoreError`."""
        return await self._blobs.open(key)

    async def forget(self, key: str) -> None:
        """Delete a content that will be no file's, then its row. Where that fails it is for the next sweep."""
        self._leases.drop(self.rows, key)
        try:
            await self._delete(key)
        except StoreError as error:
            _log.warning("blob_not_deleted", key=key, error=str(error))

    async def sweep(self) -> int:
        """Delete the contents that are taken or overdue; how many."""
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
        """Renew nothing any more, and let what was begun with contents end."""
        await self._leases.aclose()
        await self._blobs.aclose()

    async def _delete(self, key: str) -> None:
        await self._blobs.delete(key)
        await self.rows.forget(key)


class PendingBlob:
    """A content on its way to become a file's."""

    content: BlobWriter

    def __init__(self, pending: PendingBlobs, key: str) -> None:
        self._pending = pending
        self.key = key
        self.settled = False
        """Whether it is a file's, or may be: then what becomes of it is written in the rows."""

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self.content.size

    async def write(self, data: bytes) -> None:
        """Append. Raises `StoreError`, also when a sweep took it."""
        if not self._pending.is_renewed(self.key):
            raise self.lost()
        await self.content.write(data)

    async def seal(self) -> Blob:
        """Make the content durable. Raises `StoreError`, also when a sweep took it."""
        if not await self.is_held():
            raise self.lost()
        return await self.content.seal()

    async def is_held(self) -> bool:
        """Whether a file can still be made of it."""
        return await self._pending.is_held(self.key)

    def lost(self) -> StoreError:
        """What is said of an upload that a sweep took."""
        return StoreError(
            "The upload stood still for so long that it counted as broken off, and was deleted; send the file again."
        )
