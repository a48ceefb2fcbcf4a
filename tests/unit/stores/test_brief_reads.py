"""The event loop's thread reads short histories, and no slow disk, lock or long query holds it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import aclosing, closing
from pathlib import Path

import pytest

from antiphon.engine.ports.actions import StoredItem
from antiphon.errors import StoreError
from antiphon.stores.sqlite.backend import SESSIONS_FILE, open_sqlite
from antiphon.stores.sqlite.brief_reads import PAUSE, SECONDS, BriefReads
from antiphon.stores.sqlite.database import place_of
from tests.contracts.store_contract import ALICE, ids, item, record, save_chain
from tests.support.waiting import until

ENDLESS = "WITH RECURSIVE c (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT count(*) FROM c"


class Clock:
    """A clock that goes on by `step` seconds with each look."""

    def __init__(self) -> None:
        self.at = 100.0
        self.step = 0.0

    def __call__(self) -> float:
        self.at += self.step
        return self.at


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "test.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE t (n INTEGER PRIMARY KEY)")
    return path


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def reads(path: Path, clock: Clock) -> Iterator[BriefReads]:
    reads = BriefReads(place_of(path), clock)
    reads.start()
    yield reads
    reads.close()


def test_it_sees_what_another_connection_has_committed(path: Path, reads: BriefReads) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        for count in range(1, 4):
            other.execute("INSERT INTO t VALUES (?)", (count,))
            rows = reads.fetch("SELECT count(*) AS c FROM t WHERE n <= :n", {"n": 9})
            assert rows is not None and rows[0]["c"] == count
        other.execute("BEGIN IMMEDIATE")
        other.execute("INSERT INTO t VALUES (9)")
        rows = reads.fetch("SELECT count(*) AS c FROM t", {})
        assert rows is not None and rows[0]["c"] == 3, "a writer's lock holds no reader"


def test_after_two_queries_that_take_too_long_no_other_follows_soon(reads: BriefReads, clock: Clock) -> None:
    for _ in range(2):
        clock.step = SECONDS / 10
        assert reads.fetch(ENDLESS, {}) is None
        clock.step = 0.0
        assert reads.fetch("SELECT 1", {}) is not None, "one slow query may be chance"
    clock.step = SECONDS / 10
    assert reads.fetch(ENDLESS, {}) is None
    began = clock.at
    assert reads.fetch(ENDLESS, {}) is None
    clock.step, took = 0.0, clock.at - began
    assert took > SECONDS
    clock.at += PAUSE / 2 * took
    assert reads.fetch("SELECT 1", {}) is None
    clock.at += PAUSE * took
    assert reads.fetch("SELECT 1", {}) is not None


def test_an_error_gives_no_answer(path: Path, reads: BriefReads) -> None:
    assert reads.fetch("SELECT 1 FROM missing", {}) is None
    assert reads.fetch("INSERT INTO t VALUES (1)", {}) is None, "the connection only reads"
    assert reads.fetch("SELECT 1", {}) is not None
    reads.close()
    assert reads.fetch("SELECT 1", {}) is None
    assert BriefReads(place_of(path)).fetch("SELECT 1", {}) is None, "not started"


def test_a_database_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"Opening .*none\.db"):
        BriefReads(place_of(tmp_path / "none.db")).start()


async def test_a_short_history_waits_for_no_other_thread(tmp_path: Path) -> None:
    async with aclosing(await open_sqlite(tmp_path, chain_items=1000)) as stores:
        short = await save_chain(stores.responses, "a", 20)
        big = record("big", inputs=(StoredItem("msg_big", "message", b'"%b"' % (b"x" * 600_000)),))
        many = record("many", inputs=tuple([item(f"msg_m{number}") for number in range(600)]))
        for one in (big, many):
            await stores.responses.save(one)
        # Without its pool, the store can only read in this thread.
        await stores.tables.readers.aclose()
        chain = await stores.responses.load_chain(ALICE, "resp_a19")
        assert chain is not None and ids(chain.items) == short
        for long in ("resp_big", "resp_many", "resp_missing"):
            with pytest.raises(StoreError, match="closed"):
                await stores.responses.load_chain(ALICE, long)


async def test_a_writer_that_waits_sends_histories_to_the_pool(tmp_path: Path) -> None:
    async with aclosing(await open_sqlite(tmp_path, chain_items=1000)) as stores:
        await stores.responses.save(record("a"))
        await stores.tables.readers.aclose()
        with closing(sqlite3.connect(tmp_path / SESSIONS_FILE, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            saving = stores.responses.save(record("b"))
            task = asyncio.ensure_future(saving)
            await until(lambda: stores.tables.writer.is_slow)
            with pytest.raises(StoreError, match="closed"):
                await stores.responses.load_chain(ALICE, "resp_a")
            other.execute("ROLLBACK")
            await task
        assert not stores.tables.writer.is_slow
        assert await stores.responses.load_chain(ALICE, "resp_a") is not None
