"""Stores responses on PostgreSQL, finds items by id, and decides whether this process is ready for requests.

Lives here: the SQL that finds items by id, and the rules by which a failing database makes this process unready. Not
here: the code that all backends share (`../responses.py`), storing responses (`turns.py`), the write queue
(`turn_groups.py`), connections (`database.py`), the endpoint `/ready` (`api/router.py`).

All replicas of Antiphon share the database. If one unanswered probe made a process unready, an overloaded database
would make all replicas unready together. Clients would then lose even the requests that need no database. So one
unanswered probe does not make a process unready. A process becomes unready only when no write succeeds for a longer
time, for example because the process has no network path to the database. A successful write of a request counts like a
successful probe. While requests write, no probe runs, so `/ready` does not wait for a connection.

Invariant: a process is not ready before its first successful write. A ready process becomes unready `patience` seconds
after its first unanswered probe, unless a write has succeeded since then. If probes fail only because the database is
slow, a successful read counts like a successful write.
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
# Shorter than the timeout of `/ready`, so that the response of `/ready` can name the cause.
ANSWER_SECONDS = 1.5
_SLOW: frozenset[StoreReason] = frozenset({"slow", "locked", "busy", "unknown"})
# The probe writes a row, so that it detects a full disk or a missing privilege before a response fails. Processes use
# 16 different rows, so that they rarely wait for each other's commits.
_PROBE = """
INSERT INTO sweeps (what, due_at) VALUES ('probe ' || pg_backend_pid() % 16, now())
ON CONFLICT (what) DO UPDATE SET due_at = excluded.due_at
"""

# Finds one item per requested id, even if several responses have an item with this id. The query prefers output items
# to input items, and newer items to older items.
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
    """Checks whether the database's failures make this process unready. The caller closes the database."""

    def __init__(
        self,
        database: Database,
        patience: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        """`patience`: seconds without a successful write after which the process is unready. `clock`: the clock of
        `Database.read` and `Database.written`. `answer_seconds`: the timeout of a probe."""
        self._database = database
        self._answer_seconds = answer_seconds
        self._patience = patience
        self._clock = clock
        self._probe: asyncio.Task[None] | None = None
        self._begun = 0.0
        self._unanswered: float | None = None
        self._cause: StoreError | None = None

    async def ping(self) -> None:
        """Raise `StoreError` when this process should get no requests. Returns or raises within two seconds."""
        if self._clock() - self._database.written < _FRESH_SECONDS:
            self._unanswered = self._cause = None
            return
        # Concurrent checks share one probe, so they cannot multiply the writes.
        if self._probe is None or self._probe.done():
            self._begun = self._clock()
            self._probe = asyncio.create_task(self._ask())
            # If the caller is cancelled, no code awaits the probe. `look_at` retrieves its error, so that asyncio logs
            # no warning.
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
        """Raise `failure` if the last successful access to the database is too old. Otherwise return, so that the
        process stays ready."""
        database = self._database
        answered = max(database.written, database.read) if failure.reason in _SLOW else database.written
        if self._unanswered is None or answered > self._unanswered:
            self._unanswered = max(self._begun, answered)
        if database.written == -math.inf or self._clock() - self._unanswered >= self._patience:
            raise failure


class PostgresResponseWriter:
    """Implements `ResponseWriter` on a write queue that the caller closes."""

    def __init__(self, turns: Groups[ResponseRecord], readiness: DatabaseReadiness) -> None:
        self.ping = readiness.ping
        self.save = turns.run
