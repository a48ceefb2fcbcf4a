"""A `BlobStore` in memory: shows that a `FileStore` needs no disk under it.

Invariant: what was sealed stays unless it is discarded or deleted; a content that is being written can be claimed by
nobody.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from antiphon.engine.ports.files import Blob
from antiphon.errors import StoreError


class MemoryBlobs:
    """Keeps contents in a dict."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self._written: set[str] = set()
        self._made = 0

    def abandon(self, data: bytes) -> None:
        """What a process leaves that was killed between its content and its row."""
        self._made += 1
        self.kept[f"{self._made}"] = data

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[_Writer]:
        self._made += 1
        writer = _Writer(self, f"{self._made}")
        self._written.add(writer.key)
        try:
            yield writer
        finally:
            self._written.discard(writer.key)
            if not writer.sealed:
                self.kept.pop(writer.key, None)

    async def open(self, key: str) -> _Reader:
        if key not in self.kept:
            raise StoreError("There is no such content.")
        return _Reader(self.kept[key])

    async def delete(self, key: str) -> None:
        self.kept.pop(key, None)

    async def keys(self) -> AsyncIterator[list[str]]:
        for key in list(self.kept):
            yield [key]

    @asynccontextmanager
    async def claim(self, key: str) -> AsyncIterator[_Claim | None]:
        free = key in self.kept and key not in self._written
        yield _Claim(self, key) if free else None

    async def aclose(self) -> None:
        pass


class _Writer:
    def __init__(self, blobs: MemoryBlobs, key: str) -> None:
        self._blobs = blobs
        self.key = key
        self.sealed = False
        blobs.kept[key] = b""

    @property
    def size(self) -> int:
        return len(self._blobs.kept[self.key])

    async def write(self, data: bytes) -> None:
        self._blobs.kept[self.key] += data

    async def seal(self) -> Blob:
        self.sealed = True
        data = self._blobs.kept[self.key]
        return Blob(self.key, len(data), hashlib.sha256(data).hexdigest())

    def discard(self) -> None:
        self.sealed = False


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def size(self) -> int:
        return len(self._data)

    @property
    def path(self) -> Path | None:
        return None

    async def read(self, start: int, limit: int) -> bytes:
        return self._data[start : start + limit]

    async def aclose(self) -> None:
        pass


class _Claim:
    def __init__(self, blobs: MemoryBlobs, key: str) -> None:
        self._blobs = blobs
        self._key = key

    async def delete(self) -> None:
        await self._blobs.delete(self._key)
