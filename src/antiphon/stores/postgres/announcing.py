"""Telling the other processes: what went on that they follow, what was ended, that there are jobs for them.

Lives here: the notes between processes, and when they are sent. Not here: hearing them (`listening.py`), who must be
told (`jobs.py`, `engine/running/workers.py`).

A transaction that notifies holds a lock that the whole server has once, so notifying for each write would bound the
writes of all processes together. What was written is told afterwards, in a statement of its own: one for everything
since the last one, `_APART` seconds or more apart, and less often where it takes the server long. A note that is lost
costs time, nothing else: whoever waits also looks.

Invariants: nobody waits for a note; what waits to be sent is bounded by what one note can hold.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass

import structlog

from antiphon.engine.ports.signals import News
from antiphon.errors import StoreError
from antiphon.observability.outages import Outage
from antiphon.stores.postgres.database import Database

_log = structlog.get_logger(__name__)

CHANNEL = "antiphon"
_NOTIFY = "SELECT pg_notify($1::text, $2::text)"
# The server refuses 8,000.
_MOST_BYTES = 7_900
_APART = 0.03
# Of a busy server: as long as it took.
_REST = 1.0
_QUEUED, _ANYTHING, _ECHO = "+", "*", "?"


@dataclass(frozen=True, slots=True)
class Note:
    """What is sent: the sender's name, and news or a question whether the sender hears itself (`echo`)."""

    sender: str
    news: News
    echo: bool = False

    def encode(self) -> str:
        """As a payload; more than fits becomes `anything`."""
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
    """The note of a payload; of one that is none, that anything may have happened."""
    sender, *words = payload.split() or [""]
    marks = {_QUEUED, _ANYTHING, _ECHO} & set(words)
    news = News(
        frozenset(words) - marks, queued=_QUEUED in marks, anything=_ANYTHING in marks or (not words and not marks)
    )
    return Note(sender, news, _ECHO in marks)


class Announcer:
    """One per process; `name` tells its notes from those of others."""

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

    def changed(self, response_ids: Collection[str]) -> None:
        """The streams of these went on, or they were ended."""
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
        """There are jobs for others."""
        self._queued = True
        self._wake()

    async def ask_for_echo(self) -> None:
        """Have a note come back, to see whether notes do. Raises `StoreError`."""
        await self._database.write(_NOTIFY, CHANNEL, Note(self.name, News(), echo=True).encode(), again=True)

    async def aclose(self) -> None:
        """Send what waits, and no more."""
        self._closed = True
        if self._task is not None:
            await asyncio.wait({self._task})

    def _wake(self) -> None:
        if (self._task is None or self._task.done()) and not self._closed:
            self._task = asyncio.get_running_loop().create_task(self._send_on())

    async def _send_on(self) -> None:
        loop = asyncio.get_running_loop()
        while (news := self._take()) is not None:
            began = loop.time()
            try:
                await self._database.write(_NOTIFY, CHANNEL, Note(self.name, news).encode(), again=True)
                self.sent += 1
                self._outage.over()
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
