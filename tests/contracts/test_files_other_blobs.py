"""The file contract on SQLite and contents that lie somewhere else: nothing of it knows a disk."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from antiphon.stores import Stores, open_stores
from antiphon.stores.sqlite.files import SqliteFileStore
from tests.contracts.file_contract import OWNER_BYTES, FileStoreContract, content, fields, keep
from tests.contracts.store_contract import CHAIN_ITEMS
from tests.support.memory_blobs import MemoryBlobs


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[Stores]:
    opened = await open_stores(tmp_path, chain_items=CHAIN_ITEMS)
    yield opened
    await opened.aclose()


@pytest.fixture
def blobs() -> MemoryBlobs:
    return MemoryBlobs()


@pytest.fixture
def store(stores: Stores, blobs: MemoryBlobs) -> SqliteFileStore:
    files = stores.files
    return SqliteFileStore(files._writer, files._readers, blobs, owner_bytes=OWNER_BYTES)


class TestFilesWithOtherBlobs(FileStoreContract):
    @pytest.fixture
    def store(self, stores: Stores, blobs: MemoryBlobs) -> SqliteFileStore:
        files = stores.files
        return SqliteFileStore(files._writer, files._readers, blobs, owner_bytes=OWNER_BYTES)

    @pytest.fixture
    def peer(self, store: SqliteFileStore) -> SqliteFileStore:
        return store


async def test_a_sweep_takes_what_nobody_has(store: SqliteFileStore, blobs: MemoryBlobs) -> None:
    await keep(store, fields("a"), b"x")
    blobs.abandon(b"left")
    async with store.uploading() as upload:
        await upload.write(b"on its way")
        assert len(blobs.kept) == 3
        assert await store.sweep() == (0, 1)
        assert sorted(blobs.kept.values()) == [b"on its way", b"x"]
    assert await content(store, "file-a") == b"x"
    assert list(blobs.kept.values()) == [b"x"]
