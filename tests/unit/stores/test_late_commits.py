"""One truth per write: what its caller was told is what the database holds, however slow the disk is."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from antiphon.config.limits import TimeoutSettings
from antiphon.engine.ports.actions import OnceOnly
from antiphon.engine.ports.vector_stores import NewFile, VectorStore
from antiphon.errors import StoreError
from antiphon.stores.idempotency import IdempotencyStore
from antiphon.stores.sqlite.backend import VECTOR_STEPS, VECTORS_FILE, prepare
from antiphon.stores.sqlite.database import place_in
from antiphon.stores.sqlite.tables import SqliteTables
from antiphon.stores.sqlite.vectors.sql import SqliteVectorSql
from antiphon.stores.sqlite.writer import SqliteWriter, WriterLimits
from antiphon.stores.tables import Statement
from antiphon.stores.vector_stores import VectorStores
from tests.support.waiting import until

SOON = 0.05
"""Seconds after which a caller gives up here; the disk stands still for as long as the test wants."""


class Disk:
    """A disk that stands still before statements (`work`), or in a commit (`flush`), until it is let go."""

    def __init__(self) -> None:
        self.working, self.flushing = threading.Event(), threading.Event()
        self.work, self.flush = threading.Semaphore(0), threading.Event()
        self.stalls = False

    def prepare(self, connection: sqlite3.Connection) -> None:
        connection.execute("CREATE TABLE IF NOT EXISTS t (n INTEGER PRIMARY KEY)")
        connection.create_function("stall", 0, self._work)
        connection.set_trace_callback(self.trace)

    def _work(self) -> int:
        self.working.set()
        assert self.work.acquire(timeout=20)
        return 1

    def trace(self, sql: str) -> None:
        if sql == "COMMIT" and self.stalls:
            self.flushing.set()
            assert self.flush.wait(20)

    def go_on(self) -> None:
        self.stalls = False
        self.work.release(100)
        self.flush.set()


STALL = Statement("SELECT stall()")


def insert(n: int) -> Statement:
    return Statement("INSERT INTO t (n) VALUES (?)", (n,))


def delete(n: int) -> Statement:
    return Statement("DELETE FROM t WHERE n = ?", (n,))


def stored(path: Path) -> list[int]:
    connection = sqlite3.connect(path)
    try:
        return [row[0] for row in connection.execute("SELECT n FROM t ORDER BY n")]
    finally:
        connection.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "test.db"


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
async def writer(path: Path, disk: Disk) -> AsyncIterator[SqliteWriter]:
    writer = SqliteWriter(path, disk.prepare, WriterLimits(seconds=SOON, settle_seconds=20))
    await writer.start()
    yield writer
    disk.go_on()
    await writer.aclose()


async def test_a_unit_that_was_not_begun_in_time_is_never_run(writer: SqliteWriter, disk: Disk, path: Path) -> None:
    first = asyncio.create_task(writer.run([STALL]))
    assert await asyncio.to_thread(disk.working.wait, 20)
    with pytest.raises(StoreError, match=r"timeouts\.save") as told:
        await writer.run([insert(1)])
    assert told.value.reason == "slow"
    disk.go_on()
    await asyncio.gather(first, return_exceptions=True)
    await writer.run([insert(2)])
    assert stored(path) == [2]


async def test_a_unit_is_taken_back_in_its_middle_and_its_neighbours_stand(path: Path, disk: Disk) -> None:
    writer = SqliteWriter(path, disk.prepare)
    await writer.start()
    first = asyncio.create_task(writer.run([STALL]))
    assert await asyncio.to_thread(disk.working.wait, 20)
    group = [asyncio.create_task(writer.run(unit)) for unit in ([insert(1)], [insert(2), STALL], [insert(3)])]
    await asyncio.sleep(0)  # each has queued its unit
    disk.working.clear()
    disk.work.release()
    assert await asyncio.to_thread(disk.working.wait, 20)
    group[1].cancel()
    await asyncio.sleep(0)
    disk.go_on()
    await asyncio.gather(first, group[0], group[2])
    await writer.aclose()
    assert stored(path) == [1, 3]


async def test_a_unit_is_taken_back_while_all_run_once_more_for_one_that_failed(path: Path, disk: Disk) -> None:
    writer = SqliteWriter(path, disk.prepare)
    await writer.start()
    first = asyncio.create_task(writer.run([STALL]))
    assert await asyncio.to_thread(disk.working.wait, 20)
    units = [insert(1)], [insert(2), insert(2)], [insert(3), STALL]
    leaving, failing, staying = [asyncio.create_task(writer.run(unit)) for unit in units]
    await asyncio.sleep(0)  # each has queued its unit
    disk.working.clear()
    disk.work.release()
    # The first try ends at the unit that fails, so it is the second one that stands still here.
    assert await asyncio.to_thread(disk.working.wait, 20)
    leaving.cancel()
    await asyncio.sleep(0)
    disk.go_on()
    await asyncio.gather(first, staying)
    with pytest.raises(StoreError, match="SQLITE_CONSTRAINT"):
        await failing
    await writer.aclose()
    assert stored(path) == [3]


async def test_a_unit_that_is_cancelled_before_the_commit_has_no_effect(path: Path, disk: Disk) -> None:
    writer = SqliteWriter(path, disk.prepare)
    await writer.start()
    running = asyncio.create_task(writer.run([insert(1), STALL]))
    assert await asyncio.to_thread(disk.working.wait, 20)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    disk.go_on()
    await writer.run([insert(2)])
    await writer.aclose()
    assert stored(path) == [2]


async def test_a_commit_that_has_begun_is_waited_for(writer: SqliteWriter, disk: Disk, path: Path) -> None:
    disk.stalls = True
    running = asyncio.create_task(writer.run([insert(1)]))
    assert await asyncio.to_thread(disk.flushing.wait, 20)
    await asyncio.sleep(3 * SOON)  # it has waited for longer than it would have for the beginning
    assert not running.done()
    disk.go_on()
    assert await running == (1,)
    assert stored(path) == [1]


@pytest.mark.parametrize("made", ["at once", "when it is needed"])
async def test_what_was_told_unknown_is_undone_by_the_next_transaction(path: Path, disk: Disk, made: str) -> None:
    writer = SqliteWriter(path, disk.prepare, WriterLimits(seconds=SOON, settle_seconds=2 * SOON))
    await writer.start()
    disk.stalls = True
    with capture_logs() as lines:
        back = [delete(1)]
        undo = back if made == "at once" else lambda: back
        running = asyncio.create_task(writer.run([insert(1)], undo=undo))
        assert await asyncio.to_thread(disk.flushing.wait, 20)
        with pytest.raises(StoreError, match=r"timeouts\.settle") as told:
            await running
        assert told.value.reason == "unknown"
        disk.go_on()
        await until(lambda: any(line["event"] == "late_commit_undone" for line in lines))
    assert [line["log_level"] for line in lines] == ["warning"]
    await writer.run([insert(2)])
    await writer.aclose()
    assert stored(path) == [2]


async def test_a_vector_store_that_was_told_to_have_failed_goes_again_and_its_key_with_it(
    tmp_path: Path, disk: Disk
) -> None:
    def slow(connection: sqlite3.Connection) -> None:
        prepare(connection, VECTOR_STEPS, ())
        connection.set_trace_callback(disk.trace)

    timeouts = TimeoutSettings(save=2.0, settle=2.0)
    tables = await SqliteTables.open(place_in(tmp_path, VECTORS_FILE), slow, timeouts)
    keys = IdempotencyStore(tables)
    vectors = VectorStores(tables, keys, SqliteVectorSql())
    once = OnceOnly("o", "k", "f")

    async def make() -> VectorStore:
        fields: dict[str, Any] = {"name": None, "description": None, "metadata": b"{}", "expires_days": None}
        return await vectors.create("o", "vs_1", **fields, files=[NewFile("file-1", "a.txt")], once=once)

    disk.stalls = True
    try:
        with capture_logs() as lines:
            with pytest.raises(StoreError, match="Antiphon undoes it"):
                await make()
            disk.go_on()
            await until(lambda: any(line["event"] == "late_commit_undone" for line in lines))
        assert await vectors.get("o", "vs_1") is None and await keys.made(once) is None
        assert (await make()).id == "vs_1", "nothing of it is in the way"
        assert await keys.made(once) == "vs_1"
        count = await tables.readers.fetch("SELECT count(*) FROM vector_files", {})
        assert count[0][0] == 1
    finally:
        disk.go_on()
        await tables.aclose()


async def test_closing_ends_although_the_disk_does_not(path: Path, disk: Disk) -> None:
    writer = SqliteWriter(path, disk.prepare, WriterLimits(seconds=SOON, settle_seconds=2 * SOON))
    await writer.start()
    disk.stalls = True
    running = asyncio.create_task(writer.run([insert(1)]))
    assert await asyncio.to_thread(disk.flushing.wait, 20)
    async with asyncio.timeout(60):
        await writer.aclose()
    with pytest.raises(StoreError):
        await running
    disk.go_on()


async def test_who_waits_is_told_also_after_a_closing_that_gave_up(path: Path, disk: Disk) -> None:
    """Whichever comes first, the closing's end or the write's own: here the closing's."""
    writer = SqliteWriter(path, disk.prepare, WriterLimits(seconds=1.0, settle_seconds=1.0))
    await writer.start()
    disk.stalls = True
    running = asyncio.create_task(writer.run([insert(1)]))
    assert await asyncio.to_thread(disk.flushing.wait, 20)
    writer.limits = WriterLimits(seconds=1.0, settle_seconds=0.0)
    await writer.aclose()
    assert not running.done()
    with pytest.raises(StoreError, match=r"timeouts\.settle"):
        await asyncio.wait_for(running, 15)
    disk.go_on()


@pytest.mark.parametrize("name", ["test.db", "test.db-wal", "test.db-shm"])
@pytest.mark.parametrize("how", ["deleted", "replaced"])
async def test_a_file_that_goes_from_under_the_process_is_noticed(
    writer: SqliteWriter, path: Path, name: str, how: str
) -> None:
    await writer.run([insert(1)])
    file = path.with_name(name)
    kept = file.with_name("kept")
    os.rename(file, kept)
    if how == "replaced":
        file.write_bytes(kept.read_bytes())
    with capture_logs() as lines:
        for _ in range(3):
            with pytest.raises(StoreError, match=name) as told:
                await writer.run([insert(2)])
            assert told.value.reason == "gone"
    assert [(line["event"], line["log_level"]) for line in lines] == [("database_lost", "error")]
    os.replace(kept, file)
    await writer.run([insert(3)])
    assert stored(path) == [1, 3]


async def test_a_folder_that_is_moved_during_a_commit_takes_nothing_along(path: Path, disk: Disk) -> None:
    writer = SqliteWriter(path, disk.prepare)
    await writer.start()
    disk.stalls = True
    running = asyncio.create_task(writer.run([insert(1)], undo=[delete(1)]))
    assert await asyncio.to_thread(disk.flushing.wait, 20)
    moved = path.parent.with_name("moved")
    os.rename(path.parent, moved)
    disk.go_on()
    with pytest.raises(StoreError, match="moved away"):
        await running
    os.rename(moved, path.parent)
    await writer.run([insert(2)])
    await writer.aclose()
    assert stored(path) == [2]
