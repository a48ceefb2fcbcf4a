"""Queues, claims and finishes background jobs on SQLite, and appends events to their streams.

Lives here: the SQL of the job queue that differs from PostgreSQL's. Not here: the operations that all backends share
(`../jobs.py`), responses (`responses.py`), the workers (`engine/running/workers.py`), threads and transactions
(`writer.py`).

Invariant: the transaction that deletes a job's row also writes the response's final state and last event. Every SQL
statement that a worker runs on a job requires that this worker still holds the job.
"""

from __future__ import annotations

import json
from dataclasses import replace

from antiphon.engine.ports.actions import ResponseRecord
from antiphon.engine.ports.jobs import PATIENCE, EventPiece, Job, TooManyJobs
from antiphon.errors import PredecessorGone
from antiphon.ids import now
from antiphon.stores.conversations import RELEASE
from antiphon.stores.idempotency import IdempotencyStore
from antiphon.stores.jobs import END_RESPONSE, INSERT_EVENTS, JobSql, end_parameters
from antiphon.stores.sqlite.readers import SqliteReaders
from antiphon.stores.sqlite.response_rows import (
    INSERT_CONVERSATION_ITEMS,
    JOIN_CONVERSATION,
    item_rows,
    save_steps,
    touch_chain,
    unsave_steps,
)
from antiphon.stores.sqlite.tables import LeaseClock, lease_now, sqlite_steps
from antiphon.stores.sqlite.units import Step
from antiphon.stores.sqlite.writer import SqliteWriter
from antiphon.stores.tables import Row, RowsMissing, Statement, milliseconds

MARK_BACKGROUND = "UPDATE responses SET background = 1, conversation_id = :conversation_id WHERE id = :id"

# Inserts no row when the owner already has `:limit` jobs. `enqueue` requires one row, so the whole write fails.
INSERT_JOB = """
INSERT INTO jobs (response_id, owner, request, created_at, needs)
SELECT :id, :owner, :request, :created_at, :needs WHERE (SELECT count(*) FROM jobs WHERE owner = :owner) < :limit
"""
COUNT_JOBS = "SELECT count(*) FROM jobs WHERE owner = :owner"

# CLAIM_JOBS claims jobs with an expired lease first. The order of the waiting jobs lets owners take turns. A job ranks
# lower if its owner has more running jobs, or more waiting jobs ahead of this job. Only the 1000 oldest waiting jobs
# are candidates.
_ABLE = """(:able IS NULL OR created_at < :patient OR NOT EXISTS (
    SELECT 1 FROM json_each(jobs.needs) need WHERE need.value NOT IN (SELECT value FROM json_each(:able))
  ))"""
CLAIMABLE = f"SELECT 1 FROM jobs WHERE lease_until <= :at AND {_ABLE} LIMIT 1"
CLAIM_JOBS = f"""
WITH waiting (id, owner, at) AS (
  SELECT response_id, owner, created_at FROM jobs
  WHERE lease_until = 0 AND response_id NOT IN (SELECT value FROM json_each(:besides)) AND {_ABLE}
  ORDER BY created_at LIMIT 1000
),
wanted (id, turn, at) AS (
  SELECT * FROM (
    SELECT response_id, 0, created_at FROM jobs
    WHERE lease_until > 0 AND lease_until <= lease_now()
      AND response_id NOT IN (SELECT value FROM json_each(:besides)) AND {_ABLE}
    ORDER BY lease_until LIMIT :limit
  )
  UNION ALL
  SELECT * FROM (
    SELECT w.id, row_number() OVER (PARTITION BY w.owner ORDER BY w.at)
                 + (SELECT count(*) FROM jobs r WHERE r.owner = w.owner AND r.worker > ''), w.at
    FROM waiting w ORDER BY 2, 3 LIMIT :limit
  )
)
UPDATE jobs SET worker = :worker, lease_until = lease_now() + :lease, attempts = attempts + 1, claim = claim + 1
WHERE response_id IN (SELECT id FROM wanted ORDER BY turn, at LIMIT :limit)
"""
START_RESPONSES = """
UPDATE responses SET status = 'in_progress'
WHERE status = 'queued' AND id IN (SELECT response_id FROM jobs WHERE worker = :worker)
"""
# Reads all jobs that the worker holds but does not run: the jobs of this claim, and of an earlier claim whose result
# was lost. The query runs in the claim's transaction, so no previous holder can append to a stream after the query.
CLAIMED = """
SELECT j.response_id, j.owner, j.request, r.body, j.attempts,
       (SELECT max(last_seq) FROM response_events e WHERE e.response_id = j.response_id)
FROM jobs j CROSS JOIN responses r ON r.id = j.response_id
WHERE j.worker = :worker AND j.response_id NOT IN (SELECT value FROM json_each(:besides))
ORDER BY j.created_at, j.response_id
"""
# Deletes the worker's events from sequence number `:first` on. The worker retries a write with an unknown outcome, so
# these events may already be stored.
TAKE_BACK_EVENTS = """
DELETE FROM response_events
WHERE response_id = :id AND last_seq >= :first
  AND claim = (SELECT claim FROM jobs WHERE response_id = :id AND worker = :worker)
"""
APPEND_EVENTS = """
INSERT INTO response_events (response_id, last_seq, data, claim)
SELECT :id, :last, :data, claim FROM jobs WHERE response_id = :id AND worker = :worker
"""
# Deletes the events of earlier attempts. The events with claim 0, written when the job was queued, apply to every
# attempt and stay.
DROP_EVENTS = """
DELETE FROM response_events
WHERE response_id = :id AND claim > 0 AND claim < (SELECT claim FROM jobs WHERE response_id = :id)
"""

FINISH_JOB = "DELETE FROM jobs WHERE response_id = :id AND worker = :worker"
PLACE_IN_CONVERSATION = """
UPDATE responses SET conversation_pos = (
  SELECT next_pos - :joining FROM conversations WHERE owner = :owner AND id = :conversation_id
) WHERE id = :id
"""

SQL = JobSql(
    queue="SELECT count(*), min(created_at) FROM jobs WHERE lease_until <= lease_now()",
    release="""
UPDATE jobs SET worker = NULL, lease_until = iif(:pause > 0, lease_in(:pause), 0), attempts = attempts - :uncounted
WHERE response_id = :id AND worker = :worker
""",
)


class SqliteJobWriter:
    """Implements `JobWriter` with a `SqliteWriter` and `SqliteReaders`, which the caller closes."""

    def __init__(
        self, writer: SqliteWriter, readers: SqliteReaders, keys: IdempotencyStore, leases: LeaseClock = lease_now
    ) -> None:
        self._keys = keys
        self._writer = writer
        self._readers = readers
        self._lease_now = leases

    async def enqueue(
        self, record: ResponseRecord, request: bytes, events: EventPiece | None, limit: int, needs: list[str]
    ) -> None:
        """See `JobWriter.enqueue`."""
        named: dict[str, object] = {
            "id": record.id,
            "owner": record.owner,
            "conversation_id": record.conversation_id,
            "request": request,
            "created_at": milliseconds(record.created_at),
            "limit": limit,
            "needs": json.dumps(needs),
        }
        unit: list[Step] = [
            # `finish` adds the items to the conversation when the response ends.
            *save_steps(replace(record, conversation_id=None)),
            Statement(MARK_BACKGROUND, named),
            Statement(INSERT_JOB, named, rows=1),
        ]
        if events is not None:
            unit.append(Statement(INSERT_EVENTS, {"id": record.id, "last": events.last, "data": events.data}))
        try:
            bind, unbind = map(sqlite_steps, self._keys.bound(record.once, record.id))
            undo = [*unbind, *unsave_steps(replace(record, conversation_id=None))]
            await self._writer.run([*bind, *unit], undo=undo)
        except RowsMissing:
            rows = await self._readers.fetch(COUNT_JOBS, {"owner": record.owner})
            if rows[0][0] >= limit:
                raise TooManyJobs(limit) from None
            raise PredecessorGone() from None

    async def claim(
        self, worker: str, seconds: float, limit: int, besides: list[str], able: list[str] | None
    ) -> list[Job]:
        """See `JobWriter.claim`."""
        fitting = {
            "able": None if able is None else json.dumps(able),
            "patient": milliseconds(now() - PATIENCE),
        }
        # Usually no job waits, so a read comes first and avoids a write.
        if not await self._readers.fetch(CLAIMABLE, {"at": self._lease_now(), **fitting}, own=True):
            return []
        named = {
            **fitting,
            "worker": worker,
            "lease": milliseconds(seconds),
            "limit": limit,
            "besides": json.dumps(besides),
        }
        rows: list[Row] = []
        unit = [Statement(CLAIM_JOBS, named), Statement(START_RESPONSES, named), Statement(CLAIMED, named, into=rows)]
        await self._writer.run(unit)
        return [
            Job(response_id, owner, request, body, attempts, -1 if last is None else last)
            for response_id, owner, request, body, attempts, last in rows
        ]

    async def append(self, worker: str, response_id: str, events: EventPiece, restart: bool) -> bool:
        """See `JobWriter.append`."""
        return await self._run(_writing(worker, response_id, events, restart=restart))

    async def finish(self, worker: str, record: ResponseRecord, events: EventPiece | None, restart: bool) -> bool:
        """See `JobWriter.finish`."""
        at = milliseconds(record.completed_at or record.created_at)
        named = {
            "id": record.id,
            "worker": worker,
            "at": at,
            "owner": record.owner,
            "conversation_id": record.conversation_id,
            "joining": len(record.input_items) + len(record.output_items),
        } | end_parameters(record.status, record.body, record.output_items, record)
        unit: list[Step] = [
            # Write the events before FINISH_JOB deletes the job's row, because they copy `claim` from that row.
            *_writing(worker, record.id, events, restart=restart),
            Statement(FINISH_JOB, named, rows=1),
            Statement(END_RESPONSE, named, rows=1),
            touch_chain(record.id, at),
            item_rows(record.id, (record.output_items,), first=1),
        ]
        if record.joins_conversation:
            unit.append(Statement(JOIN_CONVERSATION, named, rows=1))
            unit.append(Statement(PLACE_IN_CONVERSATION, named, rows=1))
            unit.append(Statement(INSERT_CONVERSATION_ITEMS, named))
        else:
            unit.append(Statement(RELEASE, named))
        return await self._run(unit)

    async def _run(self, unit: list[Step]) -> bool:
        try:
            await self._writer.run(unit)
        except RowsMissing:
            return False
        return True


def _writing(worker: str, response_id: str, events: EventPiece | None, *, restart: bool) -> list[Step]:
    named: dict[str, object] = {"id": response_id, "worker": worker}
    unit: list[Step] = []
    if events is not None:
        unit.append(Statement(TAKE_BACK_EVENTS, {**named, "first": events.first}))
        unit.append(Statement(APPEND_EVENTS, {**named, "last": events.last, "data": events.data}, rows=1))
    if restart:
        unit.append(Statement(DROP_EVENTS, named))
    return unit
