"""Reads end in time, also while the disk stands still, and leave nothing behind that the next one waits for."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from pathlib import Path

import aiosqlite
import pytest

from antiphon.errors import StoreError
from antiphon.stores.sqlite.readers import SqliteReaders, daemonic_connection

ENDLESS = "WITH RECURSIVE c (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT count(*) FROM c"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "test.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE t (n INTEGER PRIMARY KEY)")
    connection.close()
    return path


async def test_a_query_that_takes_too_long_is_ended(path: Path) -> None:
    readers = SqliteReaders(path, 1, seconds=0.1)
    await readers.start()
    for _ in range(3):
        with pytest.raises(StoreError, match=r"timeouts\.read") as told:
            await readers.fetch(ENDLESS, {})
        assert told.value.reason == "slow"
    patient = SqliteReaders(path, 1, seconds=20)
    await patient.start()
    assert (await patient.fetch("SELECT 1 AS n", {}))[0]["n"] == 1
    await readers.aclose()
    await patient.aclose()


async def test_a_caller_that_leaves_takes_its_query_along(path: Path) -> None:
    readers = SqliteReaders(path, 1, seconds=60)
    await readers.start()
    asking = asyncio.create_task(readers.fetch(ENDLESS, {}))
    await asyncio.sleep(0.05)
    asking.cancel()
    async with asyncio.timeout(60):
        assert (await readers.fetch("SELECT 1 AS n", {}))[0]["n"] == 1
        await readers.aclose()


async def test_nobody_is_overtaken_by_a_newcomer(path: Path) -> None:
    readers = SqliteReaders(path, 1, seconds=60)
    await readers.start()
    served: list[int] = []

    async def ask(number: int) -> None:
        await readers.fetch("SELECT 1 AS n", {})
        served.append(number)

    asking: list[asyncio.Task[None]] = []
    # Some come in every turn of the loop, that in which the connection is given back among them.
    while len(served) < 100 and len(asking) < 20_000:
        asking += [asyncio.create_task(ask(len(asking) + more)) for more in range(3)]
        await asyncio.sleep(0)
    async with asyncio.timeout(60):
        await asyncio.gather(*asking)
    assert served == sorted(served)
    await readers.aclose()


async def test_a_disk_that_stands_still_holds_nobody_for_longer(path: Path) -> None:
    made: list[aiosqlite.Connection] = []

    def connect(uri: str) -> aiosqlite.Connection:
        made.append(daemonic_connection(uri))
        return made[-1]

    readers = SqliteReaders(path, 1, seconds=0.1, connect=connect)
    await readers.start()
    still = threading.Event()
    entered = threading.Event()

    def stall() -> int:
        entered.set()
        assert still.wait(20)
        return 1

    await made[0].create_function("stall", 0, stall)
    asked = [asyncio.create_task(readers.fetch("SELECT stall()", {})) for _ in range(5)]
    assert await asyncio.to_thread(entered.wait, 20)
    async with asyncio.timeout(60):
        told = await asyncio.gather(*asked, return_exceptions=True)
    assert [isinstance(each, StoreError) for each in told] == [True] * 5
    entered.clear()
    still.set()
    async with asyncio.timeout(60):
        while True:
            try:
                assert (await readers.fetch("SELECT 1 AS n", {}))[0]["n"] == 1
                break
            except StoreError:  # a loaded machine may need another moment
                continue
    assert not entered.is_set()  # what nobody waits for is not asked any more
    await readers.aclose()
