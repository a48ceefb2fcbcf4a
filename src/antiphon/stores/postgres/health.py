"""Measures a PostgreSQL database, and decides whether this process is ready for requests.

Lives here: the query for sizes, connections and the oldest snapshot, and the rules by which a failing database makes
this process unready. Not here: the findings of `antiphon doctor` (`checks.py`), names of metrics, the endpoint `/ready`
(`api/router.py`).

All replicas of Antiphon share the database. If one unanswered probe made a process unready, an overloaded database
would make all replicas unready together. Clients would then lose even the requests that need no database. So one
unanswered probe does not make a process unready. A process becomes unready only when no write succeeds for a longer
time, for example because the process has no network path to the database. A successful write of a request counts like a
successful probe. While requests write to the database, no probe runs. So `/ready` does not wait for a connection.

Invariants: a process is not ready before its first successful write. A ready process becomes unready `patience` seconds
after its first unanswered probe, unless a write has succeeded since then. If probes fail only because the database is
slow, a successful read counts like a successful write. The table names in metrics come from a fixed set. The statistics
add up all other tables under the name `other`.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from antiphon.engine.waiting import look_at
from antiphon.errors import StoreError, StoreReason
from antiphon.stores.backend import DatabaseStatistics
from antiphon.stores.postgres.database import Database
from antiphon.stores.postgres.group_commit import WriteQueue

TABLES = frozenset(
    {
        "audit", "chains", "chunk_vectors", "chunks", "client_key_changes", "client_keys", "containers",
        "conversation_items", "conversations", "deployment", "file_attributes", "files", "idempotency", "jobs",
        "owner_bytes", "owner_files", "owner_queue", "owner_teams",
        "live_cancels", "live_processes", "live_viewers",
        "pending_blobs", "prompt_versions", "prompts", "quota_counters", "quota_holders", "quota_leases",
        "request_batches", "request_records", "requests", "response_events", "response_items", "responses",
        "schema_migrations", "sweeps", "usage_days", "vector_batch_files", "vector_batches", "vector_files",
        "vector_schema_migrations", "vector_stores", "vector_trash",
    }
)  # fmt: skip
"""The tables of Antiphon's schema. The query counts all other tables as `other`."""

# The server hides the state of other roles' sessions, unless this role may read all statistics. So the query counts the
# sessions of other roles with the state `unknown`.
_LOOK = """
SELECT 'size' AS kind, '' AS name, pg_database_size(current_database()) AS value
UNION ALL
SELECT 'table', CASE WHEN relname = ANY($1::text[]) THEN relname ELSE 'other' END,
       sum(coalesce(pg_total_relation_size(oid), 0))::bigint
FROM pg_class
WHERE relkind = 'r' AND relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())
GROUP BY 2
UNION ALL
SELECT 'connections', CASE WHEN state IN ('active', 'idle') THEN state
                           WHEN state LIKE 'idle in transaction%' THEN 'idle_in_transaction'
                           ELSE 'unknown' END, count(*)
FROM pg_stat_activity
WHERE usesysid IS NOT NULL AND coalesce(backend_type, 'client backend') = 'client backend'
GROUP BY 2
UNION ALL
SELECT 'most_connections', '', current_setting('max_connections')::bigint
UNION ALL
SELECT 'oldest_xmin', '', coalesce(max(age(held)), 0)
FROM (
  SELECT unnest(ARRAY[backend_xid, backend_xmin]) AS held FROM pg_stat_activity
  WHERE pid <> pg_backend_pid() AND coalesce(datname = current_database(), true)
  UNION ALL
  SELECT transaction FROM pg_prepared_xacts WHERE database = current_database()
  UNION ALL
  SELECT unnest(ARRAY[xmin, catalog_xmin]) FROM pg_replication_slots
) AS holders
"""


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
        """`patience`: seconds without a successful write after which the process is unready. `clock`: the clock that
        also gives the times `Database.read` and `Database.written`. `answer_seconds`: the timeout of a probe."""
        self._database = database
        self._answer_seconds = answer_seconds
        self._patience = patience
        self._clock = clock
        self._probe: asyncio.Task[None] | None = None
        self._begun = 0.0
        self._unanswered: float | None = None
        self._cause: StoreError | None = None

    async def ping(self) -> None:
        """Raise `StoreError` when a load balancer should send no requests to this process. Returns or raises within two
        seconds."""
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
            late = StoreError("Writing failed: PostgreSQL: the server did not answer in time.", reason="slow")
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


class PostgresStatistics:
    """Implements `StoreStatistics` for a database and the queues of writes to it."""

    name: str = "postgresql"

    def __init__(self, database: Database, groups: Sequence[WriteQueue]) -> None:
        self._database = database
        self._groups = groups

    @property
    def waiting(self) -> int:
        """The number of writes in the queues, plus the number of callers that wait for a connection."""
        return sum(groups.waiting for groups in self._groups) + self._database.waiting

    @property
    def busy(self) -> int:
        """The number of connections in use."""
        return self._database.busy

    @property
    def groups(self) -> Mapping[int, int]:
        """The number of executed statements, by the number of writes that a statement combined."""
        total: Counter[int] = Counter()
        for groups in self._groups:
            total.update(groups.groups)
        return total

    async def look(self) -> DatabaseStatistics:
        """Read statistics of the server, and the sizes of the database and of each table. The sizes include indexes and
        dead rows."""
        found: dict[str, dict[str, int]] = {}
        for row in await self._database.fetch(_LOOK, sorted(TABLES)):
            found.setdefault(row["kind"], {})[row["name"]] = row["value"]
        return DatabaseStatistics(
            size=found["size"][""],
            tables=found.get("table", {}),
            connections=found.get("connections", {}),
            most_connections=found["most_connections"][""],
            oldest_xmin=found["oldest_xmin"][""],
        )
