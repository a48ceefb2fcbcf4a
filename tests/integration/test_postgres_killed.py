"""A PostgreSQL that is killed again and again while turns and jobs are stored: what was said of each is true."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing

import asyncpg
import pytest

from antiphon.engine.ports.jobs import TooManyJobs
from antiphon.errors import StoreError
from antiphon.stores.postgres.group_commit import GroupLimits
from tests.contracts.job_contract import EVENTS, queued
from tests.contracts.store_contract import ALICE, BOB, record
from tests.support.postgres import PostgresServer
from tests.support.postgres_stores import TurnStores, turn_stores
from tests.support.waiting import until

# Behaviour of servers and connections, each with a database: the contracts are the quick part.
pytestmark = pytest.mark.full

KILLS = 6
CALLERS = 48
WRONG = """
SELECT (SELECT count(*) FROM responses r WHERE r.owner = $1
          AND 3 <> (SELECT count(*) FROM response_items i WHERE i.response_id = r.id)) AS halves,
       (SELECT count(*) FROM responses r WHERE r.owner = $2
          AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.response_id = r.id)) AS without_jobs,
       (SELECT count(*) FROM owner_queue q WHERE q.jobs <> (SELECT count(*) FROM jobs j WHERE j.owner = q.owner))
         AS miscounted,
       (SELECT count(*) FROM (
          SELECT owner, sum(bytes) AS bytes FROM owner_bytes GROUP BY owner
        ) AS o WHERE o.bytes <> coalesce((SELECT sum(own_bytes) FROM responses r WHERE r.owner = o.owner), 0)) AS sums
"""


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    server = PostgresServer(durable=True)
    yield server
    server.close()


@pytest.fixture
async def url(server: PostgresServer) -> str:
    return await server.new_database()


@pytest.fixture
async def stores(url: str) -> AsyncIterator[TurnStores]:
    # Time enough for a server that recovers on a busy machine.
    limits = GroupLimits(seconds=100, settle_seconds=100)
    async with aclosing(turn_stores(url, limits=limits)) as stores:
        yield stores


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_server_that_is_killed(server: PostgresServer, url: str, stores: TurnStores) -> None:
    told: dict[str, BaseException | None] = {}
    stopped = False

    async def turns(name: str) -> None:
        """A conversation of turns; one that could not be stored is not continued."""
        number, last = 0, None
        while not stopped:
            one = record(f"{name}_{number}", prev=last)
            number += 1
            try:
                await stores.responses.save(one)
            except StoreError as error:
                told[one.id] = error
            else:
                told[one.id], last = None, one.id.removeprefix("resp_")

    async def jobs(name: str) -> None:
        for number in range(10_000):
            if stopped:
                return
            one = queued(f"{name}_{number}", owner=BOB)
            try:
                await stores.background.enqueue(one, b"{}", EVENTS, limit=100_000)
                told[one.id] = None
            except (StoreError, TooManyJobs) as error:
                told[one.id] = error

    callers = [asyncio.create_task((jobs if n % 6 == 0 else turns)(f"c{n}")) for n in range(CALLERS)]
    for kill in range(KILLS):
        stored = len(told)
        await until(lambda: len(told) > stored + 100)  # noqa: B023
        # In the middle of whatever is being written, at another moment each time.
        await asyncio.sleep(kill * 0.0037)
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
    stopped = True
    await asyncio.gather(*callers)
    await until(lambda: not stores.late_saves.waiting)

    connection = await asyncpg.connect(url, statement_cache_size=0)
    try:
        rows = await connection.fetch("SELECT id FROM responses WHERE owner IN ($1, $2)", ALICE, BOB)
        wrong = tuple(await connection.fetchrow(WRONG, ALICE, BOB))
    finally:
        await connection.close()
    assert sorted(row[0] for row in rows) == sorted(name for name, error in told.items() if error is None)
    assert wrong == (0, 0, 0, 0)
    # It was back in time for every one of them.
    assert [str(error) for error in told.values() if error is not None] == []
