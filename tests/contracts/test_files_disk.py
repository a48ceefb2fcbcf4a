"""Runs the file contract on SQLite and a folder: with one store, with two on one folder, and after a kill."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from antiphon.engine.ports.files import FileQuery, new_blob_key
from antiphon.errors import OwnerFull, StoreError
from antiphon.stores.blobs.disk import DiskBlobs
from antiphon.stores.blobs.pending import FORGET, KEEP
from antiphon.stores.files import FileStore
from antiphon.stores.leases import Leases
from antiphon.stores.sqlite.backend import SqliteStores, open_sqlite
from antiphon.stores.sqlite.tables import sqlite_sql
from antiphon.stores.tables import Counts, Statement
from tests.contracts.file_contract import NOW, OWNER_BYTES, content, fields, keep
from tests.contracts.store_contract import ALICE, CHAIN_ITEMS
from tests.contracts.store_process import child_environment
from tests.support.file_room import file_room
from tests.support.sqlite_files import files_of
from tests.support.waiting import until


@pytest.fixture
def blobs(tmp_path: Path) -> DiskBlobs:
    return DiskBlobs(tmp_path / "files")


@pytest.fixture
async def stores(tmp_path: Path, blobs: DiskBlobs) -> AsyncIterator[SqliteStores]:
    opened = await open_sqlite(tmp_path, chain_items=CHAIN_ITEMS, owner_file_bytes=OWNER_BYTES, blobs=blobs)
    yield opened
    await opened.aclose()


@pytest.fixture
def store(stores: SqliteStores) -> FileStore:
    return stores.files


def contents(data: Path) -> list[Path]:
    """The paths of all contents on the disk, complete or not."""
    return [path for path in (data / "files").rglob("*") if path.is_file()]


async def pending(stores: SqliteStores) -> list[str]:
    """The contents with a pending row."""
    return [row[0] for row in await stores.tables.readers.fetch("SELECT key FROM pending_blobs WHERE key <> '*'", {})]


async def run_out(stores: SqliteStores) -> None:
    """Expire every lease of an upload."""
    await stores.tables.writer.run([Statement("UPDATE pending_blobs SET lease_until = 1 WHERE lease_until > 0")])


async def test_only_this_user_can_read_what_is_on_disk(store: FileStore, tmp_path: Path) -> None:
    await keep(store, fields("a"), b"x")
    assert {path.stat().st_mode & 0o777 for path in contents(tmp_path)} == {0o600}
    folders = [tmp_path / "files", *(path for path in (tmp_path / "files").rglob("*") if path.is_dir())]
    assert {path.stat().st_mode & 0o777 for path in folders} == {0o700}


async def test_nothing_is_left_on_disk_of_what_is_gone(store: FileStore, tmp_path: Path) -> None:
    await keep(store, fields("a"), b"x")
    async with store.uploading() as upload:
        await upload.write(b"y")
        assert len(contents(tmp_path)) == 2
    assert len(contents(tmp_path)) == 1
    await store.delete(ALICE, "file-a")
    with pytest.raises(OwnerFull):
        await keep(store, fields("b"), b"x" * (OWNER_BYTES + 1))
    assert contents(tmp_path) == []


async def test_a_sweep_takes_what_expired(store: FileStore, tmp_path: Path) -> None:
    await keep(store, fields("old", at=NOW - 10, expires_at=NOW - 1), b"x")
    await keep(store, fields("new", expires_at=NOW + 86_400), b"y")
    assert await store.sweep() == (1, 0)
    assert len(contents(tmp_path)) == 1 and await store.used(ALICE) == 4096
    assert await content(store, "file-new") == b"y"


async def test_a_file_goes_at_the_moment_it_expires(stores: SqliteStores, blobs: DiskBlobs, tmp_path: Path) -> None:
    """When a file has expired for its owner, the next sweep also deletes it from the disk."""
    at = 1_800_000_059.999
    timed = files_of(stores, blobs, clock=lambda: at)
    await keep(timed, fields("a", at=1_800_000_000.0, expires_at=1_800_000_060.0), b"x")
    assert await timed.sweep() == (0, 0) and await timed.get(ALICE, "file-a") is not None
    at = 1_800_000_060.0
    assert await timed.get(ALICE, "file-a") is None and await timed.sweep() == (1, 0)
    assert not contents(tmp_path)


async def test_what_is_sealed_was_flushed_before_it_got_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a crash of the machine might leave a name without its content."""
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
    async with blobs.writing(new_blob_key()) as writer:
        await writer.write(b"x")
        await writer.seal()
    (target,) = placed
    # The folder that contains the name is flushed too.
    assert target.parent.stat().st_ino in flushed[flushed.index(target.stat().st_ino) :]
    await blobs.aclose()


async def test_a_file_that_expired_is_told_of_before_it_goes(store: FileStore) -> None:
    """The sweep notifies the listener before it deletes an expired file, and notifies again if that failed."""
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


async def test_a_sweep_takes_no_upload_that_goes_on(stores: SqliteStores, store: FileStore, tmp_path: Path) -> None:
    """The sweep keeps an upload that is being written, and one whose content is complete and whose row does not exist
    yet."""
    other = await open_sqlite(tmp_path, chain_items=CHAIN_ITEMS)
    run = stores.tables.writer.run
    swept = []

    async def sweep_first(statements: list[Statement], **more: Any) -> Counts:
        swept.append(await other.files.sweep())
        return await run(statements, **more)

    stores.tables.writer.run = sweep_first  # type: ignore[method-assign, assignment]
    async with store.uploading() as upload:
        await upload.write(b"x")
        assert await other.files.sweep() == (0, 0)
        await upload.write(b"y")
        await upload.keep(ALICE, fields("a"))
    assert len(swept) == 2 and set(swept) == {(0, 0)}
    assert await content(other.files, "file-a") == b"xy"
    await other.aclose()


async def test_an_upload_that_a_sweep_took_is_no_file(stores: SqliteStores, blobs: DiskBlobs, tmp_path: Path) -> None:
    """A process that paused for longer than its lease finds that it lost the upload, and leaves no content."""
    store = stores.files
    with pytest.raises(StoreError, match="paused for so long"):
        async with store.uploading() as upload:
            await upload.write(b"x")
            await run_out(stores)
            assert await store.sweep() == (0, 1)
            await upload.keep(ALICE, fields("a"))
    # If a renewal detects that the upload was lost, the next write already reports it.
    go_on = asyncio.Event()

    async def sleep(seconds: float) -> None:
        await go_on.wait()

    renewing = files_of(stores, blobs, leases=Leases(900.0, sleep))
    with pytest.raises(StoreError, match="paused for so long"):
        async with renewing.uploading() as upload:
            await upload.write(b"x")
            await run_out(stores)
            assert await store.sweep() == (0, 1)
            await upload.write(b"y")
            go_on.set()
            async with asyncio.timeout(60):
                while True:
                    await upload.write(b"y")
    assert contents(tmp_path) == [] and await pending(stores) == []
    assert await store.get(ALICE, "file-a") is None


async def test_no_file_is_made_of_what_a_sweep_takes_at_the_last_moment(stores: SqliteStores, tmp_path: Path) -> None:
    """The content is sealed, and a sweep takes it before the file's row is written."""
    store = stores.files
    other = await open_sqlite(tmp_path, chain_items=CHAIN_ITEMS)
    run = stores.tables.writer.run

    async def taken_first(statements: list[Statement], **more: Any) -> Counts:
        if statements[-1].sql == sqlite_sql(KEEP):
            await run_out(other)
            assert await other.files.sweep() == (0, 1)
        return await run(statements, **more)

    stores.tables.writer.run = taken_first  # type: ignore[method-assign, assignment]
    with pytest.raises(StoreError, match="paused for so long"):
        await keep(store, fields("a"), b"x")
    assert contents(tmp_path) == [] and await pending(stores) == []
    assert await other.files.get(ALICE, "file-a") is None
    await other.aclose()


async def test_an_upload_is_renewed_for_as_long_as_it_takes(stores: SqliteStores, blobs: DiskBlobs) -> None:
    """The process renews the lease of a slow upload, even if no byte arrives."""
    slept, go_on = asyncio.Event(), asyncio.Event()

    async def sleep(seconds: float) -> None:
        assert seconds == 300
        slept.set()
        await go_on.wait()
        go_on.clear()

    store = files_of(stores, blobs, leases=Leases(900.0, sleep))
    async with store.uploading() as upload:
        await slept.wait()
        await run_out(stores)
        slept.clear()
        go_on.set()
        await slept.wait()
        assert await store.sweep() == (0, 0)
        await upload.write(b"x")
        await upload.keep(ALICE, fields("a"))
    assert await content(store, "file-a") == b"x" and await pending(stores) == []


@pytest.mark.parametrize("at", ["content", "row"])
async def test_a_file_that_could_not_be_deleted_whole_goes_with_the_next_sweep(
    stores: SqliteStores, blobs: DiskBlobs, tmp_path: Path, at: str
) -> None:
    """The file disappears immediately. Later sweeps delete its content, and then its pending row."""
    store = stores.files
    await keep(store, fields("a"), b"x")

    async def fails(*given: object) -> None:
        raise StoreError("Not now.")

    delete, run = blobs.delete, stores.tables.writer.run

    async def no_forgetting(statements: list[Statement], **more: Any) -> Counts:
        if statements[0].sql == sqlite_sql(FORGET):
            raise StoreError("Not now.")
        return await run(statements, **more)

    if at == "content":
        blobs.delete = fails  # type: ignore[method-assign, assignment]
    else:
        stores.tables.writer.run = no_forgetting  # type: ignore[method-assign, assignment]
    assert await store.delete(ALICE, "file-a")
    assert await store.get(ALICE, "file-a") is None
    assert len(contents(tmp_path)) == (at == "content") and len(await pending(stores)) == 1
    with pytest.raises(StoreError, match="Not now"):
        await store.sweep()
    blobs.delete, stores.tables.writer.run = delete, run  # type: ignore[method-assign]
    assert await store.sweep() == (0, 1)
    assert contents(tmp_path) == [] and await pending(stores) == []


async def test_one_content_that_cannot_be_deleted_keeps_no_other(
    stores: SqliteStores, blobs: DiskBlobs, tmp_path: Path
) -> None:
    """If the deletion of several contents in a row fails, the storage itself has failed, and the sweep ends."""
    store = stores.files
    for name in "abcdef":
        await keep(store, fields(name), b"x")
    delete = blobs.delete
    failing = True
    tried: list[str] = []

    async def fails(key: str) -> None:
        tried.append(key)
        if failing or key == min(tried):
            raise StoreError("Not now.")
        await delete(key)

    blobs.delete = fails  # type: ignore[method-assign]
    for name in "abcdef":
        assert await store.delete(ALICE, f"file-{name}")
    tried.clear()
    with pytest.raises(StoreError, match="Not now"):
        await store.sweep()
    assert len(tried) == 3
    failing = False
    with pytest.raises(StoreError, match="Not now"):
        await store.sweep()
    assert len(contents(tmp_path)) == 1


async def test_contents_of_before_are_looked_for_once(stores: SqliteStores, tmp_path: Path) -> None:
    """An older version left contents without a row. Such a content has the time of one lease to become a file, because
    a process of that version may still be writing it."""
    store = stores.files
    await keep(store, fields("a"), b"a")
    old = [DiskBlobs(tmp_path / "files").place(letter * 48) for letter in "bc"]
    for place in old:
        place.parent.mkdir(parents=True)
        place.write_bytes(b"left")
    half = tmp_path / "files" / "new" / ("d" * 48)
    half.write_bytes(b"half")
    assert await store.sweep() == (0, 0) and len(contents(tmp_path)) == 4
    # A process of an older version turns one of these contents into a file.
    await stores.tables.writer.run([Statement("UPDATE files SET blob = ? WHERE id = 'file-a'", ("b" * 48,))])
    await run_out(stores)
    assert await store.sweep() == (0, 2)
    assert await content(store, "file-a") == b"left" and await pending(stores) == []
    assert not half.exists() and not old[1].exists()
    half.write_bytes(b"half")
    await store.sweep()
    await run_out(stores)
    assert await store.sweep() == (0, 0) and half.exists()


async def test_an_upload_that_is_cancelled_while_its_row_is_written(stores: SqliteStores, store: FileStore) -> None:
    """The process renews the lease until the row's write has ended. So no sweep takes the content of a row that is
    written late."""
    run = stores.tables.writer.run
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def late(statements: list[Statement], **more: Any) -> Counts:
        if statements[-1].sql == sqlite_sql(KEEP):
            begun.set()
            await go_on.wait()
        return await run(statements, **more)

    stores.tables.writer.run = late  # type: ignore[method-assign, assignment]
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


async def test_a_failing_disk_is_a_store_error(store: FileStore, tmp_path: Path) -> None:
    with file_room(1 << 20), pytest.raises(StoreError, match="File too large"):
        await keep(store, fields("a"), b"x" * (2 << 20))
    assert contents(tmp_path) == []
    page = await store.list(ALICE, FileQuery())
    assert page is not None and page.items == ()


async def test_a_content_that_somebody_took_away_is_a_store_error(store: FileStore, tmp_path: Path) -> None:
    await keep(store, fields("a"), b"x")
    contents(tmp_path)[0].unlink()
    with pytest.raises(StoreError, match="Opening a file failed"):
        await store.open(ALICE, "file-a")
    assert await store.delete(ALICE, "file-a")


async def test_an_upload_that_is_cancelled_while_it_begins(
    store: FileStore, stores: SqliteStores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread may create the file after its upload was cancelled. This file must be deleted too."""
    with _held(monkeypatch, "open") as (stands, goes_on):
        task = asyncio.create_task(keep(store, fields("a"), b"x"))
        await until(stands.is_set)
        task.cancel()
        goes_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert not contents(tmp_path) and await pending(stores) == []


@contextmanager
def _held(monkeypatch: pytest.MonkeyPatch, name: str) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Block the disk in one call, in any thread. The first event is set when the call is blocked, and the second
    releases it."""
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
    store: FileStore, stores: SqliteStores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _held(monkeypatch, "fsync") as (stands, goes_on):
        task = asyncio.create_task(keep(store, fields("a"), b"x"))
        await until(stands.is_set)
        task.cancel()
        # The event loop continues although the flush is blocked. Otherwise only the timeout of thirty seconds would end
        # this wait.
        for _ in range(100):
            await asyncio.sleep(0)
        assert not goes_on.is_set() and not task.done()
        goes_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert not contents(tmp_path) and await pending(stores) == [], "it was sealed, and nobody heard of it"


async def test_who_leaves_during_a_read_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = DiskBlobs(tmp_path / "files")
    async with blobs.writing(new_blob_key()) as writer:
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
from antiphon.stores.sqlite.backend import open_sqlite

async def main():
    stores = await open_sqlite(Path(sys.argv[1]), chain_items=10)
    run = stores.tables.writer.run

    async def never(statements, **more):
        print("sealed", flush=True)
        await asyncio.Event().wait()

    async with stores.files.uploading() as half, stores.files.uploading() as whole:
        await half.write(b"half")
        await whole.write(b"whole")
        stores.tables.writer.run = never
        await whole.keep("alice", FileFields("file-a", "a", "user_data", "text/plain", time.time()))

asyncio.run(main())
"""


async def test_a_killed_process_leaves_nothing_after_a_sweep(
    store: FileStore, stores: SqliteStores, tmp_path: Path
) -> None:
    await keep(store, fields("mine"), b"x")
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", CHILD, str(tmp_path)), stdout=asyncio.subprocess.PIPE, env=child_environment()
    )
    assert child.stdout is not None
    assert await child.stdout.readline() == b"sealed\n"
    assert len(contents(tmp_path)) == 3
    child.kill()
    assert await child.wait() == -9
    assert await store.sweep() == (0, 0)  # The content may become a file.
    await run_out(stores)
    assert await store.sweep() == (0, 2)
    assert len(contents(tmp_path)) == 1 and await pending(stores) == []
    assert await content(store, "file-mine") == b"x"
