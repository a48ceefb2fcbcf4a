"""Hearing what the other processes tell (`LISTEN`), over a connection of its own to the server itself.

Lives here: the connection, whether it still carries notes, and making a new one. Not here: notes and sending them
(`announcing.py`), what is done with news (`signals.py`).

A connection counts as good once a note of this process, sent over the other connections, has come back over it: so it
is no pooler's, which takes `LISTEN` and forgets it, and no other database's. From then on it is asked something every
`ping` seconds, so that one whose other end is gone is noticed.

Invariants: every wait here ends; one line when hearing begins, one when it ends, and one when it cannot begin.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

import structlog

from antiphon.engine.ports.signals import News
from antiphon.errors import StoreError
from antiphon.stores.postgres.announcing import CHANNEL, Note, read_note
from antiphon.stores.postgres.connecting import READ_ONLY, Connection, connect
from antiphon.stores.postgres.failures import DIRECT_URL, connecting_failed

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ListenTimes:
    """Seconds: for opening the connection, for an answer or an echo, between pings, and between tries at first and at
    most."""

    connect: float = 3.0
    answer: float = 4.0
    ping: float = 5.0
    first_pause: float = 0.25
    longest_pause: float = 10.0


class Listener:
    """Hears from `start` to `aclose`. `hear` is called with what others tell, and with `anything` whenever hearing
    begins or ends; `ask_for_echo` sends the note that must come back."""

    def __init__(
        self,
        url: str,
        name: str,
        hear: Callable[[News], None],
        ask_for_echo: Callable[[], Awaitable[None]],
        times: ListenTimes | None = None,
    ) -> None:
        """`url`: of the server itself; it is never shown. `name`: of this process in notes."""
        self._url = url
        self._name = name
        self._hear = hear
        self._ask_for_echo = ask_for_echo
        self._times = times or ListenTimes()
        self._echo = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.hears = False
        """Whether it is told of everything just now."""

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.get_running_loop().create_task(self._stay())

    async def aclose(self) -> None:
        """Hear no more."""
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
                _log.warning("notifications_lost", error=why, advice="until they are back the store is asked instead")
                told = True
                self._hear(News(anything=True))
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(self._times.longest_pause, pause * 2)

    async def _listen(self) -> None:
        """Open a connection and stay on it until it is of no use. Raises `StoreError`: why that is so."""
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
                    # A server that another one took the place of hears nothing, and answers all the same.
                    if await connection.fetchval(f"SELECT {READ_ONLY}"):
                        return
        finally:
            connection.terminate()

    @contextlib.contextmanager
    def _answered(self, connection: Connection) -> Iterator[None]:
        # A timer, not a cancellation: that would ask the server over another connection, and wait for it.
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
