"""The contents of files on their way from a data folder into a bucket.

Lives here: copying and comparing them. Not here: rows (`moved.py`), the order of the work (`moving.py`), the storages
(`blobs/`).

Invariants: one part of one content is held at a time; a content counts as moved once it was read back from the bucket
and is what its file's row says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from antiphon.engine.ports.files import BlobReader, BlobStore
from antiphon.errors import StoreError
from antiphon.stores.blobs.disk import FILES_FOLDER, DiskBlobs
from antiphon.stores.moved import COLUMNS, Counted, Leaving, Sum

_PART = 1 << 20
_KEY, _SIZE, _SHA256 = (COLUMNS["files"].index(name) for name in ("blob", "size", "sha256"))


class MovedContents:
    """Of the files in a data folder, into a bucket; both are its own."""

    def __init__(self, data: Path, bucket: BlobStore) -> None:
        self._folder = data / FILES_FOLDER
        self._source = DiskBlobs(self._folder)
        self._bucket = bucket

    async def move(self, leaving: Leaving) -> None:
        """Copy every file's content that is not in the bucket yet. Raises `StoreError`."""
        for key, size, sha256 in _files(leaving):
            if await self._size(key) == size:
                continue
            # Of one that was broken off.
            await self._bucket.delete(key)
            content = await self._source.open(key)
            try:
                async with self._bucket.writing(key) as writer:
                    at = 0
                    while part := await content.read(at, _PART):
                        await writer.write(part)
                        at += len(part)
                    sealed = await writer.seal()
            finally:
                await content.aclose()
            if (sealed.size, sealed.sha256) != (size, sha256):
                raise StoreError(f"The content {key} in {self._folder} is not what its file's row says.")

    async def compared(self, leaving: Leaving) -> tuple[Counted, Counted]:
        """What the rows say, and what the bucket has, which is the same. Raises `StoreError`."""
        source, target, total = Sum(), Sum(), 0
        for key, size, sha256 in _files(leaving):
            content = await self._bucket.open(key)
            try:
                there = (content.size, await _hash(content))
            finally:
                await content.aclose()
            if there != (size, sha256):
                await self._bucket.delete(key)
                raise StoreError(f"The content {key} came into the bucket as another one. Run the move again.")
            source.add((key, size, sha256))
            target.add((key, *there))
            total += size
        return replace(source.counted, content_bytes=total), replace(target.counted, content_bytes=total)

    async def aclose(self) -> None:
        """Let both go."""
        await self._bucket.aclose()
        await self._source.aclose()

    async def _size(self, key: str) -> int | None:
        try:
            content = await self._bucket.open(key)
        except StoreError:
            return None
        await content.aclose()
        return content.size


def _files(leaving: Leaving) -> Iterator[tuple[str, int, str]]:
    """Key, size and SHA-256 of each file's content."""
    for _, row in leaving.rows("files", 0):
        yield row[_KEY], row[_SIZE], row[_SHA256]


async def _hash(content: BlobReader) -> str:
    found, at = hashlib.sha256(), 0
    while part := await content.read(at, _PART):
        found.update(part)
        at += len(part)
    return found.hexdigest()
