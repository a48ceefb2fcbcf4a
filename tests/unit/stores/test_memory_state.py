"""`memory:`, which is SQLite without a disk: what only a database in memory can get wrong."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import aclosing, closing
from pathlib import Path

import pytest
from pydantic import SecretStr

from antiphon.config.state import StateSettings
from antiphon.engine.ports.vector_stores import NewFile
from antiphon.errors import StoreError
from antiphon.stores import open_stores
from antiphon.stores.sqlite.backend import SqliteStores
from antiphon.stores.sqlite.database import MemoryPlace
from antiphon.stores.sqlite.readers import SqliteReaders
from tests.contracts.file_contract import content, fields, keep
from tests.contracts.store_contract import ALICE, record

STATE = StateSettings(url=SecretStr("memory:"))


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[SqliteStores]:
    opened = await open_stores(STATE, tmp_path, chain_items=100)
    assert isinstance(opened, SqliteStores)
    async with aclosing(opened):
        yield opened


async def test_nothing_touches_the_disk_and_nothing_is_left(stores: SqliteStores, tmp_path: Path) -> None:
    assert not stores.has_vectors()
    await stores.responses.save(record("a"))
    await keep(stores.files, fields("a"), b"x" * 100_000)
    assert await content(stores.files, "file-a") == b"x" * 100_000
    vectors = await stores.open_vectors()
    await vectors.stores.create(
        ALICE,
        "vs_" + "0" * 48,
        name="n",
        description=None,
        metadata=b"{}",
        expires_days=None,
        files=[NewFile("f", "f")],
    )
    figures = (*stores.statistics, *vectors.statistics)
    assert [one.name for one in figures] == ["sessions", "vectors"]
    assert all([(await one.look()).size > 4096 for one in figures])
    await vectors.aclose()
    await stores.aclose()
    assert list(tmp_path.iterdir()) == []
    # It went with the last connection.
    assert (await stores.statistics[0].look()).size == 0


async def test_each_opening_is_a_state_of_its_own(stores: SqliteStores, tmp_path: Path) -> None:
    await stores.responses.save(record("a"))
    async with aclosing(await open_stores(STATE, tmp_path, chain_items=100)) as others:
        assert await others.responses.get(ALICE, "resp_a") is None
        await others.responses.save(record("b"))
    assert await stores.responses.get(ALICE, "resp_b") is None
    assert await stores.responses.get(ALICE, "resp_a") is not None


async def test_many_that_read_and_write_at_once_wait_for_each_other(stores: SqliteStores) -> None:
    async def turn(number: int) -> None:
        await stores.responses.save(record(f"{number}"))
        assert await stores.responses.load_chain(ALICE, f"resp_{number}") is not None

    for first in range(0, 300, 100):
        await asyncio.gather(*(turn(number) for number in range(first, first + 100)))


async def test_a_commit_waits_for_a_query_that_runs(stores: SqliteStores) -> None:
    with closing(
        sqlite3.connect(stores.tables.writer.place.reader_uri, uri=True, check_same_thread=False)
    ) as connection:
        running = connection.execute("SELECT 1 FROM schema_migrations")
        running.fetchone()
        saving = asyncio.create_task(stores.responses.save(record("a")))
        done, _ = await asyncio.wait({saving}, timeout=0.2)
        assert not done
        running.close()
        await saving
    assert await stores.responses.get(ALICE, "resp_a") is not None


async def test_who_reads_cannot_write(stores: SqliteStores) -> None:
    with pytest.raises(StoreError):
        await stores.tables.readers.fetch("DELETE FROM responses", {})
    with (
        closing(sqlite3.connect(stores.tables.writer.place.reader_uri, uri=True)) as connection,
        pytest.raises(sqlite3.Error),
    ):
        connection.execute("DELETE FROM responses")


async def test_an_error_names_no_file() -> None:
    place = MemoryPlace("sessions")
    readers = SqliteReaders(place)
    await readers.start()
    with pytest.raises(StoreError, match="in database memory:sessions"):
        await readers.fetch("SELECT * FROM nothing", {})
    await readers.aclose()
    assert place.room() == 0
