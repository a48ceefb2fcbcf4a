"""Connections to a real PostgreSQL: what is tried again, what ends, what is said of failures."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from antiphon.errors import StoreError
from antiphon.stores.postgres.database import Connection, Database, DatabaseLimits
from antiphon.stores.postgres.migrate import applied_steps, check_server, migrate, packaged_steps
from tests.support.postgres import PATIENT, PostgresServer, free_port

# Behaviour of servers and connections, each with a database: the contracts are the quick part.
pytestmark = pytest.mark.full

ADD = "INSERT INTO sweeps (what, due_at) VALUES ($1, now())"
COUNT = "SELECT count(*) FROM sweeps"
WAITING = """
SELECT count(*) FROM pg_locks JOIN pg_database ON database = pg_database.oid
WHERE NOT granted AND datname = current_database()
"""
KILL_OTHERS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


@pytest.fixture
async def url(postgres: PostgresServer) -> AsyncIterator[str]:
    url = await postgres.new_database()
    yield url
    await postgres.drop_database(url)


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    database = Database(url, PATIENT)
    yield database
    await database.aclose()


async def test_it_is_a_server_that_state_can_be_kept_on(database: Database) -> None:
    await check_server(database)


async def test_there_are_never_more_connections_than_allowed(database: Database) -> None:
    rows = await asyncio.gather(*[database.fetch("SELECT pg_backend_pid()") for _ in range(100)])
    assert len({row[0][0] for row in rows}) <= 4
    assert database.open <= 4 and database.busy == 0 and database.waiting == 0


async def test_a_read_is_made_again_when_its_connection_was_cut(database: Database, url: str) -> None:
    await asyncio.gather(*[database.fetch("SELECT pg_sleep(0.01)") for _ in range(4)])
    other = await asyncpg.connect(url)
    await other.execute(KILL_OTHERS)
    await other.close()
    assert (await database.fetch("SELECT 1"))[0][0] == 1


async def test_a_write_whose_connection_was_cut_is_unknown(database: Database, url: str) -> None:
    cut = asyncio.create_task(database.write("SELECT pg_sleep(60)"))
    other = await asyncpg.connect(url)
    while not (await other.fetch(f"{KILL_OTHERS} AND query = 'SELECT pg_sleep(60)'")):
        pass
    with pytest.raises(StoreError, match="before the server confirmed") as raised:
        await cut
    assert raised.value.reason == "unknown"
    await other.close()


async def test_a_transaction_cut_before_its_commit_is_made_again(database: Database, url: str) -> None:
    other = await asyncpg.connect(url)
    tries = []

    async def work(connection: Connection) -> None:
        tries.append(1)
        await connection.execute(ADD, "x")
        if len(tries) == 1:
            await other.execute(KILL_OTHERS)
        await connection.fetch("SELECT 1")

    await database.transaction(work)
    assert len(tries) == 2
    assert (await database.fetch(COUNT))[0][0] == 1
    await other.close()


async def test_what_the_work_raises_undoes_it(database: Database) -> None:
    async def work(connection: Connection) -> None:
        await connection.execute(ADD, "x")
        raise KeyError("mine")

    with pytest.raises(KeyError):
        await database.transaction(work)
    assert (await database.fetch(COUNT))[0][0] == 0
    assert database.open == 1, "the connection is still good"


async def test_a_deadlock_is_tried_again(database: Database) -> None:
    await database.write(ADD, "a")
    await database.write(ADD, "b")
    met = asyncio.Barrier(2)
    tries = []

    async def work(connection: Connection, first: str, second: str) -> None:
        tries.append(first)
        await connection.execute("UPDATE sweeps SET due_at = now() WHERE what = $1", first)
        if len(tries) <= 2:
            await met.wait()
        await connection.execute("UPDATE sweeps SET due_at = now() WHERE what = $1", second)

    await asyncio.gather(
        database.transaction(lambda connection: work(connection, "a", "b")),
        database.transaction(lambda connection: work(connection, "b", "a")),
    )
    assert len(tries) == 3


async def test_a_statement_ends_by_its_deadline(url: str) -> None:
    database = Database(url, DatabaseLimits(size=1, deadline=0.3))
    with pytest.raises(StoreError) as raised:
        await database.fetch("SELECT pg_sleep(60)")
    assert raised.value.reason == "slow"
    assert (await database.fetch("SELECT 1"))[0][0] == 1, "its place is free"
    await database.aclose()


async def test_a_deadline_between_two_messages_of_a_statement(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database(url, DatabaseLimits(size=1, deadline=5.0))
    await database.fetch("SELECT 1")
    described = asyncpg.Connection._get_statement

    async def then_ended(connection: Connection, *given: Any, **named: Any) -> Any:
        statement = await described(connection, *given, **named)
        # As the deadline does, by its own timer.
        connection.terminate()
        return statement

    with monkeypatch.context() as late:
        late.setattr(asyncpg.Connection, "_get_statement", then_ended)
        with pytest.raises(StoreError) as raised:
            await database.write(ADD, "one")
    assert raised.value.reason == "unknown"
    assert (await database.fetch(COUNT))[0][0] == 0
    await database.aclose()


@pytest.mark.parametrize("way", ["direct", "pgbouncer"])
async def test_what_was_given_up_ends_at_the_server_too(url: str, way: str, request: pytest.FixtureRequest) -> None:
    """Somebody locks a table for long: each statement that is given up would keep a connection of the server for as
    long, and the next one takes another, until nobody has any."""
    asked = url if way == "direct" else request.getfixturevalue("pgbouncer").url(url)
    other = await asyncpg.connect(url)
    if way == "pgbouncer":
        # What the doctor asks for there.
        await other.execute(f"ALTER DATABASE {url.rsplit('/', 1)[1]} SET client_connection_check_interval = '1s'")
    await other.execute("BEGIN; LOCK TABLE sweeps")
    database = Database(asked, DatabaseLimits(deadline=0.3))
    for work in (database.fetch, database.write):
        for _ in range(2):
            given_up = await asyncio.gather(*[work(COUNT) for _ in range(4)], return_exceptions=True)
            assert all(isinstance(one, StoreError) for one in given_up)
    async with asyncio.timeout(60):
        while await other.fetchval(WAITING):
            pass
    await other.close()
    assert (await database.fetch(COUNT))[0][0] == 0
    await database.aclose()


async def test_who_waits_for_a_connection_ends_too(url: str) -> None:
    database = Database(url, DatabaseLimits(size=1, deadline=0.3))
    results = await asyncio.gather(*[database.fetch("SELECT pg_sleep(60)") for _ in range(3)], return_exceptions=True)
    assert all(isinstance(one, StoreError) and one.reason == "slow" for one in results)
    assert database.waiting == 0
    await database.aclose()


async def test_a_caller_that_leaves_gives_its_place_back(url: str) -> None:
    database = Database(url, DatabaseLimits(size=1))
    left = asyncio.create_task(database.fetch("SELECT pg_sleep(60)"))
    while not database.busy:
        await asyncio.sleep(0)
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left
    assert (await database.fetch("SELECT 1"))[0][0] == 1
    await database.aclose()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://postgres@127.0.0.1:{closed}/x", "refused"),
        ("postgresql://postgres@127.0.0.1:{port}/none", "there is no such database"),
        ("postgresql://postgres@not-a-host.invalid/x", "host"),
        ("postgresql://[broken", "not a valid PostgreSQL URL"),
    ],
)
async def test_a_wrong_url_is_a_sentence(postgres: PostgresServer, url: str, words: str) -> None:
    database = Database(url.format(closed=free_port(), port=postgres.port))
    with pytest.raises(StoreError, match=words):
        await database.fetch("SELECT 1")
    await database.aclose()


@pytest.mark.parametrize(("more", "ends_itself"), [("", False), ("?sslmode=disable", False), ("", True)])
async def test_a_connection_that_ends_while_it_is_opened(
    url: str, more: str, ends_itself: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its first message, with or without TLS, or between two questions."""

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.close()

    async def end(connection: Connection, *_: Any, **__: Any) -> None:
        connection.terminate()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        if ends_itself:
            monkeypatch.setattr(asyncpg.Connection, "set_type_codec", end)
        database = Database(url if ends_itself else f"postgresql://postgres@127.0.0.1:{port}/x{more}")
        with pytest.raises(
            StoreError,
            match=r"Connecting failed: PostgreSQL: the connection was lost.*; the connection ended with [A-Z]",
        ):
            await database.fetch("SELECT 1")
        await database.aclose()


@pytest.fixture
async def limited(postgres: PostgresServer, url: str) -> str:
    """The same database, for a role that may have one connection to it."""
    made = "CREATE ROLE limited LOGIN"
    await postgres.statement(f"DO $$BEGIN {made}; EXCEPTION WHEN duplicate_object THEN NULL; END$$")
    await postgres.statement(f"ALTER DATABASE {url.rsplit('/', 1)[1]} CONNECTION LIMIT 1")
    return url.replace("postgres@", "limited@")


async def test_where_the_server_has_no_connection_left_those_of_the_process_come_back(limited: str) -> None:
    database = Database(limited)
    (first,) = await database.fetch("SELECT pg_backend_pid()")
    rows = await asyncio.gather(*[database.fetch("SELECT pg_backend_pid()") for _ in range(20)])
    assert {row[0][0] for row in rows} == {first[0]}
    assert (database.open, database.busy, database.waiting) == (1, 0, 0)
    await database.aclose()


async def test_the_wait_for_one_that_does_not_come_back_ends(postgres: PostgresServer, url: str, limited: str) -> None:
    database = Database(limited, DatabaseLimits(size=2, deadline=600))
    begun, over = asyncio.Event(), asyncio.Event()

    async def hold(_: Connection) -> None:
        begun.set()
        await over.wait()

    held = asyncio.create_task(database.transaction(hold))
    await begun.wait()
    database.limits = DatabaseLimits(size=2, deadline=2.0)
    with pytest.raises(StoreError, match=r"the server has no connection left.*\(53300\)") as raised:
        await database.fetch("SELECT 1")
    assert raised.value.reason == "slow" and database.waiting == 0
    # One more is let in.
    await postgres.statement(f"ALTER DATABASE {url.rsplit('/', 1)[1]} CONNECTION LIMIT 2")
    database.limits = DatabaseLimits(size=2, deadline=30)
    assert (await database.fetch("SELECT 1"))[0][0] == 1
    assert database.open == 2
    over.set()
    await held
    await database.aclose()


async def test_a_server_without_a_connection_that_then_says_nothing_is_told_by_what_it_said(
    unused_tcp_port: int,
) -> None:
    """Where it is asked again just before time is up, or is too busy to answer."""
    asked, over = 0, asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        await reader.readexactly(8)
        if asked == 1:
            fields = b"SFATAL\0C53300\0Mtoo many connections\0\0"
            writer.write(b"E" + (len(fields) + 4).to_bytes(4, "big") + fields)
            writer.close()
        else:
            with contextlib.suppress(ConnectionError):
                await reader.read()
            writer.close()
            over.set()

    server = await asyncio.start_server(answer, "127.0.0.1", unused_tcp_port)
    database = Database(f"postgresql://x@127.0.0.1:{unused_tcp_port}/x?sslmode=disable", DatabaseLimits(deadline=2.0))
    with pytest.raises(StoreError, match=r"the server has no connection left.*\(53300\)"):
        await database.fetch("SELECT 1")
    assert asked == 2
    await over.wait()
    await database.aclose()
    server.close()


async def test_a_process_without_any_connection_waits_for_one_of_somebody_else(limited: str) -> None:
    held = await asyncpg.connect(limited)
    database = Database(limited, DatabaseLimits(deadline=60))
    asked = asyncio.create_task(database.fetch("SELECT 1"))
    while not database.waiting:
        await asyncio.sleep(0)
    await held.close()
    assert (await asked)[0][0] == 1
    await database.aclose()


async def test_a_server_that_is_not_at_its_socket_is_said_first(tmp_path: Path) -> None:
    database = Database(f"postgresql://postgres@/x?host={tmp_path}")
    with pytest.raises(StoreError, match=r"no Unix socket at the path in state\.url; check that the server runs"):
        await database.fetch("SELECT 1")
    await database.aclose()


async def test_closed_it_refuses_and_may_be_closed_again(database: Database) -> None:
    await database.fetch("SELECT 1")
    await database.aclose()
    await database.aclose()
    with pytest.raises(StoreError, match="closed"):
        await database.fetch("SELECT 1")


async def test_eight_that_start_at_once_make_one_schema(postgres: PostgresServer) -> None:
    url = await postgres.new_database(empty=True)
    several = [Database(url, PATIENT) for _ in range(8)]
    steps = packaged_steps()
    done = await asyncio.gather(*[migrate(one, steps) for one in several])
    assert sorted(step.version for part in done for step in part) == [step.version for step in steps]
    assert [step.version for step in await applied_steps(several[0])] == [step.version for step in steps]
    for one in several:
        await one.aclose()
    await postgres.drop_database(url)


@pytest.mark.parametrize(
    "text", ["", "plain", "ü 漢 🙂", "\0", "a\0b", "\x1a", "\x1a0000", "\ud83d", "\udfff\ud800", "'\\x"]
)
async def test_every_text_comes_back_as_it_was_given(database: Database, text: str) -> None:
    rows = await database.fetch("SELECT $1::text, x FROM unnest($2::text[]) AS x", text, [text, None, "x"])
    assert [tuple(row) for row in rows] == [(text, text), (text, None), (text, "x")]


async def test_different_texts_are_different_to_the_server(database: Database) -> None:
    texts = ["\0", "\x1a0000", "\x1a", "\x1a001a", "\ud800", "\x1ad800", "0000"]
    assert (await database.fetch("SELECT count(DISTINCT x) FROM unnest($1::text[]) AS x", texts))[0][0] == len(texts)


async def test_a_transaction_of_a_machine_that_is_gone_ends(database: Database) -> None:
    async def work(connection: Connection) -> str:
        return str((await connection.fetch("SELECT current_setting('idle_in_transaction_session_timeout')"))[0][0])

    before = (await database.fetch("SELECT current_setting('idle_in_transaction_session_timeout')"))[0][0]
    assert before == "0"
    for snapshot in (False, True):
        assert await database.transaction(work, snapshot=snapshot) == "10s"
    assert (await database.fetch("SELECT current_setting('idle_in_transaction_session_timeout')"))[0][0] == before
