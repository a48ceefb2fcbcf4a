"""Runs the file contract on SQLite with a blob store that is not a disk, to check that no code depends on a disk."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from antiphon.stores.blobs.memory import MemoryBlobs
from antiphon.stores.files import FileStore
from antiphon.stores.sqlite.backend import SqliteStores, open_sqlite
from tests.contracts.file_contract import OWNER_BYTES, FileStoreContract, fields, keep
from tests.contracts.store_contract import ALICE, CHAIN_ITEMS
from tests.support.sqlite_files import files_of


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[SqliteStores]:
    opened = await open_sqlite(tmp_path, chain_items=CHAIN_ITEMS)
    yield opened
    await opened.aclose()


@pytest.fixture
def blobs() -> MemoryBlobs:
    return MemoryBlobs()


@pytest.fixture
def store(stores: SqliteStores, blobs: MemoryBlobs) -> FileStore:
    return files_of(stores, blobs, owner_bytes=OWNER_BYTES)


class TestFilesWithOtherBlobs(FileStoreContract):
    @pytest.fixture
    def store(self, stores: SqliteStores, blobs: MemoryBlobs) -> FileStore:
        return files_of(stores, blobs, owner_bytes=OWNER_BYTES)

    @pytest.fixture
    def peer(self, store: FileStore) -> FileStore:
        return store


async def test_nothing_is_left_of_what_is_no_file(store: FileStore, blobs: MemoryBlobs) -> None:
    await keep(store, fields("a"), b"x")
    async with store.uploading() as upload:
        await upload.write(b"on its way")
        assert await store.sweep() == (0, 0)
        assert len(blobs.drafts) == 1
    assert list(blobs.contents.values()) == [b"x"] and not blobs.drafts
    await store.delete(ALICE, "file-a")
    assert not blobs.contents
