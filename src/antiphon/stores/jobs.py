"""Stores background jobs and their event streams in SQLite or PostgreSQL.

Lives here: the operations on jobs and event streams, the leases of workers on jobs, and the early end of a response.
This module also encrypts bodies, and lists the queue for the console. Not here: the workers that run a job
(`engine/running/`), how a backend runs statements (`tables.py`). Each backend has separate SQL for queuing and claiming
jobs, appending to streams and finishing responses (`sqlite/jobs.py`, `postgres/jobs.py`).

A transaction that appends to a response's stream or ends the response locks the job's row first.

A process polls for changes with queries that pass `own=True`. These queries never wait behind reads for clients.

Invariants: exactly one transaction ends a job. The transaction deletes the job's row and writes the response's final
state and last event. The deletion of a response also deletes the job's row. Every SQL statement that a worker runs on a
job requires that this worker holds the job. The store does not encrypt the sequence numbers of stream events.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol, TypeAlias

from msgspec import Struct

from antiphon.engine.ports.actions import ResponseRecord, StoredItem
from antiphon.engine.ports.jobs import (
    EndedJob,
    EventPage,
    EventPiece,
    Job,
    JobEnd,
    News,
    Pace,
    Progress,
    Queue,
    Seen,
    count_events,
)
from antiphon.stores.bodies import PLAIN, Bodies
from antiphon.stores.conversations import RELEASE
from antiphon.stores.tables import Row, Statement, Tables, byte_limit, cut_off, milliseconds, run_required

# A reader reads a stream page by page, and keeps a page in memory until its client has received the page.
_PAGE_BYTES = 1 << 20

HELD = "SELECT response_id FROM jobs WHERE worker = :worker"
# Locks the rows in the order of their keys to avoid deadlocks. The statement waits for a row that another transaction
# has locked, so that it renews this lease too.
RENEW = """
WITH held (id) AS MATERIALIZED (
  SELECT response_id FROM jobs WHERE response_id IN (:ids...) AND worker = :worker
  ORDER BY response_id FOR NO KEY UPDATE
)
UPDATE jobs AS j SET lease_until = lease_in(:lease) FROM held WHERE j.response_id = held.id
RETURNING response_id
"""
UNLOCK = f"{RELEASE} AND NOT EXISTS (SELECT 1 FROM jobs WHERE response_id = :id)"

# Locks the job's row, so that the next statement sees every event of the stream.
LOCK = """
SELECT 1 FROM jobs WHERE response_id = :id AND (CAST(:worker AS text) IS NULL OR worker = :worker) FOR UPDATE
"""
# A separate statement, so that it sees the status that a claim wrote before `LOCK` got the lock.
_REPLACED = """
SELECT r.status, CASE WHEN r.status = 'queued' THEN j.request END AS request
FROM jobs j JOIN responses r ON r.id = j.response_id WHERE j.response_id = :id
"""
END_JOB = """
DELETE FROM jobs WHERE response_id = :id
  AND coalesce((SELECT max(last_seq) FROM response_events WHERE response_id = :id), -1) = :last_event
"""
END_RESPONSE = """
UPDATE responses SET status = :status, body = :body, completed_at = :completed_at, input_tokens = :input_tokens,
                     output_tokens = :output_tokens, history_items = history_items + :weight,
                     history_bytes = history_bytes + :bytes, own_bytes = own_bytes + :own_bytes - length(body)
WHERE id = :id
"""
INSERT_OUTPUT = """
INSERT INTO response_items (response_id, dir, seq, item_id, type, body, shown)
VALUES (:id, 1, :seq, :item_id, :type, :body, :shown)
"""
INSERT_EVENTS = "INSERT INTO response_events (response_id, last_seq, data) VALUES (:id, :last, :data)"
PROGRESS = """
SELECT r.id AS id, r.status AS status,
       (SELECT max(last_seq) FROM response_events e WHERE e.response_id = r.id) AS last_seq
FROM responses r WHERE r.id IN (:ids...)
"""
LOOK = f"{PROGRESS} UNION ALL SELECT response_id, NULL, NULL FROM jobs WHERE worker = :worker"
# No row means that the response does not exist. One row without events means that no event follows the number `:after`.
EVENTS = f"""
WITH page (place, size) AS (
  SELECT e.last_seq, length(e.data) FROM response_events e
  WHERE e.response_id = :id AND e.last_seq > :after ORDER BY e.last_seq LIMIT :limit
),
{byte_limit("place")}
SELECT r.status, e.last_seq, CASE WHEN cut.fits THEN e.data END AS data
FROM responses r LEFT JOIN cut ON true
LEFT JOIN response_events e ON e.response_id = r.id AND e.last_seq = cut.place
WHERE r.id = :id AND r.owner = :owner
ORDER BY cut.place
"""
_MOST_QUEUED = 200
"""The maximum number of jobs that `queued` returns."""
# An empty `:owner` selects the jobs of all owners, for an operator.
_OF_OWNER = "(CAST(:owner AS text) = '' OR j.owner = :owner)"
_QUEUED = f"""
SELECT j.response_id, j.owner, j.created_at, j.attempts, coalesce(j.worker, '') AS worker, r.status, r.model,
  CASE WHEN j.worker IS NOT NULL AND j.lease_until > lease_now() THEN j.lease_until END AS lease, lease_now() AS at
FROM jobs j JOIN responses r ON r.id = j.response_id
WHERE {_OF_OWNER} ORDER BY j.created_at, j.response_id LIMIT {_MOST_QUEUED}
"""
_COUNT_QUEUED = f"SELECT count(*) FROM jobs j WHERE {_OF_OWNER}"


ChangeListener: TypeAlias = Callable[[Collection[str]], None]
"""A callback that receives the ids of responses whose stream or state has changed."""


def notify_nobody(response_ids: Collection[str]) -> None:
    """Do nothing. This is the default listener, for stores whose processes poll for changes."""


@dataclass(frozen=True, slots=True)
class JobSql:
    """The job store's SQL that differs by backend. `queue`: the query for the number of jobs that wait for a worker,
    and the creation time of the oldest job. `release`: the statement with which a worker releases job `:id`. The
    statement delays the next claim by `:pause` milliseconds, and subtracts `:uncounted` from the job's attempts."""

    queue: str
    release: str


Measured: TypeAlias = Callable[[str], AbstractContextManager[object]]
"""A function that returns a context manager for an operation's name. The context manager measures the operation's
duration and outcome."""


class QueuedJob(Struct, frozen=True):
    """One background response that has not ended, for the list of the queue in the console.

    `created_at` is in seconds since the epoch. `lease` is the time in seconds until the lease of `worker` expires. A
    running worker renews its leases, so a `lease` of 0 means that no worker runs the job. If a job has more than one
    attempt, an earlier worker died or stopped before it finished the job.
    """

    response_id: str
    owner: str
    model: str
    status: str
    created_at: float
    attempts: int
    worker: str
    lease: float

    @property
    def held(self) -> bool:
        """Whether the lease of `worker` is valid."""
        return self.lease > 0


def _left(until: datetime | int | None, at: datetime | int) -> float:
    """Return the seconds from `at` to `until`, or 0 if `until` is None. On PostgreSQL, `at` and `until` are `datetime`
    values. On SQLite they are milliseconds since the same moment."""
    if isinstance(until, datetime) and isinstance(at, datetime):
        return (until - at).total_seconds()
    return (until - at) / 1000 if isinstance(until, int) and isinstance(at, int) else 0.0


class JobWriter(Protocol):
    """Writes jobs and streams for `JobStore`, with SQL that differs by backend. `JobStore` has a method of the same
    name for each method. Bodies in arguments and results are encrypted. Every method raises `StoreError` when the
    database fails."""

    async def enqueue(
        self, record: ResponseRecord, request: bytes, events: EventPiece | None, limit: int, needs: list[str]
    ) -> None:
        """Store the queued response and its job."""

    async def claim(
        self, worker: str, seconds: float, limit: int, besides: list[str], able: list[str] | None
    ) -> list[Job]:
        """Claim up to `limit` jobs for this worker."""

    async def append(self, worker: str, response_id: str, events: EventPiece, restart: bool) -> bool:
        """Append the events to the response's stream."""

    async def finish(self, worker: str, record: ResponseRecord, events: EventPiece | None, restart: bool) -> bool:
        """Write the response's final record and delete its job."""


class JobStore:
    """Stores the jobs and event streams of background responses in a database that the caller closes. The database's
    clock decides when a lease expires. Every method raises `StoreError` when the database fails."""

    def __init__(
        self,
        tables: Tables,
        writer: JobWriter,
        sql: JobSql,
        bodies: Bodies = PLAIN,
        ended: ChangeListener = notify_nobody,
        measured: Measured = nullcontext,
    ) -> None:
        """The store calls `ended` with the ids of responses that ended early, so that their workers stop. `measured`
        measures every change except `enqueue`."""
        self._measured = measured
        self._ended = ended
        self._tables = tables
        self._writer = writer
        self._sql = sql
        self._bodies = bodies

    async def enqueue(
        self,
        record: ResponseRecord,
        request: bytes,
        events: EventPiece | None,
        *,
        limit: int,
        needs: Collection[str] = (),
    ) -> None:
        """Store the queued response with its input and its job in one transaction. `needs`: the capabilities that a
        worker must have to run the job.

        Raises `TooManyJobs` (429) when the owner has `limit` jobs. This method checks `previous_response_id` like
        `ResponseStore.save`. `request` is a `JobRequest` as JSON. Without `events`, the response has no stream.
        """
        sealed = self._bodies.seal_record(record), self._bodies.seal(request), self._sealed(events)
        await self._writer.enqueue(*sealed, limit, sorted(needs))

    async def claim(
        self,
        worker: str,
        seconds: float,
        limit: int,
        besides: Collection[str] = (),
        *,
        able: Collection[str] | None = None,
    ) -> list[Job]:
        """Claim up to `limit` jobs that no worker holds, with a lease of `seconds`. On an error, this method claims no
        job.

        Jobs with an expired lease come first. Then the claim takes the oldest job of one owner after the other. The
        claim may skip a job whose row another transaction has locked.

        A worker claims only jobs whose `needs` are all in `able` (None: any job), or jobs older than `PATIENCE`
        seconds. An older job fails, or runs without the missing tool, if no worker has the capabilities for it.

        `besides` names the jobs that the worker still runs. The result never includes a job in `besides`, so a worker
        does not take over its own jobs. The result includes other jobs that the worker already holds, because the
        result of an earlier claim may have been lost. The claim sets the status of the responses to `in_progress`.
        """
        fitting = None if able is None else sorted(able)
        with self._measured("claim"):
            claimed = await self._writer.claim(worker, seconds, limit, sorted(besides), fitting)
        bodies = self._bodies
        return [
            replace(job, request=bodies.open(job.request), body=bodies.open_response(job.body, "in_progress"))
            for job in claimed
        ]

    async def held(self, worker: str) -> frozenset[str]:
        """Return the ids of the responses whose jobs this worker holds. If the result lacks a job that the worker
        claimed, the job has ended or belongs to another worker."""
        rows = await self._tables.fetch(HELD, {"worker": worker}, own=True)
        return frozenset([row[0] for row in rows])

    async def queue(self) -> Queue:
        """Return the number of jobs that wait for a worker, and the creation time of the oldest job."""
        row = (await self._tables.fetch(self._sql.queue, {}, own=True))[0]
        return Queue(row[0], None if row[1] is None else row[1] / 1000)

    async def renew(self, worker: str, response_ids: Collection[str], seconds: float) -> frozenset[str]:
        """Extend the worker's leases on these jobs to `seconds` from now. Returns the jobs that the worker still
        held."""
        named = {"worker": worker, "lease": milliseconds(seconds), "ids": sorted(response_ids)}
        rows: list[Row] = []
        with self._measured("renew"):
            await self._tables.run([Statement(RENEW, named, into=rows)], again=True)
        return frozenset([row[0] for row in rows])

    async def release(self, worker: str, response_id: str, *, pause: float = 0.0, attempted: bool = False) -> None:
        """Release a job. No worker claims the job again for `pause` seconds. `attempted`: whether the claim counts as
        an attempt to run the job."""
        named = {"worker": worker, "id": response_id, "pause": milliseconds(pause), "uncounted": 0 if attempted else 1}
        # A retry is safe: after the release the worker does not hold the job, so a second statement changes nothing.
        with self._measured("release"):
            await self._tables.run([Statement(self._sql.release, named)], again=True)

    async def append(self, worker: str, response_id: str, events: EventPiece, *, restart: bool = False) -> bool:
        """Append events to the response's stream. Returns False when the worker does not hold the job.

        `restart`: these events are the first events of a new attempt. The store then deletes the events of earlier
        attempts, except `created` and `queued`.

        The new events replace events that the same attempt wrote with the same or a higher sequence number. So a caller
        that does not know the outcome of a write may repeat the write, also with more events.
        """
        with self._measured("append"):
            return await self._writer.append(worker, response_id, self._sealed_piece(events), restart)

    async def finish(
        self, worker: str, record: ResponseRecord, events: EventPiece | None, *, restart: bool = False
    ) -> bool:
        """Write the response's final record and last events, and delete the job. `enqueue` has already stored the
        response's input.

        Returns False and changes nothing when the worker does not hold the job, or the response has lost the lock of
        its conversation. `restart`: see `append`.
        """
        with self._measured("finish"):
            return await self._writer.finish(worker, self._bodies.seal_record(record), self._sealed(events), restart)

    async def end(self, ending: JobEnd) -> EndedJob | None:
        """End a cancelled or failed response early, and delete the response's job. Returns the deleted job. Returns
        None when the response has already ended, or when its stream has events after `ending.last_event`."""
        bodies, events = self._bodies, self._sealed(ending.events)
        body, items = bodies.seal(ending.body), [bodies.seal_item(item) for item in ending.output_items]
        named = {"id": ending.response_id, "worker": ending.worker, "last_event": ending.last_event}
        replaced: list[Row] = []
        unit = [
            Statement(_REPLACED, named, rows=1, into=replaced),
            Statement(END_JOB, named, rows=1),
            Statement(RELEASE, named),
            Statement(END_RESPONSE, named | end_parameters(ending.status, body, items, None), rows=1),
        ]
        if items:
            rows = [
                {"id": ending.response_id, "seq": seq, "item_id": item.id, "type": item.type}
                | {"body": item.body, "shown": item.shown}
                for seq, item in enumerate(items)
            ]
            unit.append(Statement(INSERT_OUTPUT, rows, many=True))
        if events is not None:
            unit.append(Statement(INSERT_EVENTS, named | {"last": events.last, "data": events.data}))
        with self._measured("end"):
            done = await run_required(self._tables, Statement(LOCK, named, rows=1, into=[]), *unit)
        if not done:
            return None
        self._ended([ending.response_id])
        status, request = replaced[0]
        return EndedJob(status, b"" if request is None else bodies.open(request))

    async def unlock(self, response_id: str) -> None:
        """Release the conversation that this response has locked, if the response's job no longer exists. A worker that
        did not know of the response's end may have locked the conversation again."""
        await self._tables.run([Statement(UNLOCK, {"id": response_id})], again=True)

    async def progress(self, response_ids: Collection[str]) -> dict[str, Progress]:
        """Return the status of each response and the sequence number of its last event. The result has no entry for a
        response that does not exist."""
        rows = await self._tables.fetch(PROGRESS, {"ids": sorted(response_ids)})
        return {row["id"]: _progress(row) for row in rows}

    async def events(self, owner: str, response_id: str, after: int, limit: int) -> EventPage | None:
        """Return up to `limit` stored batches of the response's events (`EventPiece`). The first batch contains the
        first event after the sequence number `after`. If `after` is -1, the result begins with the first event. Returns
        None when the response does not exist.

        The first batch may also contain earlier events, with sequence numbers up to `after`. `EventPiece.after` removes
        these events.
        """
        named = {"owner": owner, "id": response_id, "after": after, "limit": limit + 1, "bytes": _PAGE_BYTES}
        found = await self._tables.fetch(EVENTS, named)
        if not found:
            return None
        rows, cut = cut_off([row for row in found if row["last_seq"] is not None], "data")
        pieces = tuple([EventPiece(row["last_seq"], self._bodies.open(row["data"])) for row in rows[:limit]])
        return EventPage(found[0]["status"], pieces, more=cut or len(rows) > limit)

    async def queued(self, owner: str = "") -> tuple[tuple[QueuedJob, ...], int]:
        """Return the oldest 200 background responses that have not ended, and the total number of such responses. An
        empty `owner` selects the responses of all owners."""
        rows = await self._tables.fetch(_QUEUED, {"owner": owner})
        total = (await self._tables.fetch(_COUNT_QUEUED, {"owner": owner}))[0][0]
        jobs = [
            QueuedJob(
                row["response_id"],
                row["owner"],
                row["model"],
                row["status"],
                row["created_at"] / 1000,
                row["attempts"],
                row["worker"],
                _left(row["lease"], row["at"]),
            )
            for row in rows
        ]
        return tuple(jobs), total

    def _sealed(self, events: EventPiece | None) -> EventPiece | None:
        return None if events is None else self._sealed_piece(events)

    def _sealed_piece(self, events: EventPiece) -> EventPiece:
        return EventPiece(events.last, self._bodies.seal(events.data), count_events(events.data))


def end_parameters(
    status: str, body: bytes, items: Sequence[StoredItem], record: ResponseRecord | None
) -> dict[str, object]:
    """Return the parameters of `END_RESPONSE`. A response that ends early has no `record`, so it gets no completion
    time and no token usage."""
    size = sum(item.size for item in items)
    completed_at = record.completed_at if record is not None else None
    usage = record.usage if record is not None else None
    return {
        "status": status,
        "body": body,
        "completed_at": None if completed_at is None else milliseconds(completed_at),
        "input_tokens": usage.input_tokens if usage else None,
        "output_tokens": usage.output_tokens if usage else None,
        "weight": len(items),
        "bytes": size,
        "own_bytes": size + len(body),
    }


class PollingSignals:
    """Implements `Signals` for a database without notifications (SQLite). Each process polls the database. `pace` has
    the intervals between polls."""

    def __init__(self, tables: Tables, pace: Pace) -> None:
        self._tables = tables
        self.pace = pace

    async def look(self, followed: Collection[str], worker: str | None) -> Seen:
        """Read the progress of these streams, and the jobs that this worker holds."""
        return await read_progress(self._tables, followed, worker)

    def tell_queued(self) -> None:
        """Do nothing, because the other processes poll the queue."""

    def listen(self, hear: Callable[[News], None]) -> None:
        """Do nothing, because this database sends no notifications."""


async def read_progress(tables: Tables, followed: Collection[str], worker: str | None) -> Seen:
    """Read the progress of these streams and the jobs that this worker holds with one query. See `Signals.look`."""
    rows = await tables.fetch(LOOK, {"ids": sorted(followed), "worker": worker}, own=True)
    progress = {row["id"]: _progress(row) for row in rows if row["status"]}
    return Seen(progress, frozenset([row["id"] for row in rows if row["status"] is None]))


def _progress(row: Row) -> Progress:
    last = row["last_seq"]
    return Progress(row["status"], -1 if last is None else last)
