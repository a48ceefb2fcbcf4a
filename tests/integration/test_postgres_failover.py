"""Several PostgreSQL servers, of which one takes writes: it is found, at first and when it is another one."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
from pydantic import SecretStr

from antiphon.config.state import StateSettings
from antiphon.errors import StoreError
from antiphon.stores.backend import StateFinding, StateNeeds
from antiphon.stores.compatibility import KeyFingerprints
from antiphon.stores.postgres.checks import examine
from antiphon.stores.postgres.connecting import connect
from antiphon.stores.postgres.database import Connection, Database, DatabaseLimits
from tests.support.postgres import Pooler, PostgresServer, free_port, pooler_program

# Behaviour of servers and connections, each with a database: the contracts are the quick part.
pytestmark = pytest.mark.full

PORT = "SELECT inet_server_port()"
NOTE = "INSERT INTO notes VALUES ($1)"
FENCED = "ALTER SYSTEM SET default_transaction_read_only = on"
FREE = "ALTER SYSTEM RESET default_transaction_read_only"


@pytest.fixture
async def primary() -> AsyncIterator[PostgresServer]:
    server = await asyncio.to_thread(PostgresServer)
    await server.statement("CREATE TABLE notes (note text)")
    yield server
    await asyncio.to_thread(server.close)


def of(*ports: int, more: str = "") -> str:
    return f"postgresql://postgres@{','.join(f'127.0.0.1:{port}' for port in ports)}/postgres{more}"


async def fence(server: PostgresServer, how: str) -> None:
    """Have it take writes no more, or again; what stands is told of it."""
    for sql in (how, "SELECT pg_reload_conf()"):
        await server.statement(sql)
    wanted = "on" if how == FENCED else "off"
    while True:
        try:
            connection = await connect(server.url(), 3.0)
        except StoreError:
            found = "on"
        else:
            found = "off"
            connection.terminate()
        if found == wanted:
            return


async def test_one_of_the_servers_is_an_address_in_brackets(primary: PostgresServer) -> None:
    hosts = f"127.0.0.1:{primary.port},[::1]:{free_port()}"
    connection = await connect(f"postgresql://postgres@{hosts}/postgres", 30.0)
    assert await connection.fetchval(PORT) == primary.port
    connection.terminate()


async def test_the_one_that_takes_writes_is_used(primary: PostgresServer, replica: PostgresServer) -> None:
    # In one test, since two servers have to start for it.
    for more in ("", "?target_session_attrs=read-write", "?target_session_attrs=any"):
        for ports in ((replica.port, primary.port), (free_port(), replica.port, primary.port)):
            async with aclosing(Database(of(*ports, more=more))) as database:
                rows = await asyncio.gather(*[database.fetch(PORT) for _ in range(8)])
                assert {row[0][0] for row in rows} == {primary.port}, (more, ports)


async def test_one_that_is_gone_without_a_word_does_not_use_up_the_time_of_the_others(primary: PostgresServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = of(silent.getsockname()[1], primary.port)
        async with aclosing(Database(url, DatabaseLimits(deadline=20.0, connect=2.0))) as database:
            assert (await database.fetch(PORT))[0][0] == primary.port


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [("replica", "none", "none of them accepts writes"), ("none", "none", "refused")],
)
async def test_where_none_takes_writes_a_sentence_says_so(
    replica: PostgresServer, first: str, second: str, words: str
) -> None:
    places = {"replica": replica.port, "none": free_port()}
    async with aclosing(Database(of(places[first], places[second]))) as database:
        with pytest.raises(StoreError, match=words) as told:
            await database.fetch(PORT)
    assert told.value.reason == "unavailable"


async def test_a_single_server_that_only_follows_is_not_used(replica: PostgresServer) -> None:
    async with aclosing(Database(replica.url())) as database:
        with pytest.raises(StoreError, match="this server is a read-only replica"):
            await database.fetch(PORT)


@pytest.mark.parametrize("how", [pytest.param("statement", marks=pytest.mark.full), "transaction"])
async def test_a_primary_that_takes_no_writes_any_more_is_left(primary: PostgresServer, how: str) -> None:
    other = await asyncio.to_thread(PostgresServer)
    try:
        await other.statement("CREATE TABLE notes (note text)")
        async with aclosing(Database(of(primary.port, other.port))) as database:
            # As many connections as there may be, all to the first.
            await asyncio.gather(*[database.fetch("SELECT pg_sleep(0.05)") for _ in range(4)])
            await fence(primary, FENCED)

            async def work(connection: Connection) -> None:
                await connection.execute(NOTE, "a")

            await (database.write(NOTE, "a") if how == "statement" else database.transaction(work))
            # What was read of the first would be old.
            rows = await asyncio.gather(*[database.fetch(PORT) for _ in range(8)])
            assert {row[0][0] for row in rows} == {other.port}
            assert [tuple(row) for row in await database.fetch("SELECT note FROM notes")] == [("a",)]
    finally:
        await asyncio.to_thread(other.close)


async def test_one_that_takes_writes_again_is_used_again(primary: PostgresServer) -> None:
    async with aclosing(Database(primary.url())) as database:
        await database.write(NOTE, "a")
        await fence(primary, FENCED)
        with pytest.raises(StoreError, match="Unset default_transaction_read_only") as told:
            await database.write(NOTE, "b")
        assert told.value.reason == "unavailable"
        await fence(primary, FREE)
        # Who was refused is refused at once for half a second; then it is tried again.
        async with asyncio.timeout(20):
            while True:
                try:
                    await database.write(NOTE, "c")
                    break
                except StoreError:
                    await asyncio.sleep(0)
        assert [row[0] for row in await database.fetch("SELECT note FROM notes ORDER BY 1")] == ["a", "c"]


async def test_a_pooler_that_leads_elsewhere_is_followed(primary: PostgresServer, replica: PostgresServer) -> None:
    if pooler_program() is None:
        pytest.skip("pgbouncer is not installed")
    pooler = await asyncio.to_thread(Pooler, replica.port)
    try:
        async with aclosing(Database(pooler.url(primary.url()))) as database:
            with pytest.raises(StoreError, match="this server is a read-only replica"):
                await database.fetch(PORT)
            pooler.lead_to(primary.port)
            async with asyncio.timeout(20):
                while True:
                    try:
                        assert (await database.fetch(PORT))[0][0] == primary.port
                        break
                    except StoreError:
                        await asyncio.sleep(0)
    finally:
        await asyncio.to_thread(pooler.close)


async def test_doctor_says_what_each_server_is(primary: PostgresServer, replica: PostgresServer) -> None:
    url = of(free_port(), replica.port, primary.port).replace("postgres@", "postgres:secret-word@")
    state = StateSettings(url=SecretStr(url))
    said = [one async for one in examine(state, StateNeeds(KeyFingerprints(None, ()), 4, vectors=False))]
    found = {one.what: one.verdict for one in said if one.what.startswith("server 127")}
    assert list(found.values()) == ["note", "ok", "ok"], said
    assert [("cannot be reached" in one, "is a replica" in one, "takes writes" in one) for one in found] == [
        (True, False, False),
        (False, True, False),
        (False, False, True),
    ]
    assert any("asynchronous" in one.what for one in said) and "secret-word" not in str(said)
    assert StateFinding("ok", f"{state.place.shown}: PostgreSQL {said[0].what.rsplit(' ', 1)[1]}") == said[0]
