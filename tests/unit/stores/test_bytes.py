"""What one request brings is bounded in bytes: histories before they are read, pages of lists, and what is counted."""

from __future__ import annotations

import asyncio
import dataclasses
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from antiphon.config.state import RetentionSettings
from antiphon.engine.ports.actions import StoredItem
from antiphon.engine.ports.jobs import EventPiece, JobEnd
from antiphon.engine.ports.state import PageQuery
from antiphon.errors import HistoryTooLarge
from antiphon.stores.backend import StoreOptions
from antiphon.stores.retention import Retention
from antiphon.stores.sqlite.backend import SESSIONS_FILE, SqliteStores, open_sqlite
from antiphon.stores.sqlite.database import connect_writer
from antiphon.stores.sqlite.migrate import migrate, packaged_steps
from antiphon.stores.sqlite.readers import Row, SqliteReaders
from antiphon.stores.sqlite.retention import SqlitePieces
from antiphon.stores.sqlite.writer import SqliteWriter
from tests.contracts.conversation_contract import in_conversation
from tests.contracts.store_contract import ALICE, BOB, ids, record
from tests.support.effort import examples
from tests.support.sqlite_files import open_over, prepare_sessions

HISTORY = 10_000
PAGE = 3_000


def sized(item_id: str, size: int) -> StoredItem:
    """An item that takes so many bytes, a part of them what a model was shown."""
    return StoredItem(item_id, "message", b"x" * (size - size // 3), b"y" * (size // 3) or None)


class WatchedReaders(SqliteReaders):
    """Readers that list every row that a query returned."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.rows: list[Row] = []

    async def fetch(self, sql: str, parameters: Mapping[str, object], *, own: bool = False) -> list[Row]:
        found = await super().fetch(sql, parameters, own=own)
        self.rows.extend(found)
        return found


@pytest.fixture
def readers(tmp_path: Path) -> WatchedReaders:
    return WatchedReaders(tmp_path / SESSIONS_FILE)


@pytest.fixture
async def stores(tmp_path: Path, readers: WatchedReaders) -> AsyncIterator[SqliteStores]:
    writer = SqliteWriter(tmp_path / SESSIONS_FILE, prepare_sessions)
    limits: StoreOptions = {"chain_items": 1000, "history_bytes": HISTORY, "page_bytes": PAGE}
    async with aclosing(await open_over(tmp_path, writer, readers, **limits)) as opened:
        yield opened


@pytest.fixture
def read(readers: WatchedReaders) -> list[Row]:
    """Every row that a query returned."""
    return readers.rows


def _bytes(rows: Sequence[Row]) -> int:
    return sum(len(value) for row in rows for value in row if isinstance(value, bytes))


# Histories


async def test_a_history_over_the_limit_is_refused_before_it_is_read(stores: SqliteStores, read: list[Row]) -> None:
    await stores.responses.save(record("a", inputs=(sized("i1", 4_000),), outputs=(sized("o1", 1_000),)))
    await stores.responses.save(record("b", prev="a", inputs=(sized("i2", 4_000),), outputs=(sized("o2", 1_000),)))
    chain = await stores.responses.load_chain(ALICE, "resp_b")
    assert chain is not None and len(chain.items) == 4
    await stores.responses.save(record("c", prev="b", inputs=(sized("i3", 1),), outputs=()))
    read.clear()
    with pytest.raises(HistoryTooLarge) as caught:
        await stores.responses.load_chain(ALICE, "resp_c")
    assert _bytes(read) == 0
    error = caught.value
    assert (error.status, error.type, error.param, error.code) == (
        *(413, "invalid_request_error"),
        *("previous_response_id", "history_too_large"),
    )
    assert "limits.history_bytes" in error.message and str(HISTORY) in error.message
    assert await stores.responses.load_chain(ALICE, "resp_b") is not None


async def test_a_conversation_over_the_limit_is_refused_before_it_is_read(
    stores: SqliteStores, read: list[Row]
) -> None:
    await stores.conversations.create(ALICE, "conv_a", b"{}", (sized("i1", 6_000),))
    await stores.conversations.add_items(ALICE, "conv_a", (sized("i2", 4_000),))
    assert await stores.conversations.load(ALICE, "conv_a") is not None
    await stores.conversations.add_items(ALICE, "conv_a", (sized("i3", 1),))
    read.clear()
    with pytest.raises(HistoryTooLarge) as caught:
        await stores.conversations.load(ALICE, "conv_a")
    assert caught.value.param == "conversation" and _bytes(read) == 0
    # What is taken out makes room again.
    assert await stores.conversations.delete_item(ALICE, "conv_a", "i1")
    assert await stores.conversations.load(ALICE, "conv_a") is not None


async def test_what_a_chain_found_in_its_conversation_counts(stores: SqliteStores, read: list[Row]) -> None:
    await stores.conversations.create(ALICE, "conv_a", b"{}", (sized("i1", 9_000),))
    await stores.conversations.load(ALICE, "conv_a", holder="resp_a", seconds=60)
    made = in_conversation("a", "conv_a", inputs=(sized("i2", 500),), outputs=(sized("o2", 500),))
    await stores.responses.save(made)
    chain = await stores.responses.load_chain(ALICE, "resp_a")
    assert chain is not None and ids(chain.items) == ["i1", "i2", "o2"]
    await stores.responses.save(record("b", prev="a", inputs=(sized("i3", 1),), outputs=()))
    read.clear()
    with pytest.raises(HistoryTooLarge):
        await stores.responses.load_chain(ALICE, "resp_b")
    assert _bytes(read) <= 1_001


async def test_items_named_by_their_ids_count_together(stores: SqliteStores, read: list[Row]) -> None:
    await stores.responses.save(record("a", inputs=(sized("i1", 6_000), sized("i2", 6_000)), outputs=()))
    await stores.conversations.create(ALICE, "conv_a", b"{}", (sized("c1", 6_000), sized("c2", 6_000)))
    assert set(await stores.responses.load_items(ALICE, ("i1",))) == {"i1"}
    assert set(await stores.conversations.find_items(ALICE, ("c1",))) == {"c1"}
    read.clear()
    with pytest.raises(HistoryTooLarge) as caught:
        await stores.responses.load_items(ALICE, ("i1", "i2"))
    with pytest.raises(HistoryTooLarge):
        await stores.conversations.find_items(ALICE, ("c1", "c2"))
    assert caught.value.param == "input" and _bytes(read) == 0
    # One that is named twice is brought twice.
    for load in (
        stores.responses.load_items(ALICE, ("i1", "i1")),
        stores.conversations.find_items(ALICE, ("c2", "c2")),
    ):
        with pytest.raises(HistoryTooLarge) as twice:
            await load
        assert twice.value.param == "input" and str(HISTORY) in twice.value.message


async def test_items_that_take_exactly_what_they_may_are_brought_whole(stores: SqliteStores) -> None:
    given = (sized("i1", 4_000), sized("i2", HISTORY - 4_000), sized("i3", 1))
    await stores.responses.save(record("a", inputs=given, outputs=()))
    await stores.conversations.create(ALICE, "conv_a", b"{}", given)
    for load in (stores.responses.load_items, stores.conversations.find_items):
        assert await load(ALICE, ("i1", "i2")) == {"i1": given[0], "i2": given[1]}
        with pytest.raises(HistoryTooLarge):
            await load(ALICE, ("i1", "i2", "i3"))


async def test_a_background_response_counts_once_it_is_over(stores: SqliteStores) -> None:
    queued = dataclasses.replace(record("a", status="queued", inputs=(sized("i1", 6_000),), outputs=()), body=b"{}")
    await stores.background.enqueue(queued, b"{}", None, limit=10)
    (job,) = await stores.background.claim("w", 100.0, 1)
    ending = JobEnd("resp_a", "failed", job.body, (sized("o1", 4_001),), -1, None, "w")
    assert await stores.background.end(ending)
    with pytest.raises(HistoryTooLarge):
        await stores.responses.load_chain(ALICE, "resp_a")


# Pages


async def _walk(
    fetch: Callable[[PageQuery], Awaitable[tuple[Sequence[str], int, bool]]], query: PageQuery
) -> list[str]:
    """All ids of a list, page by page, against the promises of a page."""
    seen: list[str] = []
    while True:
        found, size, more = await fetch(query)
        assert len(found) <= query.limit and (size <= PAGE or len(found) == 1)
        if query.turned:
            seen[:0] = found
        else:
            seen += found
        if not more:
            return seen
        assert found, "a page that is not the last one is not empty"
        if query.turned:
            query = dataclasses.replace(query, before=found[0])
        else:
            query = dataclasses.replace(query, after=found[-1])


_SIZES = st.lists(st.sampled_from([1, 10, 900, 1_000, 1_500, 2_999, 3_000, 3_001, 9_000]), min_size=1, max_size=14)


@settings(max_examples=examples(25), deadline=None)
@given(sizes=_SIZES, limit=st.integers(1, 6), descending=st.booleans(), turned=st.booleans())
def test_pages_cut_by_bytes_are_the_whole_list(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], limit: int, descending: bool, turned: bool
) -> None:
    async def check(folder: Path) -> None:
        stores = await open_sqlite(folder, chain_items=1000, history_bytes=1 << 30, page_bytes=PAGE)
        try:
            items = tuple(sized(f"i{n}", size) for n, size in enumerate(sizes))
            await stores.responses.save(record("a", inputs=items, outputs=()))
            await stores.conversations.create(BOB, "conv_a", b"{}", items)
            for n, one in enumerate(items):
                made = record(f"r{n}", owner=BOB, inputs=(), outputs=(structs.replace(one, id=f"o{n}"),))
                await stores.responses.save(dataclasses.replace(made, created_at=1.0 + n // 3, body=b"{}"))

            async def inputs(query: PageQuery) -> tuple[Sequence[str], int, bool]:
                page = await stores.responses.input_items(ALICE, "resp_a", query)
                assert page is not None
                return ids(page.items), sum(len(item.body) for item in page.items), page.has_more

            async def of_conversation(query: PageQuery) -> tuple[Sequence[str], int, bool]:
                page = await stores.conversations.items(BOB, "conv_a", query)
                assert page is not None
                return ids(page.items), sum(len(item.body) for item in page.items), page.has_more

            async def responses(query: PageQuery) -> tuple[Sequence[str], int, bool]:
                page = await stores.responses.list(BOB, query)
                size = sum(len(one.body) + sum(len(i.body) for i in one.output_items) for one in page.items)
                assert all(len(one.output_items) == 1 for one in page.items)
                return [one.id for one in page.items], size, page.has_more

            for fetch, names in (
                (inputs, [f"i{n}" for n in range(len(sizes))]),
                (of_conversation, [f"i{n}" for n in range(len(sizes))]),
                (responses, [f"resp_r{n}" for n in range(len(sizes))]),
            ):
                wanted = names[::-1] if descending else names
                query = PageQuery(limit, descending=descending, before=wanted[-1] if turned else None)
                assert await _walk(fetch, query) == (wanted[:-1] if turned else wanted)
        finally:
            await stores.aclose()

    asyncio.run(check(tmp_path_factory.mktemp("pages")))


@settings(max_examples=examples(15), deadline=None)
@given(sizes=st.lists(st.sampled_from([1, 1_000, 400_000, 1 << 20, (1 << 20) + 1]), min_size=1, max_size=8))
def test_pages_of_events_are_cut_by_bytes(tmp_path_factory: pytest.TempPathFactory, sizes: list[int]) -> None:
    async def check(folder: Path) -> None:
        stores = await open_sqlite(folder, chain_items=1000)
        try:
            await stores.background.enqueue(record("a", status="queued"), b"{}", None, limit=10)
            await stores.background.claim("w", 100.0, 1)
            for n, size in enumerate(sizes):
                assert await stores.background.append("w", "resp_a", EventPiece(n, b"e" * size))
            seen: list[int] = []
            after, more = -1, True
            while more:
                page = await stores.background.events(ALICE, "resp_a", after, 64)
                assert page is not None and page.pieces
                assert sum(len(piece.data) for piece in page.pieces) <= 1 << 20 or len(page.pieces) == 1
                seen += [len(piece.data) for piece in page.pieces]
                after, more = page.pieces[-1].last, page.more
            assert seen == sizes
        finally:
            await stores.aclose()

    asyncio.run(check(tmp_path_factory.mktemp("events")))


# What an owner takes


def _counted(folder: Path) -> tuple[dict[str, int], dict[str, int]]:
    """What the database has counted by owner, and what there is."""
    connection = sqlite3.connect(folder / SESSIONS_FILE)
    try:
        counted = dict(connection.execute("SELECT owner, bytes FROM owner_bytes").fetchall())
        real = dict(
            connection.execute(
                """
                SELECT owner, sum(size) FROM (
                  SELECT owner, length(body) AS size FROM responses
                  UNION ALL
                  SELECT r.owner, length(i.body) + ifnull(length(i.shown), 0)
                  FROM response_items i JOIN responses r ON r.id = i.response_id
                  UNION ALL SELECT owner, length(body) + ifnull(length(shown), 0) FROM conversation_items
                  UNION ALL SELECT owner, 256 + length(metadata) FROM conversations
                  UNION ALL SELECT owner, 256 + length(metadata) + ifnull(length(name), 0) FROM prompts
                  UNION ALL SELECT p.owner, 256 + length(v.body)
                  FROM prompts p JOIN prompt_versions v ON v.prompt_id = p.id
                ) GROUP BY owner HAVING sum(size) > 0
                """
            ).fetchall()
        )
        for total, items in connection.execute(
            """SELECT c.bytes, (SELECT ifnull(sum(length(i.body) + ifnull(length(i.shown), 0)), 0)
                                FROM conversation_items i
                                WHERE i.owner = c.owner AND i.conversation_id = c.id) FROM conversations c"""
        ):
            assert total == items
        return counted, real
    finally:
        connection.close()


async def test_what_an_owner_takes_is_counted_however_rows_come_and_go(stores: SqliteStores, tmp_path: Path) -> None:
    def check(*owners: str) -> None:
        counted, real = _counted(tmp_path)
        assert counted == real and set(real) == set(owners)

    await stores.responses.save(record("a"))
    await stores.responses.save(record("b", prev="a"))
    await stores.responses.save(record("z", owner=BOB))
    check(ALICE, BOB)
    await stores.conversations.create(ALICE, "conv_a", b"{}", (sized("i1", 600), sized("i2", 20)))
    await stores.conversations.add_items(ALICE, "conv_a", (sized("i3", 40),))
    await stores.conversations.delete_item(ALICE, "conv_a", "i1")
    check(ALICE, BOB)
    await stores.conversations.load(ALICE, "conv_a", holder="resp_c", seconds=60)
    await stores.responses.save(in_conversation("c", "conv_a"))
    check(ALICE, BOB)
    await stores.background.enqueue(record("q", status="queued", outputs=()), b"{}", None, limit=10)
    await stores.background.claim("w", 100.0, 1)
    assert await stores.background.finish("w", record("q"), None)
    check(ALICE, BOB)
    assert await stores.responses.delete(BOB, "resp_z")
    check(ALICE)
    assert await stores.responses.delete(ALICE, "resp_a")
    assert await stores.conversations.delete(ALICE, "conv_a")
    check(ALICE)
    pieces, kept = (
        SqlitePieces(stores.tables.writer, stores.tables.readers),
        RetentionSettings(responses=1.0, events=None),
    )
    await Retention(stores.tables, pieces, kept).sweep()
    check()


def test_a_database_that_did_not_count_is_counted_when_it_is_migrated(tmp_path: Path) -> None:
    connection = connect_writer(tmp_path / SESSIONS_FILE)
    steps = packaged_steps()
    migrate(connection, [step for step in steps if step.name < "0004_bytes"])
    connection.execute("INSERT INTO chains (id, owner, updated_at) VALUES ('r1', 'o', 0)")
    for name, before in (("r1", None), ("r2", "r1"), ("r3", "r2")):
        connection.execute(
            "INSERT INTO responses (id, owner, chain_id, prev_id, history_items, status, model, created_at, body) "
            "VALUES (?, 'o', 'r1', ?, 1, 'completed', 'm', 0, x'0000')",
            (name, before),
        )
        connection.execute(
            "INSERT INTO response_items (response_id, dir, seq, item_id, type, body) VALUES (?, 0, 0, ?, 'message', ?)",
            (name, f"i_{name}", b"x" * 10),
        )
    connection.execute(
        "INSERT INTO conversations (owner, id, created_at, updated_at, metadata) VALUES ('p', 'c', 0, 0, '')"
    )
    connection.execute(
        "INSERT INTO conversation_items (owner, conversation_id, pos, item_id, type, body) "
        "VALUES ('p', 'c', 0, 'i', 'm', x'00')"
    )
    connection.execute(
        "INSERT INTO prompts (id, owner, name, default_version, last_version, created_at, updated_at, metadata) "
        "VALUES ('t', 'q', 'name', 1, 2, 0, 0, x'0000')"
    )
    for version in (1, 2):
        connection.execute(
            "INSERT INTO prompt_versions (prompt_id, version, created_at, body) VALUES ('t', ?, 0, x'000000')",
            (version,),
        )
    migrate(connection, steps)
    assert connection.execute("SELECT history_bytes, own_bytes FROM responses ORDER BY id").fetchall() == [
        *((10, 12), (20, 12), (30, 12)),
    ]
    connection.close()
    counted, real = _counted(tmp_path)
    assert counted == real == {"o": 36, "p": 257, "q": 3 * 256 + 4 + 2 + 6}
