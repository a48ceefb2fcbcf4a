"""Implements `BlobStore` in memory. All file contents are lost when the process ends.

Lives here: the bytes of all blobs. Not here: deciding which blobs to delete (`pending.py`), the size limit (setting
`files.owner_bytes`).

Invariant: a blob is readable from `seal` until `delete`. A `MemoryBlobReader` that was opened before the deletion can
still read the blob.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from antiphon.engine.ports.files import Blob
from antiphon.errors import StoreError
from antiphon.stores.blobs.disk import checked_key


class MemoryBlobs:
    """A `BlobStore` in memory. `contents`: the complete blobs by key. `drafts`: the blobs of running uploads."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}
        self.drafts: dict[str, bytearray] = {}

    @asynccontextmanager
    async def writing(self, key: str) -> AsyncIterator[MemoryBlobWriter]:
        """Begin the upload of a blob under this key."""
        writer = MemoryBlobWriter(self, checked_key(key))
        try:
            yield writer
        finally:
            writer.closed = True

    async def open(self, key: str) -> MemoryBlobReader:
        """Open a blob for reading. Raises `StoreError` when no blob has this key."""
        if checked_key(key) not in self.contents:
            raise StoreError("The content of the file is not in memory any more.")
        return MemoryBlobReader(self.contents[key])

    async def delete(self, key: str) -> None:
        """Delete the blob of this key, complete or not. Does nothing when no blob has this key."""
        self.contents.pop(checked_key(key), None)
        self.drafts.pop(key, None)

    async def aclose(self) -> None:
        """Do nothing: no operation runs in the background."""


class MemoryBlobWriter:
    """The running upload of one blob."""

    def __init__(self, blobs: MemoryBlobs, key: str) -> None:
        self._blobs = blobs
        self._key = key
        self._hash = hashlib.sha256()
        self.closed = False
        self.size = 0
        blobs.drafts[key] = bytearray()

    async def write(self, data: bytes) -> None:
        """Append `data`. Raises `StoreError` after the upload has ended."""
        if self.closed:
            raise StoreError("This file is closed: its upload has already ended.")
        self._blobs.drafts[self._key] += data
        self._hash.update(data)
        self.size += len(data)

    async def seal(self) -> Blob:
        """Complete the blob, which makes it readable. Returns the blob's size and SHA-256. Raises `StoreError` after
        the upload has ended."""
        if self.closed:
            raise StoreError("This file is closed: its upload has already ended.")
        self._blobs.contents[self._key] = bytes(self._blobs.drafts.pop(self._key))
        return Blob(self._key, self.size, self._hash.hexdigest())


class MemoryBlobReader:
    """A blob in memory that is open for reading."""

    path: Path | None = None

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._closed = False
        self.size = len(data)

    async def read(self, start: int, limit: int) -> bytes:
        """Return at most `limit` bytes from offset `start`. Raises `StoreError` after `aclose`."""
        if self._closed:
            raise StoreError("This file is closed: it cannot be read any more.")
        return self._data[start : start + max(0, limit)]

    async def aclose(self) -> None:
        """Close the reader."""
        self._closed = True
