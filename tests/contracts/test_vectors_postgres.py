"""Tests vector search on PostgreSQL: the same hits as SQLite, an index for large stores, and word search without
vectors.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from structlog.testing import capture_logs

from antiphon.engine.ports.state import Page, PageQuery
from antiphon.engine.ports.vector_stores import ChunkHit, FileError, NewFile
from antiphon.errors import StoreError
from antiphon.stores.backend import VectorDatabase
from antiphon.stores.idempotency import IdempotencyStore
from antiphon.stores.postgres.backend import PostgresVectorDatabase, open_vectors
from antiphon.stores.postgres.database import Connection, Database
from antiphon.stores.postgres.tables import PostgresTables, run_steps
from antiphon.stores.postgres.vectors.chunk_index import APPROXIMATE, SEARCH_SETTINGS
from antiphon.stores.postgres.vectors.table import VectorIndexes, VectorTable, vector_text
from antiphon.stores.sqlite.backend import open_vector_database
from antiphon.stores.tables import Statement
from antiphon.types.search import Filter
from tests.contracts.made_up_vectors import MODEL, clustered, filled
from tests.contracts.vector_store_contract import ALICE, claim, ingest, make, sweep
from tests.support.postgres import PATIENT, PostgresServer, blocked

WIDTH = 24
STORE = "vs_one"
Opener = Callable[..., Awaitable[PostgresVectorDatabase]]

FILTERS = [
    None,
    Filter("eq", "n", 3),
    Filter("ne", "n", 3),
    Filter("in", "n", (1, 2, 3)),
    Filter("and", parts=(Filter("lt", "n", 4), Filter("gt", "n", 1))),
    Filter("eq", "n", 1_000),
]


@pytest.fixture
async def open_here(postgres_url: str) -> AsyncIterator[Opener]:
    """Opens the vector stores of a process. `exact`: the number of vectors up to which a search compares all of
    them."""
    async with AsyncExitStack() as stack:

        async def opened(exact: int = 20_000, url: str = postgres_url) -> PostgresVectorDatabase:
            database = await stack.enter_async_context(aclosing(Database(url, PATIENT)))
            stores = open_vectors(database, IdempotencyStore(PostgresTables(database)), direct_url=url, exact=exact)
            return await stack.enter_async_context(aclosing(stores))

        yield opened


async def nearest(
    database: VectorDatabase, query: bytes, filters: Filter | None = None, limit: int = 10, model: str = MODEL
) -> list[ChunkHit]:
    (store,) = await database.index.known(ALICE, [STORE])
    return await database.index.nearest(store, model, query, filters, limit)


def places(hits: list[ChunkHit]) -> list[int]:
    """The hits by a number that is the same in both backends: the number of chunks before the hit, with ten chunks per
    file."""
    first = min(hit.chunk >> 20 for hit in hits) if hits else 0
    return [((hit.chunk >> 20) - first) * 10 + hit.chunk % (1 << 20) for hit in hits]


async def test_it_finds_what_sqlite_finds(open_here: Opener, tmp_path: Path) -> None:
    vectors = clustered(300, WIDTH, seed=1)
    files = [({"n": number % 10}, vectors[number * 10 : number * 10 + 10]) for number in range(30)]
    on_postgres = await open_here()
    async with aclosing(await open_vector_database(tmp_path)) as on_sqlite:
        for database in (on_postgres, on_sqlite):
            await filled(database, ALICE, STORE, files)
        numbers = {}
        for name, database in (("postgres", on_postgres), ("sqlite", on_sqlite)):
            (store,) = await database.index.known(ALICE, [STORE])
            numbers[name] = store.number + 1  # The number of the first file follows that of the store.
        for query in clustered(20, WIDTH, seed=2):
            for filters in FILTERS:
                ours, theirs = await nearest(on_postgres, query, filters), await nearest(on_sqlite, query, filters)
                shift = (numbers["postgres"] - numbers["sqlite"]) << 20
                assert [hit.chunk - shift for hit in ours] == [hit.chunk for hit in theirs]
                assert [hit.score for hit in ours] == pytest.approx([hit.score for hit in theirs], abs=2e-6)


async def test_vectors_of_another_model_or_width_are_not_compared(open_here: Opener) -> None:
    database = await open_here()
    await filled(database, ALICE, STORE, [({}, clustered(5, WIDTH, seed=1))])
    (query,) = clustered(1, WIDTH, seed=2)
    assert len(await nearest(database, query)) == 5
    assert await nearest(database, query, model="another") == []
    (wider,) = clustered(1, WIDTH * 2, seed=2)
    assert await nearest(database, wider) == []


async def test_a_large_store_gets_an_index_of_its_own(open_here: Opener) -> None:
    database, other = await open_here(exact=100), await open_here(exact=100)
    vectors = clustered(600, WIDTH, seed=1)
    files = [({"n": number % 10}, vectors[number * 10 : number * 10 + 10]) for number in range(60)]
    await filled(database, ALICE, STORE, files)
    await filled(database, ALICE, "vs_small", files[:5])
    queries = clustered(20, WIDTH, seed=2)
    exact = {(query, half): places(await nearest(database, query, half)) for query in queries for half in halves()}
    # Several processes check whether the store needs an index, and one of them builds it.
    for each in (database, other):
        each.indexes.look()
    for each in (database, other):
        await each.indexes.made()
    (store,) = await database.index.known(ALICE, [STORE])
    assert await indexes(database) == [(f"chunk_vectors_{store.number}_{WIDTH}", True)]
    assert "Index Scan using chunk_vectors_" in await plan(database, store.number, queries[0])
    for (query, half), expected in exact.items():
        assert len(set(places(await nearest(other, query, half))) & set(expected)) >= 9
    # The graph search finds fewer hits than requested, so PostgreSQL compares all vectors.
    assert len(await nearest(database, queries[0], limit=600)) == 600


def halves() -> list[Filter | None]:
    return [None, Filter("lt", "n", 5)]


async def indexes(database: PostgresVectorDatabase) -> list[tuple[str, bool]]:
    return [
        (row[0], row[1])
        for row in await database.table.database.fetch(
            "SELECT indexrelid::regclass::text, indisvalid FROM pg_index "
            "WHERE indrelid = 'chunk_vectors'::regclass AND NOT indisprimary"
        )
    ]


async def plan(database: PostgresVectorDatabase, store: int, query: bytes) -> str:
    sql = "EXPLAIN " + APPROXIMATE.format(number=store, size=WIDTH, condition="true")
    named = {"store": store, "model": MODEL, "width": WIDTH, "vector": vector_text(query), "limit": 10}
    told: list[Any] = []

    async def work(connection: Connection) -> str:
        await connection.execute(SEARCH_SETTINGS.format(looked_at=100))
        await run_steps(connection, [Statement(sql, named, into=told)])
        return "\n".join(row[0] for row in told)

    return await database.table.database.transaction(work)


async def test_an_index_half_made_is_made_again_and_one_of_no_store_goes(open_here: Opener) -> None:
    database = await open_here(exact=100)
    vectors = clustered(200, WIDTH, seed=1)
    await filled(database, ALICE, STORE, [({}, vectors)])
    database.indexes.look()
    await database.indexes.made()
    ((name, _),) = await indexes(database)
    raw = database.table.database
    await raw.write("UPDATE pg_index SET indisvalid = false WHERE indexrelid = to_regclass($1)", name)
    again = await open_here(exact=100)
    assert len(await nearest(again, vectors[0])) == 10, "without a good one the vectors are compared one by one"
    await raw.write("DELETE FROM sweeps")
    again.indexes.look()
    await again.indexes.made()
    assert await indexes(database) == [(name, True)]
    await database.stores.delete(ALICE, STORE)
    await sweep(database)
    await raw.write("DELETE FROM sweeps")
    last = await open_here(exact=100)
    last.indexes.look()
    await last.indexes.made()
    assert await indexes(database) == []
    assert (await raw.fetch("SELECT count(*) FROM chunk_vectors"))[0][0] == 0


async def test_a_process_that_ends_leaves_its_index_to_the_server(open_here: Opener, postgres_url: str) -> None:
    """No operation waits for this index: new vectors are stored, and searches compare all vectors."""
    database, other = await open_here(exact=100), await open_here(exact=100)
    vectors = clustered(200, WIDTH, seed=1)
    await filled(database, ALICE, STORE, [({}, vectors)])
    writer = await asyncpg.connect(postgres_url, statement_cache_size=0)
    await writer.execute("BEGIN; UPDATE chunk_vectors SET width = width")
    database.indexes.look()
    # The index is being built, and the server waits for the other transaction to end.
    await until(lambda: being_made(other))
    assert len(await nearest(other, vectors[0])) == 10
    await filled(other, ALICE, "vs_other", [({}, vectors[:10])])
    await database.indexes.aclose()
    await writer.execute("COMMIT")
    await writer.close()
    await until(lambda: made(other))


async def being_made(database: PostgresVectorDatabase) -> bool:
    rows = await database.table.database.fetch(
        "SELECT 1 FROM pg_stat_progress_create_index WHERE phase LIKE 'waiting%'"
    )
    return bool(rows)


async def made(database: PostgresVectorDatabase) -> bool:
    return [valid for _, valid in await indexes(database)] == [True]


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await holds():
            await asyncio.sleep(0.01)


async def test_a_database_that_is_away_is_a_line_of_the_log() -> None:
    url = "postgresql://localhost:1/none"
    async with aclosing(Database(url, PATIENT)) as away:
        indexes_of_nothing = VectorIndexes(away, url)
        with capture_logs() as lines:
            indexes_of_nothing.look()
            await indexes_of_nothing.made()
    assert [line["event"] for line in lines if line["event"].startswith("vector_")] == ["vector_indexes_not_made"]


async def test_one_process_at_a_time_makes_the_extension(postgres: PostgresServer) -> None:
    url = await postgres.new_database()
    other = await asyncpg.connect(url, statement_cache_size=0)
    await other.execute("BEGIN")
    await other.execute("SELECT pg_advisory_xact_lock(hashtextextended('antiphon vector', 0))")
    async with aclosing(Database(url, PATIENT)) as database:
        making = asyncio.ensure_future(VectorTable(database).there())
        waits = asyncio.ensure_future(blocked(other))
        await asyncio.wait({making, waits}, return_when=asyncio.FIRST_COMPLETED)
        assert waits.done() and not making.done()
        await other.execute("ROLLBACK")
        await making
    await other.close()
    await postgres.drop_database(url)


async def test_words_do_without_the_extension(open_here: Opener) -> None:
    database = await open_here()
    await make(database, "one", NewFile("file-1", "a.txt"))
    (job,) = await claim(database)
    await ingest(database, job, "birds")
    await sweep(database)
    (store,) = await database.index.known(ALICE, [STORE])
    assert len(await database.index.match(store, "birds", None, 10)) == 1
    assert not await database.table.database.fetch("SELECT 1 FROM pg_extension WHERE extname = 'vector'")


async def test_a_server_without_the_extension_is_named(open_here: Opener) -> None:
    table = VectorTable((await open_here()).table.database, extension="not_on_this_server")
    for ask in (table.there, table.check):
        with pytest.raises(StoreError, match=r"Install pgvector.* unset embeddings\.url"):
            await ask()


async def test_an_extension_that_is_too_old_is_named(open_here: Opener) -> None:
    database = await open_here()
    await database.table.check()
    await database.check_vectors()
    newer = VectorTable(database.table.database, oldest=(99, 0))
    for ask in (newer.check, newer.there):
        with pytest.raises(StoreError, match=r"embeddings need 99.0 or newer.*ALTER EXTENSION vector UPDATE"):
            await ask()


async def test_a_role_that_may_not_make_the_extension_is_told_what_to_do(postgres: PostgresServer) -> None:
    url = await postgres.new_database()
    name = url.rsplit("/", 1)[1]
    admin = await asyncpg.connect(url)
    await admin.execute(f"CREATE ROLE {name} LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO {name}")
    try:
        async with aclosing(Database(url.replace("postgres@", f"{name}@"))) as database:
            for ask in (VectorTable(database).there, VectorTable(database).check):
                with pytest.raises(StoreError, match="Have an administrator run `CREATE EXTENSION vector`"):
                    await ask()
    finally:
        await admin.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")
        await admin.close()
        await postgres.drop_database(url)


TEXTS = [
    "birds have wings and fly",
    "planes fly without wings that beat; planes, planes",
    "the winged ones: birds, bats, butterflies",
    "nothing of the kind " * 10,
    "この検索ドキュメントは速い。検索機能",
    "naïve Straße, birds of passage " * 3,
]
QUERIES = ["birds", "flying wings", "planes birds", "検索", "検索機能 birds", "naive strasse passage", "kind of birds"]


async def test_words_rank_as_on_sqlite(open_here: Opener, tmp_path: Path) -> None:
    on_postgres = await open_here()
    async with aclosing(await open_vector_database(tmp_path)) as on_sqlite:
        for database in (on_postgres, on_sqlite):
            await make(database, "one", NewFile("file-1", "birds.txt"), NewFile("file-2", "x.txt"))
            for job in await claim(database, "c1", "c2"):
                await ingest(database, job, *TEXTS)
        for query in QUERIES:
            found = []
            for database in (on_postgres, on_sqlite):
                (store,) = await database.index.known(ALICE, [STORE])
                hits = await database.index.match(store, query, None, 100)
                texts = await database.index.hits([store], [hit.chunk for hit in hits])
                found.append([(texts[hit.chunk].file_id, texts[hit.chunk].text, hit.score) for hit in hits])
            ours, theirs = found
            assert [row[:2] for row in ours] == [row[:2] for row in theirs]
            assert [row[2] for row in ours] == pytest.approx([row[2] for row in theirs], rel=1e-9)


async def test_a_file_that_fails_while_it_is_taken_out_keeps_nobody_waiting_for_itself(
    open_here: Opener, postgres_url: str
) -> None:
    # Both operations lock the file's row before they insert its number. Otherwise each would wait for a lock of the
    # other.
    database = await open_here()
    await make(database, "one", NewFile("file-a", "a.txt"))
    (job,) = await claim(database)
    connection = await asyncpg.connect(postgres_url)
    try:
        async with connection.transaction():
            await connection.execute("SELECT 1 FROM vector_files FOR UPDATE")
            failing = asyncio.create_task(database.ingestion.fail(job, FileError("invalid_file", "no text")))
            async with asyncio.timeout(30):
                while not await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                    await asyncio.sleep(0.01)
            await connection.execute("SET LOCAL lock_timeout = '500ms'")
            await connection.execute("DELETE FROM vector_files")
        assert not await failing
    finally:
        await connection.close()
    await sweep(database)
    assert await database.stores.list_files(ALICE, STORE, PageQuery()) == Page((), has_more=False)
