"""Vector stores on PostgreSQL while transactions overlap: one is held open by hand, the other meets it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from antiphon.engine.ports.vector_stores import DocumentChunk, FileError, FileStateCounts, IngestJob, NewFile
from antiphon.stores.idempotency import IdempotencyStore
from antiphon.stores.postgres.backend import PostgresVectorDatabase, open_vectors
from antiphon.stores.postgres.database import Connection, Database
from antiphon.stores.postgres.tables import PostgresTables, run_steps
from antiphon.stores.postgres.vectors import ingestion as work
from antiphon.stores.postgres.vectors.sql import PostgresVectorSql
from antiphon.stores.tables import Statement
from antiphon.stores.vector_stores import ingest_job
from tests.contracts.vector_store_contract import ALICE, claim, ingest, make, sweep
from tests.integration.test_vector_stores_app import ask, ingested, opened, upload
from tests.support.embeddings_server import open_embeddings_server
from tests.support.postgres import PATIENT, PostgresServer, blocked

# Behaviour of servers and connections, each with a database: the contracts are the quick part.
pytestmark = pytest.mark.full

STORE, FILE, BATCH = "vs_one", "file-1", "vsfb_1"
DOCUMENTS = {"birds": b"Swifts fly for months.", "planes": b"The plane."}
EXPIRE = "UPDATE vector_stores SET expires_at = unix_ms() - 60000"


@pytest.fixture
async def url(postgres: PostgresServer) -> AsyncIterator[str]:
    url = await postgres.new_database()
    yield url
    await postgres.drop_database(url)


@pytest.fixture
async def here(url: str) -> AsyncIterator[PostgresVectorDatabase]:
    async with (
        aclosing(Database(url, PATIENT)) as database,
        aclosing(open_vectors(database, IdempotencyStore(PostgresTables(database)), direct_url=url)) as stores,
    ):
        yield stores


@pytest.fixture
async def other(url: str) -> AsyncIterator[Connection]:
    """Somebody else, in the middle of a transaction."""
    connection = await asyncpg.connect(url, statement_cache_size=0)
    await connection.execute("BEGIN")
    yield connection
    await connection.close()


async def rows(here: PostgresVectorDatabase, table: str) -> int:
    return int((await here.table.database.fetch(f"SELECT count(*) FROM {table}"))[0][0])


async def claimed(here: PostgresVectorDatabase, *, days: int | None = None) -> IngestJob:
    """A file of a batch in a store, claimed."""
    await make(here, "one", days=days)
    await here.stores.add_files(ALICE, STORE, [NewFile(FILE, "a.txt")], batch_id=BATCH)
    (job,) = await claim(here)
    return job


NAMED = {"owner": ALICE, "id": STORE, "file_id": FILE, "batch_id": BATCH}
SQL = PostgresVectorSql()


async def claim_by(connection: Connection, *claims: str) -> list[Any]:
    claimed: list[Any] = []
    named = {"claims": list(claims), "lease": 60_000}
    await run_steps(connection, [Statement(work.CLAIM, named, into=claimed)])
    return claimed


async def remove(connection: Connection) -> None:
    await run_steps(connection, [Statement(SQL.hold, NAMED), Statement(SQL.delete_file, NAMED)])


async def cancel(connection: Connection) -> None:
    locked = [Statement(SQL.lock, NAMED, into=[]), Statement(SQL.cancel_batch, NAMED)]
    await run_steps(connection, [*locked, *SQL.cancel_files(NAMED)])


async def add_again(connection: Connection) -> None:
    file = {"filename": "a.txt", "attributes": b"{}", "chunking": "auto", "size": 800, "overlap": 400}
    given = {**NAMED, "batch_id": None, **file}
    await run_steps(connection, [Statement(SQL.hold_used, NAMED), *SQL.add_files(given, [given])])


async def take_over(connection: Connection) -> None:
    await connection.execute("UPDATE vector_files SET lease_until = now() - interval '1 s'")
    assert len(await claim_by(connection, "another")) == 1


TAKEN_AWAY = [remove, cancel, add_again, take_over]


@pytest.mark.parametrize("take", TAKEN_AWAY)
@pytest.mark.parametrize("write", ["append", "complete", "fail"])
async def test_what_a_lost_claim_writes_changes_nothing(
    here: PostgresVectorDatabase, other: Connection, take: Any, write: str
) -> None:
    """The file is taken away in a transaction that is not over yet: whoever writes waits for it, and finds out."""
    job = await claimed(here)
    await take(other)
    writing = asyncio.create_task(
        {
            "append": lambda: here.ingestion.append(job, 0, "a", [DocumentChunk("birds", 1)]),
            "complete": lambda: here.ingestion.complete(job, chunks=0, usage_bytes=0, model=None),
            "fail": lambda: here.ingestion.fail(job, FileError("server_error", "no")),
        }[write]()
    )
    await blocked(other)
    await other.execute("COMMIT")
    assert not await writing
    store = await here.stores.get(ALICE, STORE)
    assert store is not None and store.counts.completed == store.counts.failed == 0
    await sweep(here)
    assert await rows(here, "chunks") == 0


@pytest.mark.parametrize("take", [remove, cancel, add_again])
async def test_what_was_written_before_goes_with_its_file(
    here: PostgresVectorDatabase, other: Connection, take: Any
) -> None:
    """The chunks are written in a transaction that is not over yet: whoever takes the file away waits for it."""
    job = await claimed(here)
    given = {"places": [0], "tokens": [1], "lengths": [1], "texts": ["birds"], "width": None, "words": ["\nbird 1"]}
    written: list[Any] = []
    named = {"claim": job.claim, "no": job.number, **given}
    await run_steps(other, [Statement(work.APPEND, named, into=written)])
    assert written
    taking = asyncio.create_task(here.table.database.transaction(take))
    await blocked(other)
    await other.execute("COMMIT")
    await taking
    assert await rows(here, "chunks") == 1
    await sweep(here)
    assert await rows(here, "chunks") == 0 and await rows(here, "vector_trash") == 0


async def test_a_store_that_is_being_deleted_gets_no_files(here: PostgresVectorDatabase, other: Connection) -> None:
    await make(here, "one")
    await run_steps(other, SQL.delete(NAMED))
    adding = asyncio.create_task(here.stores.add_files(ALICE, STORE, [NewFile(FILE, "a.txt")], batch_id=BATCH))
    await blocked(other)
    await other.execute("COMMIT")
    assert not await adding
    await sweep(here)
    assert [await rows(here, table) for table in ("vector_stores", "vector_files", "vector_batches")] == [0, 0, 0]


async def test_a_store_that_gets_files_meanwhile_is_deleted_with_them(
    here: PostgresVectorDatabase, other: Connection
) -> None:
    job = await claimed(here)
    await add_again(other)
    deleting = asyncio.create_task(here.stores.delete(ALICE, STORE))
    await blocked(other)
    await other.execute("COMMIT")
    assert await deleting
    assert await claim(here, "c2") == [], "nobody makes chunks for nobody"
    assert not await here.ingestion.append(job, 0, "a", [DocumentChunk("birds", 1)])
    await sweep(here)
    assert await rows(here, "vector_files") == 0


async def test_a_claim_leaves_alone_what_another_is_taking(here: PostgresVectorDatabase, other: Connection) -> None:
    await make(here, "one", *(NewFile(f"file-{number}", "a.txt") for number in range(3)))
    taken = await claim_by(other, "a", "b")
    (job,) = await claim(here, "c1", "c2", "c3")
    await other.execute("COMMIT")
    assert len({job.file_id, *(ingest_job(row).file_id for row in taken)}) == 3


async def test_a_claim_that_is_made_again_takes_no_more(here: PostgresVectorDatabase) -> None:
    """As after a connection that was lost before it said what was claimed."""
    await make(here, "one", *(NewFile(f"file-{number}", "a.txt") for number in range(4)))
    assert await claim(here, "c1", "c2") == await claim(here, "c1", "c2")


async def test_expiry_and_a_claim_at_once(here: PostgresVectorDatabase, other: Connection) -> None:
    """The sweep deletes a file of an expired store: nobody claims it meanwhile, or finds it under an older claim."""
    job = await claimed(here, days=1)
    await here.table.database.write(EXPIRE)
    await here.table.database.write("UPDATE vector_files SET lease_until = now() - interval '1 s'")
    ((number, deleted),) = await other.fetch(work.OVER)
    assert not deleted
    assert len(await other.fetch(work.DELETE_FILES, number, 10)) == 1
    assert await claim(here, "c2") == []
    appending = asyncio.create_task(here.ingestion.append(job, 0, "a", [DocumentChunk("birds", 1)]))
    await blocked(other)
    await other.execute("COMMIT")
    assert not await appending
    await sweep(here)
    assert await rows(here, "chunks") == 0


async def test_a_store_that_is_being_used_does_not_expire(
    here: PostgresVectorDatabase, other: Connection, url: str
) -> None:
    """A sweep to which its time is over leaves it alone: it is being used at that moment."""
    await claimed(here, days=1)
    await run_steps(other, [Statement(SQL.hold_used, NAMED)])
    later = work.OVER.replace("unix_ms()", f"unix_ms() + {86_400_000}")
    assert await here.table.database.write(later) == []
    await other.execute("COMMIT")
    assert len(await here.table.database.write(later)) == 1


async def test_many_change_one_store_at_once(here: PostgresVectorDatabase) -> None:
    """None waits for another that waits for it."""
    await make(here, "one", *(NewFile(f"file-{number}", "a.txt") for number in range(20)))
    await make(here, "two", *(NewFile(f"file-{number}", "a.txt") for number in range(20)))

    async def ingester(name: str) -> None:
        for turn in range(20):
            for job in await claim(here, f"{name}-{turn}-1", f"{name}-{turn}-2"):
                if await here.ingestion.append(job, 0, "a", [DocumentChunk("birds", 1)]):
                    await here.ingestion.complete(job, chunks=1, usage_bytes=1, model=None)

    async def owner(number: int) -> None:
        files = [NewFile(f"file-{place}", "a.txt", {"n": place}) for place in range(number % 5, 20, 3)]
        await here.stores.add_files(ALICE, ("vs_one", "vs_two")[number % 2], files, batch_id=f"vsfb_{number}")
        await here.stores.forget_file(ALICE, f"file-{number}")
        await here.stores.cancel_batch(ALICE, ("vs_one", "vs_two")[number % 2], f"vsfb_{number}")
        await here.ingestion.sweep()

    await asyncio.gather(*(ingester(f"i{n}") for n in range(3)), *(owner(n) for n in range(8)))
    await ingester("last")
    await sweep(here)
    both = [await here.stores.get(ALICE, store_id) for store_id in ("vs_one", "vs_two")]
    done = sum((store.counts.completed for store in both if store is not None), 0)
    assert await rows(here, "chunks") == done and all(store and not store.counts.in_progress for store in both)
    assert await rows(here, "vector_trash") == 0


async def test_two_that_sweep_take_nothing_that_stays(here: PostgresVectorDatabase) -> None:
    await make(here, "one", NewFile("file-1", "a.txt"), NewFile("file-2", "b.txt"))
    first, second = await claim(here, "c1", "c2")
    await ingest(here, first, *(f"birds {number}" for number in range(1_200)))
    await ingest(here, second, "birds stay")
    await here.stores.remove_file(ALICE, STORE, first.file_id)
    await asyncio.gather(*(sweep(here) for _ in range(4)))
    await sweep(here)
    assert await rows(here, "chunks") == 1
    store = await here.stores.get(ALICE, STORE)
    assert store is not None and store.counts == FileStateCounts(completed=1)


async def test_what_one_machine_ingests_another_finds(postgres: PostgresServer, tmp_path: Path) -> None:
    """The whole way, by words and by meaning, from an empty database."""
    url = await postgres.new_database(empty=True)
    async with open_embeddings_server() as server:
        given = {
            "state": {"url": url},
            "owner": {"key": "k" * 40},
            "sealing": {"keys": ["s" * 40]},
            "embeddings": {"url": server.url, "model": "words"},
        }
        # The contents of the files lie on the one's disk.
        other = {**given, "vector_stores": {"ingest": 0}}
        async with opened(tmp_path / "one", **given) as one, opened(tmp_path / "two", **other) as two:
            ids = [await upload(one, f"{name}.txt", text) for name, text in DOCUMENTS.items()]
            _, store = await ask(one, "POST", "/v1/vector_stores", {"file_ids": ids})
            assert (await ingested(two, store["id"]))["completed"] == len(DOCUMENTS)
            for query, expected in (("aeroplane", "planes.txt"), ("swifts", "birds.txt")):
                status, hits = await ask(two, "POST", f"/v1/vector_stores/{store['id']}/search", {"query": query})
                assert status == 200 and hits["data"][0]["filename"] == expected
    await postgres.drop_database(url)


async def test_many_processes_that_use_a_store_write_that_down_once_a_minute(
    here: PostgresVectorDatabase, url: str
) -> None:
    await make(here, "one", days=1)

    async def row() -> tuple[int, int]:
        ((version, used),) = await here.table.database.fetch(
            "SELECT xmin::text::bigint, last_active_at FROM vector_stores"
        )
        return version, used

    made = await row()
    await here.index.touch(ALICE, [STORE])
    assert await row() == made, "it was used a moment ago"
    await here.table.database.write("UPDATE vector_stores SET last_active_at = last_active_at - 61000")
    versions = set()
    for _ in range(3):
        async with aclosing(Database(url, PATIENT)) as database:
            await open_vectors(database, IdempotencyStore(PostgresTables(database)), direct_url=url).index.touch(
                ALICE, [STORE]
            )
        versions.add(await row())
    ((_, used),) = versions
    assert used > made[1]
