"""Runs the contract of vector stores on SQLite, with one database object and with two on one file, and tests behaviour
of SQLite only.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from antiphon.engine.ports.vector_stores import NewFile
from antiphon.errors import StoreError
from antiphon.stores.sqlite.backend import VECTORS_FILE, SqliteVectorDatabase, open_vector_database
from antiphon.stores.sqlite.vectors.sql import index_table
from tests.contracts.vector_store_contract import ALICE, VectorStoreContract, claim, found, ingest, make, sweep
from tests.support.sqlite_files import failing_statement


class SqliteWorld:
    """A `World` that sets clocks and reads the tables."""

    def __init__(self) -> None:
        self.at = 1_700_000_000.0
        self.leases = 5_000_000
        self.database: SqliteVectorDatabase | None = None

    def clock(self) -> float:
        return self.at

    def lease_now(self) -> int:
        return self.leases

    async def now(self) -> float:
        return self.at

    async def passes(self, seconds: float) -> None:
        self.at += seconds
        self.leases += round(seconds * 1000)

    async def count(self, table: str) -> int:
        assert self.database is not None
        return int((await self.database.tables.readers.fetch(f"SELECT count(*) FROM {table}", {}))[0][0])


@pytest.fixture
def world() -> SqliteWorld:
    return SqliteWorld()


@pytest.fixture
async def here(tmp_path: Path, world: SqliteWorld) -> AsyncIterator[SqliteVectorDatabase]:
    opened = world.database = await open_vector_database(tmp_path, clock=world.clock, leases=world.lease_now)
    yield opened
    await opened.aclose()


@pytest.fixture(params=["the same", "another"])
async def there(
    request: pytest.FixtureRequest, here: SqliteVectorDatabase, tmp_path: Path, world: SqliteWorld
) -> AsyncIterator[SqliteVectorDatabase]:
    """The database object through which the tests read."""
    if request.param == "the same":
        yield here
        return
    opened = await open_vector_database(tmp_path, clock=world.clock, leases=world.lease_now)
    yield opened
    await opened.aclose()


class TestSqliteVectorStores(VectorStoreContract):
    pass


async def test_words_that_are_gone_are_out_of_the_index(here: SqliteVectorDatabase) -> None:
    one, two = await make(here, "one", NewFile("file-1", "a.txt")), await make(here, "two", NewFile("file-1", "a.txt"))
    for job in await claim(here, "c1", "c2"):
        await ingest(here, job, "birds")
    await here.stores.forget_file(ALICE, "file-1")
    await sweep(here)
    rows = await here.tables.readers.fetch("SELECT count(*) FROM fts_vs_two WHERE fts_vs_two MATCH 'birds'", {})
    assert rows[0][0] == 0
    for store_id in (one, two):
        await here.stores.delete(ALICE, store_id)
    await sweep(here)
    assert await here.tables.readers.fetch("SELECT name FROM sqlite_schema WHERE name LIKE 'fts_vs%'", {}) == []


async def test_a_claim_takes_all_it_says_or_nothing(here: SqliteVectorDatabase, tmp_path: Path) -> None:
    """If the store fails in the middle of a claim, no file must remain claimed until a lease expires."""
    await make(here, "one", *(NewFile(f"file-{number}", "a.txt") for number in range(3)))
    with (
        failing_statement(
            tmp_path / VECTORS_FILE,
            "UPDATE ON vector_files WHEN (SELECT count(*) FROM vector_files WHERE claim IS NOT NULL) = 2",
        ),
        pytest.raises(StoreError),
    ):
        await claim(here, "c1", "c2", "c3")
    assert [job.attempts for job in await claim(here, "c4", "c5", "c6")] == [1, 1, 1]


async def test_two_that_sweep_take_no_word_out_twice(here: SqliteVectorDatabase, there: SqliteVectorDatabase) -> None:
    store_id = await make(here, "one", NewFile("file-1", "a.txt"), NewFile("file-2", "b.txt"))
    first, second = await claim(here, "c1", "c2")
    await ingest(here, first, *(f"birds {number}" for number in range(1_200)))
    await ingest(here, second, "birds stay")
    await here.stores.remove_file(ALICE, store_id, first.file_id)
    await asyncio.gather(*(sweep(each) for each in (here, there, here, there)))
    assert await found(there, store_id, "birds") == [second.file_id]
    # If the words were removed twice, the counts and lists of the remaining words would be wrong.
    rows = await here.tables.readers.fetch("SELECT count(*) FROM fts_vs_one WHERE fts_vs_one MATCH 'birds'", {})
    assert rows[0][0] == 1


@pytest.mark.parametrize("store_id", ["", "x", "vs_1; DROP TABLE files", "vs_" + "a" * 500, "file_1"])
def test_what_is_no_id_of_ours_is_no_name_of_a_table(store_id: str) -> None:
    assert index_table("vs_1") == "fts_vs_1"
    with pytest.raises(StoreError, match="id of the vector store is not valid"):
        index_table(store_id)
