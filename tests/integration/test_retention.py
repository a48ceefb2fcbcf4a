"""What is too old goes, in small pieces, and nothing else."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from antiphon.config.state import RetentionSettings
from antiphon.engine.ports.actions import ResponseRecord, StoredItem
from antiphon.errors import ChainBroken, ConversationLocked, StoreError
from antiphon.stores.retention import Retention
from antiphon.stores.sqlite.backend import SESSIONS_FILE, SqliteStores, open_sqlite
from antiphon.stores.sqlite.retention import SqlitePieces
from antiphon.stores.sqlite.units import Step
from antiphon.stores.sqlite.writer import SqliteWriter
from antiphon.stores.tables import Statement
from tests.contracts.job_contract import EVENTS, ONE, finished, piece, queued
from tests.contracts.store_contract import ALICE
from tests.contracts.store_contract import record as make_record


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[SqliteStores]:
    opened = await open_sqlite(tmp_path, chain_items=1000)
    yield opened
    await opened.aclose()


def record(name: str, at: float, prev: str | None = None) -> ResponseRecord:
    return replace(make_record(name, prev=prev), created_at=at, completed_at=at)


def _retention(stores: SqliteStores, now: float, writer: Any = None, rows: int = 1000, **kept: float) -> Retention:
    pieces = SqlitePieces(writer or stores.tables.writer, stores.tables.readers, lambda: now, rows=rows)
    settings = RetentionSettings.model_validate({"events": None, **kept})
    return Retention(stores.tables, pieces, settings)


def _count(folder: Path, table: str) -> int:
    with sqlite3.connect(folder / SESSIONS_FILE) as connection:
        (count,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    connection.close()
    return int(count)


async def test_a_chain_goes_as_a_whole_when_its_latest_response_is_old(stores: SqliteStores, tmp_path: Path) -> None:
    await stores.responses.save(record("old", 100))
    await stores.responses.save(record("a", 100))
    await stores.responses.save(record("b", 500, "a"))
    assert await _retention(stores, 1000, responses=600).sweep() == (1, 0, 0)
    assert await stores.responses.get(ALICE, "resp_old") is None
    chain = await stores.responses.load_chain(ALICE, "resp_b")
    assert chain is not None and len(chain.items) == _count(tmp_path, "response_items")
    assert await _retention(stores, 2000, responses=600).sweep() == (1, 0, 0)
    assert _count(tmp_path, "responses") == _count(tmp_path, "response_items") == 0


async def test_more_than_one_piece_goes(stores: SqliteStores, tmp_path: Path) -> None:
    for number in range(120):
        await stores.responses.save(record(f"r{number}", 100))
    assert await _retention(stores, 1000, responses=600).sweep() == (120, 0, 0)
    assert _count(tmp_path, "chains") == 0


async def test_a_conversation_goes_with_its_items_unless_a_response_runs_on_it(
    stores: SqliteStores, tmp_path: Path
) -> None:
    kept = stores.conversations
    for name in ("conv_idle", "conv_busy"):
        await kept.create(ALICE, name, b"{}", ())
    assert await kept.load(ALICE, "conv_busy", holder="resp_x", seconds=3600) == ()
    with sqlite3.connect(tmp_path / SESSIONS_FILE) as connection:
        (updated,) = connection.execute("SELECT max(updated_at) FROM conversations").fetchone()
    connection.close()
    later = updated / 1000 + 700
    assert await _retention(stores, later, conversations=600).sweep() == (0, 1, 0)
    assert await kept.get(ALICE, "conv_idle") is None and await kept.get(ALICE, "conv_busy") is not None


async def test_a_conversation_stays_while_a_job_is_there_for_it(stores: SqliteStores, tmp_path: Path) -> None:
    """Whoever ran it is gone and its lease is over; the next process goes on with it."""
    await stores.conversations.create(ALICE, "conv_a", b"{}", ())
    assert await stores.conversations.load(ALICE, "conv_a", holder="resp_a", seconds=0.0) == ()
    waiting = replace(queued("a"), conversation_id="conv_a")
    await stores.background.enqueue(waiting, b"{}", None, limit=10)
    later = time.time() + 700
    assert await _retention(stores, later, conversations=600).sweep() == (0, 0, 0)
    assert await stores.conversations.get(ALICE, "conv_a") is not None
    assert await stores.responses.delete(ALICE, "resp_a")
    assert await _retention(stores, later, conversations=600).sweep() == (0, 1, 0)


class _Watched:
    """Notes how many rows each unit of the pieces deletes; ends after so many of them."""

    def __init__(self, writer: SqliteWriter, units: int = 1000) -> None:
        self.most = 0
        self._writer = writer
        self._units = units

    async def run(self, steps: Sequence[Step]) -> Any:
        if not self._units:
            raise StoreError("The process ends here.")
        self._units -= 1
        rows: list[Any] = []
        count = Statement("SELECT count(*) FROM deleted", into=rows)
        result = await self._writer.run([Statement("DELETE FROM deleted"), *steps, count])
        self.most = max(self.most, rows[0][0])
        return result[1:-1]


@pytest.fixture
async def watched(tmp_path: Path) -> AsyncIterator[SqliteStores]:
    """Stores that note what is deleted."""
    opened = await open_sqlite(tmp_path, chain_items=1000)
    with closing(sqlite3.connect(tmp_path / SESSIONS_FILE)) as connection, connection:
        connection.execute("CREATE TABLE deleted (x)")
        for table in ("responses", "response_items", "response_events", "conversations", "conversation_items"):
            connection.execute(
                f"CREATE TRIGGER note_{table} AFTER DELETE ON {table} BEGIN INSERT INTO deleted VALUES (1); END"
            )
    yield opened
    await opened.aclose()


async def test_no_piece_is_larger_than_so_many_rows(watched: SqliteStores, tmp_path: Path) -> None:
    """However large what goes is: a chain of many responses, many chains, a conversation of many items, streams."""
    prev = None
    for number in range(40):
        await watched.responses.save(record(f"long{number}", 100, prev))
        prev = f"long{number}"
    for number in range(20):
        await watched.responses.save(record(f"short{number}", 100))
    items = [StoredItem(f"msg_{number}", "message", b"{}") for number in range(95)]
    await watched.conversations.create(ALICE, "conv_large", b"{}", items)
    for number in range(15):
        await watched.conversations.create(ALICE, f"conv_{number}", b"{}", items[:3])
    for number in range(12):
        await watched.background.enqueue(replace(queued(f"b{number}"), created_at=100), b"{}", EVENTS, limit=99)
    jobs = await watched.background.claim(ONE, 100, 99)
    for job in jobs:
        await watched.background.finish(ONE, finished(job.response_id.removeprefix("resp_")), piece(2, 3))
    writer = _Watched(watched.tables.writer)
    later = time.time() + 1e6
    assert await _retention(watched, later, writer, 10, events=600).sweep() == (0, 0, 12)
    assert _count(tmp_path, "response_events") == 0
    assert await _retention(watched, later, writer, 10, conversations=600).sweep() == (0, 16, 0)
    assert _count(tmp_path, "conversation_items") == 0
    assert await _retention(watched, later, writer, 10, responses=600).sweep() == (33, 0, 0)
    assert _count(tmp_path, "responses") == _count(tmp_path, "response_items") == 0
    assert 5 <= writer.most <= 10


async def test_what_is_going_is_not_used_any_more(watched: SqliteStores) -> None:
    """Half of a chain or a conversation is never taken for the whole of it."""
    prev = None
    for number in range(10):
        await watched.responses.save(record(f"long{number}", 100, prev))
        prev = f"long{number}"
    items = [StoredItem(f"msg_{number}", "message", b"{}") for number in range(30)]
    await watched.conversations.create(ALICE, "conv_1", b"{}", items)
    for kept in ({"responses": 600.0}, {"conversations": 600.0}):
        one_piece = _Watched(watched.tables.writer, units=1)
        with pytest.raises(StoreError):
            await _retention(watched, time.time() + 1e6, one_piece, 10, **kept).sweep()
    with pytest.raises(ChainBroken):
        await watched.responses.load_chain(ALICE, "resp_long9")
    with pytest.raises(StoreError):
        await watched.responses.save(record("next", 100, "long9"))
    assert await watched.conversations.load(ALICE, "conv_1") is None
    with pytest.raises(ConversationLocked):
        await watched.conversations.load(ALICE, "conv_1", holder="resp_x", seconds=30)
    # Another process, or the next one, goes on with it.
    assert await _retention(watched, time.time(), responses=600, conversations=600).sweep() == (1, 1, 0)


async def test_a_stream_that_is_gone_is_looked_at_no_more(stores: SqliteStores) -> None:
    await stores.background.enqueue(replace(queued("a"), created_at=100), b"{}", EVENTS, limit=99)
    await stores.background.claim(ONE, 100, 99)
    await stores.background.finish(ONE, finished("a"), piece(2, 3))
    assert await _retention(stores, 1e6, events=600).sweep() == (0, 0, 1)
    assert await _retention(stores, 1e6, events=600).sweep() == (0, 0, 0)
    page = await stores.background.events(ALICE, "resp_a", -1, 10)
    assert page is not None and page.pieces == () and page.status == "completed"


async def test_one_process_clears_up_for_all(stores: SqliteStores, tmp_path: Path) -> None:
    others = await open_sqlite(tmp_path, chain_items=1000)
    turns = [await each.retention.take_turn("state", 60) for each in (stores, others, stores)]
    assert turns == [True, False, False]
    assert await others.retention.take_turn("files", 0)
    assert await stores.retention.take_turn("files", 60)
    await others.aclose()


async def test_nothing_goes_where_nothing_is_said(stores: SqliteStores) -> None:
    await stores.responses.save(record("old", 100))
    assert await _retention(stores, 1e9).sweep() == (0, 0, 0)
