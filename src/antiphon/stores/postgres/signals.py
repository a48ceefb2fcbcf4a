"""Detects changes that other processes have written to PostgreSQL.

Lives here: the polling query, its interval, and the marks of watched streams. Not here: notifications between processes
("notes", `notify.py`), the waiting callers (`engine/running/signal_watcher.py`).

Without `state.direct_url`, each process polls the database at a fast interval. With `state.direct_url`, processes also
send each other notes. A process that receives notes polls rarely, only to detect lost notes. A writer sends a note
about a stream only while another process watches the stream. A watcher marks the stream in the job's row
(`watched_until`) before it polls. So the poll sees all events that a writer added without a note.

Invariant: a poll takes one round trip, plus one more when the process must mark a stream as watched.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from datetime import timedelta

from antiphon.engine.ports.jobs import News, Pace, Seen
from antiphon.ids import new_id
from antiphon.stores.jobs import look
from antiphon.stores.postgres.database import Database
from antiphon.stores.postgres.notify import ListenTimes, NotificationListener, Notifier
from antiphon.stores.postgres.tables import PostgresTables

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
        """`hearing`: the intervals of polls while this process receives notes."""
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
        """Whether this process receives the notes of all other processes."""
        return self._listener is not None and self._listener.hears

    @property
    def pace(self) -> Pace:
        """The intervals of polls: longer while this process receives notes."""
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
        """Start to receive notes, if the direct URL is set. The listener calls `hear` with the news in notes of other
        processes."""
        if self._direct_url is not None and self._listener is None:
            name, echo = self.notifier.name, self.notifier.ask_for_echo
            self._listener = NotificationListener(self._direct_url, name, hear, echo, self._times)
            self._listener.start()

    async def look(self, followed: Collection[str], worker: str | None) -> Seen:
        """Read the progress of these streams, and the jobs that this worker holds. Marks the streams as watched while
        this process receives notes."""
        if self.hears:
            await self._watch(followed)
        return await look(self._tables, followed, worker)

    async def aclose(self) -> None:
        """Close the listening connection, send the waiting note, and stop the sender."""
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
