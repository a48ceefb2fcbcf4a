"""The contract tests of every `FileStore`.

Lives here: the tests. Each implementation runs this suite in a separate `test_files_*.py`, which also opens its store.

Invariant: a test writes through `store` and reads through `peer`, which is the same store or a second one on the same
data.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from contextlib import aclosing

import pytest

from antiphon.engine.ports.files import FileFields, FileQuery, StoredFile
from antiphon.errors import OwnerFull, StoreError
from antiphon.stores.files import FileStore
from tests.contracts.store_contract import ALICE, BOB

OWNER_BYTES = 10_000_000
NOW = time.time()


def fields(name: str, *, at: float = NOW, purpose: str = "user_data", expires_at: float | None = None) -> FileFields:
    """The fields of the file `file-<name>`."""
    return FileFields(f"file-{name}", f"{name}.txt", purpose, "text/plain", at, expires_at)


async def keep(store: FileStore, given: FileFields, *parts: bytes, owner: str = ALICE) -> StoredFile:
    """Upload a file in these parts."""
    async with store.uploading() as upload:
        for part in parts:
            await upload.write(part)
        return await upload.keep(owner, given)


async def content(store: FileStore, file_id: str, owner: str = ALICE) -> bytes:
    """Read the whole content of an existing file."""
    opened = await store.open(owner, file_id)
    assert opened is not None
    async with aclosing(opened):
        return await opened.read()


class FileStoreContract:
    """The suite. Subclasses provide `store` and `peer`, opened with `owner_bytes=OWNER_BYTES`."""

    reads_on = True
    """Whether a reader can finish after the file is deleted."""

    async def test_what_was_kept_is_read_back(self, store: FileStore, peer: FileStore) -> None:
        parts = [random.Random(n).randbytes(100_000) for n in range(5)]
        made = await keep(store, fields("a", expires_at=NOW + 86_400), *parts)
        whole = b"".join(parts)
        assert (made.size, made.sha256) == (500_000, hashlib.sha256(whole).hexdigest())
        assert (made.id, made.name, made.purpose, made.media_type) == ("file-a", "a.txt", "user_data", "text/plain")
        assert made.expires_at == pytest.approx(NOW + 86_400, abs=0.001)
        assert await peer.get(ALICE, "file-a") == made
        opened = await peer.open(ALICE, "file-a")
        assert opened is not None
        async with aclosing(opened):
            assert opened.file == made
            assert await opened.read() == whole
            assert await opened.read(99_990, 20) == whole[99_990:100_010]
            assert await opened.read(499_990, 1000) == whole[-10:]
            assert await opened.read(500_000) == b"" == await opened.read(600_000, 5)
            assert opened.path is None or opened.path.read_bytes() == whole

    async def test_an_empty_file_is_a_file(self, store: FileStore, peer: FileStore) -> None:
        made = await keep(store, fields("a"))
        assert (made.size, made.sha256) == (0, hashlib.sha256(b"").hexdigest())
        assert await content(peer, "file-a") == b""

    async def test_what_does_not_exist(self, peer: FileStore) -> None:
        assert await peer.get(ALICE, "file-none") is None
        assert await peer.open(ALICE, "file-none") is None
        assert await peer.delete(ALICE, "file-none") is False
        assert await peer.used(ALICE) == 0
        page = await peer.list(ALICE, FileQuery())
        assert page is not None and page.items == () and not page.has_more
        assert await peer.list(ALICE, FileQuery(after="file-none")) is None

    async def test_another_owners_file_does_not_exist(self, store: FileStore, peer: FileStore) -> None:
        await keep(store, fields("a"), b"mine")
        assert await peer.get(BOB, "file-a") is None
        assert await peer.open(BOB, "file-a") is None
        assert await peer.delete(BOB, "file-a") is False
        assert await peer.list(BOB, FileQuery(after="file-a")) is None
        page = await peer.list(BOB, FileQuery())
        assert page is not None and page.items == ()
        assert await peer.used(BOB) == 0
        assert await content(peer, "file-a") == b"mine"

    async def test_what_is_not_kept_leaves_nothing(self, store: FileStore, peer: FileStore) -> None:
        async with store.uploading() as upload:
            await upload.write(b"x" * 1000)
            assert upload.size == 1000
        with pytest.raises(ZeroDivisionError):
            async with store.uploading() as upload:
                await upload.write(b"x")
                raise ZeroDivisionError
        assert await peer.used(ALICE) == 0

    async def test_deleting(self, store: FileStore, peer: FileStore) -> None:
        await keep(store, fields("a"), b"x" * 9999)
        opened = await peer.open(ALICE, "file-a")
        assert opened is not None
        async with aclosing(opened):
            assert await store.delete(ALICE, "file-a") is True
            if self.reads_on:
                assert await opened.read() == b"x" * 9999
            else:
                with pytest.raises(StoreError):
                    await opened.read()
        assert await peer.get(ALICE, "file-a") is None
        assert await peer.open(ALICE, "file-a") is None
        assert await peer.delete(ALICE, "file-a") is False
        assert await peer.used(ALICE) == 0

    async def test_an_expired_file_does_not_exist(self, store: FileStore, peer: FileStore) -> None:
        await keep(store, fields("old", at=NOW - 10, expires_at=NOW - 1), b"x")
        await keep(store, fields("new", expires_at=NOW + 86_400), b"y")
        assert await peer.get(ALICE, "file-old") is None
        assert await peer.open(ALICE, "file-old") is None
        assert await peer.delete(ALICE, "file-old") is False
        assert await peer.list(ALICE, FileQuery(after="file-old")) is None
        page = await peer.list(ALICE, FileQuery())
        assert page is not None and [file.id for file in page.items] == ["file-new"]

    @pytest.mark.parametrize("descending", [False, True])
    async def test_pages_in_both_orders(self, store: FileStore, peer: FileStore, descending: bool) -> None:
        wanted = []
        for n in range(7):
            purpose = "vision" if n % 3 == 0 else "user_data"
            # Some files have the same millisecond. In this case their ids decide the order.
            await keep(store, fields(f"{n}", at=NOW + n // 2, purpose=purpose), b"x")
            wanted.append(f"file-{n}")
        await keep(store, fields("bobs"), b"x", owner=BOB)
        if descending:
            wanted.reverse()
        for asked in (None, "vision"):
            seen: list[str] = []
            after: str | None = None
            for _ in range(10):
                page = await peer.list(ALICE, FileQuery(2, after, asked, descending))
                assert page is not None and len(page.items) <= 2
                seen += [file.id for file in page.items]
                if not page.has_more:
                    break
                after = seen[-1]
            assert seen == [each for each in wanted if asked is None or int(each[-1]) % 3 == 0]

    async def test_no_more_than_an_owner_may_have(self, store: FileStore, peer: FileStore) -> None:
        await keep(store, fields("a"), b"x" * 9_000_000)
        assert await peer.used(ALICE) == 9_000_000
        with pytest.raises(OwnerFull):
            await keep(store, fields("b"), b"x" * 1_000_001)
        assert await peer.get(ALICE, "file-b") is None
        await keep(store, fields("c"), b"x" * 1_000_000, owner=BOB)
        await keep(store, fields("d"), b"x" * 1_000_000)
        with pytest.raises(OwnerFull):
            await keep(store, fields("e"))  # An empty file uses space too.
        assert await store.delete(ALICE, "file-d")
        await keep(store, fields("e"))

    async def test_uploads_at_the_same_time_share_the_room(self, store: FileStore, peer: FileStore) -> None:
        async def one(number: int) -> bool:
            try:
                await keep(store if number % 2 else peer, fields(f"{number}"), b"x" * 3_000_000)
            except OwnerFull:
                return False
            return True

        kept = await asyncio.gather(*(one(number) for number in range(6)))
        assert sum(kept) == 3
        assert await peer.used(ALICE) == 9_000_000

    async def test_many_uploads_do_not_mix(self, store: FileStore, peer: FileStore) -> None:
        async def one(number: int) -> None:
            async with store.uploading() as upload:
                for _ in range(20):
                    await upload.write(b"%02d" % number)
                await upload.keep(ALICE, fields(f"{number}"))

        await asyncio.gather(*(one(number) for number in range(20)))
        for number in range(20):
            assert await content(peer, f"file-{number}") == b"%02d" % number * 20
