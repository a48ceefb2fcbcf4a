"""Detects what other processes wrote to PostgreSQL.

Lives here: the one question, how often it must be asked, and who is watched. Not here: notes between processes
(`notify.py`), who waits for what (`engine/running/signal_watcher.py`).

Without `state.direct_url` the store is asked, and nobody is told anything. With it processes tell each other, and as
long as this one hears, asking is a net for what was lost. Who writes a stream tells of it only while somebody watches.
That stands in the job's row, and is put there before a look: what was written without a note that look sees.

Invariant: one look is one round trip, and one more when something must be marked as watched.
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
# Rows in one order, as in every group; what is watched for long enough already is left alone.
# $1: ids, $2: for how long.
_WATCH = """
WITH w AS MATERIALIZED (
  SELECT response_id FROM jobs
  WHERE response_id = ANY($1::text[]) AND (watched_until IS NULL OR watched_until < now() + $2::interval * 0.6)
  ORDER BY response_id FOR NO KEY UPDATE
)
UPDATE jobs j SET watched_until = clock_timestamp() + $2::interval FROM w WHERE j.response_id = w.response_id
"""


class PostgresSignals:
    """`Signals` on a database that is somebody else's to close. `direct_url`: the server itself, for `LISTEN`."""

    def __init__(
        self,
        database: Database,
        direct_url: str | None = None,
        times: ListenTimes | None = None,
        *,
        hearing: Pace = HEARING,
    ) -> None:
        """`hearing`: the pace while it hears."""
        self._hearing = hearing
        self._database = database
        self._tables = PostgresTables(database)
        self._direct_url = direct_url
        self._times = times
        self.notifier = Notifier(database, new_id("process"))
        self._listener: NotificationListener | None = None
        # When the marks run low, by the event loop's clock.
        self._watched: dict[str, float] = {}

    @property
    def hears(self) -> bool:
        """Whether the others tell this process everything."""
        return self._listener is not None and self._listener.hears

    @property
    def pace(self) -> Pace:
        """Slow while it hears."""
        return self._hearing if self.hears else ASKING

    def changed(self, response_ids: Collection[str]) -> None:
        """Streams that others watch went on, or responses were ended."""
        if self._direct_url is not None:
            self.notifier.changed(response_ids)

    def tell_queued(self) -> None:
        """There are jobs that this process does not take."""
        if self._direct_url is not None:
            self.notifier.queued()

    def listen(self, hear: Callable[[News], None]) -> None:
        """Hear, if the server can be reached directly."""
        if self._direct_url is not None and self._listener is None:
            name, echo = self.notifier.name, self.notifier.ask_for_echo
            self._listener = NotificationListener(self._direct_url, name, hear, echo, self._times)
            self._listener.start()

    async def look(self, followed: Collection[str], worker: str | None) -> Seen:
        """How far these streams are, and what this worker holds."""
        if self.hears:
            await self._watch(followed)
        return await look(self._tables, followed, worker)

    async def aclose(self) -> None:
        """Hear and tell no more."""
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
