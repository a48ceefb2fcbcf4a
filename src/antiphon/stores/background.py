"""What it means to keep background work: the `JobStore` over SQLite.

Lives here: the SQL of jobs and event streams by name. Not here: responses as such (`responses.py`), who runs a job
(`engine/background.py`), threads and transactions (`sqlite_writer.py`).

Invariant: a job's row is deleted by exactly one unit, and that unit also writes the response's last state and its
last event; every statement of a worker demands that the worker still holds the job.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from antiphon.engine.actions import ResponseRecord
from antiphon.engine.job_bodies import with_status
from antiphon.engine.jobs import Ending, EventPage, EventPiece, Job, Progress, TooManyJobs
from antiphon.errors import StoreError
from antiphon.stores.responses import (
    INSERT_CONVERSATION_ITEMS,
    INSERT_ITEM,
    JOIN_CONVERSATION,
    LEAVE_CONVERSATION,
    TOUCH_CHAIN,
    save_statements,
)
from antiphon.stores.sqlite_readers import SqliteReaders
from antiphon.stores.sqlite_writer import RowsMissing, SqliteWriter, Statement

__all__ = ["SqliteJobStore"]

MARK_BACKGROUND = "UPDATE responses SET background = 1, conversation_id = :conversation_id WHERE id = :id"

# Inserts nothing when the owner has too many; the statement demands one row.
INSERT_JOB = """
INSERT INTO jobs (response_id, owner, request, created_at)
SELECT :id, :owner, :request, :created_at WHERE (SELECT count(*) FROM jobs WHERE owner = :owner) < :most
"""
COUNT_JOBS = "SELECT count(*) FROM jobs WHERE owner = :owner"
INSERT_EVENTS = "INSERT INTO response_events (response_id, last_seq, data) VALUES (:id, :last, :data)"

# What was held by somebody who is gone comes first. The others come by turns of their owners: who has many waiting or
# running lets the others go before. Of very many only the oldest are looked at.
CLAIMABLE = """
WITH waiting (id, owner, at) AS (
  SELECT response_id, owner, created_at FROM jobs WHERE lease_until = 0 ORDER BY created_at LIMIT 1000
),
wanted (id, turn, at) AS (
  SELECT * FROM (
    SELECT response_id, 0, created_at FROM jobs WHERE lease_until > 0 AND lease_until <= :at
    ORDER BY lease_until LIMIT :most
  )
  UNION ALL
  SELECT * FROM (
    SELECT w.id, row_number() OVER (PARTITION BY w.owner ORDER BY w.at)
                 + (SELECT count(*) FROM jobs r WHERE r.owner = w.owner AND r.worker > ''), w.at
    FROM waiting w ORDER BY 2, 3 LIMIT :most
  )
)
SELECT j.response_id, j.owner, j.request, r.body, j.attempts, j.lease_until,
       (SELECT max(last_seq) FROM response_events e WHERE e.response_id = j.response_id)
FROM wanted CROSS JOIN jobs j ON j.response_id = wanted.id CROSS JOIN responses r ON r.id = j.response_id
ORDER BY wanted.turn, wanted.at LIMIT :most
"""
# `lease_until` is as it was read: of two that read the same, one claims.
CLAIM_JOB = """
UPDATE jobs SET worker = :worker, lease_until = :until, attempts = attempts + 1
WHERE response_id = :id AND lease_until = :seen
"""
START_RESPONSE = "UPDATE responses SET status = 'in_progress', body = :body WHERE id = :id"
HELD_JOBS = "SELECT response_id FROM jobs WHERE worker = :worker"
RENEW_JOBS = """
UPDATE jobs SET lease_until = :until WHERE response_id IN (SELECT value FROM json_each(:ids)) AND worker = :worker
"""
RELEASE_JOB = """
UPDATE jobs SET worker = NULL, lease_until = 0, attempts = attempts - 1 WHERE response_id = :id AND worker = :worker
"""

APPEND_EVENTS = """
INSERT INTO response_events (response_id, last_seq, data)
SELECT :id, :last, :data FROM jobs WHERE response_id = :id AND worker = :worker
"""
# `created` and `queued` are one piece, the first; they are true of every attempt.
DROP_EVENTS = """
DELETE FROM response_events
WHERE response_id = :id AND last_seq < :first
  AND last_seq > (SELECT min(last_seq) FROM response_events WHERE response_id = :id)
"""

FINISH_JOB = "DELETE FROM jobs WHERE response_id = :id AND worker = :worker"
END_JOB = """
DELETE FROM jobs WHERE response_id = :id AND (:worker IS NULL OR worker = :worker)
  AND ifnull((SELECT max(last_seq) FROM response_events WHERE response_id = :id), -1) = :last_event
"""
END_RESPONSE = """
UPDATE responses SET status = :status, body = :body, completed_at = :completed_at, input_tokens = :input_tokens,
                     output_tokens = :output_tokens, history_items = history_items + :weight
WHERE id = :id
"""
PLACE_IN_CONVERSATION = """
UPDATE responses SET conversation_pos = (
  SELECT next_pos - :joining FROM conversations WHERE owner = :owner AND id = :conversation_id
) WHERE id = :id
"""

UNLOCK = f"{LEAVE_CONVERSATION} AND NOT EXISTS (SELECT 1 FROM jobs WHERE response_id = :id)"

PROGRESS = """
SELECT r.id, r.status, (SELECT max(last_seq) FROM response_events e WHERE e.response_id = r.id)
FROM json_each(:ids) wanted CROSS JOIN responses r ON r.id = wanted.value
"""
# No row: no such response. One row without a piece: nothing after that number.
EVENTS = """
SELECT r.status, e.last_seq, e.data
FROM responses r LEFT JOIN response_events e ON e.response_id = r.id AND e.last_seq > :after
WHERE r.id = :id AND r.owner = :owner
ORDER BY e.last_seq LIMIT :most
"""


class SqliteJobStore:
    """`JobStore` on a writer and readers that somebody else owns and closes."""

    def __init__(self, writer: SqliteWriter, readers: SqliteReaders) -> None:
        self._writer = writer
        self._readers = readers

    async def enqueue(self, record: ResponseRecord, request: bytes, events: EventPiece | None, *, most: int) -> None:
        """Store the queued response and its job; see `JobStore.enqueue`."""
        named: dict[str, Any] = {
            "id": record.id,
            "owner": record.owner,
            "conversation_id": record.conversation_id,
            "request": request,
            "created_at": _milliseconds(record.created_at),
            "most": most,
        }
        unit = [
            # What the conversation gets it gets when the response is over.
            *save_statements(replace(record, conversation_id=None)),
            Statement(MARK_BACKGROUND, named),
            Statement(INSERT_JOB, named, rows=1),
        ]
        if events is not None:
            unit.append(Statement(INSERT_EVENTS, {"id": record.id, "last": events.last, "data": events.data}))
        try:
            await self._writer.run(unit)
        except RowsMissing:
            rows = await self._readers.fetch(COUNT_JOBS, {"owner": record.owner})
            if rows[0][0] >= most:
                raise TooManyJobs(most) from None
            raise StoreError("The previous response does not exist any more; its chain cannot be continued.") from None

    async def claim(self, worker: str, at: float, until: float, most: int) -> list[Job]:
        """Take up to `most` jobs; see `JobStore.claim`."""
        rows = await self._readers.fetch(CLAIMABLE, {"at": _milliseconds(at), "most": most})
        jobs = []
        for response_id, owner, request, body, attempts, seen, last_event in rows:
            body = with_status(body, "in_progress")
            named = {"id": response_id, "worker": worker, "until": _milliseconds(until), "seen": seen, "body": body}
            try:
                await self._writer.run([Statement(CLAIM_JOB, named, rows=1), Statement(START_RESPONSE, named, rows=1)])
            except RowsMissing:
                continue  # somebody else was faster
            last = -1 if last_event is None else last_event
            jobs.append(Job(response_id, owner, request, body, attempts + 1, last))
        return jobs

    async def held(self, worker: str) -> frozenset[str]:
        """The responses whose jobs this worker holds."""
        return frozenset(row[0] for row in await self._readers.fetch(HELD_JOBS, {"worker": worker}))

    async def renew(self, worker: str, response_ids: Collection[str], until: float) -> None:
        """Hold these of the worker's jobs until then."""
        named = {"worker": worker, "until": _milliseconds(until), "ids": json.dumps(sorted(response_ids))}
        await self._writer.run([Statement(RENEW_JOBS, named)])

    async def release(self, worker: str, response_id: str) -> None:
        """Give a job back; the claim does not count as an attempt."""
        await self._writer.run([Statement(RELEASE_JOB, {"worker": worker, "id": response_id})])

    async def append(self, worker: str, response_id: str, events: EventPiece, *, restart: bool = False) -> bool:
        """Add to the stream; see `JobStore.append`."""
        named = {"id": response_id, "worker": worker, "last": events.last, "data": events.data}
        unit = [Statement(APPEND_EVENTS, named, rows=1)]
        if restart:
            unit.append(Statement(DROP_EVENTS, {"id": response_id, "first": events.last}))
        return await self._run(unit)

    async def finish(
        self, worker: str, record: ResponseRecord, events: EventPiece | None, *, restart: bool = False
    ) -> bool:
        """End the response with this record; see `JobStore.finish`."""
        named = {
            "id": record.id,
            "worker": worker,
            "status": record.status,
            "body": record.body,
            "completed_at": None if record.completed_at is None else _milliseconds(record.completed_at),
            "input_tokens": record.usage.input_tokens if record.usage else None,
            "output_tokens": record.usage.output_tokens if record.usage else None,
            "weight": len(record.output_items),
            "at": _milliseconds(record.completed_at or record.created_at),
            "owner": record.owner,
            "conversation_id": record.conversation_id,
            "joining": len(record.input_items) + len(record.output_items),
        }
        unit = [
            Statement(FINISH_JOB, named, rows=1),
            Statement(END_RESPONSE, named, rows=1),
            Statement(TOUCH_CHAIN, named, rows=1),
            *_output_items(record.id, record.output_items),
            *_last_events(record.id, events),
        ]
        if restart and events is not None:
            unit.append(Statement(DROP_EVENTS, {"id": record.id, "first": events.last}))
        if record.joins_conversation:
            unit.append(Statement(JOIN_CONVERSATION, named, rows=1))
            unit.append(Statement(PLACE_IN_CONVERSATION, named, rows=1))
            unit.append(Statement(INSERT_CONVERSATION_ITEMS, named))
        else:
            unit.append(Statement(LEAVE_CONVERSATION, named))
        return await self._run(unit)

    async def end(self, ending: Ending) -> bool:
        """End a response early; see `JobStore.end`."""
        named = {
            "id": ending.response_id,
            "worker": ending.worker,
            "last_event": ending.last_event,
            "status": ending.status,
            "body": ending.body,
            "completed_at": None,
            "input_tokens": None,
            "output_tokens": None,
            "weight": len(ending.output_items),
        }
        unit = [
            Statement(END_JOB, named, rows=1),
            Statement(END_RESPONSE, named, rows=1),
            *_output_items(ending.response_id, ending.output_items),
            *_last_events(ending.response_id, ending.events),
            Statement(LEAVE_CONVERSATION, named),
        ]
        return await self._run(unit)

    async def unlock(self, response_id: str) -> None:
        """Give back the conversation that this response has locked, if its job is gone."""
        await self._writer.run([Statement(UNLOCK, {"id": response_id})])

    async def progress(self, response_ids: Collection[str]) -> dict[str, Progress]:
        """How far these responses are; those that do not exist are left out."""
        rows = await self._readers.fetch(PROGRESS, {"ids": json.dumps(sorted(response_ids))})
        return {row[0]: Progress(row[1], -1 if row[2] is None else row[2]) for row in rows}

    async def events(self, owner: str, response_id: str, after: int, most: int) -> EventPage | None:
        """Up to `most` pieces with events after this number, or None when there is no such response."""
        named = {"owner": owner, "id": response_id, "after": after, "most": most + 1}
        rows = await self._readers.fetch(EVENTS, named)
        if not rows:
            return None
        pieces = tuple([EventPiece(row[1], row[2]) for row in rows[:most] if row[1] is not None])
        return EventPage(rows[0][0], pieces, more=len(rows) > most)

    async def _run(self, unit: list[Statement]) -> bool:
        try:
            await self._writer.run(unit)
        except RowsMissing:
            return False
        return True


def _output_items(response_id: str, items: tuple[Any, ...]) -> list[Statement]:
    rows = [(response_id, 1, seq, item.id, item.type, item.body) for seq, item in enumerate(items)]
    return [Statement(INSERT_ITEM, rows, many=True)]


def _last_events(response_id: str, events: EventPiece | None) -> list[Statement]:
    if events is None:
        return []
    return [Statement(INSERT_EVENTS, {"id": response_id, "last": events.last, "data": events.data})]


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
