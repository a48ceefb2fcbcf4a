"""Tests pairs of concurrent operations on PostgreSQL, each stopped in the middle on purpose.

Lives here: one test for each pair and order of saving, deleting, queueing, appending to a stream, ending and claiming.
Not here: single operations (the contracts).

A third connection locks the row that the first operation needs last, until the second operation waits too. Only these
tests detect a store that reads before it locks, or that counts in the statement that inserts.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import asyncpg
import pytest

from antiphon.engine.ports.actions import StoredItem
from antiphon.engine.ports.jobs import EndedJob, JobEnd, TooManyJobs
from antiphon.engine.ports.state import PageQuery
from antiphon.errors import ChainBroken, StoreError
from tests.contracts.job_contract import EVENTS, MOST, ONE, TWO, claim, finished, page_of, piece, queued
from tests.contracts.store_contract import ALICE, record
from tests.support.postgres import PostgresServer
from tests.support.postgres_stores import TurnStores, turn_stores

_WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
_SEED_SUMS = "INSERT INTO owner_bytes (owner, slot, bytes) SELECT $1, n, 0 FROM generate_series(0, 15) AS n"
# The rows that every unit for storing or deleting a response locks last, because it updates the sums at its end.
_SUMS = "SELECT 1 FROM owner_bytes WHERE owner = $1 FOR UPDATE"
# The row that an append to a stream locks after the job's row, and the end of a response too.
_RESPONSE = "SELECT 1 FROM responses WHERE owner = $1 FOR UPDATE"
_QUEUE = "SELECT 1 FROM owner_queue WHERE owner = $1 FOR UPDATE"


class Two:
    """The stores of two processes on one database, and the connection that blocks them."""

    def __init__(self, here: TurnStores, there: TurnStores, url: str, watching: asyncpg.Connection) -> None:
        self.here = here
        self.there = there
        self._url = url
        self._watching = watching

    @asynccontextmanager
    async def held(self, sql: str) -> AsyncIterator[None]:
        """Lock these rows while the context lasts."""
        connection = await asyncpg.connect(self._url, statement_cache_size=0)
        try:
            async with connection.transaction():
                await connection.fetch(sql, ALICE)
                yield
        finally:
            await connection.close()

    async def wait(self, number: int) -> None:
        """Wait until `number` connections are blocked."""
        async with asyncio.timeout(20):
            while await self._watching.fetchval(_WAITING) < number:
                await asyncio.sleep(0)


@pytest.fixture
async def two(postgres: PostgresServer) -> AsyncIterator[Two]:
    url = await postgres.new_database()
    watching = await asyncpg.connect(url, statement_cache_size=0)
    await watching.execute(_SEED_SUMS, ALICE)
    async with aclosing(turn_stores(url)) as here, aclosing(turn_stores(url)) as there:
        yield Two(here, there, url, watching)
    await watching.close()
    await postgres.drop_database(url)


@pytest.mark.parametrize("alone", [True, False])
async def test_what_is_continued_while_it_is_deleted_keeps_its_continuation(two: Two, alone: bool) -> None:
    await two.here.responses.save(record("a"))
    if not alone:
        await two.here.responses.save(record("other", prev="a"))
    async with two.held(_SUMS):
        saving = asyncio.ensure_future(two.here.responses.save(record("b", prev="a")))
        await two.wait(1)
        deleting = asyncio.ensure_future(two.there.responses.delete(ALICE, "resp_a"))
        await two.wait(2)
    await saving
    assert await deleting is True
    assert await two.here.responses.get(ALICE, "resp_a") is None
    found = await two.here.responses.get(ALICE, "resp_b")
    assert found is not None and len(found.output_items) == 1
    with pytest.raises(ChainBroken):
        await two.here.responses.load_chain(ALICE, "resp_b")


@pytest.mark.parametrize("alone", [True, False])
async def test_what_is_being_deleted_is_not_continued(two: Two, alone: bool) -> None:
    """The rule also holds if the chain remains because other responses belong to it."""
    await two.here.responses.save(record("a"))
    if not alone:
        await two.here.responses.save(record("other", prev="a"))
    async with two.held(_SUMS):
        deleting = asyncio.ensure_future(two.there.responses.delete(ALICE, "resp_a"))
        await two.wait(1)
        saving = asyncio.ensure_future(two.here.responses.save(record("b", prev="a")))
        await two.wait(2)
    assert await deleting is True
    with pytest.raises(StoreError, match="previous response"):
        await saving
    assert await two.here.responses.get(ALICE, "resp_b") is None


async def test_two_that_continue_one_do_not_stand_in_each_others_way(two: Two) -> None:
    for name in ("a", "z"):
        await two.here.responses.save(record(name))
    saves = [(two.here, two.there)[n % 2].responses.save(record(f"n{n}", prev="az"[n // 2 % 2])) for n in range(100)]
    async with asyncio.timeout(20):
        await asyncio.gather(*saves)
    page = await two.here.responses.list(ALICE, PageQuery(limit=100))
    assert len(page.items) == 100 and page.has_more


async def test_a_group_that_waits_for_a_chain_holds_no_later_one(two: Two) -> None:
    """So two groups over the same chains cannot wait for each other."""
    names = "abcdefgh"
    # The first response is the last row of the table and the last of the group.
    for name in reversed(names):
        await two.here.responses.save(record(name))
    async with two.held("SELECT 1 FROM chains WHERE owner = $1 AND id = 'resp_a' FOR UPDATE"):
        saves = [two.here.responses.save(record(f"{name}2", prev=name)) for name in reversed(names)]
        group = asyncio.gather(*saves)
        await two.wait(1)
        async with asyncio.timeout(20):
            await asyncio.gather(*[two.there.responses.save(record(f"{name}3", prev=name)) for name in names[1:]])
        assert not group.done()
    await group


async def test_an_owners_last_place_is_taken_once(two: Two) -> None:
    await two.here.background.enqueue(queued("first"), b"{}", None, limit=2)
    async with two.held(_QUEUE):
        queueing = [
            asyncio.ensure_future((two.here, two.there)[n % 2].background.enqueue(queued(f"{n}"), b"{}", None, limit=2))
            for n in range(10)
        ]
        await two.wait(6)
    results = await asyncio.gather(*queueing, return_exceptions=True)
    assert results.count(None) == 1
    assert all(isinstance(result, TooManyJobs) for result in results if result is not None)
    assert (await two.here.background.queue()).length == 2


async def test_a_stream_that_goes_on_is_not_ended_before_its_last_event(two: Two) -> None:
    jobs, others = two.here.background, two.there.background
    await jobs.enqueue(queued("a"), b"{}", EVENTS, limit=MOST)
    await claim(jobs)
    async with two.held(_RESPONSE):
        adding = asyncio.ensure_future(jobs.append(ONE, "resp_a", piece(2, 7)))
        await two.wait(1)
        ending = asyncio.ensure_future(others.end(JobEnd("resp_a", "cancelled", b"{}", (), 1, piece(2, 2))))
        await two.wait(2)
    assert await adding is True and await ending is None
    assert page_of(await jobs.events(ALICE, "resp_a", -1, 10)) == [(0, 1), (2, 7)]
    assert await others.end(JobEnd("resp_a", "cancelled", b"{}", (), 7, piece(8, 8))) is not None


async def test_an_end_sees_the_claim_for_which_it_waited(two: Two) -> None:
    await two.here.background.enqueue(queued("a"), b"{}", EVENTS, limit=MOST)
    async with two.held(_RESPONSE):
        claiming = asyncio.ensure_future(claim(two.here.background))
        await two.wait(1)
        ending = asyncio.ensure_future(
            two.there.background.end(JobEnd("resp_a", "cancelled", b"{}", (), 1, piece(2, 2)))
        )
        await two.wait(2)
    assert len(await claiming) == 1 and await ending == EndedJob("in_progress")


async def test_a_stream_that_has_ended_does_not_go_on(two: Two) -> None:
    jobs, others = two.here.background, two.there.background
    await jobs.enqueue(queued("a"), b"{}", EVENTS, limit=MOST)
    await claim(jobs)
    kept = (StoredItem("msg_1", "message", b"{}"),)
    async with two.held(_RESPONSE):
        ending = asyncio.ensure_future(others.end(JobEnd("resp_a", "cancelled", b"{}", kept, 1, piece(2, 2))))
        await two.wait(1)
        adding = asyncio.ensure_future(jobs.append(ONE, "resp_a", piece(2, 7)))
        await two.wait(2)
        finishing = asyncio.ensure_future(jobs.finish(ONE, finished("a"), piece(2, 9)))
        await two.wait(3)
    assert await ending is not None and await adding is False and await finishing is False
    page = await jobs.events(ALICE, "resp_a", -1, 10)
    assert page is not None and page.status == "cancelled" and page_of(page) == [(0, 1), (2, 2)]


@pytest.mark.parametrize("finishes", [True, False])
async def test_a_write_that_was_not_heard_of_is_written_anew_though_it_is_still_on_its_way(
    two: Two, finishes: bool
) -> None:
    jobs, again = two.here.background, two.there.background
    await jobs.enqueue(queued("a"), b"{}", EVENTS, limit=MOST)
    await claim(jobs)
    async with two.held(_RESPONSE):
        unheard = asyncio.ensure_future(jobs.append(ONE, "resp_a", piece(2, 5)))
        await two.wait(1)
        repeated = asyncio.ensure_future(
            again.finish(ONE, finished("a"), piece(2, 8)) if finishes else again.append(ONE, "resp_a", piece(2, 8))
        )
        await two.wait(2)
    assert await unheard is True and await repeated is True
    assert page_of(await jobs.events(ALICE, "resp_a", -1, 10)) == [(0, 1), (2, 8)]


async def test_a_job_that_is_written_to_is_neither_lost_nor_waited_for(two: Two) -> None:
    jobs, others = two.here.background, two.there.background
    for name in ("a", "b"):
        await jobs.enqueue(queued(name), b"{}", EVENTS, limit=MOST)
    assert [job.response_id for job in await claim(jobs, ONE, limit=1, seconds=0)] == ["resp_a"]
    async with two.held("SELECT 1 FROM responses WHERE owner = $1 AND id = 'resp_a' FOR UPDATE"):
        adding = asyncio.ensure_future(jobs.append(ONE, "resp_a", piece(2, 5)))
        await two.wait(1)
        # The lease of `resp_a` has expired, but its holder is writing to it. `resp_b` is free.
        assert [job.response_id for job in await claim(others, TWO)] == ["resp_b"]
        renewing = asyncio.ensure_future(others.renew(ONE, ["resp_a"], 1000))
        await two.wait(2)
    assert await adding is True and await renewing == {"resp_a"}


async def test_a_response_is_deleted_while_its_stream_goes_on(two: Two) -> None:
    jobs = two.here.background
    await jobs.enqueue(queued("a"), b"{}", EVENTS, limit=MOST)
    await claim(jobs)
    async with two.held(_RESPONSE):
        adding = asyncio.ensure_future(jobs.append(ONE, "resp_a", piece(2, 5)))
        await two.wait(1)
        deleting = asyncio.ensure_future(two.there.responses.delete(ALICE, "resp_a"))
        await two.wait(2)
    assert await adding is True and await deleting is True
    assert await jobs.append(ONE, "resp_a", piece(6, 6)) is False
    # The deleted response no longer counts in the owner's queue.
    await jobs.enqueue(queued("b"), b"{}", None, limit=1)
