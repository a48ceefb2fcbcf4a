"""A `BlobStore` in memory: shows that a `FileStore` needs no disk under it.

Invariant: what was written stays until it is deleted, and can be read once it was sealed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from antiphon.engine.ports.files import Blob
from antiphon.errors import StoreError


class MemoryBlobs:
    """Keeps contents in dicts: `kept` the whole ones, `drafts` those on their way."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.drafts: dict[str, bytes] = {}

    @asynccontextmanager
    async def writing(self, key: str) -> AsyncIterator[_Writer]:
        writer = _Writer(self, _checked(key))
        try:
            yield writer
        finally:
            writer.closed = True

    async def open(self, key: str) -> _Reader:
        if _checked(key) not in self.kept:
            raise StoreError("There is no such content.")
        return _Reader(self.kept[key])

    async def delete(self, key: str) -> None:
        self.kept.pop(_checked(key), None)
        self.drafts.pop(key, None)

    async def aclose(self) -> None:
        pass


class _Writer:
    def __init__(self, blobs: MemoryBlobs, key: str) -> None:
        self._blobs = blobs
        self._key = key
        self.closed = False
        self.size = 0
        blobs.drafts[key] = b""

    async def write(self, data: bytes) -> None:
        if self.closed:
            raise StoreError("This content is closed.")
        self._blobs.drafts[self._key] += data
        self.size += len(data)

    async def seal(self) -> Blob:
        if self.closed:
            raise StoreError("This content is closed.")
        data = self._blobs.kept[self._key] = self._blobs.drafts.pop(self._key)
        return Blob(self._key, len(data), hashlib.sha256(data).hexdigest())


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._closed = False

    @property
    def size(self) -> int:
        return len(self._data)

    @property
    def path(self) -> Path | None:
        return None

    async def read(self, start: int, limit: int) -> bytes:
        if self._closed:
            raise StoreError("This content is closed.")
        return self._data[start : start + max(0, limit)]

    async def aclose(self) -> None:
        self._closed = True


def _checked(key: str) -> str:
    if not re.fullmatch("[0-9a-f]{48}", key):
        raise StoreError("This content has a key that is none of ours.")
    return key
