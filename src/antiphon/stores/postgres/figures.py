"""Implements `StoreFigures`: statistics of a PostgreSQL database, and of this process's use of the database.

Lives here: one query about sizes, connections and the oldest snapshot. Not here: the findings of `antiphon doctor`
(`checks.py`), names of metrics.

Invariant: the table names in metrics come from a fixed set. The statistics sum up all other tables as `other`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from antiphon.stores.backend import DatabaseFigures
from antiphon.stores.postgres.database import Database
from antiphon.stores.postgres.turn_groups import Groups

TABLES = frozenset(
    {
        "audit", "chains", "chunk_vectors", "chunks", "client_key_changes", "client_keys", "containers",
        "conversation_items", "conversations", "deployment", "file_attributes", "files", "idempotency", "jobs",
        "owner_bytes", "owner_files", "owner_queue",
        "live_cancels", "live_processes", "live_viewers",
        "pending_blobs", "prompt_versions", "prompts", "quota_counters", "quota_holders", "quota_leases",
        "request_records", "requests", "response_events", "response_items", "responses",
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


class PostgresFigures:
    """Implements `StoreFigures` for a database and the queues of writes to it."""

    name: str = "postgresql"

    def __init__(self, database: Database, groups: Sequence[Groups[Any]]) -> None:
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
        """The number of statements by the number of grouped writes in each statement."""
        total: Counter[int] = Counter()
        for groups in self._groups:
            total.update(groups.groups)
        return total

    async def look(self) -> DatabaseFigures:
        """Read the sizes of the database and of each table, which include indexes and dead rows, and statistics of the
        server."""
        found: dict[str, dict[str, int]] = {}
        for row in await self._database.fetch(_LOOK, sorted(TABLES)):
            found.setdefault(row["kind"], {})[row["name"]] = row["value"]
        return DatabaseFigures(
            size=found["size"][""],
            tables=found.get("table", {}),
            connections=found.get("connections", {}),
            most_connections=found["most_connections"][""],
            oldest_xmin=found["oldest_xmin"][""],
        )
