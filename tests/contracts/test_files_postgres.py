"""Runs the file contract on PostgreSQL and a folder, and tests concurrent uploads and deletions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from antiphon.errors import OwnerFull, StoreError
from antiphon.stores.blobs.disk import DiskBlobs
from antiphon.stores.blobs.pending import PendingBlobs, PendingRows
from antiphon.stores.files import FileStore
from antiphon.stores.idempotency import IdempotencyStore
from antiphon.stores.postgres.backend import FILE_SQL
from antiphon.stores.postgres.database import Database
from antiphon.stores.postgres.tables import PostgresTables
from tests.contracts.file_contract import OWNER_BYTES, FileStoreContract, content, fields, keep
from tests.contracts.store_contract import ALICE, BOB
from tests.support.postgres import PATIENT, PostgresServer, blocked

# The shared contracts already test PostgreSQL in the quick tier.
pytestmark = pytest.mark.full

OVERDUE = "UPDATE pending_blobs SET lease_until = now() - interval '1 second' WHERE lease_until > '-infinity'"


@asynccontextmanager
async def opened(url: str, folder: Path) -> AsyncIterator[FileStore]:
    database, blobs = Database(url, PATIENT), DiskBlobs(folder)
    tables = PostgresTables(database)
    pending = PendingBlobs(PendingRows(tables), blobs, lease=900.0)
    files = FileStore(tables, IdempotencyStore(tables), FILE_SQL, pending, blobs, owner_bytes=OWNER_BYTES)
    yield files
    await files.aclose()
    await database.aclose()


class _OnPostgres(FileStoreContract):
    @pytest.fixture
    async def store(self, postgres_url: str, tmp_path: Path) -> AsyncIterator[FileStore]:
        async with opened(postgres_url, tmp_path) as files:
            yield files


class TestPostgresFiles(_OnPostgres):
    @pytest.fixture
    def peer(self, store: FileStore) -> FileStore:
        return store


class TestTwoPostgresStoresOfFiles(_OnPostgres):
    @pytest.fixture
    async def peer(self, store: FileStore, postgres_url: str, tmp_path: Path) -> AsyncIterator[FileStore]:
        async with opened(postgres_url, tmp_path) as files:
            yield files


@pytest.fixture
async def url(postgres: PostgresServer) -> AsyncIterator[str]:
    url = await postgres.new_database()
    yield url
    await postgres.drop_database(url)


@pytest.fixture
async def store(url: str, tmp_path: Path) -> AsyncIterator[FileStore]:
    async with opened(url, tmp_path) as files:
        yield files


@pytest.fixture
async def other(url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    """A connection of another process."""
    connection = await asyncpg.connect(url)
    yield connection
    await connection.close()


def contents(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def test_uploads_at_the_same_time_do_not_both_fit(store: FileStore, url: str, tmp_path: Path) -> None:
    """Two processes upload twice as many bytes as the owner's limit permits."""
    part = OWNER_BYTES // 5
    async with opened(url, tmp_path) as peer:
        results = await asyncio.gather(
            *[keep((store, peer)[n % 2], fields(f"n{n}"), b"x" * part) for n in range(10)], return_exceptions=True
        )
    assert sum(isinstance(one, OwnerFull) for one in results) == 5
    assert await store.used(ALICE) == 5 * part == await store.stored_bytes()
    assert len(contents(tmp_path)) == 5


async def test_room_is_given_back_in_whatever_way_a_file_goes(store: FileStore, other: asyncpg.Connection[Any]) -> None:
    for name in "abc":
        await keep(store, fields(name), b"x")
    await keep(store, fields("b"), b"x" * 5000, owner=BOB)
    assert (await store.used(ALICE), await store.used(BOB)) == (3 * 4096, 5000)
    await store.delete(ALICE, "file-a")
    await other.execute("UPDATE files SET expires_at = 0, gone_at = 0 WHERE id = 'file-b'")
    assert await store.sweep() == (2, 0)
    assert (await store.used(ALICE), await store.used(BOB)) == (4096, 0)
    await other.execute("DELETE FROM files")
    assert await store.used(ALICE) == 0


async def test_a_file_is_never_made_of_a_content_that_a_sweep_takes(
    store: FileStore, other: asyncpg.Connection[Any], tmp_path: Path
) -> None:
    async with store.uploading() as upload:
        await upload.write(b"x")
        await other.execute(OVERDUE)
        taking = other.transaction()
        await taking.start()
        await other.execute("UPDATE pending_blobs SET lease_until = '-infinity'")
        keeping = asyncio.ensure_future(upload.keep(ALICE, fields("a")))
        await blocked(other)
        await taking.commit()
        with pytest.raises(StoreError, match="paused for so long"):
            await keeping
    assert await store.get(ALICE, "file-a") is None and not contents(tmp_path)
    assert await store.used(ALICE) == 0


async def test_a_sweep_passes_over_what_becomes_a_file_at_the_moment(
    store: FileStore, other: asyncpg.Connection[Any], tmp_path: Path
) -> None:
    async with store.uploading() as upload:
        await upload.write(b"x")
        await other.execute(OVERDUE)
        keeping = other.transaction()
        await keeping.start()
        await other.execute("SELECT 1 FROM pending_blobs FOR UPDATE")
        assert await store.sweep() == (0, 0)
        await keeping.rollback()
        await upload.keep(ALICE, fields("a"))
    assert await content(store, "file-a") == b"x"


async def test_what_a_dead_process_left_is_swept(
    store: FileStore, other: asyncpg.Connection[Any], tmp_path: Path
) -> None:
    async with store.uploading() as upload:
        await upload.write(b"x")
        upload.blob.settled = True
    assert len(contents(tmp_path)) == 1 and await store.sweep() == (0, 0)
    await other.execute(OVERDUE)
    assert await store.sweep() == (0, 1)
    assert not contents(tmp_path) and await other.fetch("SELECT 1 FROM pending_blobs") == []
