"""Detects changes that other processes wrote to PostgreSQL.

Lives here: the one polling query, its pace, and the mark of watched streams. Not here: notes between processes
(`notify.py`), the waiting callers (`engine/running/signal_watcher.py`).

Without `state.direct_url` each process polls the store. With it, processes send each other notes, and while this one
receives them, polling is only a safety net for lost notes. A writer sends a note about a stream only while another
process watches the stream. The mark for this is in the job's row. A watcher sets it before it polls, so the poll sees
all events that were written without a note.

Invariant: a poll is one round trip, plus one when a stream must be marked as watched.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from datetime import timedelta

from antiphon.engine.ports.signals import News, Pace, Seen
from antiphon.ids import new_id
from antiphon.stores.jobs import look
from antiphon.stores.postgres.database import Database
from antiphon.stores.postgres.notify import ListenTimes, NotificationListener, Notifier
from antiphon.stores.postgres.tables import PostgresTables

ASKING = Pace(look=0.05, claim=0.25, claim_most=1.0)
HEARING = Pace(look=2.0, claim=1.0, claim_most=4.0)
_WATCH_SECONDS = 15.0
# Rows in one order, as in every group; a mark that lasts long enough stays unchanged. $1: ids, $2: the duration.
_WATCH = """
WITH w AS MATERIALIZED (
  SELECT response_id FROM jobs
  WHERE response_id = ANY($1::text[]) AND (watched_until IS NULL OR watched_until < now() + $2::interval * 0.6)
  ORDER BY response_id FOR NO KEY UPDATE
)
UPDATE jobs j SET watched_until = clock_timestamp() + $2::interval FROM w WHERE j.response_id = w.response_id
"""


class PostgresSignals:
    """`Signals` on a database that the caller closes. `direct_url`: a URL of the server itself, for `LISTEN`."""

    def __init__(
        self,
        database: Database,
        direct_url: str | None = None,
        times: ListenTimes | None = None,
        *,
        hearing: Pace = HEARING,
    ) -> None:
        """`hearing`: the pace while it receives notes."""
        self._hearing = hearing
        self._database = database
        self._tables = PostgresTables(database)
        self._direct_url = direct_url
        self._times = times
        self.notifier = Notifier(database, new_id("process"))
        self._listener: NotificationListener | None = None
        # When to renew the marks, by the event loop's clock.
        self._watched: dict[str, float] = {}

    @property
    def hears(self) -> bool:
        """Whether this process receives the notes of all others."""
        return self._listener is not None and self._listener.hears

    @property
    def pace(self) -> Pace:
        """The pace of polling: slow while notes arrive."""
        return self._hearing if self.hears else ASKING

    def changed(self, response_ids: Collection[str]) -> None:
        """Watched streams have new events, or responses were ended."""
        if self._direct_url is not None:
            self.notifier.changed(response_ids)

    def tell_queued(self) -> None:
        """Notify others about jobs that this process does not take."""
        if self._direct_url is not None:
            self.notifier.queued()

    def listen(self, hear: Callable[[News], None]) -> None:
        """Start listening, if the direct URL is set."""
        if self._direct_url is not None and self._listener is None:
            name, echo = self.notifier.name, self.notifier.ask_for_echo
            self._listener = NotificationListener(self._direct_url, name, hear, echo, self._times)
            self._listener.start()

    async def look(self, followed: Collection[str], worker: str | None) -> Seen:
        """The progress of these streams, and the jobs that this worker holds."""
        if self.hears:
            await self._watch(followed)
        return await look(self._tables, followed, worker)

    async def aclose(self) -> None:
        """Stop listening and sending."""
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
