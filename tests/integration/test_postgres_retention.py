"""What is too old goes from PostgreSQL, in small pieces that wait for nobody, and nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from antiphon.config.state import RetentionSettings
from antiphon.engine.ports.actions import StoredItem
from antiphon.errors import ChainBroken, ConversationLocked, StoreError
from antiphon.stores.blobs.disk import DiskBlobs
from antiphon.stores.conversations import ConversationStore
from antiphon.stores.postgres.database import Database
from antiphon.stores.postgres.retention import PostgresPieces
from antiphon.stores.postgres.tables import PostgresTables
from antiphon.stores.retention import Retention
from tests.contracts.file_contract import fields, keep
from tests.contracts.job_contract import MOST, ONE, finished, piece, queued
from tests.contracts.store_contract import ALICE, record
from tests.integration.test_postgres_conversations import ADD_JOB
from tests.support.postgres import PATIENT, PostgresServer
from tests.support.postgres_stores import TurnStores, postgres_files, turn_stores

# Behaviour of servers and connections, each with a database: the contracts are the quick part.
pytestmark = pytest.mark.full

_TABLES = ("responses", "response_items", "response_events", "conversations", "conversation_items")
# Everything that was there is an hour old.
AGE = """
UPDATE chains SET updated_at = extract(epoch FROM now()) * 1000 - 3600000;
UPDATE conversations SET updated_at = extract(epoch FROM now()) * 1000 - 3600000;
UPDATE responses SET stored_at = extract(epoch FROM now()) * 1000 - 3600000;
"""
# How many rows each transaction deletes, in whatever way.
WATCH = """
CREATE TABLE deleted (transaction xid8, rows bigint);
CREATE FUNCTION note_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO deleted SELECT pg_current_xact_id(), count(*) FROM removed; RETURN NULL; END $$;
""" + "".join(
    f"CREATE TRIGGER note_{table} AFTER DELETE ON {table} REFERENCING OLD TABLE AS removed "
    "FOR EACH STATEMENT EXECUTE FUNCTION note_deleted();"
    for table in _TABLES
)
# A background response that is over, with its stream.
ADD_STREAM = """
WITH chain AS (INSERT INTO chains (id, owner, updated_at) VALUES ($1, $2, 0)),
made AS (
  INSERT INTO responses (id, owner, chain_id, history_items, history_bytes, own_bytes, status, model, created_at, body,
                         background, stored_at)
  VALUES ($1, $2, $1, 1, 0, 2, 'completed', 'm', 0, '{}', 1, 0)
)
INSERT INTO response_events (response_id, last_seq, data) SELECT $1, n, 'x' FROM generate_series(1, 3) AS n
"""


@pytest.fixture
async def url(postgres: PostgresServer) -> AsyncIterator[str]:
    url = await postgres.new_database()
    yield url
    await postgres.drop_database(url)


@pytest.fixture
async def stores(url: str) -> AsyncIterator[TurnStores]:
    async with aclosing(turn_stores(url)) as opened:
        yield opened


@pytest.fixture(params=[-48, 48])
def wrong(request: pytest.FixtureRequest) -> float:
    """The time of a clock that is so many hours off."""
    return time.time() + int(request.param) * 3600


@pytest.fixture
async def wrong_stores(url: str, wrong: float) -> AsyncIterator[TurnStores]:
    """Of a machine with such a clock."""
    async with aclosing(turn_stores(url, clock=lambda: wrong)) as opened:
        yield opened


@pytest.fixture
def conversations(stores: TurnStores) -> ConversationStore:
    return ConversationStore(
        PostgresTables(stores.database),
        stores.keys,
        max_items=1000,
        history_bytes=1 << 26,
        page_bytes=1 << 24,
    )


@pytest.fixture
async def other(url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    """A connection of another process."""
    connection = await asyncpg.connect(url)
    yield connection
    await connection.close()


def _retention(stores: TurnStores, *, rows: int = 1000, long: float = 0.05, **kept: float) -> Retention:
    pieces = PostgresPieces(stores.database, rows=rows, long=long)
    settings = RetentionSettings.model_validate({"events": None, **kept})
    return Retention(PostgresTables(stores.database), pieces, settings)


async def _count(connection: asyncpg.Connection[Any], *tables: str) -> Mapping[str, int]:
    return {table: await connection.fetchval(f"SELECT count(*) FROM {table}") for table in tables}


async def test_a_chain_goes_as_a_whole_when_its_latest_response_is_old(
    stores: TurnStores, other: asyncpg.Connection[Any]
) -> None:
    for name, prev in (("old", None), ("a", None)):
        await stores.responses.save(record(name, prev=prev))
    await other.execute(AGE)
    await stores.responses.save(record("b", prev="a"))
    # The responses of tests are of a moment long ago; what counts is when the chain was last added to.
    await other.execute("UPDATE chains SET updated_at = extract(epoch FROM now()) * 1000 WHERE id = 'resp_a'")
    assert await _retention(stores, responses=600).sweep() == (1, 0, 0)
    assert await stores.responses.get(ALICE, "resp_old") is None
    assert await stores.responses.load_chain(ALICE, "resp_b") is not None
    await other.execute(AGE)
    assert await _retention(stores, responses=7200).sweep() == (0, 0, 0)
    assert await _retention(stores, responses=600).sweep() == (1, 0, 0)
    assert set((await _count(other, "chains", "responses", "response_items")).values()) == {0}
    assert await other.fetchval("SELECT coalesce(sum(bytes), 0) FROM owner_bytes") == 0


async def test_a_conversation_goes_with_its_items_unless_something_runs_on_it(
    stores: TurnStores, conversations: ConversationStore, other: asyncpg.Connection[Any]
) -> None:
    for name in ("idle", "busy", "job", "over"):
        await conversations.create(ALICE, f"conv_{name}", b"{}", (StoredItem("msg_1", "message", b"{}"),))
    await conversations.load(ALICE, "conv_busy", holder="resp_busy", seconds=3600)
    await conversations.load(ALICE, "conv_job", holder="resp_job", seconds=0)
    await conversations.load(ALICE, "conv_over", holder="resp_over", seconds=0)
    await other.execute(ADD_JOB, "resp_job", ALICE)
    await other.execute(AGE)
    assert await _retention(stores, conversations=600).sweep() == (0, 2, 0)
    left = {row[0] for row in await other.fetch("SELECT id FROM conversations")}
    assert left == {"conv_busy", "conv_job"}
    assert await _retention(stores, responses=600).sweep() == (0, 0, 0), "a chain with a job stays"


async def test_no_piece_is_larger_than_so_many_rows(
    stores: TurnStores, conversations: ConversationStore, other: asyncpg.Connection[Any]
) -> None:
    """However large what goes is: a chain of many responses, many chains, a conversation of many items, streams."""
    prev = None
    for number in range(40):
        await stores.responses.save(record(f"long{number}", prev=prev))
        prev = f"long{number}"
    for number in range(20):
        await stores.responses.save(record(f"short{number}"))
    items = [StoredItem(f"msg_{number}", "message", b"{}") for number in range(95)]
    await conversations.create(ALICE, "conv_large", b"{}", items)
    for number in range(15):
        await conversations.create(ALICE, f"conv_{number}", b"{}", items[:3])
    for number in range(12):
        await other.execute(ADD_STREAM, f"resp_stream{number}", ALICE)
    await other.execute(AGE)
    await other.execute(WATCH)
    assert await _retention(stores, rows=10, events=600).sweep() == (0, 0, 12)
    assert await _retention(stores, rows=10, events=600).sweep() == (0, 0, 0), "they are looked at no more"
    assert await _retention(stores, rows=10, conversations=600).sweep() == (0, 16, 0)
    assert await _retention(stores, rows=10, responses=600).sweep() == (33, 0, 0)
    assert set((await _count(other, *_TABLES, "chains")).values()) == {0}
    pieces = await other.fetch("SELECT sum(rows) FROM deleted GROUP BY transaction")
    assert 5 <= max(row[0] for row in pieces) <= 10


async def test_what_is_going_is_not_used_any_more(
    stores: TurnStores,
    conversations: ConversationStore,
    other: asyncpg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Half of a chain or a conversation is never taken for the whole of it."""
    prev = None
    for number in range(10):
        await stores.responses.save(record(f"long{number}", prev=prev))
        prev = f"long{number}"
    items = [StoredItem(f"msg_{number}", "message", b"{}") for number in range(30)]
    await conversations.create(ALICE, "conv_1", b"{}", items)
    await other.execute(AGE)
    transaction = stores.database.transaction
    for kept in ({"responses": 600.0}, {"conversations": 600.0}):
        pieces = 0

        async def one_piece(work: Any) -> Any:
            nonlocal pieces
            pieces += 1
            if pieces > 1:
                raise StoreError("The process ends here.")
            return await transaction(work)

        with monkeypatch.context() as patched, pytest.raises(StoreError):
            patched.setattr(stores.database, "transaction", one_piece)
            await _retention(stores, rows=10, **kept).sweep()
    with pytest.raises(ChainBroken):
        await stores.responses.load_chain(ALICE, "resp_long9")
    with pytest.raises(StoreError):
        await stores.responses.save(record("next", prev="long9"))
    assert await conversations.load(ALICE, "conv_1") is None
    with pytest.raises(ConversationLocked):
        await conversations.load(ALICE, "conv_1", holder="resp_x", seconds=30)
    # Another process, or the next one, goes on with it.
    assert await _retention(stores, rows=10, responses=600, conversations=600).sweep() == (1, 1, 0)


async def test_what_is_in_use_at_the_moment_is_passed_over(
    stores: TurnStores, conversations: ConversationStore, other: asyncpg.Connection[Any]
) -> None:
    """A chain on which something is being saved, a conversation that is being locked: nobody waits, nothing is lost."""
    for name in ("a", "b"):
        await stores.responses.save(record(name))
        await conversations.create(ALICE, f"conv_{name}", b"{}")
    await other.execute(AGE)
    saving = other.transaction()
    await saving.start()
    await other.execute("SELECT 1 FROM chains WHERE id = 'resp_a' FOR NO KEY UPDATE")
    await other.execute("UPDATE conversations SET locked_by = 'resp_x' WHERE id = 'conv_a'")
    retention = _retention(stores, responses=600, conversations=600)
    assert await asyncio.wait_for(retention.sweep(), 60) == (1, 1, 0)
    assert await stores.responses.get(ALICE, "resp_a") is not None
    await saving.rollback()
    assert await retention.sweep() == (1, 1, 0)


async def test_one_process_clears_up_for_all(stores: TurnStores, url: str, other: asyncpg.Connection[Any]) -> None:
    await stores.responses.save(record("a"))
    await other.execute(AGE)
    async with aclosing(turn_stores(url)) as others:
        mine, theirs = _retention(stores, responses=600), _retention(others, responses=600)
        assert [await each.take_turn("state", 60) for each in (mine, theirs, mine)] == [True, False, False]
        assert await theirs.take_turn("files", 0)
        assert await mine.take_turn("files", 60)
        # Whoever comes although it is not its turn finds somebody at it.
        async with other.transaction():
            await other.execute("SELECT pg_advisory_xact_lock(7310579610909569902)")
            assert await theirs.sweep() == (0, 0, 0)
        assert await theirs.sweep() == (1, 0, 0)


async def test_nothing_goes_where_nothing_is_said(stores: TurnStores, other: asyncpg.Connection[Any]) -> None:
    await stores.responses.save(record("old"))
    await other.execute(AGE)
    assert await _retention(stores).sweep() == (0, 0, 0)


async def test_what_is_old_does_not_depend_on_the_clock_of_who_made_it(wrong_stores: TurnStores, wrong: float) -> None:
    """One machine's clock is far off: its responses and conversations are as young, and as old, as anybody's."""
    stores = wrong_stores
    conversations = ConversationStore(
        PostgresTables(stores.database),
        stores.keys,
        max_items=1000,
        history_bytes=1 << 26,
        page_bytes=1 << 24,
        clock=lambda: wrong,
    )
    await stores.responses.save(replace(record("young"), created_at=wrong - 60, completed_at=wrong - 60))
    await stores.responses.save(replace(record("old"), created_at=wrong - 7200, completed_at=wrong - 7200))
    await conversations.create(ALICE, "conv_young", b"{}")
    assert await _retention(stores, responses=3600, conversations=3600).sweep() == (1, 0, 0)
    assert await stores.responses.get(ALICE, "resp_young") is not None


async def test_large_contents_count_as_the_rows_that_they_are_kept_in(
    stores: TurnStores, conversations: ConversationStore, other: asyncpg.Connection[Any]
) -> None:
    large = b'"' + b"x" * 20_000 + b'"'
    for number in range(9):
        await stores.responses.save(replace(record(f"large{number}"), body=large, input_items=(), output_items=()))
    items = [StoredItem(f"msg_{number}", "message", large) for number in range(9)]
    await conversations.create(ALICE, "conv_large", b"{}", items)
    for number in range(9):
        await other.execute(ADD_STREAM, f"resp_stream{number}", ALICE)
    await other.execute("UPDATE response_events SET data = $1 WHERE last_seq = 1", large)
    await other.execute(AGE)
    await other.execute(WATCH)
    # Three of them, but not a fourth.
    assert await _retention(stores, rows=45, events=600).sweep() == (0, 0, 9)
    assert await _retention(stores, rows=36, responses=600, conversations=600).sweep() == (18, 1, 0)
    pieces = await other.fetch("SELECT sum(rows) FROM deleted GROUP BY transaction")
    # With a stream go its three events.
    assert max(row[0] for row in pieces) <= 9 and len(pieces) >= 3 + 3 + 3
    assert set((await _count(other, *_TABLES, "chains")).values()) == {0}


async def test_pieces_that_take_long_are_made_smaller(stores: TurnStores, other: asyncpg.Connection[Any]) -> None:
    for number in range(60):
        await other.execute(ADD_STREAM, f"resp_stream{number}", ALICE)
    await other.execute(WATCH)
    assert await _retention(stores, rows=120, long=0.0, responses=600).sweep() == (60, 0, 0)
    rows = [int(row[0]) for row in await other.fetch("SELECT sum(rows) FROM deleted GROUP BY transaction ORDER BY 1")]
    # 120, 60, 30, then as few as it gets; each stream is four rows, its response's body another part of one.
    assert rows[-1] > 2 * rows[-3] and rows[-3] <= 30 and max(rows[:-3]) <= 20


async def test_no_lock_is_held_for_the_disk(stores: TurnStores, other: asyncpg.Connection[Any]) -> None:
    await other.execute(ADD_STREAM, "resp_a", ALICE)
    await other.execute("""
CREATE TABLE seen (how text);
CREATE FUNCTION note_commit() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN INSERT INTO seen VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$;
CREATE TRIGGER note_commit AFTER DELETE ON responses FOR EACH STATEMENT EXECUTE FUNCTION note_commit();
""")
    assert await _retention(stores, responses=600).sweep() == (1, 0, 0)
    assert [row[0] for row in await other.fetch("SELECT how FROM seen")] == ["off"]


async def test_events_jobs_and_files_are_timed_by_the_database(
    wrong_stores: TurnStores, wrong: float, url: str, tmp_path: Path
) -> None:
    stores = wrong_stores
    for name, ago in (("young", 60), ("old", 7200)):
        made = replace(queued(name), created_at=wrong - ago)
        await stores.background.enqueue(made, b"{}", piece(0, 1), limit=MOST, needs=("model:elsewhere",))
    # An hour is how long a job waits for somebody who is able to run it.
    claimed = await stores.background.claim(ONE, 60.0, 10, able=frozenset())
    assert [job.response_id for job in claimed] == ["resp_old"]
    await stores.background.claim(ONE, 60.0, 10)
    for name in ("young", "old"):
        assert await stores.background.finish(ONE, replace(finished(name), completed_at=wrong), piece(2, 2))
    assert await _retention(stores, events=3600).sweep() == (0, 0, 1)
    async with aclosing(Database(url, PATIENT)) as database:
        files = postgres_files(database, DiskBlobs(tmp_path / "files"), clock=lambda: wrong)
        await keep(files, fields("young", at=wrong, expires_at=wrong + 60), b"x")
        await keep(files, fields("old", at=wrong - 60, expires_at=wrong - 1), b"x")
        assert await files.get(ALICE, "file-young") is not None
        assert (await files.sweep())[0] == 1
