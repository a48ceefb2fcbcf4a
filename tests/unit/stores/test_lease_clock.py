"""The clock of leases: the wall clock may jump, the machine may start anew, clients may read as much as they like."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from antiphon.config.state import RetentionSettings
from antiphon.engine.ports.vector_stores import NewFile
from antiphon.errors import ConversationLocked, StoreError
from antiphon.stores.conversations import ConversationStore
from antiphon.stores.retention import Retention
from antiphon.stores.sqlite import tables as sqlite_tables
from antiphon.stores.sqlite.backend import (
    SESSIONS_FILE,
    VECTORS_FILE,
    SqliteStores,
    SqliteVectorDatabase,
    open_sqlite,
    open_vector_database,
)
from antiphon.stores.sqlite.retention import SqlitePieces
from tests.contracts.job_contract import ONE, TWO, claim, queued
from tests.contracts.store_contract import ALICE
from tests.support.sqlite_files import failing_statement
from tests.support.waiting import until

HOUR = 3600.0


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[SqliteStores]:
    opened = await open_sqlite(tmp_path, chain_items=100)
    yield opened
    await opened.aclose()


async def _hold_things(stores: SqliteStores, database: SqliteVectorDatabase) -> None:
    await stores.background.enqueue(queued("a"), b"{}", None, limit=9)
    assert len(await claim(stores.background, ONE, seconds=30)) == 1
    await stores.conversations.create(ALICE, "conv_1", b"{}")
    await stores.conversations.load(ALICE, "conv_1", holder="resp_x", seconds=30)
    await database.stores.create(
        ALICE, "vs_1", name=None, description=None, metadata=b"{}", expires_days=None, files=[NewFile("f", "a.txt")]
    )
    assert len(await database.ingestion.claim(["c1"], 30)) == 1


async def _is_held(stores: SqliteStores, database: SqliteVectorDatabase) -> list[bool]:
    """Whether the job, the conversation and the file are somebody's."""
    try:
        await stores.conversations.load(ALICE, "conv_1", holder="resp_y", seconds=30)
        locked = False
    except ConversationLocked:
        locked = True
    job, file = await claim(stores.background, TWO), await database.ingestion.claim(["c2"], 30)
    return [not job, locked, not file]


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
async def test_a_wall_clock_that_jumps_changes_no_lease(tmp_path: Path, jump: float) -> None:
    off, passed = 0.0, 0

    def wall() -> float:
        return time.time() + off

    def leases() -> int:
        return sqlite_tables.lease_now() + passed

    stores = await open_sqlite(tmp_path, chain_items=100, leases=leases)
    stores.conversations = ConversationStore(
        stores.tables, stores.keys, max_items=100, history_bytes=1 << 20, page_bytes=1 << 20, clock=wall
    )
    database = await open_vector_database(tmp_path, clock=wall, leases=leases)
    await _hold_things(stores, database)
    off = jump
    assert await _is_held(stores, database) == [True, True, True]
    # What is renewed now is held for as long as was asked for: its holder may die with the clock as it is.
    await stores.background.renew(ONE, ["resp_a"], 30)
    await stores.conversations.renew(["resp_x"], 30)
    await database.ingestion.renew(["c1"], 30)
    off = 0.0
    assert await _is_held(stores, database) == [True, True, True]
    passed = 31_000
    assert await _is_held(stores, database) == [False, False, False]
    await stores.aclose()
    await database.aclose()


async def test_a_new_start_of_the_machine_ends_all_leases(tmp_path: Path) -> None:
    for held in (None, True, False):
        if held is False:
            # As if the databases were last opened before a reboot.
            for name in (SESSIONS_FILE, VECTORS_FILE):
                with closing(sqlite3.connect(tmp_path / name)) as file, file:
                    assert file.execute("UPDATE lease_clock SET boot = 'an earlier one'").rowcount == 1
        stores, database = await open_sqlite(tmp_path, chain_items=100), await open_vector_database(tmp_path)
        if held is None:
            await _hold_things(stores, database)
        else:
            assert await _is_held(stores, database) == [held] * 3
        await stores.aclose()
        await database.aclose()


async def test_a_second_process_of_the_same_start_ends_nothing(tmp_path: Path, stores: SqliteStores) -> None:
    here = await open_vector_database(tmp_path)
    await _hold_things(stores, here)
    others, there = await open_sqlite(tmp_path, chain_items=100), await open_vector_database(tmp_path)
    assert await _is_held(others, there) == [True, True, True]
    for opened in (here, others, there):
        await opened.aclose()


def test_where_the_system_names_its_start_no_wall_clock_is_used() -> None:
    assert abs(sqlite_tables.lease_now(boot="one") / 1000 - time.monotonic()) < 60


def test_where_the_system_names_no_start_the_wall_clock_is_used() -> None:
    assert abs(sqlite_tables.lease_now(boot="") / 1000 - time.time()) < 60


async def test_who_looks_after_leases_waits_for_no_client(stores: SqliteStores) -> None:
    """Clients' queries use all connections of the pool."""
    await stores.background.enqueue(queued("a"), b"{}", None, limit=9)
    readers = stores.tables.readers
    endless = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT 1 FROM n) SELECT count(*) FROM n"
    queries = [asyncio.create_task(readers.fetch(endless, {})) for _ in range(3)]
    await until(lambda: readers.busy == 2)
    async with asyncio.timeout(60):
        assert len(await claim(stores.background)) == 1
        assert await stores.background.held(ONE) == {"resp_a"}
        assert await stores.background.renew(ONE, ["resp_a", "resp_b"], 30) == {"resp_a"}
        await stores.conversations.create(ALICE, "conv_1", b"{}")
        assert await stores.conversations.renew(["resp_a"], 30) == frozenset()
    assert readers.busy == 2
    for query in queries:
        query.cancel()
    await asyncio.wait(queries)


async def test_retention_leaves_a_conversation_alone_on_which_a_response_runs(stores: SqliteStores) -> None:
    await stores.conversations.create(ALICE, "conv_1", b"{}")
    await stores.conversations.load(ALICE, "conv_1", holder="resp_x", seconds=30)
    pieces = SqlitePieces(stores.tables.writer, stores.tables.readers, lambda: time.time() + HOUR)
    kept = RetentionSettings(conversations=1, events=None)
    old = Retention(stores.tables, pieces, kept)
    assert (await old.sweep())[1] == 0
    await stores.conversations.load(ALICE, "conv_1", holder="resp_x", seconds=0)
    assert (await old.sweep())[1] == 1


async def test_a_claim_takes_all_it_says_or_nothing(stores: SqliteStores, tmp_path: Path) -> None:
    """A store that fails in the middle leaves no job behind that waits for a lease to run out."""
    for name in ("a", "b", "c"):
        await stores.background.enqueue(replace(queued(name)), b"{}", None, limit=9)
    failing = failing_statement(tmp_path / SESSIONS_FILE, "UPDATE ON responses WHEN old.id = 'resp_b'")
    with failing, pytest.raises(StoreError, match="Writing failed"):
        await claim(stores.background)
    assert [job.attempts for job in await claim(stores.background, TWO)] == [1, 1, 1]
