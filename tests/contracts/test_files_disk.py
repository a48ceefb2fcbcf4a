"""The file contract on SQLite and a folder: one store, two on one folder, and what is left after a kill."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from antiphon.engine.ports.files import BlobClaim, FileQuery, NoRoom
from antiphon.errors import StoreError
from antiphon.stores import Stores, open_stores
from antiphon.stores.blobs.disk import DiskBlobs
from antiphon.stores.sqlite.files import SqliteFileStore
from antiphon.stores.sqlite.writer import Counts, Statement
from tests.contracts.file_contract import NOW, OWNER_BYTES, FileStoreContract, content, fields, keep
from tests.contracts.store_contract import ALICE, CHAIN_ITEMS
from tests.contracts.store_process import child_environment
from tests.support.waiting import until


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[Stores]:
    opened = await open_stores(tmp_path, chain_items=CHAIN_ITEMS, owner_file_bytes=OWNER_BYTES)
    yield opened
    await opened.aclose()


@pytest.fixture
def store(stores: Stores) -> SqliteFileStore:
    return stores.files


def contents(data: Path) -> list[Path]:
    """Every content on disk, whole or not."""
    return [path for path in (data / "files").rglob("*") if path.is_file()]


class TestDiskFiles(FileStoreContract):
    @pytest.fixture
    def store(self, stores: Stores) -> SqliteFileStore:
        return stores.files

    @pytest.fixture
    def peer(self, store: SqliteFileStore) -> SqliteFileStore:
        return store


class TestTwoStoresOfDiskFiles(FileStoreContract):
    @pytest.fixture
    def store(self, stores: Stores) -> SqliteFileStore:
        return stores.files

    @pytest.fixture
    async def peer(self, stores: Stores, tmp_path: Path) -> AsyncIterator[SqliteFileStore]:
        opened = await open_stores(tmp_path, chain_items=CHAIN_ITEMS, owner_file_bytes=OWNER_BYTES)
        yield opened.files
        await opened.aclose()


async def test_only_this_user_can_read_what_is_on_disk(store: SqliteFileStore, tmp_path: Path) -> None:
    await keep(store, fields("a"), b"x")
    assert {path.stat().st_mode & 0o777 for path in contents(tmp_path)} == {0o600}
    folders = [tmp_path / "files", *(path for path in (tmp_path / "files").rglob("*") if path.is_dir())]
    assert {path.stat().st_mode & 0o777 for path in folders} == {0o700}


async def test_nothing_is_left_on_disk_of_what_is_gone(store: SqliteFileStore, tmp_path: Path) -> None:
    await keep(store, fields("a"), b"x")
    async with store.uploading() as upload:
        await upload.write(b"y")
        assert len(contents(tmp_path)) == 2
    assert len(contents(tmp_path)) == 1
    await store.delete(ALICE, "file-a")
    with pytest.raises(NoRoom):
        await keep(store, fields("b"), b"x" * (OWNER_BYTES + 1))
    assert contents(tmp_path) == []


async def test_a_sweep_takes_what_expired(store: SqliteFileStore, tmp_path: Path) -> None:
    await keep(store, fields("old", at=NOW - 10, expires_at=NOW - 1), b"x")
    await keep(store, fields("new", expires_at=NOW + 1000), b"y")
    assert await store.sweep() == (1, 0)
    assert len(contents(tmp_path)) == 1 and await store.used(ALICE) == 4096
    assert await content(store, "file-new") == b"y"


async def test_a_file_goes_at_the_moment_it_expires(store: SqliteFileStore, tmp_path: Path) -> None:
    """Where it is gone for its owner, a sweep takes it from the disk as well."""
    at = 1_800_000_059.999
    timed = SqliteFileStore(store._writer, store._readers, store._blobs, clock=lambda: at)
    await keep(timed, fields("a", at=1_800_000_000.0, expires_at=1_800_000_060.0), b"x")
    assert await timed.sweep() == (0, 0) and await timed.get(ALICE, "file-a") is not None
    at = 1_800_000_060.0
    assert await timed.get(ALICE, "file-a") is None and await timed.sweep() == (1, 0)
    assert not contents(tmp_path)


async def test_what_is_sealed_was_flushed_before_it_got_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a machine that stops may leave a name without its content."""
    flushed: list[int] = []
    fsync, rename = os.fsync, Path.rename

    def flush(descriptor: int) -> None:
        fsync(descriptor)
        flushed.append(os.fstat(descriptor).st_ino)

    def place(path: Path, target: Path) -> Path:
        assert path.stat().st_ino in flushed
        placed.append(target)
        return rename(path, target)

    placed: list[Path] = []
    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(Path, "rename", place)
    blobs = DiskBlobs(tmp_path / "files")
    async with blobs.writing() as writer:
        await writer.write(b"x")
        await writer.seal()
    (target,) = placed
    # The folder as well, in which the name stands.
    assert target.parent.stat().st_ino in flushed[flushed.index(target.stat().st_ino) :]
    await blobs.aclose()


async def test_a_file_that_expired_is_told_of_before_it_goes(store: SqliteFileStore) -> None:
    """And again by the next sweep, when telling failed."""
    told: list[tuple[str, str]] = []

    async def tell(owner: str, file_id: str) -> None:
        told.append((owner, file_id))
        if len(told) == 1:
            raise StoreError("elsewhere")

    store.on_expired = tell
    await keep(store, fields("old", at=NOW - 10, expires_at=NOW - 1), b"x")
    with pytest.raises(StoreError, match="elsewhere"):
        await store.sweep()
    assert await store.used(ALICE) == 4096
    assert await store.sweep() == (1, 0)
    assert told == [(ALICE, "file-old")] * 2


async def test_a_sweep_takes_no_upload_that_goes_on(
    store: SqliteFileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither one that is being written, nor one whose content is whole and whose row is not there yet."""
    other = await open_stores(tmp_path, chain_items=CHAIN_ITEMS)
    run = store._writer.run
    swept = []

    async def sweep_first(statements: list[Statement], **more: Any) -> Counts:
        swept.append(await other.files.sweep())
        return await run(statements, **more)

    monkeypatch.setattr(store._writer, "run", sweep_first)
    async with store.uploading() as upload:
        await upload.write(b"x")
        assert await other.files.sweep() == (0, 0)
        await upload.write(b"y")
        await upload.keep(ALICE, fields("a"))
    assert swept == [(0, 0)]
    assert await content(other.files, "file-a") == b"xy"
    await other.aclose()


async def test_a_sweep_looks_again_once_it_has_the_content(
    store: SqliteFileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The upload ends between the sweep's look for a row and its claim: by then the content is a file's."""
    claim = store._blobs.claim
    sweeping = asyncio.Event()
    ended = asyncio.Event()

    @asynccontextmanager
    async def late(key: str) -> AsyncIterator[BlobClaim | None]:
        sweeping.set()
        await ended.wait()
        async with claim(key) as claimed:
            yield claimed

    monkeypatch.setattr(store._blobs, "claim", late)
    async with store.uploading() as upload:
        await upload.write(b"x")
        sweep = asyncio.create_task(store.sweep())
        await sweeping.wait()
        await upload.keep(ALICE, fields("a"))
    ended.set()
    assert await sweep == (0, 0)
    assert await content(store, "file-a") == b"x"


async def test_an_upload_that_is_cancelled_while_its_row_is_written(
    store: SqliteFileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock is held until the row is there or not, so no sweep takes the content of a row that comes late."""
    run = store._writer.run
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def late(statements: list[Statement], **more: Any) -> Counts:
        begun.set()
        await go_on.wait()
        return await run(statements, **more)

    monkeypatch.setattr(store._writer, "run", late)
    task = asyncio.create_task(keep(store, fields("a"), b"x"))
    await begun.wait()
    task.cancel()
    assert await store.sweep() == (0, 0)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await store.sweep() == (0, 0)
    assert await content(store, "file-a") == b"x"


async def test_a_failing_disk_is_a_store_error(
    store: SqliteFileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, data: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("antiphon.stores.blobs.disk.os.write", full)
    with pytest.raises(StoreError, match="No space left"):
        await keep(store, fields("a"), b"x")
    assert contents(tmp_path) == []
    page = await store.list(ALICE, FileQuery())
    assert page is not None and page.files == ()


async def test_a_content_that_somebody_took_away_is_a_store_error(store: SqliteFileStore, tmp_path: Path) -> None:
    await keep(store, fields("a"), b"x")
    contents(tmp_path)[0].unlink()
    with pytest.raises(StoreError, match="Opening a file failed"):
        await store.open(ALICE, "file-a")
    assert await store.delete(ALICE, "file-a")


async def test_a_writer_that_nobody_waits_for_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its content must not stay locked: then no sweep would ever find it."""
    blobs = DiskBlobs(tmp_path / "files")
    made = asyncio.Event()
    run = DiskBlobs.run

    async def slow(self: DiskBlobs, doing: str, action: Callable[[], object]) -> object:
        result = await run(self, doing, action)
        if doing == "Beginning a file":
            made.set()
            await asyncio.sleep(0)
        return result

    monkeypatch.setattr(DiskBlobs, "run", slow)

    async def begin() -> None:
        async with blobs.writing():
            raise AssertionError("it was cancelled before")

    task = asyncio.create_task(begin())
    await made.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not contents(tmp_path))
    await blobs.aclose()


@contextmanager
def _held(monkeypatch: pytest.MonkeyPatch, name: str) -> Iterator[tuple[threading.Event, threading.Event]]:
    """A disk that stands still in one call, in whichever thread: the events are that it does, and that it goes on."""
    stands, goes_on = threading.Event(), threading.Event()
    real = getattr(os, name)

    def slow(*given: object) -> object:
        if not goes_on.is_set():
            stands.set()
            assert goes_on.wait(30)
        return real(*given)

    monkeypatch.setattr(os, name, slow)
    try:
        yield stands, goes_on
    finally:
        goes_on.set()


async def test_who_leaves_during_a_flush_stops_nobody_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = DiskBlobs(tmp_path / "files")

    async def upload() -> None:
        async with blobs.writing() as writer:
            await writer.write(b"x")
            await writer.seal()

    with _held(monkeypatch, "fsync") as (stands, goes_on):
        task = asyncio.create_task(upload())
        await until(stands.is_set)
        task.cancel()
        # The loop goes on although the flush does not: else only the thirty seconds above would end this.
        for _ in range(100):
            await asyncio.sleep(0)
        assert not goes_on.is_set() and not task.done()
        goes_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert not contents(tmp_path), "it was sealed, and nobody heard of it"
    await blobs.aclose()


async def test_who_leaves_during_a_read_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = DiskBlobs(tmp_path / "files")
    async with blobs.writing() as writer:
        await writer.write(b"hello")
        kept = await writer.seal()
    reader = await blobs.open(kept.key)
    with _held(monkeypatch, "pread") as (stands, goes_on):
        reading = asyncio.create_task(reader.read(0, 5))
        await until(stands.is_set)
        reading.cancel()
        closing = asyncio.create_task(reader.aclose())
        for _ in range(100):
            await asyncio.sleep(0)
        assert not goes_on.is_set() and not closing.done()
        goes_on.set()
        await closing
    with pytest.raises(StoreError, match="closed"):
        await reader.read(0, 1)
    await blobs.aclose()


CHILD = """
import asyncio, sys, time
from pathlib import Path
from antiphon.engine.ports.files import FileFields
from antiphon.stores import open_stores

async def main():
    stores = await open_stores(Path(sys.argv[1]), chain_items=10)
    run = stores.files._writer.run

    async def never(statements, **more):
        print("sealed", flush=True)
        await asyncio.Event().wait()

    stores.files._writer.run = never
    async with stores.files.uploading() as half, stores.files.uploading() as whole:
        await half.write(b"half")
        await whole.write(b"whole")
        await whole.keep("alice", FileFields("file-a", "a", "user_data", "text/plain", time.time()))

asyncio.run(main())
"""


async def test_a_killed_process_leaves_orphans_that_a_sweep_finds(store: SqliteFileStore, tmp_path: Path) -> None:
    await keep(store, fields("mine"), b"x")
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", CHILD, str(tmp_path)), stdout=asyncio.subprocess.PIPE, env=child_environment()
    )
    assert child.stdout is not None
    assert await child.stdout.readline() == b"sealed\n"
    assert len(contents(tmp_path)) == 3
    assert await store.sweep() == (0, 0)  # it lives
    child.kill()
    assert await child.wait() == -9
    assert await store.sweep() == (0, 2)
    assert len(contents(tmp_path)) == 1
    assert await content(store, "file-mine") == b"x"
