"""Conversations on PostgreSQL while other transactions are open, and when nobody says whether a commit took place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

import asyncpg
import pytest

from antiphon.engine.ports.state import PageQuery
from antiphon.errors import ConversationLocked, StoreError
from antiphon.stores.conversations import ConversationStore
from antiphon.stores.idempotency import IdempotencyStore
from antiphon.stores.postgres.database import Connection, Database, DatabaseLimits
from antiphon.stores.postgres.tables import PostgresTables
from antiphon.stores.retention import SWEEPER
from tests.contracts.store_contract import ALICE, ids, item
from tests.support.postgres import PATIENT, PostgresServer, blocked

# Behaviour of servers and connections, each with a database: the contracts are the quick part.
pytestmark = pytest.mark.full

T = TypeVar("T")

NO_METADATA = b"{}"
ADD_JOB = """
WITH chain AS (INSERT INTO chains (id, owner, updated_at) VALUES ($1, $2, 0)),
made AS (
  INSERT INTO responses (id, owner, chain_id, history_items, history_bytes, own_bytes, status, model, created_at, body)
  VALUES ($1, $2, $1, 1, 0, 2, 'queued', 'm', 0, '{}')
)
INSERT INTO jobs (response_id, owner, request, created_at, turn) VALUES ($1, $2, '{}', 0, 1)
"""
ADD_ITEM = """
WITH room AS (
  UPDATE conversations SET next_pos = next_pos + 1, locked_by = NULL RETURNING owner, id, next_pos - 1 AS pos
)
INSERT INTO conversation_items (owner, conversation_id, pos, item_id, type, body)
SELECT owner, id, pos, $1, 'message', '{}' FROM room
"""
LOCKED_BY = "UPDATE conversations SET locked_by = $1, locked_until = now() + make_interval(secs => $2)"
# Commits wait for a lock that a test holds.
SLOW_COMMITS = """
CREATE FUNCTION wait_for_test() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM pg_advisory_xact_lock_shared(7); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON conversations DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION wait_for_test();
"""


@pytest.fixture
async def url(postgres: PostgresServer) -> AsyncIterator[str]:
    url = await postgres.new_database()
    yield url
    await postgres.drop_database(url)


class _Seen(Database):
    """Knows which connections its transactions had."""

    def __init__(self, url: str) -> None:
        super().__init__(url, PATIENT)
        self.had: list[Connection] = []

    async def transaction(
        self, work: Callable[[Connection], Awaitable[T]], *, snapshot: bool = False, again: bool = False
    ) -> T:
        async def seen(connection: Connection) -> T:
            self.had.append(connection)
            return await work(connection)

        return await super().transaction(seen, snapshot=snapshot, again=again)


@pytest.fixture
async def database(url: str) -> AsyncIterator[_Seen]:
    async with aclosing(_Seen(url)) as database:
        yield database


@pytest.fixture
async def store(database: Database) -> ConversationStore:
    keys = IdempotencyStore(PostgresTables(database))
    store = ConversationStore(PostgresTables(database), keys, max_items=100, history_bytes=1 << 20, page_bytes=1 << 20)
    await store.create(ALICE, "conv_a", NO_METADATA)
    return store


@pytest.fixture
async def other(url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    """A transaction of another process."""
    connection = await asyncpg.connect(url)
    await connection.execute("BEGIN")
    yield connection
    await connection.close()


async def after_commit(other: asyncpg.Connection[Any], call: Awaitable[Any]) -> Any:
    """What a call comes to that has to wait for the other transaction."""
    task = asyncio.ensure_future(call)
    await blocked(other)
    await other.execute("COMMIT")
    return await task


@pytest.mark.parametrize("change", ["delete", "add", "take out", "lock"])
async def test_whoever_waited_for_a_lock_finds_it_taken(
    store: ConversationStore, other: asyncpg.Connection[Any], change: str
) -> None:
    await store.add_items(ALICE, "conv_a", (item("msg_1"),))
    await other.execute(LOCKED_BY, "resp_x", 1000.0)
    calls: dict[str, Callable[[], Awaitable[Any]]] = {
        "delete": lambda: store.delete(ALICE, "conv_a"),
        "add": lambda: store.add_items(ALICE, "conv_a", (item("msg_2"),)),
        "take out": lambda: store.delete_item(ALICE, "conv_a", "msg_1"),
        "lock": lambda: store.load(ALICE, "conv_a", holder="resp_y", seconds=9.0),
    }
    with pytest.raises(ConversationLocked):
        await after_commit(other, calls[change]())
    assert await store.load(ALICE, "conv_a") == (item("msg_1"),)


@pytest.mark.parametrize("change", ["delete", "lock"])
async def test_a_job_that_was_stored_meanwhile_keeps_its_conversation(
    store: ConversationStore, other: asyncpg.Connection[Any], change: str
) -> None:
    await store.load(ALICE, "conv_a", holder="resp_x", seconds=0.0)
    await other.execute("SELECT 1 FROM conversations FOR UPDATE")
    await other.execute(ADD_JOB, "resp_x", ALICE)
    with pytest.raises(ConversationLocked):
        if change == "delete":
            await after_commit(other, store.delete(ALICE, "conv_a"))
        else:
            await after_commit(other, store.load(ALICE, "conv_a", holder="resp_y", seconds=9.0))
    assert await store.load(ALICE, "conv_a", holder="resp_x", seconds=9.0) == ()


@pytest.mark.parametrize("holder", ["", "resp_x"])
async def test_whoever_takes_the_lock_sees_all_items(
    store: ConversationStore, other: asyncpg.Connection[Any], holder: str
) -> None:
    if holder:
        await store.load(ALICE, "conv_a", holder=holder, seconds=9.0)
    await other.execute(ADD_ITEM, "msg_1")
    loaded = await after_commit(other, store.load(ALICE, "conv_a", holder="resp_y", seconds=9.0))
    assert ids(loaded) == ["msg_1"]


async def test_a_deleted_conversation_is_gone_for_who_waited(
    store: ConversationStore, other: asyncpg.Connection[Any]
) -> None:
    await other.execute("DELETE FROM conversations")
    assert await after_commit(other, store.load(ALICE, "conv_a", holder="resp_y", seconds=9.0)) is None


async def test_a_response_that_was_cancelled_takes_no_lock(
    store: ConversationStore, database: Database, other: asyncpg.Connection[Any]
) -> None:
    """Its worker does not know it yet."""
    await other.execute(ADD_JOB, "resp_x", ALICE)
    await other.execute("COMMIT")
    assert await store.load(ALICE, "conv_a", holder="resp_x", seconds=9.0) == ()
    await other.execute("BEGIN")
    await other.execute("DELETE FROM jobs")
    await other.execute("UPDATE responses SET status = 'cancelled'")
    await other.execute("UPDATE conversations SET locked_by = NULL")
    with pytest.raises(ConversationLocked):
        await after_commit(other, store.load(ALICE, "conv_a", holder="resp_x", seconds=9.0))
    assert await store.load(ALICE, "conv_a", holder="resp_y", seconds=9.0) == ()


async def test_what_is_being_cleared_away_is_not_there(store: ConversationStore, database: Database) -> None:
    await database.write("UPDATE conversations SET locked_by = $1, locked_until = 'infinity'", SWEEPER)
    assert await store.load(ALICE, "conv_a") is None
    assert await store.update(ALICE, "conv_a", b'{"a":"b"}') is None
    with pytest.raises(ConversationLocked):
        await store.load(ALICE, "conv_a", holder="resp_y", seconds=9.0)


async def test_places_go_on_behind_those_of_a_deleted_conversation(
    store: ConversationStore, database: Database
) -> None:
    async def places() -> tuple[int, int]:
        row = (await database.fetch("SELECT first_pos, next_pos FROM conversations"))[0]
        return row[0], row[1]

    await store.add_items(ALICE, "conv_a", (item("msg_1"), item("msg_2")))
    first, end = await places()
    assert end == first + 2
    await store.delete(ALICE, "conv_a")
    await store.load(ALICE, "conv_a", create=True)
    assert (await places())[0] >= end


async def test_many_that_make_one_conversation_make_it_once(store: ConversationStore, url: str) -> None:
    async with aclosing(Database(url, PATIENT)) as second:
        peer = ConversationStore(
            PostgresTables(second),
            IdempotencyStore(PostgresTables(second)),
            max_items=100,
            history_bytes=1 << 20,
            page_bytes=1 << 20,
        )
        calls = [
            (store, peer)[n % 2].load(ALICE, "conv_b", holder=f"resp_{n}", seconds=9.0, create=True) for n in range(20)
        ]
        results = await asyncio.gather(*calls, return_exceptions=True)
    assert results.count(()) == 1 and sum(isinstance(one, ConversationLocked) for one in results) == 19
    assert len((await store.list(ALICE, PageQuery())).items) == 2


@pytest.mark.parametrize("fate", ["committed", "aborted"])
async def test_a_commit_of_which_nobody_heard_is_asked_for(
    store: ConversationStore, database: _Seen, other: asyncpg.Connection[Any], fate: str
) -> None:
    await other.execute("COMMIT")
    await other.execute(SLOW_COMMITS)
    await other.execute("BEGIN")
    await other.execute("SELECT pg_advisory_xact_lock(7)")
    creating = asyncio.ensure_future(store.create(ALICE, "conv_b", NO_METADATA, (item("msg_1"),)))
    pid = await blocked(other)
    if fate == "aborted":
        await other.execute("SELECT pg_terminate_backend($1)", pid)
    else:
        # The client's end alone: the server notices when it has committed.
        database.had[-1].terminate()
    await other.execute("COMMIT")
    made = await creating
    assert await store.get(ALICE, "conv_b") == made
    assert await store.load(ALICE, "conv_b") == (item("msg_1"),)


async def test_a_commit_that_cannot_be_asked_for_is_unknown(url: str, other: asyncpg.Connection[Any]) -> None:
    await other.execute("COMMIT")
    await other.execute(SLOW_COMMITS)
    await other.execute("BEGIN")
    await other.execute("SELECT pg_advisory_xact_lock(7)")
    async with aclosing(Database(url, DatabaseLimits(deadline=0.3))) as database:
        keys = IdempotencyStore(PostgresTables(database))
        store = ConversationStore(
            PostgresTables(database), keys, max_items=9, history_bytes=1 << 20, page_bytes=1 << 20
        )
        with pytest.raises(StoreError) as raised:
            await store.create(ALICE, "conv_b", NO_METADATA)
        assert raised.value.reason == "unknown"
        await other.execute("COMMIT")
