"""Reads overviews of stored state for people: the tree of a chain of responses, and the queue of background responses.

Lives here: the SQL of these overviews, for any backend. Not here: reading contents (`responses.py`,
`conversations.py`), changing the queue (`jobs.py`), the journal of requests (`journal.py`).

Invariants: every query has a limit. A query with an owner never returns a row of another owner.
"""

from __future__ import annotations

import msgspec

from antiphon.ids import Clock, now
from antiphon.stores.tables import Tables, milliseconds

MOST_IN_CHAIN = 500
MOST_JOBS = 200
CHAIN = f"""
SELECT r.id, r.prev_id, r.status, r.model, r.created_at, r.input_tokens, r.output_tokens, r.history_items
FROM responses r
WHERE r.owner = :owner AND r.chain_id = (SELECT chain_id FROM responses WHERE id = :id AND owner = :owner)
ORDER BY r.created_at DESC, r.rowid DESC LIMIT {MOST_IN_CHAIN}
"""
_OF_OWNER = "(CAST(:owner AS text) = '' OR j.owner = :owner)"
JOBS = f"""
SELECT j.response_id, j.owner, j.created_at, j.attempts, coalesce(j.worker, '') AS worker, r.status, r.model,
  CASE WHEN j.worker IS NOT NULL AND j.lease_until > lease_now() THEN 1 ELSE 0 END AS held
FROM jobs j JOIN responses r ON r.id = j.response_id
WHERE {_OF_OWNER} ORDER BY j.created_at, j.response_id LIMIT {MOST_JOBS}
"""
COUNT_JOBS = f"SELECT count(*) FROM jobs j WHERE {_OF_OWNER}"


class ChainedResponse(msgspec.Struct, frozen=True):
    """One response of a chain. Times are in seconds since the epoch. `history_items` counts the items up to and
    including this response."""

    id: str
    previous_id: str
    status: str
    model: str
    created_at: float
    input_tokens: int
    output_tokens: int
    history_items: int


class QueuedJob(msgspec.Struct, frozen=True):
    """One background response that has not ended. `held`: the lease of `worker` is valid. A job with more than one
    attempt was taken over from a process that died or left."""

    response_id: str
    owner: str
    model: str
    status: str
    created_at: float
    attempts: int
    worker: str
    held: bool


class Overviews:
    """The overviews, in tables that the caller closes. Every method raises `StoreError`."""

    def __init__(self, tables: Tables, clock: Clock = now) -> None:
        """`clock`: the clock of a database that has none (SQLite)."""
        self._tables = tables
        self._clock = clock

    async def chain(self, owner: str, response_id: str) -> tuple[ChainedResponse, ...]:
        """Return the newest 500 responses of the chain that this response belongs to, oldest first. Empty if the owner
        has no such response."""
        rows = await self._tables.fetch(CHAIN, {"owner": owner, "id": response_id})
        return tuple(
            [
                ChainedResponse(
                    row["id"],
                    row["prev_id"] or "",
                    row["status"],
                    row["model"],
                    row["created_at"] / 1000,
                    row["input_tokens"] or 0,
                    row["output_tokens"] or 0,
                    row["history_items"],
                )
                for row in reversed(rows)
            ]
        )

    async def jobs(self, owner: str = "") -> tuple[tuple[QueuedJob, ...], int]:
        """Return the oldest 200 background responses that have not ended, and the number of all. `owner`: empty for all
        owners."""
        named = {"owner": owner, "now_ms": milliseconds(self._clock())}
        rows = await self._tables.fetch(JOBS, named)
        total = (await self._tables.fetch(COUNT_JOBS, {"owner": owner}))[0][0]
        jobs = [
            QueuedJob(
                row["response_id"],
                row["owner"],
                row["model"],
                row["status"],
                row["created_at"] / 1000,
                row["attempts"],
                row["worker"],
                bool(row["held"]),
            )
            for row in rows
        ]
        return tuple(jobs), total
