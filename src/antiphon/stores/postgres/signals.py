"""Notifies processes about changes that other processes have written to PostgreSQL: new stream events, ended jobs and
queued jobs.

Lives here: the polling query, its interval, and the marks of watched streams. This module also sends notifications to
other processes (with `NOTIFY`), limits their rate, and receives the notifications of other processes. To receive
notifications (`LISTEN`), a process connects directly to the server. Not here: the choice of changes that need a
notification (`jobs.py`, `engine/running/workers.py`), the callers in this process that wait for a change
(`engine/running/signal_watcher.py`).

Without `state.direct_url`, each process polls the database at a fast interval. With `state.direct_url`, processes also
send each other notifications. A process that receives notifications polls rarely, only to detect lost notifications. A
writer sends a notification about a stream only while another process watches the stream. A watcher marks the stream in
the job's row (`watched_until`) before it polls. A writer that added events before the mark sent no notification, but
the poll after the mark reads these events.

PostgreSQL takes a server-wide lock to commit a transaction with a notification. So one notification per write would
serialize the writes of all processes. Instead, a separate statement sends one notification after several writes. The
notification covers all changes since the previous notification. Two notifications of one process are at least `_APART`
seconds apart, and further apart on a slow server. If a notification is lost, other processes notice the changes later,
by their polls.

Before a process relies on its listening connection, it sends an echo: a notification to itself, over another
connection. An arriving echo proves that both connections lead to the same database. The echo also proves that no pooler
is in front of the server, because `LISTEN` has no effect through a pooler. Afterwards a query every `ping` seconds
detects a dead connection.

Invariants: a poll takes one round trip, plus one more round trip when the process must mark a stream as watched. No
caller waits until a notification is sent. If the pending changes do not fit into one notification, the notification
only reports that anything may have changed. Every wait in this module has a timeout. Antiphon's log has one line when
listening begins, one line when listening ends, and one line when listening cannot begin.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import timedelta

import structlog

from antiphon.engine.ports.jobs import News, Pace, Seen
from antiphon.errors import StoreError
from antiphon.ids import new_id
from antiphon.observability.repeated_failures import Outage
from antiphon.stores.jobs import read_progress
from antiphon.stores.postgres.connecting import READ_ONLY, Connection, connect
from antiphon.stores.postgres.database import Database
from antiphon.stores.postgres.failures import DIRECT_URL, connecting_failed
from antiphon.stores.postgres.tables import PostgresTables

_log = structlog.get_logger(__name__)

CHANNEL = "antiphon"
_NOTIFY = "SELECT pg_notify($1::text, $2::text)"
# PostgreSQL refuses a payload of 8,000 bytes or more.
_MOST_BYTES = 7_900
_APART = 0.03
# The pause after a statement, as a multiple of the statement's duration.
_REST = 1.0
_QUEUED, _ANYTHING, _ECHO = "+", "*", "?"


@dataclass(frozen=True, slots=True)
class Note:
    """One notification between processes. `sender`: the name of the sending process. `news`: the changes. `echo`:
    whether the notification is an echo, with which the sender checks whether its own notifications arrive."""

    sender: str
    news: News
    echo: bool = False

    def encode(self) -> str:
        """Encode the notification as the payload of a PostgreSQL `NOTIFY`: words, separated by spaces. If the changes
        do not fit into one payload, the notification only reports that anything may have changed."""
        words = [self.sender]
        if self.echo:
            words.append(_ECHO)
        if self.news.anything:
            words.append(_ANYTHING)
        if self.news.queued:
            words.append(_QUEUED)
        text = " ".join([*words, *sorted(self.news.responses)])
        if len(text.encode()) <= _MOST_BYTES:
            return text
        return Note(self.sender, News(queued=self.news.queued, anything=True)).encode()


def read_note(payload: str) -> Note:
    """Decode the payload of a notification between processes. For an invalid payload, return a notification that
    reports that anything may have changed."""
    sender, *words = payload.split() or [""]
    marks = {_QUEUED, _ANYTHING, _ECHO} & set(words)
    news = News(
        frozenset(words) - marks, queued=_QUEUED in marks, anything=_ANYTHING in marks or (not words and not marks)
    )
    return Note(sender, news, _ECHO in marks)


class Notifier:
    """Sends the notifications of one process to the other processes. `name` identifies the process in its
    notifications."""

    def __init__(self, database: Database, name: str) -> None:
        self._database = database
        self.name = name
        self._responses: set[str] = set()
        self._size = 0
        self._queued = False
        self._anything = False
        self._task: asyncio.Task[None] | None = None
        self._outage = Outage(_log, "others_not_told", "others_told_again")
        self._closed = False
        self.sent = 0
        """The number of notifications sent so far."""

    @property
    def sending(self) -> bool:
        """Whether the background task is sending a notification or has a notification to send."""
        return self._task is not None and not self._task.done()

    def changed(self, response_ids: Collection[str]) -> None:
        """Schedule a notification which reports that the streams of these responses have new events, or that the
        responses have ended."""
        for response_id in response_ids:
            if response_id not in self._responses and not self._anything:
                self._responses.add(response_id)
                self._size += len(response_id) + 1
        if self._size > _MOST_BYTES:
            self._responses.clear()
            self._size, self._anything = 0, True
        if response_ids:
            self._wake()

    def queued(self) -> None:
        """Schedule a notification which reports that the queue has jobs for other processes."""
        self._queued = True
        self._wake()

    async def ask_for_echo(self) -> None:
        """Send a notification to this process itself, to check that notifications arrive. Raises `StoreError`."""
        await self._database.write(_NOTIFY, CHANNEL, Note(self.name, News(), echo=True).encode(), again=True)

    async def aclose(self) -> None:
        """Send the waiting notification, then stop."""
        self._closed = True
        if self._task is not None:
            await asyncio.wait({self._task})

    def _wake(self) -> None:
        if not self.sending and not self._closed:
            self._task = asyncio.get_running_loop().create_task(self._send_on())

    async def _send_on(self) -> None:
        loop = asyncio.get_running_loop()
        while (news := self._take()) is not None:
            began = loop.time()
            try:
                await self._database.write(_NOTIFY, CHANNEL, Note(self.name, news).encode(), again=True)
                self.sent += 1
                self._outage.recovered()
            except StoreError as error:
                self._outage.failed(error=str(error))
            if not self._closed:
                await asyncio.sleep(max(_APART, _REST * (loop.time() - began)))

    def _take(self) -> News | None:
        if not (self._responses or self._queued or self._anything):
            return None
        news = News(frozenset(self._responses), self._queued, self._anything)
        self._responses.clear()
        self._size, self._queued, self._anything = 0, False, False
        return news


@dataclass(frozen=True, slots=True)
class ListenTimes:
    """Timeouts and intervals of the listener in seconds. `connect`: the timeout for opening the connection. `answer`:
    the timeout for an answer of the server, and for the arrival of an echo. `ping`: the interval of the queries that
    detect a dead connection. The pause between attempts to listen grows from `first_pause` to `longest_pause`."""

    connect: float = 3.0
    answer: float = 4.0
    ping: float = 5.0
    first_pause: float = 0.25
    longest_pause: float = 10.0


class NotificationListener:
    """Receives notifications from `start` to `aclose`. The listener calls `hear` with the changes that other processes
    report. When listening begins or ends, the listener also calls `hear` with the news that anything may have changed.
    `ask_for_echo` sends a notification to this process itself."""

    def __init__(
        self,
        url: str,
        name: str,
        hear: Callable[[News], None],
        ask_for_echo: Callable[[], Awaitable[None]],
        times: ListenTimes | None = None,
    ) -> None:
        """`url`: the direct URL of the server, which no message shows. `name`: the name of this process in
        notifications."""
        self._url = url
        self._name = name
        self._hear = hear
        self._ask_for_echo = ask_for_echo
        self._times = times or ListenTimes()
        self._echo = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.hears = False
        """Whether the listening connection works, so that all notifications of other processes arrive."""

    def start(self) -> None:
        """Start the task that listens until `aclose`, and reconnects after failures."""
        self._task = asyncio.get_running_loop().create_task(self._stay())

    async def aclose(self) -> None:
        """Stop the task and close the listening connection."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        self.hears = False

    async def _stay(self) -> None:
        pause, told = self._times.first_pause, False
        while True:
            why: str
            try:
                await self._listen()
                why = "the connection was closed"
            except StoreError as error:
                why = str(error)
            except Exception as error:
                _log.error("listening_failed", exc_info=True)
                why = type(error).__name__
            if self.hears:
                self.hears, told, pause = False, False, self._times.first_pause
            if not told:
                _log.warning(
                    "notifications_lost",
                    error=why,
                    advice=(
                        "the process polls the store until notifications work again; check the connection of "
                        "state.direct_url"
                    ),
                )
                told = True
                self._hear(News(anything=True))
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(self._times.longest_pause, pause * 2)

    async def _listen(self) -> None:
        """Open a connection and listen until the connection closes. Raises `StoreError` with the reason of a
        failure."""
        try:
            connection = await connect(self._url, self._times.connect)
        except Exception as error:
            raise connecting_failed(error, DIRECT_URL) from error
        closed = asyncio.Event()
        try:
            connection.add_termination_listener(lambda _: closed.set())
            with self._answered(connection):
                await connection.add_listener(CHANNEL, self._note)
            await self._wait_for_echo(closed)
            self.hears = True
            _log.info("notifications_heard")
            self._hear(News(anything=True))
            while not closed.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._times.ping):
                        await closed.wait()
                        return
                with self._answered(connection):
                    # After a failover, the old primary still answers queries but receives no notes, so the listener
                    # must reconnect.
                    if await connection.fetchval(f"SELECT {READ_ONLY}"):
                        return
        finally:
            connection.terminate()

    @contextlib.contextmanager
    def _answered(self, connection: Connection) -> Iterator[None]:
        # A timer aborts the socket. A task cancellation is no alternative, because the driver would then send a cancel
        # request over another connection and wait for the result.
        timer = asyncio.get_running_loop().call_later(self._times.answer, connection.terminate)
        try:
            yield
        except Exception as error:
            raise StoreError("PostgreSQL does not answer, or has closed the connection.") from error
        finally:
            timer.cancel()

    async def _wait_for_echo(self, closed: asyncio.Event) -> None:
        self._echo.clear()
        await self._ask_for_echo()
        try:
            async with asyncio.timeout(self._times.answer):
                await self._echo.wait()
        except TimeoutError:
            raise StoreError(
                "Notifications do not arrive: state.direct_url must name the server itself, not a pooler, and the "
                "database of state.url."
            ) from None

    def _note(self, connection: object, pid: int, channel: str, payload: object) -> None:
        note: Note = read_note(str(payload))
        if note.sender == self._name:
            if note.echo:
                self._echo.set()
        elif not note.echo:
            self._hear(note.news)


ASKING = Pace(look=0.05, claim=0.25, claim_most=1.0)
HEARING = Pace(look=2.0, claim=1.0, claim_most=4.0)
_WATCH_SECONDS = 15.0
# Marks jobs as watched. Locks the rows in the order of their ids, as other statements do, to avoid deadlocks. A mark
# that lasts long enough stays unchanged. $1: ids, $2: the duration of the mark.
_WATCH = """
WITH w AS MATERIALIZED (
  SELECT response_id FROM jobs
  WHERE response_id = ANY($1::text[]) AND (watched_until IS NULL OR watched_until < now() + $2::interval * 0.6)
  ORDER BY response_id FOR NO KEY UPDATE
)
UPDATE jobs j SET watched_until = clock_timestamp() + $2::interval FROM w WHERE j.response_id = w.response_id
"""


class PostgresSignals:
    """Implements `Signals` on a database that the caller closes. `direct_url`: a URL that bypasses poolers, for
    `LISTEN`."""

    def __init__(
        self,
        database: Database,
        direct_url: str | None = None,
        times: ListenTimes | None = None,
        *,
        hearing: Pace = HEARING,
    ) -> None:
        """`hearing`: the intervals of polls while this process receives notifications."""
        self._hearing = hearing
        self._database = database
        self._tables = PostgresTables(database)
        self._direct_url = direct_url
        self._times = times
        self.notifier = Notifier(database, new_id("process"))
        self._listener: NotificationListener | None = None
        # The time at which to renew each stream's mark, by the event loop's clock.
        self._watched: dict[str, float] = {}

    @property
    def hears(self) -> bool:
        """Whether this process receives the notifications of all other processes."""
        return self._listener is not None and self._listener.hears

    @property
    def pace(self) -> Pace:
        """The intervals of polls, which are longer while this process receives notifications."""
        return self._hearing if self.hears else ASKING

    def changed(self, response_ids: Collection[str]) -> None:
        """Notify other processes that watched streams have new events, or that responses have ended."""
        if self._direct_url is not None:
            self.notifier.changed(response_ids)

    def tell_queued(self) -> None:
        """Notify other processes that the queue has jobs that this process does not claim."""
        if self._direct_url is not None:
            self.notifier.queued()

    def listen(self, hear: Callable[[News], None]) -> None:
        """Start to receive notifications, if the direct URL is set. The listener calls `hear` with the news in the
        notifications of other processes."""
        if self._direct_url is not None and self._listener is None:
            name, echo = self.notifier.name, self.notifier.ask_for_echo
            self._listener = NotificationListener(self._direct_url, name, hear, echo, self._times)
            self._listener.start()

    async def look(self, followed: Collection[str], worker: str | None) -> Seen:
        """Read the progress of these streams, and the jobs that this worker holds. While this process receives
        notifications, this method also marks the streams as watched."""
        if self.hears:
            await self._watch(followed)
        return await read_progress(self._tables, followed, worker)

    async def aclose(self) -> None:
        """Close the listening connection, send the waiting notification, and stop the sender."""
        if self._listener is not None:
            await self._listener.aclose()
        await self.notifier.aclose()

    async def _watch(self, followed: Collection[str]) -> None:
        now = asyncio.get_running_loop().time()
        self._watched = {name: self._watched.get(name, now) for name in followed}
        due = sorted(name for name, at in self._watched.items() if at <= now)
        if due:
            await self._database.write(_WATCH, due, timedelta(seconds=_WATCH_SECONDS), again=True)
            self._watched |= dict.fromkeys(due, now + _WATCH_SECONDS / 2)
