"""Every way out gives back what was taken: descriptors, threads, locks, unfinished files; also when it goes wrong."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, nullcontext
from pathlib import Path
from typing import Any

import aiosqlite
import pytest
from structlog.testing import capture_logs

from antiphon.config.limits import TimeoutSettings
from antiphon.engine.ports.files import new_blob_key
from antiphon.errors import StoreError
from antiphon.stores.backend import KeyName
from antiphon.stores.blobs.disk import DiskBlobs
from antiphon.stores.sqlite import backup
from antiphon.stores.sqlite.backend import (
    SESSIONS_FILE,
    VECTORS_FILE,
    SqliteStores,
    SqliteVectorDatabase,
    open_sqlite,
    open_vector_database,
)
from antiphon.stores.sqlite.backup import link_or_copy, make_archive, open_archive
from antiphon.stores.sqlite.database import FilePlace, create_file, free_bytes
from antiphon.stores.sqlite.readers import SqliteReaders, daemonic_connection
from antiphon.stores.sqlite.tables import SqliteTables
from antiphon.stores.sqlite.units import Unit
from antiphon.stores.sqlite.vectors.chunk_index import SqliteChunkIndex
from antiphon.stores.sqlite.writer import SqliteWriter, WriterLimits
from antiphon.stores.tables import Statement
from tests.contracts.file_contract import content, fields, keep
from tests.contracts.store_contract import ALICE
from tests.support.file_room import file_room
from tests.support.left_open import left_open
from tests.support.waiting import until

KEYS: dict[KeyName, tuple[bytes, ...]] = {}


# Opening and closing


@pytest.mark.usefixtures("nothing_open")
@pytest.mark.parametrize("opening", ["sessions", "vectors"])
async def test_stores_that_are_closed_leave_nothing(tmp_path: Path, opening: str) -> None:
    before = left_open()
    opened: SqliteStores | SqliteVectorDatabase
    if opening == "sessions":
        opened = await open_sqlite(tmp_path, chain_items=100)
        await keep(opened.files, fields("a"), b"x")
        assert await content(opened.files, "file-a") == b"x"
    else:
        opened = await open_vector_database(tmp_path)
    assert left_open() != before
    await opened.aclose()
    name = SESSIONS_FILE if opening == "sessions" else VECTORS_FILE
    # The log is folded into the file.
    assert [one.name for one in tmp_path.iterdir() if one.is_file()] == [name]


@pytest.mark.usefixtures("nothing_open")
@pytest.mark.parametrize("opening", [lambda data: open_sqlite(data, chain_items=1), open_vector_database])
async def test_a_start_that_fails_leaves_nothing(tmp_path: Path, opening: Callable[[Path], Any]) -> None:
    for name in (SESSIONS_FILE, VECTORS_FILE):
        (tmp_path / name).write_bytes(b"no database" * 1000)
    with pytest.raises(StoreError, match="not a database"):
        await opening(tmp_path)


@pytest.mark.usefixtures("nothing_open")
async def test_readers_that_cannot_start_leave_no_writer(tmp_path: Path) -> None:
    place = FilePlace(tmp_path / "x.db")
    place.reader_uri = FilePlace(tmp_path / "none.db").reader_uri
    with pytest.raises(StoreError, match="Opening failed"):
        await SqliteTables.open(place, lambda _: None, TimeoutSettings())


@pytest.mark.usefixtures("nothing_open")
async def test_readers_that_cannot_be_opened_leave_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    create_file(path)
    sqlite3.connect(path).execute("CREATE TABLE t (n)").connection.close()
    left = iter((True, True, False))

    def connect(uri: str) -> aiosqlite.Connection:
        if next(left):
            return daemonic_connection(uri)
        raise sqlite3.OperationalError("disk I/O error")

    with pytest.raises(StoreError, match="Opening failed"):
        await SqliteReaders(path, 2, connect=connect).start()


@pytest.mark.usefixtures("nothing_open")
async def test_what_is_asked_of_closed_readers_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    create_file(path)
    readers = SqliteReaders(path, 1)
    await readers.start()
    # A query that is under way is waited for, and nothing new begins.
    slow = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) SELECT max(i) FROM n"
    reading = asyncio.create_task(readers.fetch(slow, {}))
    await asyncio.sleep(0)
    closing = asyncio.create_task(readers.aclose())
    await asyncio.sleep(0)
    with pytest.raises(StoreError, match="closed"):
        await readers.fetch("SELECT 1", {})
    assert [tuple(row) for row in await reading] == [(20_000,)]
    await closing
    await readers.aclose()


# The writer


class _Disk(FilePlace):
    """A place on a disk that has so much room."""

    def __init__(self, path: Path, room: Callable[[], int]) -> None:
        super().__init__(path)
        self._room = room

    def room(self) -> int:
        return self._room()


class _Written:
    """A writer on a small database of its own, and how much room the disk says that it has."""

    def __init__(self, path: Path) -> None:
        self.room = 1_000_000
        self.path = path
        self.writer = SqliteWriter(_Disk(path, lambda: self.room), self._prepare)

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, text TEXT)")
        connection.execute("PRAGMA max_page_count=30")

    async def insert(self, number: int, text: str = "") -> None:
        await self.writer.run([Statement("INSERT INTO t VALUES (?, ?)", (number, text))])

    async def fill(self) -> None:
        with pytest.raises(StoreError) as full:
            await self.insert(99, "x" * 500_000)
        assert full.value.reason == "full"


@pytest.fixture
async def written(tmp_path: Path) -> AsyncIterator[_Written]:
    made = _Written(tmp_path / "x.db")
    await made.writer.start()
    yield made
    await made.writer.aclose()


async def test_a_full_disk_is_remembered_until_something_is_added(written: _Written) -> None:
    await written.insert(1)
    assert written.writer.full is None
    await written.fill()
    full = written.writer.full
    assert full is not None and full.reason == "full"
    # What adds nothing says nothing; nor does a unit that failed for itself, or one that was undone.
    await written.writer.run([Statement("UPDATE t SET text = 'b' WHERE n = ?", (1,))])
    await written.writer.run([Statement("SELECT 1")])
    for wrong in (Statement("INSERT INTO t VALUES (?, ?)", (1, "")), Statement("INSERT INTO none VALUES (?)", (1,))):
        with pytest.raises(StoreError):
            await written.writer.run([wrong])
    assert written.writer.full is full
    await written.insert(2)
    assert written.writer.full is None


@pytest.mark.parametrize(("more", "still"), [(0, True), (1 << 18, True), ((1 << 18) + 1, False)])
async def test_a_disk_with_clearly_more_room_is_not_full(written: _Written, more: int, still: bool) -> None:
    await written.fill()
    written.room += more
    await written.writer.run([Statement("SELECT 1")])
    assert (written.writer.full is not None) is still
    await written.fill()
    assert written.writer.full is not None


def _ended(error: StoreError | None) -> Unit:
    """A unit that failed, or else took effect."""
    loop = asyncio.get_running_loop()
    adding = Statement("  insert INTO t VALUES (1)", (1,) if error is None else ())
    unit = Unit([adding], (), loop.create_future(), loop)
    unit.error, unit.committed = error, error is None
    return unit


async def test_a_unit_that_failed_for_want_of_room_alone_says_so_too(written: _Written) -> None:
    """Where the database undoes that unit and goes on with the others."""
    full, other = StoreError("It is full.", reason="full"), StoreError("Something else.")
    written.writer.disk.note([_ended(other), _ended(None)], None)
    assert written.writer.full is None
    written.writer.disk.note([_ended(None), _ended(other), _ended(full)], None)
    assert written.writer.full is full
    written.writer.disk.note([_ended(other)], None)
    assert written.writer.full is full
    written.room += 1 << 30
    written.writer.disk.note([_ended(None)], other)
    assert written.writer.full is full
    written.writer.disk.note([_ended(None)], None)
    assert written.writer.full is None


async def test_the_disk_says_what_is_free(tmp_path: Path) -> None:
    found = os.statvfs(tmp_path)
    assert free_bytes(tmp_path) == pytest.approx(found.f_bfree * found.f_frsize, rel=0.2)
    assert free_bytes(tmp_path / "none") == 0


async def test_a_database_that_comes_back_is_said_once(written: _Written) -> None:
    log = written.path.with_name("x.db-wal")
    with capture_logs() as lines:
        await written.insert(1)
        log.rename(log.with_name("kept"))
        for _ in range(2):
            with pytest.raises(StoreError):
                await written.insert(2)
        log.with_name("kept").rename(log)
        for number in (3, 4):
            await written.insert(number)
    assert [line["event"] for line in lines] == ["database_lost", "database_found_again"]


@pytest.mark.parametrize(("queued", "refused"), [(1, 2), (2, 1), (3, 0)])
async def test_so_many_units_may_wait(tmp_path: Path, queued: int, refused: int) -> None:
    gate, entered = threading.Event(), threading.Event()

    def wait() -> int:
        entered.set()
        assert gate.wait(30)
        return 1

    writer = SqliteWriter(
        tmp_path / "x.db", lambda made: made.create_function("gate", 0, wait), WriterLimits(queued=queued)
    )
    await writer.start()
    first = asyncio.create_task(writer.run([Statement("SELECT gate()")]))
    await asyncio.to_thread(entered.wait, 30)
    others = [asyncio.create_task(writer.run([Statement("SELECT 1")])) for _ in range(3)]
    await asyncio.sleep(0)
    gate.set()
    found = await asyncio.gather(*others, return_exceptions=True)
    busy = [one for one in found if isinstance(one, StoreError)]
    assert len(busy) == refused and all(one.reason == "busy" and f"{queued} writes" in str(one) for one in busy)
    await first
    await writer.aclose()
    with pytest.raises(StoreError, match="closed"):
        await writer.run([])


# Probes that are shared


async def test_who_leaves_stops_no_probe_that_others_wait_for(stores: SqliteStores) -> None:
    go_on, begun = asyncio.Event(), asyncio.Event()
    run = stores.tables.writer.run

    async def slow(*given: Any, **named: Any) -> Any:
        begun.set()
        await go_on.wait()
        return await run(*given, **named)

    stores.tables.writer.run = slow  # type: ignore[method-assign]
    leaves = asyncio.create_task(stores.responses.ping())
    stays = asyncio.create_task(stores.responses.ping())
    await begun.wait()
    leaves.cancel()
    await asyncio.gather(leaves, return_exceptions=True)
    go_on.set()
    await stays
    assert leaves.cancelled()
    disk = stores.tables.writer.disk
    disk.error, disk.room_when_full = StoreError("It is full.", reason="full"), 1 << 60
    with pytest.raises(StoreError, match="It is full") as full:
        await stores.responses.ping()
    assert full.value.reason == "full"


async def test_a_search_that_fails_says_so_unless_the_store_is_gone(tmp_path: Path) -> None:
    async with aclosing(await open_vector_database(tmp_path)) as database:
        await database.stores.create(ALICE, "vs_a", name=None, description=None, metadata=b"{}", expires_days=None)
        (known,) = await database.index.known(ALICE, ["vs_a"])
        assert await database.index.match(known, "birds", None, 9) == []
        assert await database.index.match(known, " . ", None, 9) == []
        await database.stores.delete(ALICE, "vs_a")
        assert await database.index.match(known, "birds", None, 9) == []

        class _Broken:
            async def fetch(self, sql: str, named: Any) -> Any:
                raise StoreError("It is broken.") from sqlite3.OperationalError("disk I/O error")

        broken = SqliteChunkIndex(_Broken(), database.stores)  # type: ignore[arg-type]
        with pytest.raises(StoreError, match="broken"):
            await broken.match(known, "birds", None, 9)


# Contents of files


@pytest.mark.usefixtures("nothing_open")
async def test_contents_that_are_closed_say_so_and_close_once(tmp_path: Path) -> None:
    async with aclosing(DiskBlobs(tmp_path / "files")) as disk:
        async with disk.writing(new_blob_key()) as writer:
            await writer.write(b"hello ")
            await writer.write(b"there")
            assert writer.size == 11
            kept = await writer.seal()
        for late in (writer.write(b"x"), writer.seal()):
            with pytest.raises(StoreError, match="closed"):
                await late
        writer.close()
        reader = await disk.open(kept.key)
        assert [await reader.read(*part) for part in ((0, 5), (6, 99), (11, 1), (0, 0), (3, -1))] == [
            *(b"hello", b"there", b""),
            *(b"", b""),
        ]
        assert reader.size == kept.size == 11
        await reader.aclose()
        await reader.aclose()
        with pytest.raises(StoreError, match="closed"):
            await reader.read(0, 1)
        await disk.delete(kept.key)
        with pytest.raises(StoreError, match="storage key is not 48 hexadecimal digits"):
            disk.place("x" * 48)
    with pytest.raises(StoreError, match="closed"):
        await disk.open(kept.key)


@pytest.mark.usefixtures("nothing_open")
async def test_what_is_opened_for_nobody_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread cannot be cancelled: the reader, the file it makes comes when its caller has left."""
    async with aclosing(DiskBlobs(tmp_path / "files")) as disk:
        async with disk.writing(new_blob_key()) as writer:
            kept = await writer.seal()
        stands, goes_on, opened = threading.Event(), threading.Event(), threading.Event()
        opens = os.open

        def slow(*given: Any, **named: Any) -> int:
            stands.set()
            assert goes_on.wait(30)
            made = opens(*given, **named)
            opened.set()
            return made

        for key, opening in (
            (kept.key, lambda: disk.open(kept.key)),
            ("b" * 48, lambda: disk.writing("b" * 48).__aenter__()),
        ):
            monkeypatch.setattr(os, "open", slow)
            for one in (stands, goes_on, opened):
                one.clear()
            task = asyncio.ensure_future(opening())
            await until(stands.is_set)
            task.cancel()
            goes_on.set()
            await asyncio.gather(task, return_exceptions=True)
            monkeypatch.setattr(os, "open", opens)
            await until(opened.is_set)
            await until(lambda: not [one for one in left_open()[0] if key in one])  # noqa: B023


@pytest.mark.parametrize(("there", "pages"), [(0, []), (2, [2]), (3, [3]), (4, [4])])
async def test_contents_are_found_some_at_a_time(tmp_path: Path, there: int, pages: list[int]) -> None:
    async with aclosing(DiskBlobs(tmp_path / "files")) as disk:
        keys = [f"{number:02x}" + "0" * 46 for number in range(there)]
        for key in keys:
            disk.place(key).parent.mkdir(parents=True)
            disk.place(key).touch()
            disk.place(key).with_name("no key of ours").touch()
        assert [len(some) async for some in disk.keys()] == pages  # noqa: SIM118
        found = [some async for some in disk.keys(2)]
        assert [len(some) for some in found] == [2] * (there // 2) + [1] * (there % 2)
        assert sorted(key for some in found for key in some) == keys


# Backups


async def _filled(data: Path) -> None:
    stores = await open_sqlite(data, chain_items=9)
    for name in ("a", "b"):
        await keep(stores.files, fields(name), name.encode())
    await stores.aclose()
    await (await open_vector_database(data)).aclose()


def _later(count: int) -> Callable[[Path, Path], None]:
    """A function that creates hard links. The first `count` files do not exist yet."""
    left = iter(range(count))

    def link(path: Path, to: Path) -> None:
        if next(left, None) is not None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        os.link(path, to)

    return link


@pytest.mark.usefixtures("nothing_open")
async def test_a_content_that_came_while_databases_were_copied_is_in_it(tmp_path: Path) -> None:
    data = tmp_path / "data"
    await _filled(data)
    made = make_archive(data, tmp_path / "late.tar", KEYS, with_keys=True, link=_later(2))
    assert (made.contents, made.vanished) == (2, 0)
    # One that went before its row was copied is left out, and its row with it.
    (gone,) = [one for one in (data / "files").glob("??/??/*") if one.read_bytes() == b"a"]
    gone.unlink()
    made = make_archive(data, tmp_path / "gone.tar", KEYS, with_keys=True, link=_later(1))
    assert (made.contents, made.vanished) == (1, 1)
    open_archive(tmp_path / "gone.tar", tmp_path / "again", KEYS)
    again = await open_sqlite(tmp_path / "again", chain_items=9)
    assert await again.files.get(ALICE, "file-a") is None and await content(again.files, "file-b") == b"b"
    await again.aclose()
    # What is linked and belongs to no row is left out too.
    (gone.parent / ("0" * 48)).write_bytes(b"nobody's")
    (gone.parent / "no key").write_bytes(b"nobody's")
    assert make_archive(data, tmp_path / "third.tar", KEYS, with_keys=True).contents == 1
    assert not (data / ".backup").exists()


def _no_links(path: Path, to: Path) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM), str(path))


@pytest.mark.usefixtures("nothing_open")
@pytest.mark.parametrize(
    ("room", "link", "said"),
    [
        (0, _no_links, "The backup failed: File too large"),
        (4096, os.link, "Copying failed in database .*: the disk reported an error"),
        (None, os.link, "The backup failed: File too large"),
    ],
    ids=["contents", "databases", "archive"],
)
async def test_a_backup_that_fails_leaves_nothing(
    tmp_path: Path, room: int | None, link: Callable[[Path, Path], None], said: str
) -> None:
    data = tmp_path / "data"
    await _filled(data)
    # The archive is larger than each database.
    largest = max(path.stat().st_size for path in (data / SESSIONS_FILE, data / VECTORS_FILE))
    with file_room(largest if room is None else room), pytest.raises(StoreError, match=said):
        make_archive(data, tmp_path / "backup.tar", KEYS, with_keys=True, link=link)
    assert [one.name for one in tmp_path.iterdir()] == ["data"]
    assert not (data / ".backup").exists()


@pytest.mark.usefixtures("nothing_open")
async def test_a_backup_whose_name_may_be_lost_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await _filled(tmp_path / "data")

    def refuses(*given: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")

    monkeypatch.setattr(backup, "flush_folder", refuses)
    with pytest.raises(StoreError, match=r"The backup failed: No space left on device \(somewhere\)"):
        make_archive(tmp_path / "data", tmp_path / "backup.tar", KEYS, with_keys=True)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["backup.tar", "data"]
    assert not (tmp_path / "data" / ".backup").exists()


@pytest.mark.usefixtures("nothing_open")
async def test_one_backup_at_a_time(tmp_path: Path) -> None:
    data = tmp_path / "data"
    await _filled(data)
    (data / ".backup").mkdir()
    (data / ".backup" / "theirs").touch()
    held = os.open(data / ".backup", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(StoreError, match="under way"):
        make_archive(data, tmp_path / "a.tar", KEYS, with_keys=True)
    assert [one.name for one in (data / ".backup").iterdir()] == ["theirs"]
    os.close(held)
    make_archive(data, tmp_path / "a.tar", KEYS, with_keys=True)


@pytest.mark.usefixtures("nothing_open")
@pytest.mark.parametrize("how", ["cut", "full", "keys"])
async def test_a_restore_that_fails_leaves_nothing(tmp_path: Path, how: str) -> None:
    """How a restore refuses other archives is in `test_backup.py`."""
    keys: dict[KeyName, tuple[bytes, ...]] = {"owner.key": (b"k" * 32,)}
    await _filled(tmp_path / "data")
    archive = tmp_path / "backup.tar"
    make_archive(tmp_path / "data", archive, keys, with_keys=False)
    if how == "cut":
        archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    (tmp_path / "again").mkdir()
    with file_room(4096) if how == "full" else nullcontext(), pytest.raises(StoreError):
        open_archive(archive, tmp_path / "again", {} if how == "keys" else keys)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["again", "backup.tar", "data"]
    assert not list((tmp_path / "again").iterdir())


@pytest.mark.parametrize("number", [errno.EPERM, errno.EXDEV])
def test_where_there_are_no_links_contents_are_copied(tmp_path: Path, number: int) -> None:
    def refuses(*given: Any) -> None:
        raise OSError(number, "no links")

    (tmp_path / "a").write_bytes(b"x")
    assert link_or_copy(tmp_path / "a", tmp_path / "b", refuses) and (tmp_path / "b").read_bytes() == b"x"
    assert not link_or_copy(tmp_path / "none", tmp_path / "c", refuses) and not (tmp_path / "c").exists()
    assert link_or_copy(tmp_path / "a", tmp_path / "b") and not link_or_copy(tmp_path / "none", tmp_path / "c")
    assert link_or_copy(tmp_path / "a", tmp_path / "d") and (tmp_path / "d").stat().st_nlink == 2
