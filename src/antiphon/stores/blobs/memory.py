"""Stores file contents in memory: a `BlobStore` for a state that ends with the process.

Lives here: the contents. Not here: which contents are needed (the backends: `stores/sqlite/files.py`), their size limit
(`files.owner_bytes`).

Invariant: a content is readable from its completion (`seal`) until its deletion. A reader can finish reading a deleted
content.
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
    """A `BlobStore`. `contents` holds complete contents, `drafts` those during an upload."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}
        self.drafts: dict[str, bytearray] = {}

    @asynccontextmanager
    async def writing(self, key: str) -> AsyncIterator[MemoryBlobWriter]:
        """Begin a content under this key."""
        writer = MemoryBlobWriter(self, checked_key(key))
        try:
            yield writer
        finally:
            writer.closed = True

    async def open(self, key: str) -> MemoryBlobReader:
        """Open a content. Raises `StoreError` when it does not exist."""
        if checked_key(key) not in self.contents:
            raise StoreError("There is no such content.")
        return MemoryBlobReader(self.contents[key])

    async def delete(self, key: str) -> None:
        """Delete all of a content, if it exists."""
        self.contents.pop(checked_key(key), None)
        self.drafts.pop(key, None)

    async def aclose(self) -> None:
        """Do nothing: no operation runs in the background."""


class MemoryBlobWriter:
    """The upload of one file's content, before it is complete."""

    def __init__(self, blobs: MemoryBlobs, key: str) -> None:
        self._blobs = blobs
        self._key = key
        self._hash = hashlib.sha256()
        self.closed = False
        self.size = 0
        blobs.drafts[key] = bytearray()

    async def write(self, data: bytes) -> None:
        """Append."""
        if self.closed:
            raise StoreError("This content is closed.")
        self._blobs.drafts[self._key] += data
        self._hash.update(data)
        self.size += len(data)

    async def seal(self) -> Blob:
        """Complete the content."""
        if self.closed:
            raise StoreError("This content is closed.")
        self._blobs.contents[self._key] = bytes(self._blobs.drafts.pop(self._key))
        return Blob(self._key, self.size, self._hash.hexdigest())


class MemoryBlobReader:
    """An open content in memory."""

    path: Path | None = None

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._closed = False
        self.size = len(data)

    async def read(self, start: int, limit: int) -> bytes:
        """Bytes from `start`."""
        if self._closed:
            raise StoreError("This content is closed.")
        return self._data[start : start + max(0, limit)]

    async def aclose(self) -> None:
        """Close the content."""
        self._closed = True
