"""What one process hears of another over a real PostgreSQL: told or by asking, directly and behind pgbouncer.

A process is a set of stores with connections of its own, its followers and its signal watcher; what runs in it is held
by name alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass

import asyncpg
import pytest
from structlog.testing import capture_logs

from antiphon.engine.ports.jobs import JobEnd, News, Pace
from antiphon.engine.running.followers import Followers
from antiphon.engine.running.signal_watcher import SignalWatcher
from antiphon.engine.running.workers import Workers
from antiphon.stores.postgres import signals as signals_module
from antiphon.stores.postgres.signals import (
    CHANNEL,
    ListenTimes,
    Note,
    Notifier,
    read_note,
)
from antiphon.translation.events.encode import DONE
from tests.contracts.job_contract import EVENTS, MOST, ONE, claim, finished, piece, queued
from tests.contracts.store_contract import ALICE
from tests.support.postgres import PostgresServer
from tests.support.postgres_stores import TurnStores, turn_stores
from tests.support.waiting import until

# Behaviour of servers and connections, each with a database: the contracts are the quick part.
pytestmark = pytest.mark.full

TIMES = ListenTimes(connect=2.0, answer=1.0, ping=0.1, first_pause=0.02, longest_pause=0.1)


class Worker(Workers):
    """What runs in a process; `heard`: how often it was said that there are jobs."""

    running: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.name = ONE
        self.lost: set[str] = set()
        self.heard = 0

    def keep(self, asked: Collection[str], held: Collection[str]) -> None:
        self.lost |= set(asked) - set(held)
        self.running -= self.lost

    def heard_of_jobs(self) -> None:
        self.heard += 1


@dataclass
class Process:
    stores: TurnStores
    signal_watcher: SignalWatcher
    followers: Followers
    worker: Worker


@asynccontextmanager
async def process(url: str, direct_url: str | None, hearing: Pace = signals_module.HEARING) -> AsyncIterator[Process]:
    async with aclosing(turn_stores(url, direct_url=direct_url, times=TIMES, hearing=hearing)) as stores:
        signal_watcher, worker = SignalWatcher(stores.signals), Worker()
        followers = Followers(stores.background, signal_watcher)
        signal_watcher.holding = worker
        signal_watcher.start()
        if direct_url is not None:
            await until(lambda: stores.signals.hears)
        yield Process(stores, signal_watcher, followers, worker)


@pytest.fixture
def direct(postgres: PostgresServer, postgres_url: str) -> str:
    """The server itself, whatever `postgres_url` goes through."""
    return postgres.url(postgres_url.rsplit("/", 1)[1])


@pytest.fixture(params=["told", "asking"])
async def two(request: pytest.FixtureRequest, postgres_url: str, direct: str) -> AsyncIterator[tuple[Process, Process]]:
    """Two processes that tell each other, or ask."""
    told = direct if request.param == "told" else None
    async with process(postgres_url, told, ONLY_TOLD) as one, process(postgres_url, told, ONLY_TOLD) as two:
        yield one, two


ONLY_TOLD = Pace(3600.0, 3600.0, 3600.0)
"""Nobody finds anything by asking, as long as he hears."""


async def begin(process: Process, name: str = "a") -> str:
    """A job that runs in this process; the response's id."""
    jobs = process.stores.background
    await jobs.enqueue(queued(name), b"{}", EVENTS, limit=MOST)
    await claim(jobs)
    return f"resp_{name}"


async def within(seconds: float, condition: Callable[[], object]) -> float:
    began = asyncio.get_running_loop().time()
    await until(condition, seconds)
    return asyncio.get_running_loop().time() - began


async def watched(at: str, response_id: str) -> bool:
    connection = await asyncpg.connect(at, statement_cache_size=0)
    try:
        found = await connection.fetchval(
            "SELECT coalesce(watched_until > now(), false) FROM jobs WHERE response_id = $1", response_id
        )
        return bool(found)
    finally:
        await connection.close()


async def test_what_one_appends_the_other_sends_on(two: tuple[Process, Process], direct: str) -> None:
    one, other = two
    response_id = await begin(one)
    stream = other.followers.follow(ALICE, response_id)
    async with asyncio.timeout(60), aclosing(stream):
        assert await anext(stream) == EVENTS.data
        # From the first wait on it is marked as watched, where processes tell each other.
        while other.stores.signals.hears and not await watched(direct, response_id):
            await asyncio.sleep(0.001)
        for number in range(2, 42):
            waiting = asyncio.ensure_future(anext(stream))
            assert await one.stores.background.append(ONE, response_id, piece(number, number))
            assert await waiting == piece(number, number).data
        assert await one.stores.background.finish(ONE, finished("a"), piece(42, 42))
        assert [part async for part in stream] == [piece(42, 42).data, DONE]


async def test_what_one_cancels_stops_in_the_other(two: tuple[Process, Process]) -> None:
    one, other = two
    response_id = await begin(one)
    one.worker.running = frozenset({response_id})
    one.signal_watcher.wake()
    await asyncio.sleep(0)
    assert await other.stores.background.end(JobEnd(response_id, "cancelled", b"{}", (), 1, None))
    await within(30, lambda: one.worker.lost == {response_id})


async def test_nobody_is_told_of_streams_that_nobody_follows(postgres_url: str, direct: str) -> None:
    async with process(postgres_url, direct, ONLY_TOLD) as one, process(postgres_url, direct, ONLY_TOLD) as other:
        response_id = await begin(one)
        for number in range(2, 12):
            assert await one.stores.background.append(ONE, response_id, piece(number, number))
        assert await one.stores.background.finish(ONE, finished("a"), piece(12, 12))
        assert one.stores.signals.notifier.sent == 0
        heard = other.worker.heard
        one.stores.signals.tell_queued()
        await until(lambda: other.worker.heard == heard + 1 and one.stores.signals.notifier.sent == 1)
        assert one.worker.heard == 1, "a process does not hear itself"


async def test_without_a_direct_url_nobody_is_told_anything(postgres_url: str) -> None:
    async with process(postgres_url, None) as one:
        response_id = await begin(one)
        one.stores.signals.tell_queued()
        assert await one.stores.background.end(JobEnd(response_id, "cancelled", b"{}", (), 1, None))
        assert not one.stores.signals.notifier.sending and one.stores.signals.pace == signals_module.ASKING


async def test_a_lost_connection_is_made_anew_and_meanwhile_it_asks(
    postgres: PostgresServer, postgres_url: str, direct: str
) -> None:
    made = "CREATE ROLE hears LOGIN"
    await postgres.statement(f"DO $$BEGIN {made}; EXCEPTION WHEN duplicate_object THEN NULL; END$$")
    await postgres.statement("ALTER ROLE hears CONNECTION LIMIT -1")
    hears = direct.replace("postgres@", "hears@")
    with capture_logs() as lines:
        async with AsyncExitStack() as opened:
            one = await opened.enter_async_context(process(postgres_url, hears))
            other = await opened.enter_async_context(process(postgres_url, hears))
            response_id = await begin(one)
            stream = other.followers.follow(ALICE, response_id)
            assert await anext(stream) == EVENTS.data
            # No new connection until it is said.
            await postgres.statement("ALTER ROLE hears CONNECTION LIMIT 0")
            admin = await asyncpg.connect(direct, statement_cache_size=0)
            opened.push_async_callback(admin.close)
            killed = await admin.fetch(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE query ~ 'LISTEN|= ''on''$' AND pid <> pg_backend_pid() AND datname = current_database()"
            )
            assert killed
            await until(lambda: not other.stores.signals.hears and not one.stores.signals.hears)
            assert other.stores.signals.pace == signals_module.ASKING
            async with asyncio.timeout(30):
                for number in range(2, 6):
                    waiting = asyncio.ensure_future(anext(stream))
                    assert await one.stores.background.append(ONE, response_id, piece(number, number))
                    assert await waiting == piece(number, number).data
            await postgres.statement("ALTER ROLE hears CONNECTION LIMIT -1")
            await until(lambda: other.stores.signals.hears and one.stores.signals.hears)
            await stream.aclose()
    said = [line["event"] for line in lines if line["event"].startswith("notifications")]
    assert sorted(said) == ["notifications_heard"] * 4 + ["notifications_lost"] * 2


async def test_a_pooler_is_not_taken_for_the_server(request: pytest.FixtureRequest, postgres: PostgresServer) -> None:
    pooled = request.getfixturevalue("pgbouncer").url(await postgres.new_database())
    with capture_logs() as lines:
        async with aclosing(turn_stores(pooled, direct_url=pooled, times=TIMES)) as stores:
            SignalWatcher(stores.signals).start()
            await until(lambda: any(line["event"] == "notifications_lost" for line in lines))
            assert not stores.signals.hears and stores.signals.pace == signals_module.ASKING
    (line,) = (line for line in lines if line["event"] == "notifications_lost")
    assert "not a pooler" in line["error"]


async def test_a_server_that_is_not_there_is_said_once_without_its_url(unused_tcp_port: int) -> None:
    heard: list[News] = []
    tries = 0

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal tries
        tries += 1
        writer.close()

    url = f"postgresql://someone:secret@127.0.0.1:{unused_tcp_port}/nowhere"
    with capture_logs() as lines:
        async with aclosing(turn_stores(url, direct_url=url, times=TIMES)) as stores:
            stores.signals.listen(heard.append)
            await until(lambda: lines)
            # It is tried again and again, whatever is there meanwhile.
            async with await asyncio.start_server(hang_up, "127.0.0.1", unused_tcp_port):
                await until(lambda: tries > 2)
    assert [line["event"] for line in lines] == ["notifications_lost"] and heard == [News(anything=True)]
    assert "state.direct_url" in lines[0]["error"] and "secret" not in str(lines)


@pytest.mark.parametrize(
    ("news", "payload"),
    [
        (News(frozenset({"resp_b", "resp_a"})), "me resp_a resp_b"),
        (News(queued=True), "me +"),
        (News(frozenset({"resp_a"}), queued=True, anything=True), "me * + resp_a"),
    ],
)
def test_notes_come_back_as_they_were(news: News, payload: str) -> None:
    assert Note("me", news).encode() == payload and read_note(payload) == Note("me", news)


def test_a_note_that_would_be_too_long_says_that_anything_may_have_happened() -> None:
    news = News(frozenset(f"resp_{number:048}" for number in range(200)), queued=True)
    assert Note("me", news).encode() == "me * +" and len(Note("me", news).encode()) < 8000
    assert read_note("").news == read_note("somebody").news == News(anything=True)


async def test_many_changes_are_few_notes_none_of_them_too_long(postgres_url: str, direct: str) -> None:
    async with aclosing(turn_stores(postgres_url)) as stores:
        listener = await asyncpg.connect(direct, statement_cache_size=0)
        payloads: list[str] = []
        await listener.add_listener(CHANNEL, lambda *note: payloads.append(str(note[3])))
        notifier = Notifier(stores.database, "me")
        notifier.changed([])
        assert not notifier.sending
        for number in range(10_000):
            notifier.changed([f"resp_{number % 100:048}"])
        await until(lambda: payloads)
        notifier.changed([f"resp_{number:048}" for number in range(1000)])
        notifier.queued()
        await notifier.aclose()
        await until(lambda: notifier.sent == len(payloads) == 2)
        assert len(payloads[0].split()) == 101 and payloads[1] == "me * +"
        await listener.close()
