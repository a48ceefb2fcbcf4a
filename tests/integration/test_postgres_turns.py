"""Turns on a real PostgreSQL whose connections are cut, and that carries out late what it was sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace

import asyncpg
import pytest

from antiphon.engine.ports.actions import OnceOnly, StoredItem
from antiphon.errors import StoreError
from antiphon.stores.postgres.database import DatabaseLimits
from antiphon.stores.postgres.group_commit import GroupLimits
from tests.contracts.store_contract import ALICE, record
from tests.support.postgres import PostgresServer
from tests.support.postgres_stores import TurnStores, turn_stores
from tests.support.waiting import until

# Behaviour of servers and connections, each with a database: the contracts are the quick part.
pytestmark = pytest.mark.full

CUT = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
WRONG = """
SELECT (SELECT count(*) FROM responses r WHERE r.owner <> 'withdrawn'
          AND 3 <> (SELECT count(*) FROM response_items i WHERE i.response_id = r.id)) AS halves,
       (SELECT count(*) FROM responses r JOIN responses p ON p.id = r.prev_id WHERE p.chain_id <> r.chain_id) AS strays
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


@pytest.fixture
async def other(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url, statement_cache_size=0)
    yield connection
    await connection.close()


async def test_saves_on_connections_that_are_cut(stores: TurnStores, other: asyncpg.Connection) -> None:
    """Whatever was said is true of every single one, and nothing is there twice or by half."""
    await stores.responses.save(record("root"))
    names = [f"n{n}" for n in range(600)]
    gate = asyncio.Semaphore(60)
    done = 0

    async def save(name: str) -> None:
        nonlocal done
        async with gate:
            await stores.responses.save(record(name, prev="root"))
            done += 1

    saving = asyncio.gather(*[save(name) for name in names], return_exceptions=True)
    cuts = 0
    for number in range(25):
        before = done
        # At another moment of the statement each time.
        await until(lambda: stores.database.busy or saving.done())
        await asyncio.sleep(number % 5 / 1000)
        cuts += len(await other.fetch(CUT))
        await until(lambda: done > before or saving.done())  # noqa: B023
    results = await saving
    await until(lambda: not stores.late_saves.waiting)
    there = {row[0] for row in await other.fetch("SELECT id FROM responses WHERE owner = $1", ALICE)}
    assert cuts > 3 and results == [None] * len(names)
    assert there == {"resp_root"} | {f"resp_{name}" for name in names}
    assert tuple(await other.fetchrow(WRONG)) == (0, 0)


async def test_what_is_carried_out_too_late_is_not_there(url: str, other: asyncpg.Connection) -> None:
    limits = GroupLimits(seconds=0.2, settle_seconds=0.4)
    late = turn_stores(url, limits=limits, connections=DatabaseLimits(deadline=0.3))
    once = OnceOnly(ALICE, "key", "f")
    async with aclosing(late) as stores:
        await stores.responses.save(record("root"))
        await stores.keys.claim(once, "resp_late", 1000)
        held = other.transaction()
        await held.start()
        await other.execute("SELECT 1 FROM chains FOR UPDATE")
        saving = asyncio.ensure_future(stores.responses.save(replace(record("late", prev="root"), once=once)))
        with pytest.raises(StoreError) as told:
            await saving
        assert told.value.reason == "unknown"
        # Its statement waits on the server still, and goes on from here; the withdrawal comes behind it.
        assert await other.fetchval(WAITING) > 0
        await held.commit()
        await until(lambda: not stores.late_saves.waiting)
    async with aclosing(turn_stores(url)) as stores:
        assert await stores.responses.get(ALICE, "resp_late") is None
        assert await stores.keys.made(once) is None
        # Whatever of it is carried out now finds its id taken.
        with pytest.raises(StoreError, match="stored already"):
            await stores.responses.save(record("late", prev="root"))
        assert await other.fetchval("SELECT count(*) FROM responses WHERE owner = $1", ALICE) == 1


async def test_a_turn_that_cannot_be_stored_spoils_no_other(stores: TurnStores, other: asyncpg.Connection) -> None:
    """Not only one whose predecessor is gone: one that breaks a rule of the database, too."""
    await other.execute(
        "INSERT INTO conversations (owner, id, created_at, updated_at, first_pos, next_pos, metadata, locked_by)"
        " VALUES ($1, 'conv', 1, 1, 0, 0, '', 'resp_twice')",
        ALICE,
    )
    same = (StoredItem("msg", "message", b"{}"),) * 2
    twice = replace(record("twice", inputs=same), conversation_id="conv")
    good = [record(f"n{n}") for n in range(20)]
    saves = [stores.responses.save(each) for each in (*good[:10], twice, *good[10:])]
    results = await asyncio.gather(*saves, return_exceptions=True)
    assert [result is None for result in results] == [True] * 10 + [False] + [True] * 10
    assert await stores.responses.get(ALICE, "resp_twice") is None
    assert await other.fetchval("SELECT locked_by FROM conversations") == "resp_twice"


async def test_a_turn_joins_its_conversation_or_gives_it_back(stores: TurnStores, other: asyncpg.Connection) -> None:
    await other.execute(
        "INSERT INTO conversations (owner, id, created_at, updated_at, first_pos, next_pos, metadata, locked_by)"
        " SELECT $1, 'conv_' || n, 1, 1, 100, 107, '', 'resp_' || n FROM generate_series(1, 3) AS n",
        ALICE,
    )
    turns = [replace(record(f"{n}"), conversation_id=f"conv_{n}") for n in range(1, 5)]
    turns[1] = replace(turns[1], status="failed")
    results = await asyncio.gather(*[stores.responses.save(each) for each in turns], return_exceptions=True)
    assert [str(result) for result in results] == [
        *("None", "None", "None"),
        "The conversation was deleted, or another response uses it now. Send the request again.",
    ]
    rows = await other.fetch("SELECT id, next_pos, locked_by FROM conversations ORDER BY id")
    assert [tuple(row) for row in rows] == [("conv_1", 110, None), ("conv_2", 107, None), ("conv_3", 110, None)]
    items = await other.fetch(
        "SELECT conversation_id, pos, item_id, response_id FROM conversation_items ORDER BY conversation_id, pos"
    )
    assert [tuple(item) for item in items] == [
        (f"conv_{n}", 107 + place, f"msg_{n}_{name}", f"resp_{n}")
        for n in (1, 3)
        for place, name in enumerate(("in0", "in1", "out0"))
    ]
    places = await other.fetch("SELECT conversation_pos FROM responses ORDER BY id")
    assert [row[0] for row in places] == [107, 107, 107]


async def test_a_withdrawal_leaves_the_key_to_the_response_that_has_it(stores: TurnStores) -> None:
    once = OnceOnly(ALICE, "key", "f")
    await stores.keys.claim(once, "resp_kept", 1000)
    await stores.responses.save(replace(record("kept"), once=once))
    await stores.responses.save(record("late"))
    stores.late_saves.add(replace(record("late"), once=once))
    await until(lambda: not stores.late_saves.waiting)
    assert await stores.responses.get(ALICE, "resp_late") is None
    assert await stores.responses.get(ALICE, "resp_kept") is not None
    assert await stores.keys.made(once) == "resp_kept"
