"""Sends notifications about streams, ended jobs and queued jobs to other processes over PostgreSQL, and receives
theirs.

Lives here: the notes between processes (`NOTIFY`), when they are sent, and receiving those of others (`LISTEN`) on a
connection to the server itself. Not here: who needs a note (`jobs.py`, `engine/running/workers.py`), the reaction to
news (`signals.py`).

A transaction that notifies holds a lock that exists once per server, so one notification per write would limit the
writes of all processes together. So a separate statement sends the notes after the writes. One statement covers
everything since the last one. Statements are `_APART` seconds or more apart, and further apart on a slow server. A lost
note costs only time, because waiting processes also poll.

The listening connection counts as good when an echo arrives: a note of this process, sent over another connection. The
echo proves that it is not a pooler's connection, where `LISTEN` has no effect, and that it leads to the same database.
From then on a query every `ping` seconds detects a dead connection.

Invariants: no caller waits for a note. The content of one note limits the queue. Every wait here ends. The log has one
line when listening begins, one when it ends, and one when it cannot begin.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Collection, Iterator
from dataclasses import dataclass

import structlog

from antiphon.engine.ports.signals import News
from antiphon.errors import StoreError
from antiphon.observability.outages import Outage
from antiphon.stores.postgres.connecting import READ_ONLY, Connection, connect
from antiphon.stores.postgres.database import Database
from antiphon.stores.postgres.failures import DIRECT_URL, connecting_failed

_log = structlog.get_logger(__name__)

CHANNEL = "antiphon"
_NOTIFY = "SELECT pg_notify($1::text, $2::text)"
# The server refuses 8,000.
_MOST_BYTES = 7_900
_APART = 0.03
# Pause after a slow statement: as long as it took.
_REST = 1.0
_QUEUED, _ANYTHING, _ECHO = "+", "*", "?"


@dataclass(frozen=True, slots=True)
class Note:
    """A note: the sender's name, and news, or a request for an echo (`echo`)."""

    sender: str
    news: News
    echo: bool = False

    def encode(self) -> str:
        """The payload of the note; a note that is too long becomes `anything`."""
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
    """The note of a payload. An invalid payload means that anything may have happened."""
    sender, *words = payload.split() or [""]
    marks = {_QUEUED, _ANYTHING, _ECHO} & set(words)
    news = News(
        frozenset(words) - marks, queued=_QUEUED in marks, anything=_ANYTHING in marks or (not words and not marks)
    )
    return Note(sender, news, _ECHO in marks)


class Notifier:
    """Sends the notes of one process; `name` distinguishes its notes from those of others."""

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
        """Notes sent so far."""

    @property
    def sending(self) -> bool:
        """Whether a note is being sent or waits."""
        return self._task is not None and not self._task.done()

    def changed(self, response_ids: Collection[str]) -> None:
        """These streams have new events, or the responses were ended."""
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
        """There are jobs for other processes."""
        self._queued = True
        self._wake()

    async def ask_for_echo(self) -> None:
        """Send a note that must come back, to check that notes arrive. Raises `StoreError`."""
        await self._database.write(_NOTIFY, CHANNEL, Note(self.name, News(), echo=True).encode(), again=True)

    async def aclose(self) -> None:
        """Send the waiting notes, then stop."""
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
    """Times in seconds: for opening the connection, for an answer or an echo, between pings, and the first and longest
    pause between attempts."""

    connect: float = 3.0
    answer: float = 4.0
    ping: float = 5.0
    first_pause: float = 0.25
    longest_pause: float = 10.0


class NotificationListener:
    """Receives notes from `start` to `aclose`. Calls `hear` with the news of others, and with `anything` whenever
    listening begins or ends. `ask_for_echo` sends the note that must come back."""

    def __init__(
        self,
        url: str,
        name: str,
        hear: Callable[[News], None],
        ask_for_echo: Callable[[], Awaitable[None]],
        times: ListenTimes | None = None,
    ) -> None:
        """`url`: the direct URL of the server, never shown. `name`: the name of this process in notes."""
        self._url = url
        self._name = name
        self._hear = hear
        self._ask_for_echo = ask_for_echo
        self._times = times or ListenTimes()
        self._echo = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.hears = False
        """Whether all notes arrive at this moment."""

    def start(self) -> None:
        """Start listening."""
        self._task = asyncio.get_running_loop().create_task(self._stay())

    async def aclose(self) -> None:
        """Stop listening."""
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
        """Open a connection and listen until it fails. Raises `StoreError` with the reason."""
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
                    # A former primary after a failover receives no notes, but still answers.
                    if await connection.fetchval(f"SELECT {READ_ONLY}"):
                        return
        finally:
            connection.terminate()

    @contextlib.contextmanager
    def _answered(self, connection: Connection) -> Iterator[None]:
        # A timer instead of a cancellation: the driver would send a cancel request over another connection, and wait
        # for it.
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
