"""The contract tests of every `BlobStore`.

Lives here: the tests. Each implementation runs this suite in a separate `test_*.py`, which also opens its store and
lists the remaining objects of its storage.

Invariant: a test writes through `blobs` and reads through `peer`, which is the same store or a second one on the same
storage.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable
from itertools import pairwise

import pytest

from antiphon.engine.ports.files import Blob, BlobStore, new_blob_key
from antiphon.errors import StoreError

Left = Callable[[], Awaitable[list[str]]]
"""Returns the names of all objects in the storage."""

# The size exceeds a chunk, a read-ahead window and a part of every storage, and is not a multiple of any of them.
LONG = (20 << 20) + 12_345


async def put(blobs: BlobStore, *parts: bytes) -> Blob:
    """Write a content in these parts."""
    async with blobs.writing(new_blob_key()) as writer:
        for part in parts:
            await writer.write(part)
        return await writer.seal()


async def got(blobs: BlobStore, key: str) -> bytes:
    """Read a whole content."""
    reader = await blobs.open(key)
    try:
        return await reader.read(0, reader.size)
    finally:
        await reader.aclose()


class BlobStoreContract:
    """The suite. Subclasses provide `blobs`, `peer` and `left`."""

    async def test_what_was_sealed_is_read_back(self, blobs: BlobStore, peer: BlobStore) -> None:
        parts = [random.Random(n).randbytes(100_000) for n in range(5)]
        whole = b"".join(parts)
        made = await put(blobs, *parts)
        assert (made.size, made.sha256) == (500_000, hashlib.sha256(whole).hexdigest())
        reader = await peer.open(made.key)
        assert reader.size == 500_000
        assert reader.path is None or reader.path.read_bytes() == whole
        spans = [(0, 10), (99_990, 20), (499_990, 1000), (500_000, 1), (600_000, 5), (7, 0), (7, -1), (0, 500_000)]
        for start, limit in spans:
            assert await reader.read(start, limit) == whole[start : start + max(0, limit)]
        await reader.aclose()
        await reader.aclose()
        with pytest.raises(StoreError, match="closed"):
            await reader.read(0, 1)

    async def test_an_empty_content_is_a_content(self, blobs: BlobStore, peer: BlobStore) -> None:
        for made in (await put(blobs), await put(blobs, b"", b"")):
            assert (made.size, made.sha256) == (0, hashlib.sha256(b"").hexdigest())
            assert await got(peer, made.key) == b""

    @pytest.mark.parametrize("size", [(8 << 20) - 1, 8 << 20, (8 << 20) + 1, 16 << 20, LONG])
    async def test_contents_longer_than_a_piece(self, blobs: BlobStore, peer: BlobStore, size: int) -> None:
        """A content may be written in one call or many, and read as a whole, part by part, or from any offset."""
        chance = random.Random(size)
        whole = chance.randbytes(size)
        cuts = [0, *sorted(chance.sample(range(size), 6)), size]
        made = [
            await put(blobs, whole),
            await put(blobs, *(whole[a:b] for a, b in pairwise(cuts))),
        ]
        for one in made:
            assert (one.size, one.sha256) == (size, hashlib.sha256(whole).hexdigest())
        assert await got(peer, made[0].key) == whole
        reader = await peer.open(made[1].key)
        parts, at = [], 0
        while part := await reader.read(at, 700_000):
            parts.append(part)
            at += len(part)
        assert b"".join(parts) == whole
        for _ in range(30):
            start, limit = chance.randrange(size), chance.choice([1, 64 << 10, 3 << 20])
            assert await reader.read(start, limit) == whole[start : start + limit]
        await reader.aclose()

    async def test_reading_on_here_and_there(self, blobs: BlobStore, peer: BlobStore) -> None:
        """Although the store reads ahead for a reader, each read must return the bytes at the requested offset."""
        whole = random.Random(1).randbytes(9 << 20)
        made = await put(blobs, whole)
        reader = await peer.open(made.key)
        at = 0
        for jump in (0, 0, 0, 5_000_000, 0, 0, -4_000_000, 0, 0, 7_000_000, 0):
            at += jump
            part = await reader.read(at, 65_536)
            assert part == whole[at : at + 65_536]
            at += len(part)
        await reader.aclose()

    async def test_what_is_not_sealed_cannot_be_read_and_goes_by_its_key(
        self, blobs: BlobStore, peer: BlobStore, left: Left
    ) -> None:
        keys = [new_blob_key(), new_blob_key()]
        async with blobs.writing(keys[0]) as writer:
            await writer.write(b"x" * LONG)
            with pytest.raises(StoreError):
                await peer.open(keys[0])
        with pytest.raises(ZeroDivisionError):
            async with blobs.writing(keys[1]) as writer:
                await writer.write(b"x")
                raise ZeroDivisionError
        for key in keys:
            with pytest.raises(StoreError):
                await peer.open(key)
            await peer.delete(key)
        assert await left() == []

    async def test_what_was_closed_takes_nothing(self, blobs: BlobStore, left: Left) -> None:
        key = new_blob_key()
        async with blobs.writing(key) as writer:
            await writer.write(b"x")
        for late in (writer.write(b"x"), writer.seal()):
            with pytest.raises(StoreError, match="closed"):
                await late
        await blobs.delete(key)
        assert await left() == []

    async def test_deleting(self, blobs: BlobStore, peer: BlobStore, left: Left) -> None:
        made, other = await put(blobs, b"x" * LONG), await put(blobs, b"y")
        await peer.delete(made.key)
        with pytest.raises(StoreError):
            await blobs.open(made.key)
        await peer.delete(made.key)
        await peer.delete(new_blob_key())
        assert await got(peer, other.key) == b"y"
        await peer.delete(other.key)
        assert await left() == []

    async def test_a_writer_that_leaves_in_the_middle(self, blobs: BlobStore, left: Left) -> None:
        """If a writer is cancelled at any moment, deleting its key removes everything that it wrote."""
        keys = []

        async def upload(key: str) -> None:
            async with blobs.writing(key) as writer:
                while True:
                    await writer.write(b"x" * 1_000_000)
                    await asyncio.sleep(0)

        for turns in (1, 5, 30):
            keys.append(new_blob_key())
            task = asyncio.create_task(upload(keys[-1]))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        for key in keys:
            await blobs.delete(key)
        assert await left() == []

    async def test_many_writers_do_not_mix(self, blobs: BlobStore, peer: BlobStore) -> None:
        async def one(number: int) -> Blob:
            async with blobs.writing(new_blob_key()) as writer:
                for _ in range(20):
                    await writer.write(b"%02d" % number)
                    await asyncio.sleep(0)
                return await writer.seal()

        made = await asyncio.gather(*(one(number) for number in range(20)))
        for number, blob in enumerate(made):
            assert await got(peer, blob.key) == b"%02d" % number * 20

    async def test_a_key_that_is_none(self, blobs: BlobStore) -> None:
        for key in ("", "x" * 48, "../" * 16, "0" * 47):
            with pytest.raises(StoreError, match="storage key is not 48 hexadecimal digits"):
                await blobs.open(key)
            with pytest.raises(StoreError, match="storage key is not 48 hexadecimal digits"):
                await blobs.delete(key)
            with pytest.raises(StoreError, match="storage key is not 48 hexadecimal digits"):
                async with blobs.writing(key):
                    pass
