"""Stores responses on PostgreSQL, finds items by id, and decides the readiness of this process.

Lives here: the queue for a response, that SQL, and when a database that does not answer makes the process unready. Not
here: the parts that all backends share (`../responses.py`), storing responses (`turns.py`, in groups:
`turn_groups.py`), connections (`database.py`), the response of `/ready` (`api/router.py`), other reasons to be unready.

All replicas share the database. If it is overloaded or down, an unready replica does not help. It stops the requests
that it could still serve, and all replicas would become unready at once. So one unanswered probe is no reason. Only a
database without any successful write for a while is one, as a replica without a network path to it sees. Writes of
requests count. While these succeed no probe runs, so `/ready` does not wait for a connection or behind requests.

Invariant: a process without any successful write is not ready. A ready process becomes unready `patience` seconds after
its first unanswered probe, unless a write succeeded since then. If the database was only slow, a successful read counts
as well.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

from antiphon.engine.ports.actions import ResponseRecord
from antiphon.engine.waiting import look_at
from antiphon.errors import StoreError, StoreReason
from antiphon.stores.postgres.database import Database
from antiphon.stores.postgres.turn_groups import Groups

_FRESH_SECONDS = 2.0
# Shorter than the timeout of `/ready`, so that its response names the cause.
ANSWER_SECONDS = 1.5
_SLOW: frozenset[StoreReason] = frozenset({"slow", "locked", "busy", "unknown"})
# A real write, so that the probe detects a full disk or a missing right before a response fails. Over several rows, so
# that processes do not wait for each other's commits.
_PROBE = """
INSERT INTO sweeps (what, due_at) VALUES ('probe ' || pg_backend_pid() % 16, now())
ON CONFLICT (what) DO UPDATE SET due_at = excluded.due_at
"""

# One item per requested id, however often clients have used the id. An output comes before an input, and newer items
# before older ones.
LOAD_ITEMS = """
WITH found AS MATERIALIZED (
  SELECT f.* FROM (SELECT DISTINCT id FROM unnest(CAST(:ids AS text[])) AS w (id)) AS wanted CROSS JOIN LATERAL (
    SELECT i.response_id, i.dir, i.seq, length(i.body) + coalesce(length(i.shown), 0) AS size
    FROM response_items i JOIN responses r ON r.id = i.response_id
    WHERE i.item_id = wanted.id AND r.owner = :owner
    ORDER BY i.dir DESC, r.number DESC, i.seq DESC LIMIT 1
  ) AS f
),
whole AS MATERIALIZED (SELECT coalesce(sum(size), 0) <= CAST(:bytes AS bigint) AS fits FROM found)
SELECT i.item_id, i.type, CASE WHEN whole.fits THEN i.body END AS body, CASE WHEN whole.fits THEN i.shown END AS shown
FROM found JOIN response_items i USING (response_id, dir, seq) CROSS JOIN whole
"""


class DatabaseReadiness:
    """Checks whether the database answers. The caller closes the database."""

    def __init__(
        self,
        database: Database,
        patience: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        """`patience`: seconds without an answer after which the process is unready. `clock`: the clock of the
        database's times."""
        self._database = database
        self._answer_seconds = answer_seconds
        self._patience = patience
        self._clock = clock
        self._probe: asyncio.Task[None] | None = None
        self._begun = 0.0
        self._unanswered: float | None = None
        self._cause: StoreError | None = None

    async def ping(self) -> None:
        """Raise `StoreError` when requests should go to another process; takes at most two seconds."""
        if self._clock() - self._database.written < _FRESH_SECONDS:
            self._unanswered = self._cause = None
            return
        # Concurrent checks share one probe, so they cannot multiply the writes.
        if self._probe is None or self._probe.done():
            self._begun = self._clock()
            self._probe = asyncio.create_task(self._ask())
            # The caller may be cancelled; an error that no caller awaits needs no warning.
            self._probe.add_done_callback(look_at)
        try:
            async with asyncio.timeout(self._answer_seconds):
                await asyncio.shield(self._probe)
        except TimeoutError:
            late = StoreError("Writing failed: PostgreSQL: it did not answer in time.", reason="slow")
            self._excuse(self._cause or late)
        except StoreError as error:
            self._excuse(error)
        else:
            self._unanswered = self._cause = None

    async def _ask(self) -> None:
        try:
            await self._database.write(_PROBE, again=True)
        except StoreError as error:
            self._cause = error
            raise

    def _excuse(self, failure: StoreError) -> None:
        """Stay ready despite the failure, unless the last answer is too old: then raise the failure."""
        database = self._database
        answered = max(database.written, database.read) if failure.reason in _SLOW else database.written
        if self._unanswered is None or answered > self._unanswered:
            self._unanswered = max(self._begun, answered)
        if database.written == -math.inf or self._clock() - self._unanswered >= self._patience:
            raise failure


class PostgresResponseWriter:
    """`ResponseWriter` on groups of responses that the caller closes."""

    def __init__(self, turns: Groups[ResponseRecord], readiness: DatabaseReadiness) -> None:
        self.ping = readiness.ping
        self.save = turns.run
